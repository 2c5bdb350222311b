"""Which images a step takes: each once an epoch, and the same on every call."""

from __future__ import annotations

import pytest
import torch

from colddiff_core import seeds
from colddiff_core.datasets import epoch_order

COUNTS = (7, 12, 1, 0, 30, 9, 13)  # 72 records


def epoch_of(counts: tuple[int, ...], lanes: int, size: int, epoch: int, seed: int = 3) -> list[int]:
    """Return the indices of one epoch, for sizes at which steps and epochs end together."""
    steps = sum(counts) // size
    taken = [epoch_order.in_lanes(counts, lanes, seed, epoch * steps + step, size) for step in range(steps)]
    return torch.cat(taken).tolist()


def test_a_step_may_cross_the_end_of_a_permutation():
    whole = torch.cat([torch.randperm(10, generator=seeds.generator(5, "epoch", epoch)) for epoch in range(4)])
    for size in (3, 10, 13):
        taken = torch.cat([epoch_order.shuffled(10, 5, step, size) for step in range(40 // size)])
        assert torch.equal(taken, whole[: len(taken)])
    assert epoch_order.shuffled(10, 5, 0, 3).dtype == torch.int64


@pytest.mark.parametrize(("lanes", "size"), [(1, 4), (2, 4), (3, 6), (4, 8), (32, 12), (6, 36), (32, 72)])
def test_every_record_is_taken_once_an_epoch(lanes, size):
    for epoch in range(3):
        assert sorted(epoch_of(COUNTS, lanes, size, epoch)) == list(range(72))


def test_an_epoch_leaves_out_the_remainder_a_different_one_each_time():
    counts = (10, 10, 10, 7)  # 37 records, 4 lanes of 9
    left = []
    for epoch in range(6):
        taken = torch.cat([epoch_order.in_lanes(counts, 4, 0, epoch * 9 + step, 4) for step in range(9)]).tolist()
        assert len(set(taken)) == 36
        left += set(range(37)) - set(taken)
    assert len(set(left)) > 1


def test_a_step_is_the_same_on_every_call():
    expected = [epoch_order.in_lanes(COUNTS, 4, 1, step, 8) for step in range(20)]
    for step in (19, 3, 3, 11, 0):
        assert torch.equal(epoch_order.in_lanes(COUNTS, 4, 1, step, 8), expected[step])
    assert not torch.equal(epoch_order.in_lanes(COUNTS, 4, 2, 0, 8), expected[0])


def test_epochs_differ_in_the_order_of_shards_and_of_records():
    first, second = (epoch_of(COUNTS, 1, 8, epoch) for epoch in range(2))
    bounds = epoch_order.starts(COUNTS)
    shards = [[sum(bounds[1:] <= number) for number in taken] for taken in (first, second)]
    assert shards[0] != shards[1]
    assert [n for n in first if 20 <= n < 50] != [n for n in second if 20 <= n < 50]


def test_a_slice_of_a_step_touches_few_shards():
    counts = (100,) * 32
    bounds = epoch_order.starts(counts)
    for step in range(50):
        slots = epoch_order.in_lanes(counts, 8, 0, step, 64)
        for part in slots.split(16):  # two lanes
            touched = {sum(bounds[1:] <= number) for number in part.tolist()}
            assert len(touched) <= 4


def test_lanes_divide_a_step_and_never_outnumber_shards_or_records():
    assert epoch_order._lane_count(64, 32) == 32
    assert epoch_order._lane_count(48, 32) == 24
    assert epoch_order._lane_count(7, 5) == 1
    for counts in ((5,), (0, 5, 0), (1, 1), (2, 1)):
        steps = torch.cat([epoch_order.in_lanes(counts, 32, 0, step, 4) for step in range(30)])
        assert set(steps.tolist()) == set(range(sum(counts)))


def test_a_step_may_be_larger_than_the_set():
    taken = epoch_order.in_lanes((3, 4), 2, 0, 1, 40)
    assert len(taken) == 40
    assert taken.bincount(minlength=7).min() >= 3
    assert set(epoch_order.shuffled(7, 0, 1, 40).bincount(minlength=7).tolist()) <= {5, 6, 7}


@pytest.mark.parametrize(
    "take", [lambda: epoch_order.shuffled(0, 0, 0, 4), lambda: epoch_order.in_lanes((0, 0), 2, 0, 0, 4)]
)
def test_an_empty_set_is_an_error(take):
    with pytest.raises(ValueError, match="no images"):
        take()


def test_memory_grows_only_with_the_shards_being_read():
    counts = (1000,) * 5000
    for step in (0, 17, 100_000):
        epoch_order.in_lanes(counts, 16, 0, step, 64)
    assert len(epoch_order._record_orders) <= 16 + epoch_order.SPARE_ORDERS
    assert sum(order.nbytes for order in epoch_order._record_orders.values()) <= (16 + epoch_order.SPARE_ORDERS) * 4000
