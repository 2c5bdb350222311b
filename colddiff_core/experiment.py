"""A configuration brought to life: operator, restorer and images, for training and for using a run."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import torch
from torch import Tensor

from colddiff_core import __version__, checkpoint, datasets, degradations, devices, sampling, seeds
from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.errors import UsageError
from colddiff_core.images import quantize
from colddiff_core.models import Restorer, UNet
from colddiff_core.presets import Config
from colddiff_core.runs import Run


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of one configuration on one device."""

    config: Config
    operator: Degradation
    restorer: Restorer
    channels: int
    device: torch.device

    def observe(self, x_t: Tensor) -> Tensor:
        """Return what the network gets to see of x_t: rounded to 8 bits where the preset says so."""
        return quantize(x_t, self.config.degradation.quantize)

    def degrade(self, x0: Tensor, t: int, seed: int, first: int = 0) -> tuple[Tensor, Frozen]:
        """Return (x_t, frozen) of test images numbered from `first`, each with its own generator."""
        frozen = self.operator.freeze(x0, generator=seeds.image_generators(seed, range(first, first + len(x0))))
        return self.observe(self.operator(x0, t, frozen)), frozen


def load_images(config: Config, split: datasets.base.Split, channels: int = 0) -> datasets.ImageSet:
    """Return a split of the configured data set; errors as the data set says."""
    directory = Path(config.data.directory) if config.data.directory else None
    request = datasets.Request(
        split, config.data.size, channels or config.data.channels, directory, config.data.download
    )
    return datasets.load(config.data.dataset, request)


def build(config: Config, channels: int, device: torch.device) -> Experiment:
    """Return the parts for images of `channels` channels, the network with fresh weights.

    The weights follow from train.seed. Raises UsageError for an operator, parameter or combination
    that cannot be, and for an image size that the network cannot take.
    """
    operator = degradations.build(config.degradation.name, **config.degradation.parameters)
    sampling.find(config.sample.sampler)
    model = config.model
    divisor = 2 ** (len(model.multipliers) - 1)
    if config.data.size % divisor:
        near = max(divisor, round(config.data.size / divisor) * divisor)
        raise UsageError(
            f"data.size = {config.data.size}: the network halves the side {len(model.multipliers) - 1} times.",
            f"Use a multiple of {divisor}, such as {near}.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        unet = UNet(
            channels * (2 if model.inputs == "inverse" else 1),
            channels,
            width=model.width,
            multipliers=model.multipliers,
            block=model.block,
            attention=model.attention,
            body_dtype=devices.body_dtype(config.train.precision, device),
        )
    # Convolutions are fastest with the channels innermost, on CPU and CUDA alike.
    unet = unet.to(device).to(memory_format=torch.channels_last)
    restorer = Restorer(unet, operator, inputs=model.inputs, floor=model.floor)
    return Experiment(config, operator, restorer, channels, device)


def versions() -> dict[str, str]:
    """Return the versions that a run's figures depend on."""
    return {"colddiff": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}


def open_run(run: Run, device: torch.device) -> tuple[Experiment, int]:
    """Return a run's experiment with the averaged weights of its newest checkpoint, and that step.

    Raises UsageError where the run has no checkpoint or its files are damaged.
    """
    path = run.newest_checkpoint()
    state = checkpoint.read_state(path)
    experiment = build(run.config(), int(state["channels"]), device)
    checkpoint.load_weights(path / "ema.safetensors", experiment.restorer.unet)
    experiment.restorer.eval()
    return experiment, int(state["step"])
