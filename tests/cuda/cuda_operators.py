"""Use operators and samplers on the null CUDA runtime; counts start at the second use, as the first copies tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import calls
import torch
from torch import Tensor

from colddiff_core import degradations, devices, sampling, seeds
from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.sampling import DegradedImages, Sampling

if TYPE_CHECKING:
    from colddiff_core.degradations.draws import Generators

CUDA = torch.device("cuda")
FLOOR = 1e-2
MOST_STEPS = 5  # of a sampler
Setting = tuple[str, dict[str, Any], tuple[int, int, int, int]]
# By a short name: an operator, its parameters and the shape of the images.
SETTINGS: dict[str, Setting] = {
    "blur": ("blur", {"steps": 20}, (4, 3, 32, 32)),
    "blur-mean": ("blur", {"steps": 20, "final_mean": True}, (4, 3, 32, 32)),
    "blur-128": ("blur", {"steps": 300, "kernel_size": 27, "std": 1.0, "growth": 0.01}, (4, 3, 128, 128)),
    "blur-natural": ("blur", {"steps": 20, "padding": "reflect", "spectrum": "natural"}, (2, 3, 300, 200)),
    "blur-photograph": ("blur", {"steps": 100}, (1, 3, 700, 1100)),
    "mask": ("mask", {}, (4, 3, 32, 32)),
    "mask-color": ("mask", {"fill": "color", "steps": 200}, (4, 3, 128, 128)),
    "mask-wide": ("mask", {"steps": 400, "std": 3.0, "growth": 0.1}, (2, 3, 256, 256)),
    "pixelate": ("pixelate", {}, (4, 3, 32, 32)),
    "pixelate-photograph": ("pixelate", {"steps": 3}, (1, 3, 256, 320)),
    "snow": ("snow", {}, (4, 3, 32, 32)),
    "snow-photograph": ("snow", {"brighten": True, "level": 4}, (2, 3, 300, 300)),
    "desaturate": ("desaturate", {}, (4, 3, 32, 32)),
    "holes": ("holes", {}, (4, 3, 64, 64)),
    "noise": ("noise", {}, (4, 3, 32, 32)),
    "animorph": ("animorph", {}, (4, 3, 32, 32)),
    "blur+noise": ("blur+noise", {"steps": 20}, (4, 3, 32, 32)),
    "pixelate+desaturate": ("pixelate+desaturate", {}, (4, 3, 32, 32)),
    "blur+snow": ("blur+snow", {"steps": 20}, (4, 3, 32, 32)),
}


def operator(setting: str) -> dict[str, Any]:
    """Count the second use of an operator's methods, with severities per image and as integers."""
    op, x0 = _built(setting)
    _use(op, x0)
    with calls.watched() as seen:
        _use(op, x0)
    return seen.summary()


def sampler(setting: str, rule: str) -> dict[str, Any]:
    """Count the steps of a sampler after the first, with a restorer that launches one kernel."""
    op, x0 = _built(setting)
    restored = sampling.sample(
        lambda x, t, frozen: x * 0.5,
        op,
        DegradedImages(x0, op.steps, _freeze(op, x0, seeds.image_generators(0, range(len(x0))))),
        Sampling(rule, stride=max(op.steps // MOST_STEPS, 1), bits=8),
    )
    next(restored)
    with calls.watched() as seen:
        steps = sum(1 for _ in restored)
    return seen.summary() | {"steps": steps}


def operators() -> dict[str, Any]:
    """Return `operator` of every setting."""
    return {setting: operator(setting) for setting in SETTINGS}


def samplers() -> dict[str, Any]:
    """Return `sampler` of every setting and every sampler that fits it."""
    return {f"{name} {rule}": sampler(name, rule) for name in SETTINGS for rule in sampling.names(_built(name)[0])}


def _built(setting: str) -> tuple[Degradation, Tensor]:
    name, parameters, shape = SETTINGS[setting]
    return degradations.build(name, **parameters), torch.rand(shape, device=CUDA) * 2 - 1


def _freeze(op: Degradation, x0: Tensor, generator: Generators) -> Frozen:
    """Freeze images; those of a second data set are on the CPU."""
    return op.freeze(x0, generator=generator, **({op.second_field: torch.zeros(x0.shape)} if op.second_field else {}))


def _use(op: Degradation, x0: Tensor) -> None:
    numbers = range(len(x0))
    frozen = _freeze(op, x0, seeds.SlotGenerators((0, "frozen"), numbers, CUDA))  # as in training
    frozen = _freeze(op, x0, seeds.image_generators(0, numbers))  # as in sampling
    middle = max(op.steps // 2, 2)
    t_on_cpu = torch.arange(len(x0)) % op.steps + 1
    for t in (devices.upload(t_on_cpu, CUDA), t_on_cpu, middle, op.steps):
        x_t = op(x0, t, frozen)
        op.reestimate(x_t, x0, t, frozen)
        if op.has_inverse:
            op.invert(x_t, t, frozen, FLOOR)
    op.pair(x0, middle, middle - 1, frozen)
    op.pair(x0, op.steps, op.steps - 1, frozen)
