"""The paper's tables made anew: what a run comes to for them, kept in the run.

Every kind of image (degraded, direct, ...) is measured and kept by itself: a command cut off goes on after the last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from colddiff_core import __version__, images
from colddiff_core.config import presets
from colddiff_core.config.schema import Config
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.evaluation import comparison, evaluate
from colddiff_core.evaluation.comparison import Contender
from colddiff_core.evaluation.evaluate import EvaluationResult, EvaluationSettings, Reference
from colddiff_core.experiment import Experiment
from colddiff_core.files import parse_json, whole
from colddiff_core.inference import generate
from colddiff_core.paper import tables
from colddiff_core.paper.tables import Scale, Table, TableRowSpec
from colddiff_core.runs import Run

SHOWN = 8  # images of a contact sheet
FOLDER = "reproduced"
ORIGINAL = "original"
VERSION = 5  # of how figures are measured: raised where they would come out otherwise
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How runs are measured: how many test images are restored and how many are generated, whether degraded images are
    rounded to 8 bits, how many at a time (None: as many as fit), and the circumstances (date, hardware, software)."""

    restored: int
    generated: int
    is_8bit: bool
    batch_size: int | None
    circumstances: Mapping[str, str]


class RunMeasurer:
    """A run, opened, and what it has come to so far, as far as the run's folder can be written to."""

    def __init__(self, run: Run, step: int, built: Experiment, reference: Reference, how: Measurement) -> None:
        self.run, self.step, self.built, self.reference, self.how = run, step, built, reference, how
        self._weights = hashlib.sha256((run.checkpoint(step) / "ema.safetensors").read_bytes()).hexdigest()

    def count(self, kind: str) -> int:
        """Return how many images of a kind are measured."""
        is_generated = kind in tables.GENERATED
        return self.how.generated if is_generated else min(self.how.restored, len(self.reference.test))

    def result(
        self,
        config: Config,
        kinds: Sequence[str],
        changed: Sequence[str],
        progress: Callable[[str, int], None] = lambda kind, images: None,
    ) -> Result:
        """Return what kinds of images come to; `config` is the preset, `changed` what differs from it, in words.

        `progress` is told of every batch's kind and images.
        """
        records, pictures = {}, {}
        for kind in kinds:
            records[kind], pictures[kind] = self._measure(kind, functools.partial(progress, kind))
        pictures[ORIGINAL] = self.reference.test.images(self.reference.test.draw(min(SHOWN, self.how.restored)))
        return Result(config, self._metadata(changed), records, pictures)

    def _measure(self, kind: str, progress: Callable[[int], None]) -> tuple[Record, Tensor]:
        """Return what a kind comes to, and its first images, as kept in the run or measured now."""
        path = self.run.path / FOLDER / self._key(kind) / f"{kind.replace(' ', '-')}.json"
        picture = path.with_suffix(".png")
        known = _read(path)
        shown = _read_strip(picture, self.built, min(SHOWN, self.count(kind)))
        if known is not None and shown is not None:
            return known, shown
        find = self._generated if kind in tables.GENERATED else self._restored
        outcome, details = find(kind, progress)
        record = {"metrics": outcome.figures, "intervals": outcome.intervals, "is_scarce": outcome.has_too_few_images}
        record |= {"n": self.count(kind), "measured": dict(self.how.circumstances)} | details
        with contextlib.suppress(MachineError):  # a run that cannot be written to is measured all the same
            images.write(images.to_pillow(images.tile(outcome.shown, 1)), picture)
            with whole(path) as draft:
                draft.write_text(json.dumps(record, indent=1), encoding="utf-8")
        return record, outcome.shown

    def _metadata(self, changed: Sequence[str]) -> Record:
        """Return what a reader must know of the run to repeat or to doubt it."""
        config, lines = self.built.config, self.run.metrics()
        train = config.train
        return {
            "run": self.run.path.name,
            "preset": config.name,
            "changed": list(changed),
            "data": self.reference.title(config.data.dataset),
            "note": self.reference.test.note,
            "size": config.data.size,
            "training_images": len(self.reference.train()),
            "test_images": len(self.reference.test),
            "skipped": self.reference.test.skipped,
            "steps": self.step,
            "batch": train.batch_size * train.accumulate,
            "seed": train.seed,
            "seconds": lines[-1].get("elapsed") if lines else None,
            "degradation_steps": self.built.operator.steps,
            "inputs": config.model.inputs + (", consistent" if config.model.consistent else ""),
            "parameters": sum(p.numel() for p in self.built.restorer.parameters()),
            "checkpoint": self._weights,
            "versions": self.run.table().get("versions", {}),
            **self.reference.metadata(),
        }

    def _restored(self, kind: str, progress: Callable[[int], None]) -> tuple[EvaluationResult, Record]:
        how, config = self.how, self.built.config
        named: dict[str, str | None] = {"degraded": None, "sampled": config.sample.sampler}
        settings = EvaluationSettings(
            self.built.operator.steps,
            self.count(kind),
            config.train.seed,
            config.sample.stride,
            how.is_8bit,
            how.batch_size,
        )
        sampler = named.get(kind, kind)
        outcome = evaluate.restore(self.built, self.reference, settings, sampler, shown=SHOWN, progress=progress)
        return outcome, {}

    def _generated(self, kind: str, progress: Callable[[int], None]) -> tuple[EvaluationResult, Record]:
        config = self.built.config
        width = 0.0 if kind == "perfect symmetry" else None
        source = generate.prepare(self.run, self.built, None, None, width)
        sampler = "fixed-noise" if kind == "fixed noise" else config.sample.sampler
        contender = Contender(kind, self.built, sampler, config.sample.stride, self.built.operator.steps, source)
        outcome = comparison.generate(
            contender,
            self.reference,
            count=self.count(kind),
            seed=config.train.seed,
            shown=SHOWN,
            described=0,
            progress=progress,
        )
        return outcome, {"noise": source.noise}

    def _key(self, kind: str) -> str:
        """Return a name for all that figures depend on: weights, images, how many, seed, features, the program."""
        how, config, reference = self.how, self.built.config, self.reference
        parts = [
            self._weights,
            self.count(kind),
            config.train.seed,
            how.is_8bit,
            reference.test.digest(),
            reference.metadata(),
        ]
        parts += [reference.classifier.digest() if reference.classifier else None]
        parts += [str(part) for part in (config.model, config.sample, config.degradation)]
        if self.built.bits or how.is_8bit:
            parts.append("dequantized start")
        parts += [self.built.device.type, __version__, str(torch.__version__), VERSION]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()


