"""Options that several commands share, so that they read and behave alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from colddiff_core.config.schema import LARGEST_SEED

Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.", metavar="NAME")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="What everything random follows from.", min=0, max=LARGEST_SEED)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one key; may be repeated.", metavar="KEY=VALUE")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The folder of the data set's files.", metavar="DIR")]
RunName = Annotated[str | None, typer.Argument(help="A run's folder or name; the newest if left out.", metavar="[RUN]")]
Stride = Annotated[
    int | None, typer.Option("--stride", help="Severities per sampler step (the run's own if left out).")
]
Sampler = Annotated[
    str | None,
    typer.Option("--sampler", help="direct, naive, tacos; for noise also ddim, fixed-noise, ddpm (the run's own)."),
]
Noise = Annotated[
    float | None,
    typer.Option(
        "--noise", help="Width of the white noise on x_T that breaks its symmetry (the run's, else .002).", min=0
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Test images at a time (as many as fit); no result depends on it.", min=1),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="Of the network's body: auto, bf16, float32 (the run's own).", metavar="NAME"),
]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile",
        help="torch.compile's mode, for long work on a GPU: default, reduce-overhead, max-autotune (off).",
        metavar="MODE",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option("--nproc", help="Share the work among so many processes of this machine, a GPU each.", min=1),
]
Severity = Annotated[
    int | None, typer.Option("--t", help="Severity, 1 to the operator's steps (all of them if left out).")
]
Uint8 = Annotated[bool, typer.Option("--uint8", help="Round the degraded images to 8 bits first, as photographs are.")]
Features = Annotated[
    str,
    typer.Option(
        "--features",
        help="What distances are measured on: classifier (of the data set), inception (FID), none.",
        metavar="NAME",
    ),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Inception's weights (fetched if left out).", metavar="FILE")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an output that exists.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with a call that was stopped: keep its pictures, make the missing ones.")
]


def run_overrides(data_dir: Path | None, precision: str | None, compiled: str | None) -> tuple[str, ...]:
    """Return what a run is opened with in place of its own, by `--data-dir`, `--precision` and `--compile`."""
    asked = {"train.precision": precision, "sample.compile": compiled}
    return (*data_override(data_dir), *(f"{key}={value}" for key, value in asked.items() if value is not None))


def data_override(data_dir: Path | None) -> list[str]:
    """Return the override that `--data-dir` stands for; the run keeps the absolute path."""
    return [f"data.directory={json.dumps(str(data_dir.resolve()))}"] if data_dir else []  # JSON text is TOML text
