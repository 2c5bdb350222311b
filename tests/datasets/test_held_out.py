"""Images held out of a training set: fixed, disjoint from those trained on, and never from the test split."""

from __future__ import annotations

import pytest
import torch

from colddiff_core.datasets import ImageSet, held_out, hold_out
from colddiff_core.errors import UsageError


def numbered(count, **fields):
    """Images whose pixels are their number."""
    pixels = torch.arange(count).view(-1, 1, 1, 1).expand(count, 1, 2, 2).to(torch.uint8)
    return ImageSet(pixels, labels=torch.arange(count) % 10, **fields)


@pytest.mark.parametrize("has_crops", [True, False])
@pytest.mark.parametrize("count", [2, 19, 40, 200])
def test_both_parts_are_disjoint_whole_and_the_same_every_time(count, has_crops):
    images = numbered(count, classes=("a",), skipped=3, note="JPEG")
    part, held = hold_out(images, has_crops=has_crops)
    again = hold_out(images, has_crops=has_crops)
    assert torch.equal(part.kept, again[0].kept)
    assert torch.equal(held.pixels, again[1].pixels)
    shares = part.kept.tolist(), held.pixels[:, 0, 0, 0].tolist()
    assert sorted([*shares[0], *shares[1]]) == list(range(count))
    assert len(held) == max(1, round(held_out.SHARE * count))
    assert len(part) == count - len(held)
    assert held.labels.tolist() == [number % 10 for number in shares[1]]
    assert (part.classes, part.skipped, part.note, part.shape) == (("a",), 3, "JPEG", (1, 2, 2))
    assert part.pixels.data_ptr() == images.pixels.data_ptr()
    if has_crops:
        assert shares[1] == list(range(count - len(held), count))
    elif count > 100:
        assert shares[1] != sorted(shares[1])


def test_an_epoch_of_the_part_is_every_kept_image_once():
    part, held = hold_out(numbered(60), has_crops=False)
    seen = torch.cat([part.order(5, step, 19) for step in range(3)])
    assert torch.equal(seen.sort().values, part.kept)
    assert not set(held.pixels[:, 0, 0, 0].tolist()) & set(part.rows(seen)[:, 0, 0, 0].tolist())
    assert torch.equal(part.labels_of(seen), seen % 10)


def test_at_most_some_hundreds_are_held_out():
    _, held = hold_out(ImageSet(torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8)), has_crops=False)
    assert len(held) == held_out.MOST_IMAGES


def test_too_few_images_and_images_that_are_read_during_training_are_refused():
    with pytest.raises(UsageError, match="1 training image cannot be split"):
        hold_out(numbered(1), has_crops=False)
    with pytest.raises(UsageError, match="shards"):
        hold_out(object(), has_crops=False)
