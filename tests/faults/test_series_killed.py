"""Commands that write many pictures, killed at random moments, resume without repeating or skipping any."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import tally
from conftest import left_behind, pictures_in
from PIL import Image

from colddiff_cli.__main__ import run as colddiff

LONG = pytest.param(10_000, marks=pytest.mark.slow)  # pictures


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with its prior already fitted."""
    path = shutil.copytree(tiny_run, tmp_path_factory.mktemp("runs") / "run")
    assert colddiff(["generate", "--noise", "0.002", str(path), "--n", "1"]) == 0
    return path


def write_photos(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for number, pixels in enumerate(values):
        Image.fromarray(pixels).save(folder / f"{number:05d}.png", compress_level=1)


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and time of every picture, which change if it is written again."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                status = entry.stat()
                found[entry.name] = (status.st_ino, status.st_mtime_ns)
    return found


def kill(process: processes.CommandProcess, folder: Path, count: int, delay: float) -> bool:
    """Kill a process `delay` seconds after a folder has `count` files; return whether it was still running."""
    while process.poll() is None and (not folder.is_dir() or len(os.listdir(folder)) < count):
        time.sleep(0.001 if count < 1000 else 0.02)
    time.sleep(delay)
    process.kill()
    return process.wait() == -signal.SIGKILL


def kill_and_resume(command: list[str], folder: Path, count: int, name: str, seed: int) -> None:
    """Kill a command that writes `count` pictures several times and compare the result with an undisturbed one."""
    moments, kills = random.Random(seed), 2 if count < 1000 else 4
    whole, parts = folder / "whole", folder / "parts"
    with contextlib.chdir(folder):
        assert colddiff([*command, "--out-dir", "whole"]) == 0
    assert len(pictures_in(whole)) == count
    counts = {"kills": 0, "pictures": count, "missing": 0, "made_twice": 0, "different": 0}
    before: dict[str, tuple[int, int]] = {}
    resume: list[str] = []
    for _ in range(kills):
        process = processes.start([*command, "--out-dir", "parts", *resume], folder)
        more = moments.randrange(1, 2 * count // (kills + 1))
        counts["kills"] += kill(process, parts, min(count - 2, len(before) + more), moments.uniform(0, 0.003))
        now = states(parts)
        counts["made_twice"] += sum(now.get(picture) != state for picture, state in before.items())
        before, resume = now, ["--resume"]
    processes.finish([*command, "--out-dir", "parts", "--resume"], folder)
    now = states(parts)
    counts["made_twice"] += sum(now.get(picture) != state for picture, state in before.items())
    counts["missing"] = count - len(now)
    counts["different"] = sum((whole / it).read_bytes() != (parts / it).read_bytes() for it in left_behind(whole))
    tally.add(name, **counts)
    assert counts == {"kills": kills, "pictures": count, "missing": 0, "made_twice": 0, "different": 0}
    assert left_behind(parts) == left_behind(whole)


@pytest.mark.parametrize("count", [60, LONG])
def test_degrade_resumes_after_kills(count, tmp_path):
    write_photos(tmp_path / "in", count, 32)
    command = ["degrade", "in", "--op", "snow+mask", "--t", "40", "--seed", "3"]
    kill_and_resume(command, tmp_path, count, "degrade resumed", 1)


@pytest.mark.parametrize("count", [60, LONG])
def test_sample_resumes_after_kills(count, run, tmp_path):
    write_photos(tmp_path / "in", count, 12)
    shutil.copytree(run, tmp_path / "run")
    kill_and_resume(["sample", "run", "in"], tmp_path, count, "sample resumed", 2)


@pytest.mark.parametrize("count", [100, LONG])
def test_generate_resumes_after_kills(count, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    kill_and_resume(["generate", "--noise", "0.002", "run", "--n", str(count)], tmp_path, count, "generate resumed", 3)
