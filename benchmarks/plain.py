"""The field's habit written out: the baseline that benchmarks/speed.py measures against.

float32, eager, channels first, D(x, t) by the chain of its t steps, one image decoded at a time. Nothing of
colddiff_core is imported, so that what is made faster there leaves the baseline as it is. `PlainUNet` has the
parameter names of `colddiff_core.models.UNet` and takes its state_dict.
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

Transform = Callable[[Image.Image], Tensor]


class PlainTime(nn.Module):
    """The sinusoidal embedding of t and its perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.half = width // 2
        self.mlp = nn.Sequential(nn.Linear(2 * self.half, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        decay = math.log(10_000) / max(self.half - 1, 1)
        frequencies = torch.exp(torch.arange(self.half, device=t.device) * -decay)
        angles = t[:, None].float() * frequencies[None, :]
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


class PlainNorm(nn.Module):
    """Layer normalization over the channels of (B, C, H, W): mean and variance written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=1, keepdim=True)
        variance = x.var(dim=1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


class PlainConvNext(nn.Module):
    """7x7 depthwise convolution, norm, two 3x3 convolutions about a GELU, a skip."""

    def __init__(self, channels_in: int, channels_out: int, width_t: int) -> None:
        super().__init__()
        self.time = nn.Linear(width_t, channels_in)
        self.spatial = nn.Conv2d(channels_in, channels_in, 7, padding=3, groups=channels_in)
        self.norm = PlainNorm(channels_in) if channels_in > 3 else nn.Identity()
        self.expand = nn.Conv2d(channels_in, 2 * channels_out, 3, padding=1)
        self.project = nn.Conv2d(2 * channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.spatial(x)
        h = h + self.time(F.gelu(embedding))[:, :, None, None]
        h = self.expand(self.norm(h))
        h = self.project(F.gelu(h))
        return h + self.skip(x)


class PlainResnet(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, and a skip."""

    def __init__(self, channels_in: int, channels_out: int, width_t: int) -> None:
        super().__init__()
        self.time = nn.Linear(width_t, channels_out)
        self.norm1 = nn.GroupNorm(math.gcd(channels_in, 8), channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(math.gcd(channels_out, 8), channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.skip(x)


class PlainStem(nn.Module):
    """The 3x3 convolution before resnet blocks."""

    def __init__(self, channels_in: int, channels_out: int, width_t: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x)


class PlainAttention(nn.Module):
    """Linear attention of four heads of 32 on (B, heads, d, HW), added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = PlainNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * 128, 1, bias=False)
        self.to_out = nn.Conv2d(128, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        parts = self.to_qkv(self.norm(x)).chunk(3, dim=1)
        q, k, v = (part.reshape(batch, 4, 32, height * width) for part in parts)
        q = q.softmax(dim=-2) * 32**-0.5
        k = k.softmax(dim=-1)
        v = v / (height * width)
        context = torch.einsum("bhdn,bhen->bhde", k, v)
        out = torch.einsum("bhde,bhdn->bhen", context, q)
        return x + self.to_out(out.reshape(batch, 128, height, width))


BLOCKS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "convnext": (PlainConvNext, PlainConvNext),
    "resnet": (PlainResnet, PlainStem),
}


class PlainLevel(nn.Module):
    """The blocks and the attention of one resolution."""

    def __init__(self, make: type[nn.Module], sides: Sequence[int], width_t: int, attention: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make(a, b, width_t) for a, b in itertools.pairwise(sides))
        self.attention = PlainAttention(sides[-1]) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, embedding)
        return self.attention(h)


class PlainMiddle(nn.Module):
    """A block, attention and a block at the coarsest resolution."""

    def __init__(self, make: type[nn.Module], channels: int, width_t: int, attention: bool) -> None:
        super().__init__()
        self.before = make(channels, channels, width_t)
        self.attention = PlainAttention(channels) if attention else nn.Identity()
        self.after = make(channels, channels, width_t)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.after(self.attention(self.before(h, embedding)), embedding)


class PlainUNet(nn.Module):
    """The restorer's U-Net: (B, C_in, H, W) float32, t (B,) int64 -> (B, C_out, H, W) float32.

    `model` holds the keys width, multipliers, block and attention of a preset.
    """

    def __init__(self, channels_in: int, channels_out: int, model: Mapping[str, Any]) -> None:
        super().__init__()
        width = model["width"]
        widths = [width * multiplier for multiplier in model["multipliers"]]
        make, stem = BLOCKS[model["block"]]
        everywhere, middle = model["attention"] == "all", model["attention"] != "none"
        pairs = list(itertools.pairwise(widths))[::-1]
        self.time = PlainTime(width)
        self.stem = stem(channels_in, widths[0], width)
        self.down = nn.ModuleList([PlainLevel(make, [widths[0]] * 2, width, everywhere)])
        self.down.extend(PlainLevel(make, [a, b, b], width, everywhere) for a, b in itertools.pairwise(widths))
        self.shrink = nn.ModuleList(nn.Conv2d(w, w, 4, stride=2, padding=1) for w in widths[:-1])
        self.middle = PlainMiddle(make, widths[-1], width, middle)
        self.up = nn.ModuleList(PlainLevel(make, [2 * b, a, a], width, everywhere) for a, b in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, a, 4, stride=2, padding=1) for a, _ in pairs)
        self.head_block = make(widths[0], widths[0], width)
        self.head = nn.Conv2d(widths[0], channels_out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time(t)
        h = self.stem(x, embedding)
        passed = []
        for index, level in enumerate(self.down):
            h = level(h, embedding)
            passed.append(h)
            if index < len(self.shrink):
                h = self.shrink[index](h)
        h = self.middle(h, embedding)
        for level, grow in zip(self.up, self.grow, strict=True):
            h = torch.cat([h, passed.pop()], dim=1)
            h = grow(level(h, embedding))
        return self.head(self.head_block(h, embedding))


class PlainBlur:
    """D(x, t) as t convolutions in turn, the kernels made once and kept on the device.

    `degradation` holds the keys of a preset's table.
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
        """Return D(x0, t) with a t of its own for each image: every step up to the largest, then each image's own."""
        steps = torch.stack(list(self.chain(x0, int(t.max()))))
        if self.final_mean and int(t.max()) == self.steps:
            steps[-1] = steps[-1].mean((2, 3), keepdim=True)
        return torch.stack([steps[int(time), number] for number, time in enumerate(t)])


class Pictures:
    """The images of MNIST or of the built-in digits, one at a time, through torchvision's transforms."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.transform = transform(data["size"], data["flip"])
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
        return self.transform(self.source[index][0])


def transform(size: int, flip: bool) -> Transform:
    """Return the transforms that research scripts put before a network: a tensor (C, H, W) in [-1, 1]."""
    from torchvision import transforms

    steps = [transforms.Resize(size), transforms.CenterCrop(size)]
    steps += [transforms.RandomHorizontalFlip()] if flip else []
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Lambda(lambda x: x * 2 - 1)])


def batches(pictures: Pictures, size: int) -> Iterator[Tensor]:
    """Yield (B, C, H, W) batches for ever, in a new order every epoch; what is left at its end is dropped."""
    order = list(range(len(pictures)))
    while True:
        random.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            yield torch.stack([pictures[index] for index in order[start : start + size]])


def decode_folder(paths: Sequence[Path], size: int, batch: int) -> Iterator[Tensor]:
    """Yield an epoch over image files in batches, each file opened and decoded."""
    through = transform(size, False)
    for start in range(0, len(paths), batch):
        opened = (Image.open(path).convert("RGB") for path in paths[start : start + batch])
        yield torch.stack([through(image) for image in opened])


def train(settings: Mapping[str, Any], device: torch.device) -> Iterator[float]:
    """Train by a preset's table and yield the loss of each optimizer step: L1, Adam, an average of the weights.

    The network sees x_t alone: `model.inputs` and `model.consistent` are ours, and cost us more.
    """
    data, training = settings["data"], settings["train"]
    feed = batches(Pictures(data), training["batch_size"])
    channels = next(feed).shape[1]
    network = PlainUNet(channels, channels, settings["model"]).to(device)
    average = copy.deepcopy(network)
    blur = PlainBlur(settings["degradation"], channels, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=training["lr"])
    for step in itertools.count(1):
        told = 0.0
        for _ in range(training["accumulate"]):
            x0 = next(feed).to(device)
            t = torch.randint(1, blur.steps + 1, (len(x0),), device=device)
            x_t = blur.mixed(x0, t)
            loss = (x0 - network(x_t, t)).abs().mean()
            (loss / training["accumulate"]).backward()
            told += loss.item()
        if training["clip"]:
            torch.nn.utils.clip_grad_norm_(network.parameters(), training["clip"])
        optimizer.step()
        optimizer.zero_grad()
        if step % training["ema_every"] == 0:
            decay = training["ema_decay"]
            for kept, now in zip(average.parameters(), network.parameters(), strict=True):
                kept.data = kept.data * decay + now.data * (1 - decay)
        yield told / training["accumulate"]


@torch.no_grad()
def sample(network: nn.Module, blur: PlainBlur, x: Tensor, t: int, sampler: str, stride: int) -> Tensor:
    """Take x_t back to x_0."""
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
    """Train by the preset's table in argv[1] on the device argv[2], and print every loss."""
    device = torch.device(sys.argv[2])
    for loss in train(json.loads(sys.argv[1]), device):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        print(loss, flush=True)


if __name__ == "__main__":
    main()
