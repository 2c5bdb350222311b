"""Random numbers by key: no draw depends on an earlier one.

A training step's numbers depend on (seed, step), those of a data set's image on (seed, number) and those of a picture
file on (seed, its pixels): a resumed run needs no saved generator, and an image does not change with the batch it was
drawn in, nor a picture with the others that a command was given.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

GRAIN_IMAGES = 16  # consecutive images of a training batch share a generator
ImageKey = int | str  # the number of an image of a data set, or the `picture_key` of a picture


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for a key such as (seed, "step", 12), on `device`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    keyed = torch.Generator(device=device)
    keyed.manual_seed(int.from_bytes(digest, "big") >> 1)
    return keyed


def image_generators(seed: int, images: Iterable[ImageKey], purpose: str = "image") -> list[torch.Generator]:
    """Return one CPU generator per image; `purpose` keeps different uses independent."""
    return [generator(seed, purpose, image) for image in images]


def picture_key(x: Tensor) -> str:
    """Return the key of a picture (C, H, W) float32 that is none of a data set's: a hash of its pixels.

    Equal pictures have equal keys, whatever their files are called and wherever they are in a list.
    """
    pixels = x.detach().cpu().contiguous()
    digest = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=8)
    digest.update(pixels.numpy().data)
    return digest.hexdigest()


class SlotGenerators:
    """Generators for part of a batch, one per GRAIN_IMAGES slots of the whole batch.

    A process that holds part of a batch draws the same numbers for it as one that holds all of it; the
    cost is drawing for up to two incomplete groups of slots.
    """

    def __init__(self, key: tuple[int | str, ...], slots: range, device: torch.device | str = "cpu") -> None:
        """Create generators on `device` for the given slots of the batch with this key."""
        self._key, self._slots, self._device = key, slots, device

    @functools.cached_property
    def _generators(self) -> list[torch.Generator]:
        """The generators, created on the first draw: many operators draw nothing."""
        grains = range(self._slots.start // GRAIN_IMAGES, -(-self._slots.stop // GRAIN_IMAGES))
        return [generator(*self._key, grain, device=self._device) for grain in grains]

    @functools.cached_property
    def on_cpu(self) -> SlotGenerators:
        """Generators for draws that the CPU reads: these if they are on the CPU, else new ones with the same key."""
        return self if torch.device(self._device).type == "cpu" else SlotGenerators(self._key, self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def draw(self, one: Callable[[torch.Generator, int], Tensor]) -> Tensor:
        """Return numbers (B, ...) for these slots; `one(generator, count)` draws (count, ...)."""
        drawn = torch.cat([one(keyed, GRAIN_IMAGES) for keyed in self._generators])
        first = self._slots.start % GRAIN_IMAGES
        return drawn[first : first + len(self._slots)]
