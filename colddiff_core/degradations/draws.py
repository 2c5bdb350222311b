"""Draw random numbers for the images of a batch, from one generator or one per image."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from colddiff_core import devices
from colddiff_core.errors import UsageError
from colddiff_core.seeds import SlotGenerators
from colddiff_core.text import counted

Generators = torch.Generator | SlotGenerators | Sequence[torch.Generator] | None


def draw_normal(x0: Tensor, generator: Generators, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal numbers for each image: (B, *shape) float32."""
    one = functools.partial(torch.randn, dtype=torch.float32)  # float64 would draw other numbers
    return _draw_batch(x0, generator, lambda g, device, lead: one(lead + shape, generator=g, device=device))


def draw_uniform(x0: Tensor, generator: Generators, shape: tuple[int, ...]) -> Tensor:
    """Draw uniform numbers in [0, 1) for each image: (B, *shape) float32."""
    one = functools.partial(torch.rand, dtype=torch.float32)  # float64 would draw other numbers
    return _draw_batch(x0, generator, lambda g, device, lead: one(lead + shape, generator=g, device=device))


def draw_integers(x0: Tensor, generator: Generators, below: int) -> Tensor:
    """Draw a whole number in 0..below - 1 for each image: (B,) int64."""
    return _draw_batch(x0, generator, lambda g, device, lead: torch.randint(below, lead, generator=g, device=device))


def draw_choices(x0: Tensor, generator: Generators, below: int) -> Tensor:
    """Draw a whole number in 0..below - 1 for each image, on the CPU: (B,) int64.

    The CPU does not wait for a GPU, unless `generator` is a single generator on a GPU.
    """
    generator = generator.on_cpu if isinstance(generator, SlotGenerators) else generator
    return draw_integers(torch.empty(len(x0), 0), generator, below)


Draw = Callable[[torch.Generator | None, torch.device, tuple[int, ...]], Tensor]


def _draw_batch(x0: Tensor, generator: Generators, draw: Draw) -> Tensor:
    """Draw for a batch from one generator, slot by slot, or image by image from one generator each."""
    if generator is None or isinstance(generator, torch.Generator):
        # On the generator's own device: a CPU generator must give the same numbers everywhere.
        device = generator.device if generator is not None else x0.device
        return devices.upload(draw(generator, device, (len(x0),)), x0.device)
    if len(generator) != len(x0):
        raise UsageError(
            f"{counted(len(generator), 'generator')} for {counted(len(x0), 'image')}.", "Give one, or one per image."
        )
    if not len(generator):
        return draw(None, x0.device, (0,))
    if isinstance(generator, SlotGenerators):
        return devices.upload(generator.draw(lambda g, count: draw(g, g.device, (count,))), x0.device)
    return devices.upload(torch.cat([draw(g, g.device, (1,)) for g in generator]), x0.device)
