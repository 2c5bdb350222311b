"""An evaluation in portions: measured by one process or many, in any order, kept on the disk, added up in order.

A portion is what there is to know of each of some hundred images, without anything said of them all: the figures are
made of the portions in the order of the images, and so the same, bit for bit, however many processes measured them and
however often that was interrupted.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from colddiff_core.distributed.group import ALONE, Group
from colddiff_core.errors import MachineError
from colddiff_core.evaluation import evaluate as evaluation
from colddiff_core.evaluation.evaluate import (
    COLUMNS,
    EvaluationResult,
    EvaluationSettings,
    ImageMeasurements,
    MetricAccumulator,
    Reference,
    SamplingTimer,
)
from colddiff_core.experiment import Experiment
from colddiff_core.files import FileLock, read_ordinary, refusals, whole

LEAST, SHARES, MOST_PORTIONS = 256, 8, 512  # images of a portion, at least, unless a column has few; and portions then
LOCK = ".lock"  # beside a folder, of whoever is at work on it
ABANDONED = 30 * 86_400.0  # seconds after which nobody goes on with an evaluation any more
CLOCK = "clock"  # seconds, images and evaluations of the network that the clock told
Heard = Callable[[int], None]


class PartialResults:
    """The portions of one call, in a folder of its own, which is this job's alone while it is at work.

    Raises MachineError where another job is at it, or the disk refuses.
    """

    def __init__(self, path: Path, *, is_first: bool = True, is_resumed: bool = False) -> None:
        """Take the folder; what an earlier call left there is kept for `is_resumed`, else removed, by the first process
        of the job.
        """
        self.path = path
        self._lock: FileLock | None = None
        if not is_first:
            return
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FileLock.take(path.with_suffix(LOCK))
        except BlockingIOError:
            what = "Another process is at this very evaluation."
            raise MachineError(what, "Wait for it, or stop it first.") from None
        with refusals(path):
            _sweep(path.parent, but=path)
            if not is_resumed:
                shutil.rmtree(path, ignore_errors=True)
            path.mkdir(exist_ok=True)

    def has(self, name: str) -> bool:
        """Tell whether a portion is there."""
        return self._file(name).is_file()

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a portion, whole or not at all."""
        with whole(self._file(name)) as draft:
            draft.write_bytes(safetensors.torch.save(dict(tensors)))

    def read(self, name: str) -> dict[str, Tensor]:
        """Return a portion; raises MachineError where it is not as it was written."""
        path = self._file(name)
        try:
            return safetensors.torch.load(read_ordinary(path))
        except (OSError, safetensors.SafetensorError) as error:
            raise MachineError(f"{path} cannot be read: {error}.", "Evaluate anew, without --resume.") from None

    def close(self, *, is_done: bool) -> None:
        """Let go of the folder; what is done with needs no portions any more."""
        if self._lock is None:
            return
        if is_done:
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):  # others' portions are there
                self.path.with_suffix(LOCK).unlink(missing_ok=True)
                self.path.parent.rmdir()
        self._lock.release()
        self._lock = None

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


def evaluate(
    experiment: Experiment,
    reference: Reference,
    folder: PartialResults,
    settings: EvaluationSettings,
    columns: Sequence[str] = COLUMNS,
    *,
    ranks: Group = ALONE,
    progress: Heard = lambda images: None,
) -> dict[str, EvaluationResult]:
    """Return what `evaluation.evaluate` does, without pictures, to the first process, and nothing to the others.

    They share the portions that `folder` lacks. `progress` is called with the number of images of every batch that
    this process makes, and of those it finds there.
    """
    count, batch_size = settings.count, settings.batch_size or experiment.batch_size(evaluation.MOST)
    parts, size = evaluation.batches(experiment, reference, count, batch_size), evaluation.filled(count, batch_size)
    least = max(min(LEAST, count // SHARES), count // MOST_PORTIONS)
    each = max(1, least // batch_size)  # batches of a portion
    pieces = [(column, first) for column in columns for first in range(0, len(parts), each)]
    named = {(column, first): f"t{settings.t:04d}-{column}-{first // each:06d}" for column, first in pieces}
    clocks = {column: SamplingTimer(experiment.device) for column in columns}
    missing = [piece for piece in pieces if not folder.has(named[piece])] if ranks.is_first else []
    missing = [(column, first) for column, first in ranks.broadcast_json(missing)]
    progress(len(columns) * count - sum(_images(parts, first, each) for _, first in missing))
    for number in ranks.next_tasks(len(missing)):
        column, first = missing[number]
        own, found = clocks[column], MetricAccumulator(reference, has_originals=True)
        before = own.told()
        seen: list[ImageMeasurements] = []
        sampler = evaluation.sampler(experiment, column)
        some = parts[first : first + each]
        for batch in evaluation.make(experiment, reference, some, own, settings, sampler, size):
            seen.append(found.look(batch.x, batch.numbers).first(batch.count))
            progress(batch.count)
        spent = [after - earlier for after, earlier in zip(own.told()[:2], before[:2], strict=True)]
        told = torch.tensor([*spent, own.evaluations], dtype=torch.float64)
        folder.write(named[column, first], _joined(seen) | {CLOCK: told})
    ranks.barrier()
    if not ranks.is_first:
        return {}
    outcomes = {}
    for column in columns:
        meter, clock = MetricAccumulator(reference, has_originals=True), SamplingTimer(experiment.device)
        for piece in (piece for piece in pieces if piece[0] == column):
            content = folder.read(named[piece])
            clock.add(content.pop(CLOCK).tolist())
            for seen_batch in _split(content, batch_size):
                meter.add(seen_batch)
        figures = meter.figures() | clock.figures()
        outcomes[column] = EvaluationResult(
            figures, meter.intervals(), meter.has_too_few_images, torch.empty(0), torch.empty(0)
        )
    return outcomes


def _images(parts: Sequence[Tensor], first: int, each: int) -> int:
    return sum(len(part) for part in parts[first : first + each])


def _joined(seen: Sequence[ImageMeasurements]) -> dict[str, Tensor]:
    """Return what was seen of several batches by name."""
    every = [one.tensors() for one in seen]
    return {name: torch.cat([tensors[name] for tensors in every]) for name in every[0]}


def _split(content: Mapping[str, Tensor], size: int) -> Iterator[ImageMeasurements]:
    """Yield what was seen batch by batch: sums are made in the order of batches."""
    for parts in zip(*(tensor.split(size) for tensor in content.values()), strict=True):
        yield ImageMeasurements(**dict(zip(content, parts, strict=True)))


def _sweep(place: Path, but: Path) -> None:
    """Remove the portions of calls that nobody has gone on with for long."""
    for found in place.iterdir():
        with contextlib.suppress(OSError):
            if found != but and found.is_dir() and time.time() - found.stat().st_mtime > ABANDONED:
                shutil.rmtree(found)
                found.with_suffix(LOCK).unlink(missing_ok=True)
