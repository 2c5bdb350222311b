"""Make the runs in pretrained/: train one by its recipe, reduce it to what sampling needs, measure it, write its card.

    python -m tools.pretrain NAME --work FOLDER [--data-dir DIR] [--photographs KODAK]

The training is an ordinary run, FOLDER/NAME; the same command continues one that was interrupted. --measure-again
exports and measures a finished run without training. Hours on two cores; `tools/recipes.py` has the recipes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from colddiff_core import runs, tensor_files
from colddiff_core.config import toml
from colddiff_core.datasets import from_config
from colddiff_core.evaluation import classifier
from colddiff_core.inference import generate, open_run
from colddiff_core.runs import checkpoint, pretrained
from colddiff_core.sampling import priors
from colddiff_core.text import nearest
from tools.recipes import RECIPES, Recipe

ROOT = Path(__file__).parents[1]
MOST_BYTES, MOST_BYTES_OF_ALL = 4_000_000, 30_000_000
PLACES = (("data", "directory"), ("data", "second_directory"), ("train", "initial"))  # paths of this machine


def main() -> None:
    """Train, export and measure one run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("name", help=", ".join(RECIPES))
    options.add_argument("--work", type=Path, required=True, help="where the training runs are")
    options.add_argument("--data-dir", type=Path, help="the data set's folder, as for colddiff train")
    options.add_argument("--photographs", type=Path, help="photographs to measure on, never trained on")
    options.add_argument("--measure-again", action="store_true", help="do not train")
    chosen = options.parse_args()
    if chosen.name not in RECIPES:
        options.error(f"{chosen.name}: no such recipe. {nearest(chosen.name, RECIPES)}")
    recipe = RECIPES[chosen.name]
    source = chosen.work / chosen.name
    if not chosen.measure_again:
        train(recipe, source, chosen.work, chosen.data_dir)
    folder = export(recipe, runs.Run(source), chosen.name)
    publish_classifier(runs.Run(source), chosen.data_dir)
    places = {"run": f"{pretrained.PREFIX}{chosen.name}", "photographs": chosen.photographs or ""}
    figures = [measured(command, places, chosen.data_dir) for command in recipe.measure]
    (folder / pretrained.CARD).write_text(card(recipe, runs.Run(source), chosen.name, figures), encoding="utf-8")
    write_manifest()


def train(recipe: Recipe, source: Path, work: Path, data_dir: Path | None) -> None:
    """Train the run of a recipe, or continue it, with the command line that anyone would use."""
    words = ["--data-dir", str(data_dir)] if data_dir else []
    if (source / "run.toml").exists():
        if runs.Run(source).is_finished(runs.Run(source).config().train.steps):
            return
        words = ["--resume", str(source), *words]
    else:
        words += ["--preset", recipe.preset, "--out", str(source)]
        words += ["--from", str(work / recipe.start)] if recipe.start else []
        words += [word for setting in recipe.settings for word in ("--set", setting)]
    subprocess.run([sys.executable, "-m", "colddiff_cli", "train", *words], check=True)


