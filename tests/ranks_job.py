"""The program that tests/distributed/test_group.py runs on two processes: torchrun ... ranks_job.py FOLDER."""

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

# A blur's inverse amplifies rounding of x_t a thousand times: even one process differs with another batch size.
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
    """Return the trainer of the run at `path`, new or existing, as part of the current group."""
    ranks = group.current()
    config = presets.load(preset, [*TINY, *FLOAT32, *overrides])
    exists = ranks.broadcast_json((path / "run.toml").exists())
    ranks.barrier()
    run = runs.FollowerRun(path)
    if ranks.is_first:
        run = runs.RunWriter(path) if exists else runs.create(path, config, {})
    sets = from_config.load_images(config, "train", has_margin=True), from_config.load_images(config, "test")
    trainer = Trainer(experiment.build(config, sets[0].channels, devices.choose("cpu")), *sets, run)
    if exists:
        trainer.resume()
    return trainer


def finish(trainer: Trainer) -> Trainer:
    """Train to the end and release the run."""
    for _ in trainer.steps():
        pass
    trainer.run.close()
    return trainer


def spoil(trainer: Trainer, step: int) -> None:
    """Replace the images by NaN in one step, on the second process only."""
    take = trainer.stepper.feed.take

    def spoiled(indices, views):
        x = take(indices, views)
        is_now = trainer.step == step and trainer.ranks.index == 1
        return x * math.nan if is_now else x

    trainer.stepper.feed.take = spoiled


def request_changes(path: Path, trainer: Trainer) -> None:
    """Request a pause at once and, a moment later, a sheet, the end of the pause and a stop."""

    def later() -> None:
        time.sleep(0.3)
        for request in ("sample", "resume", "stop"):
            control.ask(path, request)

    if trainer.ranks.is_first:
        control.ask(path, "pause")
        threading.Thread(target=later).start()


def words(ranks: group.Group) -> dict:
    """Return the results of the group's communication."""
    mine = ranks.index
    return {
        "highest": ranks.all_max(mine, -mine, False),
        "heard": ranks.broadcast_json({"from": mine}),
        "bytes": ranks.broadcast(b"" if mine == 0 else b"unheard").decode(),
        "collected": ranks.gather_json([mine] * (mine + 1)),
        "tensors": [one["x"].tolist() for one in ranks.gather_tensors({"x": torch.arange(mine)})],
        "sum": ranks.sum(torch.tensor([1.0, mine])).tolist(),
        "share": [list(ranks.slice_of(7)), list(ranks.slice_of(1))],
        "turn": ranks.one_process_first(time.monotonic),
        "news": [ranks.is_news("a"), ranks.is_news("b")],
        "dealt": list(ranks.next_tasks(5)),
    }


def main(folder: Path) -> None:
    """Train all cases and write the results to `folder`."""
    ranks = group.join(torch.device("cpu"))
    results = {"words": words(ranks)}
    for name, (preset, overrides) in CASES.items():
        finish(build(folder / name, preset, *overrides))
    ranks.barrier()
    finish(build(folder / "resumed", "digits-mask"))  # started by one process
    spoiled = build(folder / "spoiled", "digits-mask")
    spoil(spoiled, 1)
    finish(spoiled)
    asked = build(folder / "asked", "digits-mask", "train.steps=500", "sample.stride=1")
    request_changes(folder / "asked", asked)
    finish(asked)
    results["asked"] = [asked.step, asked.is_finished, asked.is_stopped_as_asked]
    results["weights"] = float(sum(p.detach().double().sum() for p in spoiled.parts.network.parameters()))
    (folder / f"results-{ranks.index}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    group.leave()
    os._exit(0)  # as the program itself does
