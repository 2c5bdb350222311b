"""The library's operators on a system without fcntl, such as Windows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import processes

ROOT = Path(__file__).parents[1]


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that cannot import fcntl."""
    blocked = "import sys; sys.modules['fcntl'] = None\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", blocked + code], env=environment, capture_output=True, text=True, check=False
    )


def degrade_with_every_operator() -> int:
    """Import the library again without fcntl, in a process that already has torch, and try its operators."""
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] in ("colddiff_core", "colddiff_cli")]:
        del sys.modules[name]
    sys.modules["fcntl"] = None  # type: ignore[assignment]
    from colddiff_core import degradations

    x0 = torch.rand(2, 3, 16, 16) * 2 - 1
    for name in degradations.names():
        if name != "animorph":  # it mixes in a second data set
            op = degradations.build(name, steps=4)
            frozen = op.freeze(x0, generator=torch.Generator().manual_seed(1))
            x_t = op(x0, 4, frozen)
            assert x_t.shape == x0.shape
            assert not torch.equal(x_t, x0)
    return 0


def test_operators_need_no_fcntl():
    process = processes.fork(degrade_with_every_operator)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def test_a_lock_without_fcntl_is_refused_in_one_line(tmp_path):
    code = f"""
from pathlib import Path
from colddiff_core.errors import MachineError
from colddiff_core.files import FileLock

for lock in (FileLock.take, FileLock.wait):
    try:
        lock(Path({str(tmp_path / "lock")!r}))
    except MachineError as error:
        print(error.what)
"""
    process = run(code)
    what = "This needs file locks, and Python's fcntl module is missing on this system.\n"
    assert process.stdout == 2 * what, process.stderr
    assert not (tmp_path / "lock").exists()
