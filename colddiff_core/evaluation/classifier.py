"""A small classifier trained on the data set itself, for class predictions and for features to measure distances on.

It needs no download. Distances on its features are named after the data set (`FD-digits`), never FID. Without labels it
learns to predict by how many quarter turns an image was rotated (Gidaris et al. 2018).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colddiff_core import devices, seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.errors import MachineError
from colddiff_core.files import read_ordinary, whole
from colddiff_core.runs import pretrained
from colddiff_core.tensor_files import write

FEATURES = 48  # fewer than there are test digits, so that their covariance has full rank
STEPS, BATCH, RATE = 1000, 128, 2e-3
MAX_SIDE_PIXELS = 32  # larger images are scaled down, so that training takes a minute, not an hour
SIDES_PER_SHIFT = 16  # augmentation shifts images by up to side / 16 pixels
TURNS = 4
PUBLISHED = "classifiers"  # the folder of the bundled ones, beside the pretrained runs
VERSION = 1  # of the training; a cached classifier of another version is not used


class Classifier(nn.Module):
    """A convolutional classifier; `accuracy` is its share of correct test images, once trained.

    Images are (B, C, H, W) float32 in [-1, 1].
    """

    accuracy: Tensor

    def __init__(self, channels: int, classes: int) -> None:
        """Build an untrained network."""
        super().__init__()
        self.body = nn.Sequential(_block(channels, 32), _block(32, 64), _block(64, 128))
        self.squeeze = nn.Linear(128, FEATURES)
        self.head = nn.Linear(FEATURES, classes)
        self.register_buffer("accuracy", torch.zeros(()))

    def features(self, x: Tensor) -> Tensor:
        """Return features (B, FEATURES) float32; images are clamped to their range first."""
        x = x.clamp(-1, 1)
        if max(x.shape[-2:]) > MAX_SIDE_PIXELS:
            x = F.interpolate(x, size=[min(n, MAX_SIDE_PIXELS) for n in x.shape[-2:]], mode="area")
        return F.silu(self.squeeze(self.body(x).mean((2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores (B, classes) float32."""
        return self.head(self.features(x))

    def digest(self) -> str:
        """Return the SHA-256 of the weights, in hexadecimal."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _block(channels_in: int, channels_out: int) -> nn.Module:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(8, channels_out), nn.SiLU(), nn.AvgPool2d(2, ceil_mode=True))


@dataclasses.dataclass(frozen=True)
class ClassifierFeatures:
    """The classifier's features as `distances.Features`, named after its data set."""

    network: Classifier
    name: str
    task: str  # "classes" or "quarter turns"
    size: int = FEATURES

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, FEATURES) float32 on the CPU for images (B, C, H, W) float32 in [-1, 1]."""
        return self.network.features(images.to(self.network.accuracy.device)).float().cpu()

    def metadata(self) -> dict[str, Any]:
        """Return what to record beside a result: task, accuracy and SHA-256 of the weights."""
        accuracy = float(self.network.accuracy)
        return {"kind": "classifier", "of": self.task, "accuracy": accuracy, "sha256": self.network.digest()}


def turned(images: ImageSet) -> ImageSet:
    """Rotate image k of a set by k mod 4 quarter turns, which becomes its label."""
    pixels = images.pixels.clone()
    for turns in range(TURNS):
        pixels[turns::TURNS] = pixels[turns::TURNS].rot90(turns, (2, 3))
    labels = torch.arange(len(pixels), device=pixels.device) % TURNS
    return ImageSet(pixels, labels, tuple(f"{90 * turns} degrees" for turns in range(TURNS)))


def load_or_train(
    train: ImageSet,
    test: ImageSet,
    folder: Path,
    name: str,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> Classifier:
    """Return the classifier of a labeled data set, on `device`: a bundled one, a cached one, or a new one.

    A new one is cached in `folder`, or if that cannot be written, trained every time. `progress` gets (step, steps)
    during training.

    Raises:
        UsageError: The bundled one is damaged.
    """
    assert train.labels is not None
    assert test.labels is not None
    classes = int(train.labels.max()) + 1
    network = Classifier(train.channels, classes)
    shape = "x".join(str(n) for n in train.pixels.shape[1:])
    path = folder / f"{name}-{shape}-{_digest(train)}.safetensors"
    published = pretrained.directory() / PUBLISHED / path.name
    if published.is_file():
        pretrained.verify_file(published)
    if not _read(published, network) and not _read(path, network):
        _train(network, train, device, progress)
        network.accuracy.fill_(_accuracy(network, test, device))
        with contextlib.suppress(MachineError), whole(path) as draft:  # usable even if it cannot be cached
            write(network.cpu().state_dict(), draft)
    return network.to(device).eval()


@torch.enable_grad()
def _train(network: Classifier, train: ImageSet, device: torch.device, progress: Callable[[int, int], None]) -> None:
    assert train.labels is not None
    numbers = seeds.generator("classifier", VERSION)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(VERSION)
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.reset_parameters()
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    reach = max(1, min(train.pixels.shape[-2:]) // SIDES_PER_SHIFT)
    for step in range(STEPS):
        picked = torch.randint(len(train), (BATCH,), generator=numbers)
        down, right = (int(torch.randint(-reach, reach + 1, (), generator=numbers)) for _ in range(2))
        x = train.images(picked, device).roll((down, right), (-2, -1))
        loss = F.cross_entropy(network(x), devices.upload(train.labels[picked], device), label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
        progress(step + 1, STEPS)


@torch.no_grad()
def _accuracy(network: Classifier, test: ImageSet, device: torch.device) -> float:
    assert test.labels is not None
    network.eval()
    correct = 0
    for first in range(0, len(test), BATCH):
        batch = slice(first, first + BATCH)
        correct += int((network(test.images(batch, device)).argmax(1).cpu() == test.labels[batch]).sum())
    return correct / len(test)


def _digest(train: ImageSet) -> str:
    """Return a short hash of the images, the labels and the training settings."""
    assert train.labels is not None
    digest = hashlib.blake2b(f"{VERSION} {STEPS} {FEATURES}".encode(), digest_size=6)
    for tensor in (train.pixels, train.labels):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, network: Classifier) -> bool:
    """Load a cached network; return False if there is none that fits."""
    try:
        network.load_state_dict(safetensors.torch.load(read_ordinary(path)))
    except (OSError, safetensors.SafetensorError, RuntimeError):
        return False
    return True
