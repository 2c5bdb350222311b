"""A small classifier trained on the data at hand: what class an image is of, and features to measure distances by.

It needs no download. Distances between its features are named after the data set (`FD-digits`), never FID. Images
without labels get a task that needs none: by how many quarter turns one was turned (Gidaris et al. 2018).
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

from colddiff_core import seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.errors import MachineError
from colddiff_core.files import whole
from colddiff_core.tensor_files import write

FEATURES = 48  # below the number of test digits, so that a covariance of theirs has full rank
STEPS, BATCH, RATE = 1000, 128, 2e-3
MOST_PIXELS = 32  # of a side: larger images are scaled down, so that a classifier takes a minute, not an hour
SHIFT = 16  # training images are moved by up to side / SHIFT pixels
TURNS = 4
VERSION = 1  # of what a kept classifier is trained like


class Classifier(nn.Module):
    """Images (B, C, H, W) float32 in [-1, 1] -> features (B, FEATURES), and class scores (B, classes).

    accuracy: the share of held-out images it is right about, once trained.
    """

    accuracy: Tensor

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(channels, 32), _block(32, 64), _block(64, 128))
        self.squeeze = nn.Linear(128, FEATURES)
        self.head = nn.Linear(FEATURES, classes)
        self.register_buffer("accuracy", torch.zeros(()))

    def features(self, x: Tensor) -> Tensor:
        """Return (B, FEATURES) float32; pictures are clamped to their range first."""
        x = x.clamp(-1, 1)
        if max(x.shape[-2:]) > MOST_PIXELS:
            x = F.interpolate(x, size=[min(n, MOST_PIXELS) for n in x.shape[-2:]], mode="area")
        return F.silu(self.squeeze(self.body(x).mean((2, 3))))

    def forward(self, x: Tensor) -> Tensor:
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
    """The classifier's features as `distribution.Features`, named after its data set."""

    network: Classifier
    name: str
    task: str  # what it tells apart: "classes" or "quarter turns"
    size: int = FEATURES

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.network.features(images.to(self.network.accuracy.device)).float().cpu()

    def metadata(self) -> dict[str, Any]:
        accuracy = float(self.network.accuracy)
        return {"kind": "classifier", "of": self.task, "accuracy": accuracy, "sha256": self.network.digest()}


def turned(images: ImageSet) -> ImageSet:
    """Return image k of a set turned by k mod 4 quarter turns, which is its label."""
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
    """Return the classifier of a labeled data set, trained once and kept in `folder` with its accuracy.

    `accuracy` is the share of the test images it is right about. `progress` is told (step, steps) while it trains.
    Where it cannot be kept, it is trained anew every time.
    """
    assert train.labels is not None
    assert test.labels is not None
    classes = int(train.labels.max()) + 1
    network = Classifier(train.channels, classes)
    shape = "x".join(str(n) for n in train.pixels.shape[1:])
    path = folder / f"{name}-{shape}-{_digest(train)}.safetensors"
    if not _read(path, network):
        _train(network, train, device, progress)
        network.accuracy.fill_(_accuracy(network, test, device))
        with contextlib.suppress(MachineError), whole(path) as draft:  # it is of use without being kept
            write(network.cpu().state_dict(), draft)
    return network.to(device).eval()


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
    reach = max(1, train.pixels.shape[-1] // SHIFT)
    for step in range(STEPS):
        picked = torch.randint(len(train), (BATCH,), generator=numbers)
        down, right = (int(torch.randint(-reach, reach + 1, (), generator=numbers)) for _ in range(2))
        x = train.images(picked).to(device).roll((down, right), (-2, -1))
        loss = F.cross_entropy(network(x), train.labels[picked].to(device), label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
        progress(step + 1, STEPS)


@torch.no_grad()
def _accuracy(network: Classifier, test: ImageSet, device: torch.device) -> float:
    assert test.labels is not None
    network.eval()
    right = 0
    for first in range(0, len(test), BATCH):
        part = slice(first, first + BATCH)
        right += int((network(test.images(part).to(device)).argmax(1).cpu() == test.labels[part]).sum())
    return right / len(test)


def _digest(train: ImageSet) -> str:
    """Return a short name of these images and labels and of how a classifier is trained on them."""
    assert train.labels is not None
    digest = hashlib.blake2b(f"{VERSION} {STEPS} {FEATURES}".encode(), digest_size=6)
    for tensor in (train.pixels, train.labels):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, network: Classifier) -> bool:
    """Fill a network from a kept file; False where there is none that fits."""
    try:
        network.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (OSError, safetensors.SafetensorError, RuntimeError):
        return False
    return True
