"""Reproduce the paper's tables: measure runs and keep the results in the run.

Each kind of image (degraded, direct, ...) is measured and saved separately, so an interrupted command continues after
the last one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from colddiff_core import devices, experiment, images
from colddiff_core.config import presets
from colddiff_core.config.schema import Config
from colddiff_core.config.sizes import plain, sides, typed
from colddiff_core.config.version import __version__
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.evaluation import comparison, evaluate
from colddiff_core.evaluation.comparison import Contender
from colddiff_core.evaluation.evaluate import EvaluationResult, EvaluationSettings
from colddiff_core.evaluation.metrics import Reference
from colddiff_core.experiment import Experiment
from colddiff_core.files import parse_json, read_ordinary, whole
from colddiff_core.inference import generate
from colddiff_core.paper import tables
from colddiff_core.paper.tables import Scale, Table, TableRowSpec
from colddiff_core.runs import Run

SHOWN_IMAGES = 8  # per kind on a contact sheet
FOLDER = "reproduced"
ORIGINAL = "original"
VERSION = 5  # of the measurement; raise it when results would change
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How to measure a run.

    Attributes:
        restored: Number of test images to restore.
        generated: Number of images to generate.
        is_8bit: Whether to round degraded images to 8 bits.
        batch_size: Images at a time; None for as many as fit.
        circumstances: Date, hardware and software, to record.
    """

    restored: int
    generated: int
    is_8bit: bool
    batch_size: int | None
    circumstances: Mapping[str, str]


