"""Read everything in a live run until its trainer is done, and check that it is always valid.

python reader.py RUN files|weights PAUSE: `weights` opens the newest checkpoint repeatedly, as `generate` does; PAUSE is
in seconds between two reads. It prints the number of reads; a traceback means that something was invalid.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

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


def main() -> None:
    run, what, pause = runs.Run(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3])
    warnings.simplefilter("error")  # a checkpoint reported as damaged is a failure too
    reads = seen = 0
    while True:
        done = is_done(run)
        if what == "files":
            seen = read_files(run, seen)
        else:
            read_weights(run)
        reads += 1
        if done:
            break
        time.sleep(pause)
    print(reads)


if __name__ == "__main__":
    main()
