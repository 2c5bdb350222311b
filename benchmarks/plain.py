"""The baseline of benchmarks/speed.py: training and sampling as research scripts usually write them.

float32, eager, channels first, D(x, t) by the chain of its t steps, one image decoded at a time. Nothing of
colddiff_core is imported, so that improvements there do not change the baseline.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from literal import gaussian
from plain_unet import PlainUNet

Transform = Callable[[Image.Image], Tensor]


class PlainBlur:
    """D(x, t) as t convolutions in turn, with kernels that are built once and kept on the device.

    `degradation` has the keys of a preset's table.
    """

    def __init__(self, degradation: Mapping[str, Any], channels: int, device: torch.device) -> None:
        self.steps = degradation["steps"]
        self.padding = degradation.get("padding", "circular")
        self.final_mean = degradation.get("final_mean", False)
        self.half = degradation["kernel_size"] // 2
        std, growth = degradation["std"], degradation.get("growth", 0.01)
        widths = {
            "constant": lambda i: std,
            "linear": lambda i: std + growth * i,
            "exponential": lambda i: std * math.exp(growth * i),
        }[degradation["schedule"]]
        self.kernels = [
            gaussian(widths(i), degradation["kernel_size"], torch.float32, device).repeat(channels, 1, 1, 1)
            for i in range(self.steps)
        ]

    def chain(self, x0: Tensor, t: int) -> Iterator[Tensor]:
        """Yield D(x0, 0), D(x0, 1), ... D(x0, t)."""
        x = x0
        yield x
        for kernel in self.kernels[:t]:
            x = F.conv2d(F.pad(x, [self.half] * 4, mode=self.padding), kernel, groups=x.shape[1])
            yield x

    def __call__(self, x0: Tensor, t: int) -> Tensor:
        for x in self.chain(x0, t):
            last = x
        if self.final_mean and t == self.steps:
            last = last.mean((2, 3), keepdim=True).expand_as(last)
        return last

    def mixed(self, x0: Tensor, t: Tensor) -> Tensor:
        """Return D(x0, t) for t (B,), one per image: take every step up to the largest t, then select."""
        steps = torch.stack(list(self.chain(x0, int(t.max()))))
        if self.final_mean and int(t.max()) == self.steps:
            steps[-1] = steps[-1].mean((2, 3), keepdim=True)
        return torch.stack([steps[int(time), number] for number, time in enumerate(t)])


class Pictures:
    """The images of MNIST or of the built-in digits, one at a time, with torchvision's transforms."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.transform = transform(data["size"], data["flip"])
        self.mode = "RGB" if data["channels"] == 3 else "L"
        if data["dataset"] == "mnist":
            from torchvision.datasets import MNIST

            self.source: Any = MNIST(data["directory"], train=True, download=False)
        elif data["dataset"] == "digits":
            from sklearn.datasets import load_digits

            scans = (load_digits().images / 16 * 255).round().astype(np.uint8)
            self.source = [(Image.fromarray(scan), 0) for scan in scans]
        else:
            raise ValueError(f"the plain baseline reads mnist and digits, not {data['dataset']}")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.source[index][0].convert(self.mode))


def transform(size: int, flip: bool) -> Transform:
    """Return the usual transform from an image to a tensor (C, H, W) float32 in [-1, 1]."""
    from torchvision import transforms

    steps = [transforms.Resize(size), transforms.CenterCrop(size)]
    steps += [transforms.RandomHorizontalFlip()] if flip else []
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Lambda(lambda x: x * 2 - 1)])


def batches(pictures: Pictures, size: int) -> Iterator[Tensor]:
    """Yield batches (B, C, H, W) forever, reshuffled every epoch; an incomplete last batch is dropped."""
    order = list(range(len(pictures)))
    while True:
        random.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            yield torch.stack([pictures[index] for index in order[start : start + size]])


def decode_folder(paths: Sequence[Path], size: int, batch: int) -> Iterator[Tensor]:
    """Yield one epoch of image files in batches, decoding each file."""
    prepare = transform(size, False)
    for start in range(0, len(paths), batch):
        opened = (Image.open(path, formats=("PNG", "JPEG")).convert("RGB") for path in paths[start : start + batch])
        yield torch.stack([prepare(image) for image in opened])


def train(settings: Mapping[str, Any], device: torch.device) -> Iterator[float]:
    """Train by a preset's table (L1, Adam, averaged weights) and yield the loss of each optimizer step.

    The network sees only x_t. `model.inputs` and `model.consistent` are ignored; they make colddiff's side slower.
    """
    data, training = settings["data"], settings["train"]
    feed = batches(Pictures(data), training["batch_size"])
    channels = next(feed).shape[1]
    network = PlainUNet(channels, channels, settings["model"]).to(device)
    average = copy.deepcopy(network)
    blur = PlainBlur(settings["degradation"], channels, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=training["lr"])
    for step in itertools.count(1):
        total = 0.0
        for _ in range(training["accumulate"]):
            x0 = next(feed).to(device)
            t = torch.randint(1, blur.steps + 1, (len(x0),), device=device)
            x_t = blur.mixed(x0, t)
            loss = (x0 - network(x_t, t)).abs().mean()
            (loss / training["accumulate"]).backward()
            total += loss.item()
        if training["clip"]:
            torch.nn.utils.clip_grad_norm_(network.parameters(), training["clip"])
        optimizer.step()
        optimizer.zero_grad()
        if step % training["ema_every"] == 0:
            decay = training["ema_decay"]
            for averaged, current in zip(average.parameters(), network.parameters(), strict=True):
                averaged.data = averaged.data * decay + current.data * (1 - decay)
        yield total / training["accumulate"]


@torch.no_grad()
def sample(network: nn.Module, blur: PlainBlur, x: Tensor, t: int, sampler: str, stride: int) -> Tensor:
    """Return x_0, sampled from x_t."""
    for x_r in sample_steps(network, blur, x, t, sampler, stride):
        x = x_r
    return x


def sample_steps(network: nn.Module, blur: PlainBlur, x: Tensor, t: int, sampler: str, stride: int) -> Iterator[Tensor]:
    """Yield each x_r: Algorithms 1 (naive) and 2 (tacos) of Bansal et al. 2022, or R(x_t, t) alone (direct)."""
    for s in range(t, 0, -stride):
        r = max(s - stride, 0)
        x0_hat = network(x, torch.full((len(x),), s, device=x.device))
        if sampler == "direct":
            yield x0_hat
            return
        x = blur(x0_hat, r) if sampler == "naive" else x - blur(x0_hat, s) + blur(x0_hat, r)
        yield x


def main() -> None:
    """Train by the preset's table in argv[1] (JSON) on the device argv[2], and print every loss."""
    device = torch.device(sys.argv[2])
    for loss in train(json.loads(sys.argv[1]), device):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        print(loss, flush=True)


if __name__ == "__main__":
    main()
