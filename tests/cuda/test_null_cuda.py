"""Work on "cuda" without a GPU: nothing fails, a training step never waits, and launches do not grow unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import null_cuda
import pytest


@pytest.fixture(scope="session")
def variables(tmp_path_factory):
    try:
        return null_cuda.build(tmp_path_factory.mktemp("null-cuda"))
    except null_cuda.UnavailableError as error:
        pytest.skip(str(error))


def results(variables, *cases):
    command = [sys.executable, str(Path(__file__).with_name("cuda_worker.py")), *cases]
    done = subprocess.run(command, env=null_cuda.environment(variables), capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_training_step_does_not_wait_for_the_gpu(variables):
    (found,) = results(variables, "train mnist-blur")
    assert found["waits"] == found["errors"] == 0, found["where"]
