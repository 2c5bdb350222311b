"""Random numbers by name: every draw has a key, so nothing depends on what was drawn before it.

A training step's numbers depend on (seed, step) and an image's on (seed, image): a resumed run needs
no saved generator, and an image does not change with the batch it was drawn in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for a key such as (seed, "step", 12), on `device`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    made = torch.Generator(device=device)
    made.manual_seed(int.from_bytes(digest, "big") >> 1)
    return made


def image_generators(seed: int, images: Iterable[int], purpose: str = "image") -> list[torch.Generator]:
    """Return one CPU generator for each image, by its number in the data set or the request, and what it is for."""
    return [generator(seed, purpose, image) for image in images]
