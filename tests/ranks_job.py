"""What tests/distributed/test_group.py has two processes do together: torchrun ... ranks_job.py FOLDER."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from pathlib import Path

import torch
from conftest import TINY

from colddiff_core import devices, experiment, runs
from colddiff_core.config import presets
from colddiff_core.datasets import from_config
from colddiff_core.distributed import group
from colddiff_core.runs import control
from colddiff_core.training.trainer import Trainer

# A blur's inverse makes rounding of x_t a thousand times larger: there one process with another batch differs as well.
PLAIN = ("model.inputs=plain", "model.consistent=false")
FLOAT32 = ("train.precision=float32", "train.log_every=1")
CASES = {
    "mask": ("digits-mask", ()),
    "uneven": ("digits-blur", ("train.batch_size=7", "data.margin=2", "data.flip=true", *PLAIN)),
    "passes": ("digits-mask", ("train.batch_size=4", "train.accumulate=2")),
    "noise": ("digits-noise", ("train.batch_size=40",)),
    "classes": ("digits-mask", ("model.classes=10", "train.clip=0")),
}


def build(path: Path, preset: str, *overrides: str) -> Trainer:
    """Return the trainer of a run at `path`, one of a job's where this is one: a new run, or that which is there."""
    together = group.current()
    config = presets.load(preset, [*TINY, *FLOAT32, *overrides])
    is_there = together.broadcast_json((path / "run.toml").exists())
    together.barrier()
    run = runs.FollowerRun(path)
    if together.is_first:
        run = runs.RunWriter(path) if is_there else runs.create(path, config, {})
    sets = from_config.load_images(config, "train", has_margin=True), from_config.load_images(config, "test")
    trainer = Trainer(experiment.build(config, sets[0].channels, devices.choose("cpu")), *sets, run)
    if is_there:
        trainer.resume()
    return trainer


def finish(trainer: Trainer) -> Trainer:
    """Train to the end and let go of the run."""
    for _ in trainer.steps():
        pass
    trainer.run.close()
    return trainer


def spoil(trainer: Trainer, step: int) -> None:
    """Have the second process alone meet images of NaN in one step."""
    take = trainer.stepper.feed.take

    def spoiled(indices, views):
        found = take(indices, views)
        is_now = trainer.step == step and trainer.ranks.index == 1
        return found * math.nan if is_now else found

    trainer.stepper.feed.take = spoiled


def answer(path: Path, trainer: Trainer) -> None:
    """Ask for a pause at once, for a sheet and an end to the pause a while later, and then for an end."""

    def later() -> None:
        time.sleep(0.3)
        for request in ("sample", "resume", "stop"):
            control.ask(path, request)

    if trainer.ranks.is_first:
        control.ask(path, "pause")
        threading.Thread(target=later).start()


def words(together: group.Group) -> dict:
    """Return what processes tell each other."""
    mine = together.index
    return {
        "highest": together.all_max(mine, -mine, False),
        "heard": together.broadcast_json({"from": mine}),
        "bytes": together.broadcast(b"" if mine == 0 else b"unheard").decode(),
        "collected": together.gather_json([mine] * (mine + 1)),
        "tensors": [one["x"].tolist() for one in together.gather_tensors({"x": torch.arange(mine)})],
        "sum": together.sum(torch.tensor([1.0, mine])).tolist(),
        "share": [list(together.slice_of(7)), list(together.slice_of(1))],
        "turn": together.one_process_first(time.monotonic),
        "news": [together.is_news("a"), together.is_news("b")],
        "dealt": list(together.next_tasks(5)),
    }


def main(folder: Path) -> None:
    """Train what there is to train and leave what was found in `folder`."""
    together = group.join(torch.device("cpu"))
    found = {"words": words(together)}
    for name, (preset, overrides) in CASES.items():
        finish(build(folder / name, preset, *overrides))
    together.barrier()
    finish(build(folder / "resumed", "digits-mask"))  # what one process has begun
    spoiled = build(folder / "spoiled", "digits-mask")
    spoil(spoiled, 1)
    finish(spoiled)
    asked = build(folder / "asked", "digits-mask", "train.steps=500", "sample.stride=1")
    answer(folder / "asked", asked)
    finish(asked)
    found["asked"] = [asked.step, asked.is_finished, asked.is_stopped_as_asked]
    found["weights"] = float(sum(p.detach().double().sum() for p in spoiled.parts.network.parameters()))
    (folder / f"told-{together.index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    group.leave()
    os._exit(0)  # as the program itself ends its processes
