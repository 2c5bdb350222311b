"""The copy of a checkpoint on "cuda" without a GPU: it goes to pinned memory, and the CPU does not wait for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import null_cuda
import pytest


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    try:
        variables = null_cuda.build(tmp_path_factory.mktemp("null-cuda"))
    except null_cuda.UnavailableError as error:
        pytest.skip(str(error))
    command = [sys.executable, str(Path(__file__).with_name("snapshot_worker.py"))]
    done = subprocess.run(command, env=null_cuda.environment(variables), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_copy_of_the_weights_waits_for_nothing(copies):
    for copy in copies:
        assert copy["waits"] == copy["errors"] == 0
        assert copy["copies"] == {"COPY D2H pinned async": copy["tensors"]}
        assert copy["contiguous"]
        assert copy["has_event"]


def test_pinned_memory_is_allocated_once(copies):
    assert copies[0]["allocations"] > 0
    assert copies[1]["allocations"] == 0
