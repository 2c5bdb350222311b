"""A resumable evaluation: measure in chunks, in any order and in several processes, and store each on the disk.

A chunk file holds the measurements of some hundred images, one by one. Figures are computed from the chunks in the
order of the images, so they are the same bit for bit, however many processes measured and however often they stopped.
"""

from __future__ import annotations

import contextlib
import re
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
from colddiff_core.evaluation.evaluate import COLUMNS, EvaluationResult, EvaluationSettings, SamplingTimer
from colddiff_core.evaluation.metrics import ImageMeasurements, MetricAccumulator, Reference
from colddiff_core.experiment import Experiment
from colddiff_core.files import FileLock, read_ordinary, refusals, whole

MIN_CHUNK_IMAGES = 256
MIN_CHUNKS, MAX_CHUNKS = 8, 512  # per column; small evaluations get smaller chunks
NAME = re.compile(r"[0-9a-f]{16}")  # of the folder: a hash of the settings
LOCK = ".lock"  # suffix of the lock file beside the folder
STALE_SECONDS = 30 * 86_400.0  # after which partial results count as abandoned
CLOCK = "clock"  # name of the tensor (seconds, images, evaluations) in a chunk file
Progress = Callable[[int], None]


class PartialResults:
    """The folder with the chunks of one evaluation, locked while a job works on it."""

    def __init__(self, path: Path, *, is_first: bool = True, is_resumed: bool = False) -> None:
        """Lock the folder and clear it.

        Args:
            path: The folder.
            is_first: Whether this is rank 0; other ranks neither lock nor clear.
            is_resumed: Keep the chunks of an earlier call.

        Raises:
            MachineError: Another job has locked the folder, it cannot be written, or it is a link.
        """
        self.path = path
        self._lock: FileLock | None = None
        if not is_first:
            return
        for place in (path.parent, path):
            if place.is_symlink():  # in a run from someone else it may lead to any folder of the user's
                raise MachineError(f"{place} is a link, perhaps someone else's.", "Remove it.")
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FileLock.take(path.with_suffix(LOCK))
        except BlockingIOError:
            what = "Another process is running this evaluation."
            raise MachineError(what, "Wait until it ends, or stop it.") from None
        with refusals(path):
            _remove_stale(path.parent, keep=path)
            if not is_resumed:
                shutil.rmtree(path, ignore_errors=True)
            path.mkdir(exist_ok=True)

    def has(self, name: str) -> bool:
        """Return whether a chunk exists."""
        return self._file(name).is_file()

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a chunk atomically.

        Raises:
            MachineError: It cannot be written.
        """
        with whole(self._file(name)) as draft:
            draft.write_bytes(safetensors.torch.save(dict(tensors)))

    def read(self, name: str) -> dict[str, Tensor]:
        """Read a chunk.

        Raises:
            MachineError: It is missing or damaged.
        """
        path = self._file(name)
        try:
            return safetensors.torch.load(read_ordinary(path))
        except (OSError, safetensors.SafetensorError) as error:
            raise MachineError(f"{path} cannot be read: {error}.", "Start again without --resume.") from None

    def close(self, *, is_done: bool) -> None:
        """Unlock the folder; remove it if the evaluation is done."""
        if self._lock is None:
            return
        if is_done:
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):  # other evaluations have chunks there
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
    progress: Progress = lambda images: None,
) -> dict[str, EvaluationResult]:
    """Return the same results as `evaluate.evaluate`, without images, on rank 0, and nothing on other ranks.

    The ranks share the missing chunks.

    Args:
        experiment: The run's operator and network.
        reference: What the images are measured against.
        folder: Stores the chunks.
        settings: Severity, number of images and so on.
        columns: See `evaluation.column_sampler`.
        ranks: The processes that measure together.
        progress: Called once with the number of images in existing chunks, then with the size of each finished batch.

    Raises:
        UsageError: A sampler, t or stride does not fit the operator.
        MachineError: A chunk cannot be written or read.
    """
    count, batch_size = settings.count, settings.batch_size or experiment.batch_size(evaluation.MOST)
    batches = evaluation.index_batches(experiment, reference, count, batch_size)
    padded_size = evaluation.padded_size(count, batch_size)
    samplers = [evaluation.column_sampler(experiment, column) for column in columns]
    evaluation.compile_for(experiment, settings, samplers, len(batches))
    min_images = max(min(MIN_CHUNK_IMAGES, count // MIN_CHUNKS), count // MAX_CHUNKS)
    per_chunk = max(1, min_images // batch_size)  # batches
    chunks = [(column, first) for column in columns for first in range(0, len(batches), per_chunk)]
    names = {(column, first): f"t{settings.t:04d}-{column}-{first // per_chunk:06d}" for column, first in chunks}
    timers = {column: SamplingTimer(experiment.device) for column in columns}
    missing = [chunk for chunk in chunks if not folder.has(names[chunk])] if ranks.is_first else []
    missing = [(column, first) for column, first in ranks.broadcast_json(missing)]
    progress(len(columns) * count - sum(_image_count(batches[first : first + per_chunk]) for _, first in missing))
    for number in ranks.next_tasks(len(missing)):
        column, first = missing[number]
        timer, meter = timers[column], MetricAccumulator(reference, has_originals=True)
        before = timer.totals()
        measurements: list[ImageMeasurements] = []
        sampler = evaluation.column_sampler(experiment, column)
        selected = batches[first : first + per_chunk]
        for batch in evaluation.restore_batches(experiment, reference, selected, timer, settings, sampler, padded_size):
            measurements.append(meter.measure(batch.x, batch.numbers).first(batch.count))
            progress(batch.count)
        spent = [after - earlier for after, earlier in zip(timer.totals()[:2], before[:2], strict=True)]
        totals = torch.tensor([*spent, timer.evaluations], dtype=torch.float64)
        folder.write(names[column, first], _join(measurements) | {CLOCK: totals})
    ranks.barrier()
    if not ranks.is_first:
        return {}
    results = {}
    for column in columns:
        meter, timer = MetricAccumulator(reference, has_originals=True), SamplingTimer(experiment.device)
        for chunk in (chunk for chunk in chunks if chunk[0] == column):
            tensors = folder.read(names[chunk])
            timer.add(tensors.pop(CLOCK).tolist())
            for measured in _split(tensors, batch_size):
                meter.add(measured)
        figures = meter.figures() | timer.figures()
        results[column] = EvaluationResult(
            figures, meter.intervals(), meter.has_too_few_images, torch.empty(0), torch.empty(0)
        )
    return results


def _image_count(batches: Sequence[Tensor]) -> int:
    return sum(map(len, batches))


def _join(measurements: Sequence[ImageMeasurements]) -> dict[str, Tensor]:
    """Concatenate the measurements of several batches, by name."""
    tensors = [batch.tensors() for batch in measurements]
    return {name: torch.cat([batch[name] for batch in tensors]) for name in tensors[0]}


def _split(tensors: Mapping[str, Tensor], size: int) -> Iterator[ImageMeasurements]:
    """Yield the measurements batch by batch, because sums depend on the batches."""
    for parts in zip(*(tensor.split(size) for tensor in tensors.values()), strict=True):
        yield ImageMeasurements(**dict(zip(tensors, parts, strict=True)))


def _remove_stale(parent: Path, keep: Path) -> None:
    """Remove partial results that were not touched for a long time, and nothing else that someone keeps there."""
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):
            if folder == keep or not NAME.fullmatch(folder.name) or folder.is_symlink():
                continue
            if folder.is_dir() and time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder)
                folder.with_suffix(LOCK).unlink(missing_ok=True)
