"""Write deterministic runs, as their trainers leave them, for the tests of the dashboard."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch

from colddiff_core import images
from colddiff_core.config import presets, toml

NOW = 1_780_000_000.0  # 2026-05-28, 20:26:40 UTC
SIZE = 16
COLUMNS = ("degraded", "direct", "sampled", "original")

SETTINGS = (  # of the preset when the golden files were written
    "model.width=32",
    "model.attention=middle",
    "train.batch_size=64",
    "train.lr=1e-3",
    "train.precision=auto",
    "sample.stride=1",
)


def write_run(
    folder: Path,
    name: str,
    *,
    steps: int = 1200,
    step: int = 600,
    events: tuple[dict[str, object], ...] = (),
    age: float = 1.0,
) -> Path:
    """Write a run that logged every 10 steps up to `step`, its files last touched `age` seconds before `NOW`."""
    path = folder / name
    config = presets.load("digits-blur", [f"train.steps={steps}", *SETTINGS])
    text = toml.dump(config.to_table() | {"name": name, "versions": {"colddiff": "0.1.0"}})
    path.mkdir(parents=True)
    (path / "run.toml").write_text(text)
    for sub in ("samples", "checkpoints", "control"):
        (path / sub).mkdir()
    phase = sum(name.encode())
    lines = [metrics(at, phase) for at in range(10, step + 1, 10)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    all_events = [{"event": "started", "time": NOW - 100, "device": "cpu (2 threads)", "images": 1497}, *events]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in all_events))
    (path / "lock").write_text(json.dumps({"pid": 4242, "host": "elsewhere"}))
    touch(path, age)
    return path


def touch(path: Path, age: float) -> None:
    """Set the times of a run's files to `age` seconds before `NOW`."""
    for file in ("run.toml", "metrics.jsonl", "events.jsonl", "lock"):
        os.utime(path / file, (NOW - age, NOW - age))


def metrics(step: int, phase: int = 0) -> dict[str, object]:
    """Return a line of metrics with a falling loss."""
    loss = 0.03 + 0.25 * math.exp(-step / 150) + 0.01 * math.sin(step * 12.9898 + phase) ** 2
    return {
        "step": step,
        "loss": loss,
        "loss_by_severity": [loss * band / 2.5 for band in (1, 2, 3, 4)],
        "grad_norm": 3 * loss,
        "images_per_second": 730.0 + step % 7,
        "elapsed": step * 64 / 730,
        "lr": 1e-3 * (1 + math.cos(math.pi * step / 1200)) / 2,
    }


def write_sheet(path: Path, step: int) -> None:
    """Write a sample sheet and its event as the trainer does: bars that sharpen with the steps."""
    place = torch.arange(SIZE).float()
    columns = {}
    for kind, name in enumerate(COLUMNS):
        width = (6.0 if kind == 0 else 1 + 600 / (step + 100)) if kind < 3 else 0.5
        centers = torch.linspace(3, SIZE - 4, 8).view(8, 1)
        bar = torch.exp(-((place - centers) ** 2) / (2 * width**2)) * 2 - 1
        columns[name] = bar.view(8, 1, 1, SIZE).expand(8, 1, SIZE, SIZE)
    layout = images.lay_out(columns, blocks=2)
    name = f"step-{step:06d}.png"
    images.write(images.sheet(columns, blocks=2), path / "samples" / name)
    note = {
        "step": step,
        "t": 20,
        "n": 8,
        "sampler": "tacos",
        "metrics": {name: {"rmse": 0.3 / (1 + kind * step / 300)} for kind, name in enumerate(COLUMNS[:3])},
        "tile": layout.tile,
        "scale": layout.scale,
        "corners": layout.corners,
    }
    (path / "samples" / name).with_suffix(".json").write_text(json.dumps(note))
    with (path / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "sample", "time": NOW - 20, "step": step, "file": name}) + "\n")


def write_runs(folder: Path) -> Path:
    """Write one run in every state; return their folder."""
    live = write_run(
        folder,
        "digits-blur",
        events=(
            {"event": "checkpoint", "time": NOW - 60, "step": 400},
            {"event": "warning", "time": NOW - 30, "message": "left out 2 training files that could not be read"},
        ),
    )
    for step in (200, 400, 600):
        write_sheet(live, step)
    touch(live, 1)
    write_run(
        folder, "digits-noise", step=1200, events=({"event": "finished", "time": NOW - 5000, "step": 1200},), age=5000
    )
    write_run(folder, "digits-mask", step=300, events=({"event": "paused", "time": NOW - 9, "step": 300},), age=2)
    write_run(folder, "mnist-blur", steps=700_000, step=900, age=600)
    failed = {"event": "failed", "time": NOW - 900, "step": 90, "why": "The loss is nan at step 90"}
    write_run(folder, "mnist-snow", step=90, events=(failed,), age=900)
    write_run(folder, "faces", step=500, events=({"event": "stopped", "time": NOW - 800, "step": 500},), age=800)
    return folder


def append(path: Path, *lines: object) -> None:
    """Append lines to a file: strings unchanged, anything else as a line of JSON."""
    with path.open("a") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
