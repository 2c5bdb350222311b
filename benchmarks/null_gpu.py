"""Count what work asks of a GPU on the null CUDA runtime of tests/cuda, for benchmarks that need no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cuda"))
import null_cuda

ROOT = null_cuda.ROOT


def counted(cases: Sequence[str], root: Path = ROOT) -> list[dict[str, Any]]:
    """Return the counts of cases of cuda_worker.py, by the code of a checkout; exit if the runtime cannot be built."""
    command = [sys.executable, str(ROOT / "tests" / "cuda" / "cuda_worker.py"), *cases]
    with tempfile.TemporaryDirectory() as folder:
        try:
            variables = null_cuda.build(Path(folder))
        except null_cuda.UnavailableError as error:
            sys.exit(str(error))
        environment = null_cuda.environment(variables, root)
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]
