"""Random numbers by name: every draw has a key, so nothing depends on what was drawn before it.

A training step's numbers depend on (seed, step) and an image's on (seed, image): a resumed run needs
no saved generator, and an image does not change with the batch it was drawn in.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

GRAIN = 16  # images of a training batch that share a generator


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for a key such as (seed, "step", 12), on `device`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    made = torch.Generator(device=device)
    made.manual_seed(int.from_bytes(digest, "big") >> 1)
    return made


def image_generators(seed: int, images: Iterable[int], purpose: str = "image") -> list[torch.Generator]:
    """Return one CPU generator for each image, by its number in the data set or the request, and what it is for."""
    return [generator(seed, purpose, image) for image in images]


class SlotGenerators:
    """Generators for some images of a batch, one for each `GRAIN` of them, by their slots in the whole of it.

    Whoever holds a part of a batch draws for it what whoever holds all of it draws, at the cost of a few images more.
    """

    def __init__(self, key: tuple[int | str, ...], slots: range, device: torch.device | str = "cpu") -> None:
        """Take the key of the whole batch, and which images of it are held here, on `device`."""
        self._key, self._slots, self._device = key, slots, device

    @functools.cached_property
    def _generators(self) -> list[torch.Generator]:
        """Return the generators, made when something is drawn: many an operator draws nothing."""
        grains = range(self._slots.start // GRAIN, -(-self._slots.stop // GRAIN))
        return [generator(*self._key, grain, device=self._device) for grain in grains]

    def __len__(self) -> int:
        return len(self._slots)

    def draw(self, one: Callable[[torch.Generator, int], Tensor]) -> Tensor:
        """Return the numbers of the images held here; `one` draws them for as many images as it is told."""
        drawn = torch.cat([one(numbers, GRAIN) for numbers in self._generators])
        first = self._slots.start % GRAIN
        return drawn[first : first + len(self._slots)]
