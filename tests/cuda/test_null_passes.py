"""Passes on a GPU with little memory: as large as fit, and smaller if memory runs out."""

from __future__ import annotations

import json

import null_cuda
import pytest

IMAGES = 256  # per step


def result(null_gpu, *arguments):
    return json.loads(null_cuda.run_worker(null_gpu, "passes_worker.py", *arguments))


@pytest.mark.parametrize(("gib", "size"), [(1, 32), (2, 64)])
def test_a_pass_takes_what_the_gpu_has_room_for(null_gpu, gib, size):
    found = result(null_gpu, gib)
    assert found["sizes"] == found["then"] == [size] * (IMAGES // size)
    assert found["said"] == []
    assert gib / 4 < found["peak"] / 2**30 < gib


def test_after_memory_ran_out_the_step_is_repeated_in_smaller_passes(null_gpu):
    found = result(null_gpu, 4, 300)
    assert found["sizes"] == [128] * 2
    (size,) = set(found["then"])
    assert size in (16, 32)  # an image takes 10 MB, and fragmentation some of the 300
    halved = [f"with {larger} images in a pass; continuing with {larger // 2}" for larger in (128, 64, 32)]
    assert found["said"] == [f"memory ran out on cuda {text}" for text in halved[: 2 if size == 32 else 3]]
    assert found["images"] == 3 * IMAGES  # none is logged twice
