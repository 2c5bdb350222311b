"""A reader of a live run: looks at everything in it until its trainer is done, and holds what it sees to the promise.

python reader.py RUN files|weights PAUSE: `weights` opens the newest checkpoint again and again, as `generate` does;
PAUSE is in seconds between two looks. Prints how often it looked; a traceback is a broken promise.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

from PIL import Image

from colddiff_core import runs


def look_at_files(run: runs.Run, seen: int) -> int:
    """Look at everything once; returns the newest step of the log, which never is older than `seen`."""
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


def look_at_weights(run: runs.Run) -> None:

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
    warnings.simplefilter("error")  # a checkpoint that is called damaged is a broken promise too
    looks = seen = 0
    while True:
        done = is_done(run)
        if what == "files":
            seen = look_at_files(run, seen)
        else:
            look_at_weights(run)
        looks += 1
        if done:
            break
        time.sleep(pause)
    print(looks)


if __name__ == "__main__":
    main()
