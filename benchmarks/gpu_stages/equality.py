"""Stage `equal`: operators, samplers, priors and networks on the device against the CPU."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from colddiff_core import degradations, devices, sampling, seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.models import UNet, stem
from colddiff_core.sampling import fitting, priors
from gpu_stages.bench import GpuBench, Result, apart

SMALL, LARGE = (4, 3, 32, 32), (2, 3, 128, 128)
OPERATORS: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    ("blur", {"steps": 20, "schedule": "constant", "std": 7.0, "kernel_size": 11}, (4, 1, 32, 32)),
    ("mask", {}, SMALL),
    ("noise", {}, SMALL),
    ("blur", {"steps": 20, "final_mean": True}, SMALL),
    ("blur", {"kernel_size": 27}, LARGE),
    ("blur", {"steps": 20, "padding": "reflect", "spectrum": "natural"}, (1, 3, 300, 200)),
    ("blur", {"steps": 100}, (1, 3, 700, 1100)),
    ("mask", {"fill": "color", "steps": 200}, LARGE),
    ("mask", {"steps": 500, "std": 3.0}, (2, 3, 96, 96)),
    ("pixelate", {"steps": 3}, (1, 3, 256, 320)),
    ("snow", {"brighten": True, "level": 4}, (2, 3, 300, 300)),
    ("holes", {}, (4, 3, 64, 64)),
    ("blur+noise", {"steps": 20}, SMALL),
    ("pixelate+desaturate", {}, SMALL),
    ("blur+snow", {"steps": 20}, SMALL),
)
QUICK_OPERATORS = 3
MOST_SHARE = 2e-3  # of pixels that differ: at a hole's rim or a flake's threshold rounding flips some
SAMPLED_SIDE_PIXELS, SAMPLED_STEPS = 128, 300  # up to these, samplers are compared too
MOST_STEPS = 100  # of a sampler
NETWORKS: tuple[tuple[str, int, tuple[int, ...], dict[str, Any]], ...] = (
    ("convnext, the paper's", 1, (4, 32), {}),
    ("resnet", 3, (4, 32), {"width": 32, "multipliers": (1, 2, 4), "block": "resnet", "attention": "middle"}),
    ("local", 3, (2, 64), {"width": 32, "multipliers": (1, 2, 4), "block": "local", "attention": "none"}),
)
NARROW = {"width": 8, "multipliers": (1, 2)}
# Relative L2 distance of a network's outputs; gradients may differ by three times as much.
MOST_APART = {torch.float32: 1e-3, torch.bfloat16: 0.1}
STEMS_APART = {"float32": 1e-5, "tf32": 1e-3, "split": 4e-3}  # likewise: tf32 has ten bits, split rounds to bfloat16
PRIORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("blur", {"steps": 10}),
    ("pixelate", {"steps": 2}),
    ("mask", {"fill": "color", "steps": 10}),
    ("noise", {"steps": 10}),
)


def run(bench: GpuBench) -> None:
    devices.choose(bench.device)
    for name, channels, (count, size), kind in NETWORKS:
        x = torch.rand(count, channels, size, size, generator=seeds.generator(0)) * 2 - 1
        narrowed = kind | NARROW if bench.is_quick else kind
        bench.attempt("equal", f"network {name}", lambda n=name, x=x, k=narrowed: networks(bench, n, x, k))
    for precision in STEMS_APART:
        bench.attempt("equal", f"stem {precision}", lambda p=precision: stems(bench, p))
    for name, values in PRIORS:
        for prior in degradations.build(name, **values).priors:
            bench.attempt("equal", f"prior {name} {prior}", lambda n=name, v=values, p=prior: starts(bench, n, v, p))
    for name, values, shape in cases(bench):
        label = " ".join([name, *(f"{key}={value}" for key, value in values.items()), f"{shape[-1]}x{shape[-2]}"])
        op = degradations.build(name, **values)
        bench.attempt("equal", label, lambda op=op, shape=shape: operators(bench, op, shape))
        if max(shape[-2:]) <= SAMPLED_SIDE_PIXELS and op.steps <= SAMPLED_STEPS:
            for sampler in sampling.names(op):
                bench.attempt(
                    "equal", f"{label} {sampler}", lambda op=op, shape=shape, s=sampler: samplers(bench, op, shape, s)
                )


def cases(bench: GpuBench) -> list[tuple[str, dict[str, Any], tuple[int, ...]]]:
    """Return the cases above, and every other operator with its defaults."""
    if bench.is_quick:
        return list(OPERATORS[:QUICK_OPERATORS])
    others = sorted(set(degradations.names()) - {name for name, _, _ in OPERATORS})
    return [*OPERATORS, *((name, {}, SMALL) for name in others)]


def frozen_pair(op: Degradation, x: Tensor, there: Tensor) -> tuple[Frozen, Frozen]:
    """Return the frozen randomness of images on the CPU, and of the same images on the device."""
    fields = {op.second_field: x.flip(-1)} if op.second_field else {}
    one, other = (op.freeze(y, generator=seeds.image_generators(0, range(len(x))), **fields) for y in (x, there))
    return one, other


def fields_apart(one: Frozen, other: Frozen) -> Result:
    """Return the difference of the random field that differs most."""
    names = [field.name for field in dataclasses.fields(one)]
    found = [apart(getattr(one, name).float(), getattr(other, name).float()) for name in names]
    return max(found, key=lambda result: result["most"], default={"most": 0.0, "share": 0.0, "finite": True})


def operators(bench: GpuBench, op: Degradation, shape: tuple[int, ...]) -> Result:
    """Compare D at one severity and at several, both terms of a TACoS step, the inverse and the re-estimate."""
    x = torch.rand(shape, generator=seeds.generator(0)) * 2 - 1
    there = x.to(bench.device)
    frozen, moved = frozen_pair(op, x, there)
    found = {"freeze": fields_apart(frozen, moved)}
    several = torch.randint(1, op.steps + 1, (len(x),), generator=seeds.generator(1))
    for key, t in (("several", several), ("T", op.steps), ("half", max(1, op.steps // 2))):
        t_there = t.to(bench.device) if isinstance(t, Tensor) else t
        x_t = op(x, t, frozen)
        found[f"D {key}"] = apart(x_t, op(there, t_there, moved))
        degraded = x_t.to(bench.device)  # the same pixels, so that the inverse alone is compared
        if op.has_inverse:
            found[f"inverse {key}"] = apart(op.invert(x_t, t, frozen, 1e-2), op.invert(degraded, t_there, moved, 1e-2))
        if op.has_reestimate:
            again = op.reestimate(x_t, x * 0.9, t, frozen), op.reestimate(degraded, there * 0.9, t_there, moved)
            found[f"solved {key}"] = fields_apart(*again)
    at = op.steps, max(1, op.steps - 1)
    for part, (a, b) in enumerate(zip(op.pair(x, *at, frozen), op.pair(there, *at, moved), strict=True)):
        found[f"pair {part}"] = apart(a, b)
    bad = {key: value for key, value in found.items() if value["share"] > MOST_SHARE or not value["finite"]}
    return {"ok": not bad, "bad": bad} | {key: max(v[key] for v in found.values()) for key in ("most", "share")}


def samplers(bench: GpuBench, op: Degradation, shape: tuple[int, ...], sampler: str) -> Result:
    """Compare the final images of a sampler that starts from an 8-bit x_T, with a linear restorer."""
    x = torch.rand(shape, generator=seeds.generator(0)) * 2 - 1
    there = x.to(bench.device)
    ends = []
    for images, frozen in zip((x, there), frozen_pair(op, x, there), strict=True):
        degraded = sampling.DegradedImages(op(images, op.steps, frozen), op.steps, frozen)
        stride = max(1, op.steps // (10 if bench.is_quick else MOST_STEPS))
        steps = sampling.sample(mixing, op, degraded, sampling.Sampling(sampler, stride, bits=8))
        ends.append(sampling.final(steps))
    found = apart(ends[0], ends[1])
    return {"ok": found["share"] < 5 * MOST_SHARE and found["finite"]} | found


def mixing(x_t: Tensor, t: int, frozen: Frozen) -> Tensor:
    """A stand-in for a restorer: equal on every device up to rounding."""
    return 0.7 * x_t + 0.1 * x_t.roll(1, -1)


def starts(bench: GpuBench, name: str, values: dict[str, Any], kind: str) -> Result:
    """Draw the start of generation and compare it, and D of it, on the CPU and on the device."""
    op = degradations.build(name, **values)
    pixels = torch.randint(0, 256, (200, 3, 16, 16), generator=seeds.generator(0)).to(torch.uint8)
    source = priors.PriorSource(
        op, (3, 16, 16), lambda: ImageSet(pixels), lambda x, g: op.freeze(x, generator=g), lambda x, g: x
    )
    prior = priors.find(kind, op)
    with TemporaryDirectory() as folder:
        weights = fitting.load_or_fit(prior, source, Path(folder), None)
    start = priors.draw(prior, source, weights, seeds.image_generators(0, range(4), "prior"), prior.noise or 0.0)
    there = start.to(torch.device(bench.device))
    found = apart(start.x, there.x)
    drawn = apart(op(start.x, op.steps, start.frozen), op(there.x, op.steps, there.frozen))
    return {"ok": found["most"] < 1e-6 and drawn["share"] <= MOST_SHARE} | found


def networks(bench: GpuBench, name: str, x: Tensor, kind: dict[str, Any]) -> None:
    """Record how far outputs and gradients are from the CPU's in float32."""
    torch.manual_seed(0)
    network = UNet(x.shape[1], x.shape[1], **kind)
    torch.nn.init.normal_(network.head.weight, std=0.1)  # it starts at zero for local blocks, with nothing to compare
    expected = outputs(network, x, "cpu", torch.float32)
    for dtype, most in MOST_APART.items():
        found = outputs(network, x, bench.device, dtype)
        output, gradient = (float((b - a).norm() / a.norm()) for a, b in zip(expected, found, strict=True))
        label = f"network {name}, {str(dtype).removeprefix('torch.')}"
        is_ok = output < most and gradient < 3 * most
        bench.record("equal", label, ok=is_ok, most=output, output=output, gradient=gradient)


