"""Images restored in batches: the same bits however many are asked for, whatever is left out."""

from __future__ import annotations

import pytest
import torch

from colddiff_core import runs, sampling
from colddiff_core.datasets import from_config
from colddiff_core.inference import open_run, restore
from colddiff_core.sampling import Sampling


@pytest.fixture(scope="module")
def built(tiny_run):
    return open_run.open_run(runs.Run(tiny_run), device="cpu").experiment


def restored(built, count, absent=(), **values) -> dict[int, torch.Tensor]:
    test = from_config.load_images(built.config, "test", built.channels).images(slice(0, 50))
    batches = restore.degraded(built, lambda k: None if k in absent else test[k], count, t=5, seed=3, size=8, **values)
    made = {}
    for batch in batches:
        x = sampling.final(batch.restore(Sampling(seed=3)))
        assert len(x) == len(batch.direct()) == 8
        made |= dict(zip(batch.numbers, batch.of(x, range(100)), strict=True))
    return made


def test_image_k_is_the_same_bits_whatever_is_asked_for_beside_it(built):
    every = restored(built, 27)
    assert list(every) == list(range(27))
    for some in (
        restored(built, 3),
        restored(built, 20),
        restored(built, 27, absent=(0, 9, 10, 11, 12, 13, 14, 15, 26)),
        restored(built, 27, accepts=lambda numbers: 17 in numbers),
    ):
        assert all(torch.equal(x, every[number]) for number, x in some.items())


def test_batches_that_hold_nothing_wanted_are_not_loaded(built):
    assert list(restored(built, 27, accepts=lambda numbers: 17 in numbers)) == list(range(16, 24))
    assert list(restored(built, 27, accepts=lambda numbers: 27 in numbers)) == []
    assert list(restored(built, 10, absent=range(8))) == [8, 9]