def _read(path: Path) -> Record | None:
    """Return a record that was kept; None where there is none, or none that is whole."""
    try:
        known = parse_json(path.read_text(encoding="utf-8"))
        intervals, measured = known["intervals"].values(), known["measured"].values()
        is_whole = (
            bool(known["metrics"])
            and all(isinstance(value, float | int | list | None) for value in known["metrics"].values())
            and all(ends is None or (len(ends) == 2 and all(type(end) is float for end in ends)) for ends in intervals)
            and all(isinstance(words, str) for words in measured)
            and type(known["n"]) is int
            and type(known["is_scarce"]) is bool
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return known if is_whole else None


def _read_strip(path: Path, built: Experiment, count: int) -> Tensor | None:
    """Return the images of a strip that was kept, one below the other; None where it is not what it should be."""
    side = built.config.data.size
    try:
        strip = images.read(path, channels=built.channels)
    except UsageError:
        return None
    return torch.stack(strip.split(side, dim=1)) if strip.shape[1:] == (side * count, side) else None


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to: its configuration, what a reader must know of it, the record of each kind of image, and the
    first images of each kind and the originals (K, C, H, W) float32 in [-1, 1]."""

    config: Config
    metadata: Record
    kinds: dict[str, Record]
    pictures: dict[str, Tensor]

    def title(self, part: TableRowSpec) -> str:
        """Return what the rows are called, with what tells the images from the paper's."""
        size = self.config.data.size
        of_size = f", {size} px" if size != presets.load(part.preset).data.size else ""
        return part.title + (f" ({self.metadata['note']})" if self.metadata["note"] else "") + of_size


def tabulate(table: Table, scale: Scale, results: Mapping[str, Result], *, is_papers: bool = True) -> Record:
    """Return a table as far as there are results, by preset: its rows with the paper's figures and the verdicts.

    is_papers: what was measured is what the paper measured; else nothing of its stands in the rows.
    """
    rows, notes = [], set()
    for part in table.parts:
        result = results.get(part.preset_at(scale))
        if result is None:
            continue
        notes |= {result.config.paper["note"]} if is_papers and "note" in result.config.paper else set()
        for kind in part.kinds:
            known = result.kinds[kind]
            published = tables.published(result.config, kind) if is_papers else {}
            paper = {key: value for key, value in published.items() if key in table.metrics}
            scarce = known["is_scarce"]
            verdicts = tables.verdicts(kind, known["metrics"], known["intervals"], paper, has_too_few_images=scarce)
            row = {"title": result.title(part), "kind": kind, "preset": result.config.name, "verdicts": verdicts}
            rows.append(row | {"paper": paper} | known)
    heading = {"name": table.name, "title": table.title, "numbers": table.numbers, "metrics": list(table.metrics)}
    return heading | {"rows": rows, "notes": sorted(notes)}


def contact_sheet(table: Table, scale: Scale, results: Mapping[str, Result]) -> Image.Image:
    """Return the first images of every part of a table, its kinds and the originals beside each other."""
    sheets = []
    for part in table.parts:
        result = results.get(part.preset_at(scale))
        if result:
            shown = [*part.kinds, *([] if part.is_generated else [ORIGINAL])]
            sheets.append(images.sheet({kind: result.pictures[kind] for kind in shown}))
    return images.beside(sheets)


def gaps(made: Sequence[Record]) -> list[Record]:
    """Return the figures of tables that are behind the paper's, by share of the paper's, worst first."""
    found: dict[tuple[str, str, str], Record] = {}
    for table in made:
        for row in table["rows"]:
            for metric in (key for key, verdict in row["verdicts"].items() if verdict == "worse"):
                ours, paper = row["metrics"][metric], row["paper"][metric]
                gap = {"where": f"{table['title']}, {row['title']}, {row['kind']}", "metric": metric}
                gap |= {"ours": ours, "paper": paper, "share": abs(ours - paper) / paper}
                found.setdefault((row["preset"], row["kind"], metric), gap)
    return sorted(found.values(), key=lambda gap: -gap["share"])


def diverged(made: Sequence[Record]) -> list[str]:
    """Return the rows of tables whose images are not all of numbers."""
    rows = ((table, row) for table in made for row in table["rows"])
    named = (f"{table['title']}, {row['title']}, {row['kind']}" for table, row in rows if _is_diverged(row))
    return list(dict.fromkeys(named))


def _is_diverged(row: Record) -> bool:
    return row["kind"] not in tables.GENERATED and row["metrics"].get("rmse") is None
