"""Read everything in a live run until its trainer is done, and check that it is always valid."""

from __future__ import annotations

import time
import warnings

from PIL import Image

from colddiff_core import runs


def read_files(run: runs.Run, seen: int) -> int:
    """Read everything once; return the newest logged step, which is never older than `seen`."""
    run.config()
    steps = [line["step"] for line in run.metrics()]
    assert steps == list(range(1, len(steps) + 1)), steps
    assert len(steps) >= seen
    assert all("event" in event and "time" in event for event in run.events())
    for path in runs.list_checkpoints(run.path / "checkpoints"):
        assert runs.is_whole(path) or not path.exists(), f"{path} is there and not whole"
    for picture in run.samples.glob("step-*.png"):
        with Image.open(picture) as opened:
            opened.load()
        assert picture.with_suffix(".json").exists()
    holder = run.holder()
    assert holder is None or not holder.is_gone or is_done(run)
    return len(steps)


def read_weights(run: runs.Run) -> None:
    from colddiff_core.inference import open_run

    if run.checkpoints():
        trained = open_run.open_run(run, device="cpu")
        built, step = trained.experiment, trained.step
        assert step > 0
        assert all(p.isfinite().all() for p in built.restorer.parameters())


def is_done(run: runs.Run) -> bool:
    return any(event["event"] == "finished" for event in run.events())


def follow(run: runs.Run, what: str, pause_seconds: float) -> int:
    """Read a run's "files" or its "weights", as `generate` does, until it is done.

    Print the number of reads, after the first and after the last.
    """
    warnings.simplefilter("error")  # a checkpoint reported as damaged is a failure too
    reads = seen = 0
    while True:
        done = is_done(run)
        if what == "files":
            seen = read_files(run, seen)
        else:
            read_weights(run)
        reads += 1
        if reads == 1:
            print(reads, flush=True)
        if done:
            break
        time.sleep(pause_seconds)
    print(reads)
    return 0
