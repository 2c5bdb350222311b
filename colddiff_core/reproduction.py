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
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from colddiff_core import __version__, comparison, evaluation, generation, images, presets, tables
from colddiff_core.comparison import Contender
from colddiff_core.evaluation import Outcome, Reference
from colddiff_core.experiment import Experiment
from colddiff_core.files import whole
from colddiff_core.presets import Config
from colddiff_core.runs import Run
from colddiff_core.tables import Part, Scale, Table

SHOWN = 8  # images of a contact sheet
FOLDER = "reproduced"
ORIGINAL = "original"
VERSION = 4  # of how figures are measured: raised where they would come out otherwise
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How runs are measured: `count` test images (or as many generated), a seed, inputs of 8 bits or not."""

    count: int
    seed: int
    is_8bit: bool
    batch_size: int


class Bench:
    """A run, opened, and what it has come to so far."""

    def __init__(self, run: Run, step: int, built: Experiment, reference: Reference, how: Measurement) -> None:
        self.run, self.step, self.built, self.reference, self.how = run, step, built, reference, how
        self.count = min(how.count, len(reference.test))
        self.folder = run.path / FOLDER / self._key()

    def measure(self, kind: str, progress: Callable[[int], None] = lambda images: None) -> Record:
        """Return what a kind of image comes to, as kept in the run or measured now; `file` is its first images."""
        path = self.folder / f"{kind.replace(' ', '-')}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known: Record = json.loads(path.read_text(encoding="utf-8"))
            if (self.folder / known["file"]).is_file():
                return known
        find = self._generated if kind in tables.GENERATED else self._restored
        outcome = find(kind, progress)
        picture = path.with_suffix(".png")
        record = {
            "metrics": outcome.figures,
            "intervals": outcome.intervals,
            "is_scarce": outcome.is_scarce,
            "file": picture.name,
        }
        images.write(images.to_pillow(images.tile(outcome.shown, 1)), picture)
        with whole(path) as draft:
            draft.write_text(json.dumps(record, indent=1), encoding="utf-8")
        return record

    def _picture(self, kind: str) -> Tensor:
        strip = images.read(self.folder / f"{kind.replace(' ', '-')}.png", channels=self.built.channels)
        return torch.stack(strip.split(self.built.config.data.size, dim=1))

    def result(
        self,
        config: Config,
        kinds: Sequence[str],
        changed: Sequence[str],
        progress: Callable[[str, int], None] = lambda kind, images: None,
    ) -> Result:
        """Return what kinds of images come to; `config` is the preset under the settings `changed`.

        `progress` is told of every batch's kind and images.
        """
        records = {kind: self.measure(kind, functools.partial(progress, kind)) for kind in kinds}
        pictures = {kind: self._picture(kind) for kind in kinds}
        pictures[ORIGINAL] = self.reference.test.images(self.reference.test.draw(min(SHOWN, self.count)))
        return Result(config, self._about(changed), records, pictures)

    def _about(self, changed: Sequence[str]) -> Record:
        """Return what a reader must know of the run to repeat or to doubt it."""
        config, lines = self.built.config, self.run.metrics()
        train = config.train
        target = self.reference.target
        return {
            "run": self.run.path.name,
            "preset": config.name,
            "changed": list(changed),
            "data": self.reference.title(config.data.dataset),
            "note": self.reference.test.note,
            "size": config.data.size,
            "training_images": len(self.reference.train()),
            "test_images": len(self.reference.test),
            "n": self.count,
            "steps": self.step,
            "batch": train.batch_size * train.accumulate,
            "seconds": lines[-1].get("elapsed") if lines else None,
            "degradation_steps": self.built.operator.steps,
            "inputs": config.model.inputs + (", consistent" if config.model.consistent else ""),
            "parameters": sum(p.numel() for p in self.built.restorer.parameters()),
            "checkpoint": self._digest(),
            "versions": self.run.table().get("versions", {}),
            "features": None if target is None else {"name": target.features.name} | target.features.about(),
        }

    def _restored(self, kind: str, progress: Callable[[int], None]) -> Outcome:
        how, config = self.how, self.built.config
        named: dict[str, str | None] = {"degraded": None, "sampled": config.sample.sampler}
        return evaluation.restore(
            self.built,
            self.reference,
            sampler=named.get(kind, kind),
            t=self.built.operator.steps,
            stride=config.sample.stride,
            count=self.count,
            seed=how.seed,
            is_8bit=how.is_8bit,
            batch_size=how.batch_size,
            shown=SHOWN,
            progress=progress,
        )

    def _generated(self, kind: str, progress: Callable[[int], None]) -> Outcome:
        how, config = self.how, self.built.config
        width = 0.0 if kind == "perfect symmetry" else None
        source = generation.prepare(self.run, self.built, None, None, width)
        sampler = "fixed-noise" if kind == "fixed noise" else config.sample.sampler
        contender = Contender(kind, self.built, sampler, config.sample.stride, self.built.operator.steps, source)
        return comparison.generate(
            contender,
            self.reference,
            count=self.count,
            seed=how.seed,
            shown=SHOWN,
            progress=progress,
        )

    def _digest(self) -> str:
        return hashlib.sha256((self.run.newest_checkpoint() / "ema.safetensors").read_bytes()).hexdigest()

    def _key(self) -> str:
        """Return a name for all that figures depend on: weights, images, seed, inputs, features and the program."""
        target, config = self.reference.target, self.built.config
        parts = [self._digest(), self.count, self.how.seed, self.how.is_8bit, __version__, self.reference.title("")]
        parts += [self.reference.test.digest(), str(config.model)]
        parts += [None if target is None else [target.features.name, target.features.about(), target.count]]
        parts += [self.reference.perceptual is not None, str(config.sample), str(config.degradation), VERSION]
        return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=6).hexdigest()


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to: its configuration, what a reader must know of it, the record of each kind of image, and the
    first images of each kind and the originals (K, C, H, W) float32 in [-1, 1]."""

    config: Config
    about: Record
    kinds: dict[str, Record]
    pictures: dict[str, Tensor]

    def title(self, part: Part) -> str:
        """Return what the rows are called, with what tells the images from the paper's."""
        size = self.config.data.size
        of_size = f", {size} px" if size != presets.load(part.preset).data.size else ""
        return part.title + (f" ({self.about['note']})" if self.about["note"] else "") + of_size


