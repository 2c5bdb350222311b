"""Passes on a GPU of little memory: as large as it takes, and smaller ones if it runs out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import null_cuda
import pytest

IMAGES = 256  # per step


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    try:
        return null_cuda.build(tmp_path_factory.mktemp("null-cuda"))
    except null_cuda.UnavailableError as error:
        pytest.skip(str(error))


def result(variables, *arguments):
    command = [sys.executable, str(Path(__file__).with_name("passes_worker.py")), *map(str, arguments)]
    done = subprocess.run(command, env=null_cuda.environment(variables), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("gib", "size"), [(1, 32), (2, 64)])
def test_a_pass_takes_what_the_gpu_has_room_for(variables, gib, size):
    found = result(variables, gib)
    assert found["sizes"] == found["then"] == [size] * (IMAGES // size)
    assert found["said"] == []
    assert gib / 4 < found["peak"] / 2**30 < gib


def test_after_memory_ran_out_the_step_is_repeated_in_smaller_passes(variables):
    found = result(variables, 4, 300)
    assert found["sizes"] == [128] * 2
    (size,) = set(found["then"])
    assert size in (16, 32)  # of 10 MB each, beside what the allocator cannot use
    halved = [f"with {larger} images in a pass; continuing with {larger // 2}" for larger in (128, 64, 32)]
    assert found["said"] == [f"memory ran out on cuda {text}" for text in halved[: 2 if size == 32 else 3]]
    assert found["images"] == 3 * IMAGES  # none is logged twice