def export(recipe: Recipe, run: runs.Run, name: str) -> Path:
    """Write a trained run into pretrained/NAME: run.toml, averaged weights in float16, priors. Return the folder."""
    folder = pretrained.directory() / name
    weights = open_run.averaged_weights(run)
    step = int(weights.state["step"])
    draft = folder.parent / ".draft" / name  # one floor deeper, or the priors would go to the working folder
    shutil.rmtree(draft.parent, ignore_errors=True)
    saved = draft / "checkpoints" / f"step-{step:06d}"
    saved.mkdir(parents=True)
    halves = {
        key: value.half() if value.is_floating_point() else value
        for key, value in weights.tensors[checkpoint.AVERAGE].items()
    }
    state = {key: value for key, value in weights.state.items() if key not in ("sha256", "digest")}
    settings = state["provenance"]["settings"]
    for section, key in PLACES:
        settings[section][key] = ""
    state["sha256"] = {checkpoint.AVERAGE: tensor_files.write(halves, saved / checkpoint.AVERAGE)}
    state["digest"] = checkpoint.digest(state)
    (saved / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    table = run.table() | {"name": name, "description": recipe.description}
    for section, key in PLACES:
        table[section][key] = ""
    if recipe.start:
        table["train"]["initial"] = pretrained.PREFIX + recipe.start
    (draft / "run.toml").write_text(toml.dump(table), encoding="utf-8")
    for prior, components in recipe.priors:
        trained = open_run.open_run(run, device="cpu")
        found = priors.find(prior, trained.experiment.operator)
        noise = generate.usual_noise(trained.experiment, found) or None  # given: a prior serves restorers as well
        generate.prepare(runs.Run(draft), trained.experiment, prior, components, noise)
    if (size := sum(path.stat().st_size for path in files(draft))) > MOST_BYTES:
        sys.exit(f"{draft} has {size:,} bytes, more than {MOST_BYTES:,}: use a smaller network.")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    draft.parent.rmdir()
    write_manifest()
    return folder


def publish_classifier(run: runs.Run, data_dir: Path | None) -> None:
    """Put the classifier of the run's data set beside the pretrained runs, so that `eval` need not train it."""
    config = run.config((f'data.directory="{data_dir.resolve()}"',) if data_dir else ())
    if config.data.dataset == "folder":  # nobody else has these files
        return
    train, test = (from_config.load_images(config, split) for split in ("train", "test"))
    if train.labels is not None and test.labels is not None:
        place = pretrained.directory() / classifier.PUBLISHED
        classifier.load_or_train(train, test, place, config.data.dataset, torch.device("cpu"))
        write_manifest()


def measured(command: str, places: Mapping[str, Any], data_dir: Path | None) -> str:
    """Run a command line and return it with what it printed, without paths of this machine."""
    line = command.format(**places)
    words = line.split()
    shown = line.replace(str(places["photographs"]), "KODAK") if places["photographs"] else line
    program = [sys.executable, "-m", "colddiff_cli"] if words[0] == "colddiff" else [sys.executable]
    if data_dir and words[0] == "colddiff":
        words += ["--data-dir", str(data_dir)]
        shown += " --data-dir DIR"
    with scratch_folder() as folder:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        words = [str(ROOT / word) if word.endswith(".py") else word for word in words]
        done = subprocess.run(
            [*program, *words[1:]], cwd=folder, env=environment, text=True, capture_output=True, check=False
        )
    if done.returncode:
        sys.exit(f"{line}\n{done.stderr}")
    kept = [text.rstrip() for text in (done.stdout + done.stderr).splitlines() if not text.endswith((".png", ".gif"))]
    return f"`{shown}`\n\n```\n" + "\n".join(kept).strip() + "\n```\n"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder inside build/, for the pictures that commands write."""
    folder = ROOT / "build" / f"measured-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def card(recipe: Recipe, run: runs.Run, name: str, figures: list[str]) -> str:
    """Return the text of a run's card."""
    table, config, state = run.table(), run.config(), open_run.averaged_weights(run).state
    lines = run.metrics()
    images = config.train.batch_size * config.train.accumulate
    changes = "".join(f" --set {setting}" for setting in recipe.settings)
    start = f" --from {pretrained.PREFIX}{recipe.start}" if recipe.start else ""
    parameters = sum(value.numel() for value in open_run.averaged_weights(run).tensors[checkpoint.AVERAGE].values())
    seconds = sum(float(line.get("elapsed", 0)) for line in lines[-1:])
    is_whole = state["step"] == config.train.steps
    stopped = "" if is_whole else f" (stopped early: the recipe has {config.train.steps:,})"
    return "\n".join(
        [
            f"# {pretrained.PREFIX}{name}",
            "",
            f"{recipe.description[0].upper()}{recipe.description[1:]}.",
            "",
            f"- Data: {recipe.data}.",
            f"- License of the data: {recipe.license}.",
            f"- Network: {parameters / 1e6:.2f} M parameters, averaged weights in float16.",
            f"- Training: {state['step']:,} steps of {images} images{stopped}, seed {config.train.seed}, "
            f"{seconds / 3600:.1f} hours on one thread of a CPU; torch {table['versions']['torch']}.",
            f"- Made by `python -m tools.pretrain {name}`: `colddiff train --preset {recipe.preset}{start}{changes}`.",
            "",
            "## Measured",
            "",
            "With these weights, on images that they were not trained on.",
            "",
            *figures,
        ]
    )


def files(folder: Path) -> list[Path]:
    """Return all files under a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def write_manifest() -> None:
    """Write the SHA-256 of every file of the pretrained runs; fails if they are too large."""
    folder = pretrained.directory()
    paths = [path for path in files(folder) if path.name != pretrained.MANIFEST]
    if (total := sum(path.stat().st_size for path in paths)) > MOST_BYTES_OF_ALL:
        sys.exit(f"The pretrained runs have {total:,} bytes together, more than {MOST_BYTES_OF_ALL:,}.")
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    text = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    (folder / pretrained.MANIFEST).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
