"""Jobs whose processes are stopped, lose their agent or are killed: nothing is left behind or lost."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import launches
import processes
import pytest
import torch.distributed as dist
from ranks_job import SMALL_TRAINING, job_environment

from colddiff_cli.__main__ import run as colddiff
from colddiff_core import runs


def process_of(launcher, rank):
    """Return the pid of the process with a rank in a job, None before it has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    for child in children.read_text().split():
        try:
            content = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in content:
            return int(child)
    return None


NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
ENDLESS = ["--set", "train.steps=1000000", "--set", "train.checkpoint_every=1000000"]


@contextlib.contextmanager
def launched(out, *words, **more):
    """Yield a training of two processes and their pids once the first step is logged; wait until all have ended."""
    command = [sys.executable, "-m", "colddiff_cli", *SMALL_TRAINING, *words, "--out", str(out), "--nproc", "2"]
    log = out.with_suffix(".log").open("w+")
    launcher = subprocess.Popen(command, env=job_environment(), stderr=log, stdout=log, **more)
    try:
        wait_for(lambda: out.is_dir() and runs.Run(out).metrics())
        workers = [process_of(launcher.pid, rank) for rank in range(2)]
        yield launcher, workers
        launcher.wait(timeout=60)
        wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    finally:
        launcher.kill()
        log.close()


def wait_for(condition, timeout=120):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@NEEDS_PROC
def test_a_stop_that_cannot_be_saved_ends_all_processes_with_the_reason(tmp_path):
    out = tmp_path / "run"
    # As under nohup: a closing terminal is ignored.
    with launched(out, *ENDLESS, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as (launcher, _):
        os.kill(launcher.pid, signal.SIGHUP)
        step = runs.Run(out).metrics()[-1]["step"]
        wait_for(lambda: runs.Run(out).metrics()[-1]["step"] > step + 20)
        (out / "checkpoints").rmdir()
        (out / "checkpoints").touch()  # a file where a folder should be
        launcher.terminate()
    assert launcher.returncode == 1
    events = [event["event"] for event in runs.Run(out).events()]
    assert events == ["started", "failed"]
    assert "Cannot write" in out.with_suffix(".log").read_text()


@pytest.mark.slow
@NEEDS_PROC
def test_processes_whose_agent_was_killed_save_and_end(tmp_path):
    out = tmp_path / "run"
    with launched(out, *ENDLESS) as (launcher, _):
        launcher.kill()
    run = runs.Run(out)
    assert [event["event"] for event in run.events()] == ["started", "checkpoint", "stopped"]
    assert run.checkpoints()


def test_a_job_restarts_after_a_kill_and_finishes(tmp_path):
    """Without torchrun, but with its environment variables and store."""
    out = tmp_path / "run"
    words = [*SMALL_TRAINING, "--set", "train.steps=16", "--set", "train.checkpoint_every=5", "--out", str(out)]
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # serves all attempts
    agent = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "1"}
    kills = {1: functools.partial(processes.signal_in_step, signal.SIGKILL, 12)}, {}
    outcomes, errors = [], ""
    for attempt, prepares in enumerate(kills):
        variables = agent | {"TORCHELASTIC_RESTART_COUNT": str(attempt)}
        job = launches.start([*words, "--continue"], tmp_path, 2, variables=variables, prepares=prepares)
        try:
            outcomes.append([process.wait(launches.TIMEOUT_SECONDS) for process in job.processes])
        finally:
            for process in job.processes:
                process.kill()
        errors += job.output("err")
    assert outcomes == [[1, -signal.SIGKILL], [0, 0]], errors
    check_restarted(out, errors, words, 10)


@pytest.mark.slow
@NEEDS_PROC
def test_torchrun_restarts_a_job_after_a_kill(tmp_path):
    out, steps = tmp_path / "run", 100
    longer = ["--set", f"train.steps={steps}", "--set", "train.checkpoint_every=10"]
    words = [*SMALL_TRAINING, *longer, "--out", str(out)]
    command = [sys.executable, "-m", "colddiff_cli", *words, "--nproc", "2", "--max-restarts", "1"]
    launcher = subprocess.Popen(command, env=job_environment(), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out.is_dir() and len(runs.Run(out).checkpoints()) >= 2) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process_of(launcher.pid, 1), signal.SIGKILL)
        _, errors = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, errors
    check_restarted(out, errors, words, 20)


def check_restarted(out, errors, words, saved):
    """Check the run of a job that was killed after step `saved` was saved, and restarted."""
    assert errors.count("Process 0 of 2 has lost the others") == 1
    assert "Traceback" not in errors
    events = runs.Run(out).events()
    names = [event["event"] for event in events]
    assert names.count("failed") == names.count("resumed") == names.count("finished") == 1
    resumed = next(event["step"] for event in events if event["event"] == "resumed")
    assert resumed >= saved  # no work before the last checkpoint is repeated
    alone = out.with_name("alone")
    assert colddiff([*words[:-1], str(alone)]) == 0
    alone, both = (runs.Run(path).metrics()[-1] for path in (alone, out))
    assert both["loss"] == pytest.approx(alone["loss"], rel=0.01)  # rounding grows over the steps of Adam
