"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from colddiff_cli.arguments import completions, registered
from colddiff_core.config import sizes
from colddiff_core.config.fields import validate
from colddiff_core.config.schema import LARGEST_SEED, DataConfig
from colddiff_core.errors import UsageError
from colddiff_core.evaluation.feature_names import FEATURES
from colddiff_core.text import CONTROLS

Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu or cuda.",
        metavar="NAME",
        autocompletion=completions.one_of(lambda: registered.names("devices")),
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed.", min=0, max=LARGEST_SEED)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and everything else to stderr.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a setting; repeatable.", metavar="KEY=VALUE", autocompletion=completions.settings
    ),
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder with the data set's files.", metavar="DIR")]
RunName = Annotated[
    str | None,
    typer.Argument(
        help="A run's folder or name (default: the newest).", metavar="[RUN]", autocompletion=completions.runs
    ),
]
Stride = Annotated[int | None, typer.Option("--stride", help="Severities per sampler step (default: the run's).")]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help="direct, naive, tacos; for noise also ddim, fixed-noise, ddpm (default: the run's).",
        autocompletion=completions.one_of(lambda: registered.names("samplers")),
    ),
]
Noise = Annotated[
    float | None,
    typer.Option(
        "--noise", help="Width of the symmetry-breaking white noise on x_T (default: the run's, or the prior's).", min=0
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", help="Test images per batch (default: as many as fit). Changes results only by rounding.", min=1
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="Precision of the network's body: auto, bf16, float32 (default: the run's).",
        metavar="NAME",
        autocompletion=completions.one_of(completions.choices("train.precision")),
    ),
]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile",
        help="torch.compile mode, for long jobs on a GPU: auto, default, reduce-overhead, max-autotune or off "
        "(default: the run's).",
        metavar="MODE",
        autocompletion=completions.one_of(completions.choices("sample.compile")),
    ),
]
Processes = Annotated[
    int | None,
    typer.Option("--nproc", help="Split the work over this many processes on this machine, one GPU each.", min=1),
]
Severity = Annotated[int | None, typer.Option("--t", help="Severity, 1 to T (default: T).")]
Uint8 = Annotated[bool, typer.Option("--uint8", help="Round the degraded images to 8 bits first, like photographs.")]
Features = Annotated[
    str,
    typer.Option(
        "--features",
        help="Features for distances: classifier (trained on the data set), inception (FID), none.",
        metavar="NAME",
        autocompletion=completions.one_of(lambda: FEATURES),
    ),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Inception weights (default: downloaded).", metavar="FILE")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing output.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted call: keep its pictures and make the missing ones.")
]


def size(text: str | int) -> sizes.Size:
    """Parse --size: 0, a side, or height and width with a comma.

    Raises:
        UsageError: It is none of these, or out of range.
    """
    value = int(text) if str(text).strip().isdecimal() else text
    return 0 if value == 0 else validate(DataConfig, {"size": value}, "--size")["size"]


def run_overrides(data_dir: Path | None, precision: str | None, compiled: str | None) -> tuple[str, ...]:
    """Return the settings that `--data-dir`, `--precision` and `--compile` override, as KEY=VALUE."""
    given = {"train.precision": precision, "sample.compile": compiled}
    return (*data_override(data_dir), *(f"{key}={value}" for key, value in given.items() if value is not None))


def data_override(data_dir: Path | None) -> list[str]:
    """Return the override for `--data-dir`, with an absolute path.

    Raises:
        UsageError: run.toml could not hold the folder's name.
    """
    if data_dir is None:
        return []
    name = str(data_dir.resolve())
    if CONTROLS.search(name):
        what = f"--data-dir {data_dir}: its path is not UTF-8 or has control characters, which run.toml cannot hold."
        raise UsageError(what, "Rename the folder.")
    return [f"data.directory={json.dumps(name, ensure_ascii=False)}"]  # TOML knows JSON's text, but no surrogates