def stems(bench: GpuBench, precision: str) -> Result:
    """Compare a stem's convolution, and the gradient of its weights, in a precision of `model.stem`."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(128, 64, 3, padding=1), torch.rand(4, 128, 32, 32) * 2 - 1
    seen = []
    for device, kind in (("cpu", "float32"), (bench.device, precision)):
        moved = copy.deepcopy(layer).to(device)
        y = stem.convolve(moved, x.to(device), kind)
        y.square().mean().backward()
        assert moved.weight.grad is not None
        seen.append((y.detach().cpu(), moved.weight.grad.cpu()))
    output, gradient = (float((b - a).norm() / a.norm()) for a, b in zip(*seen, strict=True))
    most = STEMS_APART[precision]
    return {"ok": output < most and gradient < 3 * most, "most": output, "gradient": gradient}


def outputs(network: UNet, x: Tensor, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the outputs of a copy of a network on a device, and its gradients as one vector, on the CPU."""
    moved = copy.deepcopy(network).to(device).lay_out(max(x.shape[-2:]))
    moved.body_dtype = dtype
    there = x.to(device)
    y = moved(there, torch.arange(1, 1 + len(x), device=device))
    (y * there).mean().backward()
    gradients = [weight.grad.flatten().cpu().float() for weight in moved.parameters() if weight.grad is not None]
    return y.detach().cpu(), torch.cat(gradients)
