"""A job of two processes for tests/distributed/test_group.py."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from conftest import TINY

from colddiff_core import devices, experiment, runs
from colddiff_core.config import presets
from colddiff_core.datasets import from_config
from colddiff_core.distributed import group
from colddiff_core.runs import control
from colddiff_core.training.trainer import Trainer

# A blur's inverse amplifies rounding of x_t a thousandfold, so even one process with another batch would differ.
PLAIN = ("model.inputs=plain", "model.consistent=false")
STEPS = 4
FLOAT32 = ("train.precision=float32", "train.log_every=1", f"train.steps={STEPS}")
CASES = {
    "mask": ("digits-mask", ()),
    "uneven": ("digits-blur", ("train.batch_size=7", "train.lr=1e-3", "data.margin=2", "data.flip=true", *PLAIN)),
    "passes": ("digits-mask", ("train.batch_size=4", "train.accumulate=2")),
    "own passes": ("digits-mask", ("train.batch_size=8",)),  # different in each process, see divide_unequally
    "noise": ("digits-noise", ("train.batch_size=40",)),
    "classes": ("digits-mask", ("model.classes=10", "train.clip=0")),
}


SMALL_TRAINING = ["train", "--preset", "digits-mask", *(word for key in TINY for word in ("--set", key))]
HERE = Path(__file__).parent


def job_environment() -> dict[str, str]:
    """Return the environment of a job's processes: one thread each, and this tree's modules."""
    folders = (HERE.parent, HERE, HERE / "faults")
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))}


def build(path: Path, preset: str, *overrides: str) -> Trainer:
    """Return this process's trainer of the run at `path`, which is created if it does not exist."""
    together = group.current()
    config = presets.load(preset, [*TINY, *FLOAT32, *overrides])
    exists = together.broadcast_json((path / "run.toml").exists())
    together.barrier()
    run = runs.FollowerRun(path)
    if together.is_first:
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


def divide_unequally(trainer: Trainer) -> None:
    """Give the first of two processes four passes of one image, and the second a pass of three and one of one."""
    trainer.stepper.most = 1 + 2 * trainer.ranks.index


def spoil(trainer: Trainer, step: int) -> None:
    """Replace the images of one step by NaN, in the second process only."""
    take = trainer.stepper.feed.take

    def spoiled(indices, views):
        images = take(indices, views)
        is_now = trainer.step == step and trainer.ranks.index == 1
        return images * math.nan if is_now else images

    trainer.stepper.feed.take = spoiled


def request_changes(path: Path, trainer: Trainer) -> None:
    """Request a pause now, and a sample sheet, the end of the pause and a stop a little later."""

    def later() -> None:
        time.sleep(0.3)
        for request in ("sample", "resume", "stop"):
            control.ask(path, request)

    if trainer.ranks.is_first:
        control.ask(path, "pause")
        threading.Thread(target=later).start()


def words(together: group.Group) -> dict:
    """Return the results of every call of a group."""
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


def main(folder: Path, environment: Mapping[str, str]) -> int:
    """Run every training of the test as a process of a job, and write the results into `folder`."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    together = group.join(torch.device("cpu"))
    results = {"words": words(together)}
    for name, (preset, overrides) in CASES.items():
        trainer = build(folder / name, preset, *overrides)
        if name == "own passes":
            divide_unequally(trainer)
        finish(trainer)
    together.barrier()
    finish(build(folder / "resumed", "digits-mask"))  # begun by one process
    spoiled = build(folder / "spoiled", "digits-mask")
    spoil(spoiled, 1)
    finish(spoiled)
    asked = build(folder / "asked", "digits-mask", "train.steps=500", "sample.stride=1")
    request_changes(folder / "asked", asked)
    finish(asked)
    results["asked"] = [asked.step, asked.is_finished, asked.is_stopped_as_asked]
    results["weights"] = float(sum(p.detach().double().sum() for p in spoiled.parts.network.parameters()))
    (folder / f"results-{together.index}.json").write_text(json.dumps(results))
    group.leave()
    return 0