def tabulate(table: Table, scale: Scale, results: Mapping[str, Result]) -> Record:
    """Return a table as far as there are results, by preset: its rows with the paper's figures and the verdicts."""
    rows = []
    for part in table.parts:
        result = results.get(part.preset_at(scale))
        for kind in part.kinds if result else ():
            assert result is not None
            rows.append(_row(part, result, kind))
    of_table = [results[name] for part in table.parts if (name := part.preset_at(scale)) in results]
    notes = sorted({result.config.paper["note"] for result in of_table if "note" in result.config.paper})
    return {"name": table.name, "title": table.title, "numbers": table.numbers, "rows": rows, "notes": notes}


def _row(part: Part, result: Result, kind: str) -> Record:
    known, paper = result.kinds[kind], tables.published(result.config, kind)
    verdicts = {}
    for metric, value in paper.items():
        ours = known["metrics"].get(metric)
        if ours is not None and kind != "degraded":
            verdicts[metric] = tables.judge(metric, ours, known["intervals"].get(metric), value)
    row = {"title": result.title(part), "kind": kind, "preset": result.config.name, "paper": paper}
    row["verdicts"] = verdicts
    return row | {key: known[key] for key in ("metrics", "intervals", "is_scarce")}


def contact_sheet(table: Table, scale: Scale, results: Mapping[str, Result]) -> Image.Image:
    """Return the first images of every part of a table, its kinds and the originals beside each other."""
    sheets = []
    for part in table.parts:
        result = results.get(part.preset_at(scale))
        if result:
            shown = [*part.kinds, *([] if part.is_generated else [ORIGINAL])]
            sheets.append(images.sheet({kind: result.pictures[kind] for kind in shown}))
    return images.beside(sheets)


def gaps(report: Record) -> list[Record]:
    """Return the figures of restored images that are behind the paper's, by share of the paper's, worst first."""
    found = []
    for table in report["tables"]:
        for row in table["rows"]:
            for metric, verdict in row["verdicts"].items():
                if verdict == "worse":
                    ours, paper = row["metrics"][metric], row["paper"][metric]
                    where = f"{table['title']}, {row['title']}, {row['kind']}"
                    share = abs(ours - paper) / paper
                    found.append({"where": where, "metric": metric, "ours": ours, "paper": paper, "share": share})
    unlike = {(gap["where"], gap["metric"]): gap for gap in found}
    return sorted(unlike.values(), key=lambda gap: -gap["share"])