class RunMeasurer:
    """Measures an open run and keeps the results in its folder, if that is writable."""

    def __init__(self, run: Run, step: int, built: Experiment, reference: Reference, how: Measurement) -> None:
        """Measure the checkpoint of `run` at `step`, loaded as `built`."""
        self.run, self.step, self.built, self.reference, self.how = run, step, built, reference, how
        self._weights = hashlib.sha256((run.checkpoint(step) / "ema.safetensors").read_bytes()).hexdigest()

    def count(self, kind: str) -> int:
        """Return how many images of a kind to measure."""
        is_generated = kind in tables.GENERATED
        return self.how.generated if is_generated else min(self.how.restored, len(self.reference.test))

    def result(
        self,
        config: Config,
        kinds: Sequence[str],
        changed: Sequence[str],
        progress: Callable[[str, int], None] = lambda kind, images: None,
    ) -> Result:
        """Return the results for these kinds of images.

        Args:
            config: The preset.
            kinds: Such as "degraded" or "sampled".
            changed: Differences of the run from the preset, in words.
            progress: Gets the kind and the number of images of every batch.
        """
        records, pictures = {}, {}
        for kind in kinds:
            records[kind], pictures[kind] = self._measure(kind, functools.partial(progress, kind))
        pictures[ORIGINAL] = self.reference.test.images(self.reference.test.draw(min(SHOWN_IMAGES, self.how.restored)))
        return Result(config, self._metadata(changed), records, pictures)

    def _measure(self, kind: str, progress: Callable[[int], None]) -> tuple[Record, Tensor]:
        """Return the record and the first images of a kind: kept in the run, or measured now."""
        path = self.run.path / FOLDER / self._key(kind) / f"{kind.replace(' ', '-')}.json"
        picture = path.with_suffix(".png")
        record = _read(path)
        shown = _read_strip(picture, self.built, min(SHOWN_IMAGES, self.count(kind)))
        if record is not None and shown is not None:
            return record, shown
        measure = self._generated if kind in tables.GENERATED else self._restored
        outcome, details = measure(kind, progress)
        record = {"metrics": outcome.figures, "intervals": outcome.intervals, "is_scarce": outcome.has_too_few_images}
        record |= {"n": self.count(kind), "measured": dict(self.how.circumstances)} | details
        with contextlib.suppress(MachineError):  # a read-only run can still be measured
            images.write(images.to_pillow(images.tile(outcome.shown, 1)), picture)
            with whole(path) as draft:
                draft.write_text(json.dumps(record, indent=1), encoding="utf-8")
        return record, outcome.shown

    def _metadata(self, changed: Sequence[str]) -> Record:
        """Return what a reader needs to judge or repeat the run."""
        config, lines = self.built.config, self.run.metrics()
        train = config.train
        return {
            "run": self.run.path.name,
            "preset": config.name,
            "changed": list(changed),
            "data": self.reference.title(config.data.dataset),
            "note": self.reference.test.note,
            "size": plain(config.data.size),
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
        outcome = evaluate.restore(self.built, self.reference, settings, sampler, shown=SHOWN_IMAGES, progress=progress)
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
            shown=SHOWN_IMAGES,
            diversity_count=0,
            progress=progress,
        )
        return outcome, {"noise": source.noise}

    def _key(self, kind: str) -> str:
        """Return a hash of everything the results depend on: weights, images, counts, seed, features, software."""
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
    """Return a saved record; None if it is missing or damaged."""
    try:
        record = parse_json(read_ordinary(path))
        intervals, measured = record["intervals"].values(), record["measured"].values()
        is_whole = (
            bool(record["metrics"])
            and all(isinstance(value, float | int | list | None) for value in record["metrics"].values())
            and all(ends is None or (len(ends) == 2 and all(type(end) is float for end in ends)) for ends in intervals)
            and all(isinstance(words, str) for words in measured)
            and type(record["n"]) is int
            and type(record["is_scarce"]) is bool
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if is_whole else None


def _read_strip(path: Path, built: Experiment, count: int) -> Tensor | None:
    """Return the images of a saved strip, top to bottom; None if it is missing or has another size."""
    height, width = sides(built.config.data.size)
    try:
        strip = images.read(path, channels=built.channels)
    except UsageError:
        return None
    return torch.stack(strip.split(height, dim=1)) if strip.shape[1:] == (height * count, width) else None


@dataclasses.dataclass(frozen=True)
class Result:
    """The results of a run.

    Attributes:
        config: Its preset.
        metadata: What a reader needs to judge or repeat it.
        kinds: The record of each kind of image.
        pictures: The first images of each kind, and the originals, (K, C, H, W) float32 in [-1, 1].
    """

    config: Config
    metadata: Record
    kinds: dict[str, Record]
    pictures: dict[str, Tensor]

    def title(self, part: TableRowSpec) -> str:
        """Return the title of the rows, with the differences of the images from the paper's."""
        size = self.config.data.size
        of_size = f", {typed(size)} px" if size != presets.load(part.preset).data.size else ""
        return part.title + (f" ({self.metadata['note']})" if self.metadata["note"] else "") + of_size


def tabulate(table: Table, scale: Scale, results: Mapping[str, Result], *, is_papers: bool = True) -> Record:
    """Return a table for the results at hand, by preset name: rows with the paper's values and verdicts.

    With `is_papers` false the setup differs from the paper's, and its values are left out.
    """
    rows, notes = [], set()
    for part in table.parts:
        result = results.get(part.preset_at(scale))
        if result is None:
            continue
        notes |= {result.config.paper["note"]} if is_papers and "note" in result.config.paper else set()
        for kind in part.kinds:
            record = result.kinds[kind]
            published = tables.published(result.config, kind) if is_papers else {}
            paper = {key: value for key, value in published.items() if key in table.metrics}
            scarce = record["is_scarce"]
            verdicts = tables.verdicts(kind, record["metrics"], record["intervals"], paper, has_too_few_images=scarce)
            row = {"title": result.title(part), "kind": kind, "preset": result.config.name, "verdicts": verdicts}
            rows.append(row | {"paper": paper} | record)
    heading = {"name": table.name, "title": table.title, "numbers": table.numbers, "metrics": list(table.metrics)}
    return heading | {"rows": rows, "notes": sorted(notes)}


def contact_sheet(table: Table, scale: Scale, results: Mapping[str, Result]) -> Image.Image:
    """Return a picture of the first images of every part of a table, kinds and originals side by side."""
    sheets = []
    for part in table.parts:
        result = results.get(part.preset_at(scale))
        if result:
            shown = [*part.kinds, *([] if part.is_generated else [ORIGINAL])]
            sheets.append(images.sheet({kind: result.pictures[kind] for kind in shown}))
    return images.side_by_side(sheets)


def gaps(reports: Sequence[Record]) -> list[Record]:
    """Return the metrics of tables that are worse than the paper's, largest relative gap first."""
    gap_by_metric: dict[tuple[str, str, str], Record] = {}
    for table in reports:
        for row in table["rows"]:
            for metric in (key for key, verdict in row["verdicts"].items() if verdict == "worse"):
                ours, paper = row["metrics"][metric], row["paper"][metric]
                gap = {"where": f"{table['title']}, {row['title']}, {row['kind']}", "metric": metric}
                gap |= {"ours": ours, "paper": paper, "share": abs(ours - paper) / paper}
                gap_by_metric.setdefault((row["preset"], row["kind"], metric), gap)
    return sorted(gap_by_metric.values(), key=lambda gap: -gap["share"])


def diverged(reports: Sequence[Record]) -> list[str]:
    """Return the titles of the rows whose images are not all finite."""
    rows = ((table, row) for table in reports for row in table["rows"])
    named = (f"{table['title']}, {row['title']}, {row['kind']}" for table, row in rows if _is_diverged(row))
    return list(dict.fromkeys(named))


def _is_diverged(row: Record) -> bool:
    return row["kind"] not in tables.GENERATED and row["metrics"].get("rmse") is None


def circumstances(device: str) -> dict[str, str]:
    """Return the date, the hardware and the software versions."""
    chosen = devices.choose(device)
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "hardware": devices.describe(chosen) + (f", {_processor()}" if chosen.type == "cpu" else ""),
        "software": ", ".join(f"{name} {version}" for name, version in experiment.versions().items()),
    }


def _processor() -> str:
    """Return the name of the processor, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named and named[0] != "unknown" else platform.processor() or platform.machine()
