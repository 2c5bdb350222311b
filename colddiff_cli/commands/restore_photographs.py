"""Restore pictures that are degraded already: `colddiff restore`, and `sample --degraded`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colddiff_cli.arguments import inputs, outputs
from colddiff_cli.commands.restorers import AUTO, COLORS, OpenedRun, RestoreOptions, Restorers
from colddiff_cli.console.screen import Screen
from colddiff_cli.picture_series import manifest, naming, per_file, series
from colddiff_cli.picture_series.notes import PictureNotes
from colddiff_core import runs
from colddiff_core.errors import UsageError
from colddiff_core.files import fitted
from colddiff_core.text import shell_word

if TYPE_CHECKING:
    from torch import Tensor

    from colddiff_core.images import Work
    from colddiff_core.images.photograph import Photograph
    from colddiff_core.inference.photograph import DegradedPhotograph, PhotographRestorer

WINDOW_PIXELS = 384  # side of the window that a sweep shows
RIM_PIXELS = 64  # restored around the window, so that its border looks right
OPAQUE = 127  # alpha above this, of 255
# Memory that restoring takes for each pixel of a color picture, with both pictures side by side if they are shown or
# written, and for the network; upper bounds, measured (docs/decisions/012-memory.md).
PIXEL_BYTES, COMPARED_BYTES, NETWORK_BYTES = 90, 40, 2 * 10**9
LOW_CONFIDENCE = 0.5  # an estimate below it is worth a second look


def restore(
    screen: Screen,
    found: Mapping[str, runs.Run],
    names: list[str],
    asked: RestoreOptions,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Restore pictures, or show each at several severities.

    Args:
        found: The runs to choose from for each picture, by the names of their operators.
    """
    if not names:
        raise UsageError("No picture to restore was named.", "Name images, folders of images or globs.")
    files = inputs.agreed(lambda: inputs.listed(names))
    _check(asked, files, found)

    from colddiff_core import images
    from colddiff_core.distributed import group
    from colddiff_core.images import photograph as photographs

    ranks = group.current()

    if asked.mask is not None:
        images.read(asked.mask, note=lambda text: screen.warn(f"{asked.mask}: {text}"))  # fails before a run is opened
    restorers = Restorers(screen, asked, found, device, overrides)
    if restorers.only is not None or not ranks.is_alone:
        restorers.open_all()
    settings = restorers.settings() | {
        "degraded": True,
        "t": asked.t or AUTO,
        "sampler": asked.sampler,
        "stride": asked.stride,
        "consistent": asked.is_consistent,
        "colour": asked.color,
        "compared": asked.is_compared,
        "seed": asked.seed,
        "mask": manifest.fingerprint([asked.mask]) if asked.mask else None,
    }
    folder = asked.out_dir or Path()
    if asked.is_resumed:
        files = series.without_own(files, folder, "sample", settings)
    paths = [file for file, _ in files]
    targets = (
        [asked.out] if asked.out else naming.targets(paths, folder, "sweep.png" if asked.is_sweep else "restored.png")
    )
    if asked.is_compared:
        targets += [_compared(asked.out)] if asked.out else naming.targets(paths, folder, "compared.png")
    for target in targets:
        images.check_suffix(target, images.SUFFIXES if asked.is_sweep else photographs.SUFFIXES)
    if ranks.is_first:
        settings["inputs"] = manifest.fingerprint(paths)
        outputs.check_not_inputs(targets, paths, is_alone=len(paths) == 1)
    is_series = asked.out is None and (asked.out_dir is not None or len(files) > 1)
    with series.Series(
        targets,
        "sample",
        settings if is_series else None,
        folder=None if asked.out else folder,
        inputs=paths,
        resume=asked.is_resumed,
        force=asked.is_forced,
    ) as own:
        job = PhotographJob(screen, own, asked, restorers, paths, PictureNotes(screen, len(paths)))
        work = job.sweep if asked.is_sweep else job.restore
        done, kept = per_file.make(screen, own, files, "restored", work, is_slow=True)
        job.notes.report(own.ranks)
    records = {n: record for pairs in ranks.gather_json(list(job.records.items())) for n, record in pairs}
    if not ranks.is_first:
        return
    result = _described(restorers) | {"n": len(done), "kept": kept}
    result |= {
        "files": [{"input": str(paths[n])} | _outputs(targets[n :: len(paths)]) | records.get(n, {}) for n in done]
    }
    screen.result(result, targets[done[-1]] if len(done) == 1 else None)


def _described(restorers: Restorers) -> dict[str, Any]:
    """Return what the JSON result says about the only run, for calls with one."""
    if restorers.only is None:
        return {}
    only = restorers.open(restorers.only)
    built, worker = only.trained.experiment, only.worker
    return {
        "run": only.label,
        "step": only.trained.step,
        "sampler": worker.sampling.sampler,
        "stride": worker.sampling.stride,
        "consistent": worker.is_consistent,
        "precision": built.precision,
        "steps": built.operator.steps,
    }


def _compared(out: Path) -> Path:
    return out.with_name(fitted(out.stem.removesuffix("-restored"), f"-compared{out.suffix}"))


def _outputs(targets: list[Path]) -> dict[str, str]:
    return dict(zip(("output", "compared"), map(str, targets), strict=False))


@dataclasses.dataclass(frozen=True)
class PhotographJob:
    """Reads, restores and writes the pictures of one call.

    records: what the JSON result says about each picture, by number.
    """

    screen: Screen
    own: series.Series
    asked: RestoreOptions
    restorers: Restorers
    paths: list[Path]
    notes: PictureNotes
    records: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def restore(self, number: int, at_share: per_file.AtShare) -> Callable[[], None]:
        """Restore one picture; return a function that writes it."""
        from colddiff_core import images
        from colddiff_core.images import photograph as photographs

        path = self.paths[number]
        photograph = photographs.read(path, work=self._work)
        self._check_sides(number, photograph)
        opened, given = self._look(number, photograph)
        worker = self._worker_for(opened.worker, given)
        restored = worker.restore(given, at_share)
        self.records[number] = self._record(opened, given)
        self.records[number] |= {"sampler": worker.sampling.sampler, "consistent": worker.is_consistent}

        def write() -> None:
            both = None
            if self.asked.is_compared or self.is_shown:
                both = photographs.side_by_side(photograph, given.picture, restored)
            if both is not None and self.asked.is_compared:
                photographs.write(both, both.pixels, self.own.place(number + len(self.paths)))
            for note in photographs.write(photograph, restored, self.own.place(number)):
                self.notes.add(number, path, note)
            if both is not None and self.is_shown:
                self.screen.picture(images.to_pillow(both.pixels))
            self._print_path(number)

        return write

    @property
    def _work(self) -> Work:
        """Return the memory that a picture of this call takes."""
        from colddiff_core import images

        return images.Work(PIXEL_BYTES + COMPARED_BYTES * (self.asked.is_compared or self.is_shown), NETWORK_BYTES)

    @property
    def is_shown(self) -> bool:
        """Whether restored pictures are drawn on the terminal."""
        return self.screen.is_terminal and len(self.paths) <= series.MANY

    def _print_path(self, number: int) -> None:
        """Print the path of one of several pictures; that of a single one is printed at the end."""
        if 1 < len(self.paths) <= series.MANY and not self.screen.is_json:
            self.screen.say(naming.line(self.paths[number], self.paths, self.own.targets[number]))

    def _check_sides(self, number: int, photograph: Photograph) -> None:
        """Refuse a picture that its output format cannot hold, before it is restored."""
        from colddiff_core import images
        from colddiff_core.images import photograph as photographs

        height, width = photograph.pixels.shape[-2:]
        images.check_sides((width, height), self.own.targets[number])
        if self.asked.is_compared:
            both = photographs.side_by_side_size(photograph)
            images.check_sides(both, self.own.targets[number + len(self.paths)])

    def sweep(self, number: int, at_share: per_file.AtShare) -> Callable[[], None]:
        """Make a strip of one picture, or a part of it, at several severities; return a function that writes it."""
        from colddiff_core import images
        from colddiff_core.images import photograph as photographs
        from colddiff_core.inference import photograph as blind

        path = self.paths[number]
        photograph = photographs.read(path, work=self._work)
        picture = photographs.upright(photograph, photograph.pixels)
        opened, whole = self._look(number, dataclasses.replace(photograph, pixels=picture, orientation=1))
        # A hole or snow depends on the whole picture; a blur is the same everywhere.
        window = (
            picture if dataclasses.fields(whole.frozen) else blind.detailed(picture, WINDOW_PIXELS + 2 * RIM_PIXELS)
        )
        worker = opened.worker
        place = blind.hole(whole, worker.operator) if whole.is_known and window is picture else None
        shown = blind.around(window, WINDOW_PIXELS, place)
        candidates = blind.severities(worker.operator, whole.estimate)
        columns = {"given": window[shown][None]}
        for index, t in enumerate(candidates):

            def at_part(part: float, index: int = index) -> None:
                at_share((index + part) / len(candidates))

            given = whole.at(t) if window is picture else worker.look(window, t)
            restored = self._worker_for(worker, given).restore(given, at_part)
            is_estimate = whole.estimate is not None and t == whole.estimate.t
            columns[f"t {t}{'*' if is_estimate else ''}"] = restored[shown][None]
        strip = images.sheet(columns)
        self.records[number] = self._record(opened, whole) | {"candidates": candidates}

        def write() -> None:
            images.write(strip, self.own.place(number))
            if len(self.paths) <= series.MANY:
                self.screen.picture(strip)
            self._print_path(number)

        return write

    def _look(self, number: int, photograph: Photograph) -> tuple[OpenedRun, DegradedPhotograph]:
        """Return the restorer for a photograph, and what it sees of it; say which and how badly it is degraded."""
        path = self.paths[number]
        for note in photograph.notes:
            self.notes.add(number, path, note)
        name, estimate = self.restorers.choose(path, photograph.pixels)
        opened = self.restorers.open(name)
        opened.check(photograph.pixels)
        worker, operator = opened.worker, opened.worker.operator
        if len(photograph.pixels) > worker.experiment.channels:
            is_luma = self.asked.color == "luma"
            how = "only its brightness is restored" if is_luma else "each channel is restored separately"
            self.screen.say(f"{path} has color but the run is gray: {how}")
        hidden = _hidden(self.asked.mask, photograph) if self.asked.mask else None
        t = self.asked.severity
        try:
            given = worker.look(photograph.pixels, t, hidden, estimate)
        except UsageError:
            if not self.asked.is_sweep:
                raise
            given = worker.look(photograph.pixels, operator.steps)  # the user chooses
        estimate = given.estimate
        op = f" --op {name}" if opened.trained.run.is_pretrained else f" --run {shell_word(opened.label)}"
        by = f"; restored with {opened.label}" if opened.trained.run.is_pretrained else ""
        if hidden is not None:
            self.screen.say(f"{path}: t = {given.t} of {operator.steps}, from the mask{by}")
        elif t is None and estimate is not None:
            sure = f"{estimate.low}..{estimate.high}, {estimate.confidence:.0%} sure"
            self.screen.say(f"{path}: {estimate.trace} (t = {estimate.t} of {operator.steps}, {sure}){by}")
            if not estimate.t and not self.asked.is_sweep:
                self.screen.warn(
                    f"{path}: nothing to restore was found. If you know better, set the severity with --t."
                )
            elif estimate.confidence < LOW_CONFIDENCE and not self.asked.is_sweep:
                self.screen.say(f"  To compare candidates: colddiff restore {shell_word(path)}{op} --sweep")
        return opened, given

    def _worker_for(self, worker: PhotographRestorer, given: DegradedPhotograph) -> PhotographRestorer:
        """Return the restorer for a picture: "direct", if the run's sampler needs random fields that are unknown."""
        if given.is_known or self.asked.sampler is not None:
            return worker
        direct = dataclasses.replace(worker.sampling, sampler="direct", stride=1)
        return dataclasses.replace(worker, sampling=direct)

    def _record(self, opened: OpenedRun, given: DegradedPhotograph) -> dict[str, Any]:
        record: dict[str, Any] = {"operator": opened.worker.operator.name, "run": opened.label, "t": given.t}
        if self.asked.severity is None and given.estimate is not None:
            record |= {key: getattr(given.estimate, key) for key in ("low", "high", "confidence", "trace")}
        return record


def _check(asked: RestoreOptions, files: list[tuple[Path, bool]], found: Mapping[str, runs.Run]) -> None:
    """Refuse bad combinations before the run is opened."""
    if asked.out is not None and len(files) > 1:
        raise UsageError(f"--out names one picture, but there are {len(files)}.", "Use --out-dir.")
    if asked.out is not None and asked.out_dir is not None:
        raise UsageError("--out names a picture and --out-dir a folder.", "Use one of them.")
    if asked.out is not None and asked.is_resumed:
        raise UsageError("--resume completes a folder of pictures, but --out names one.", "Leave one of them out.")
    if asked.is_sweep and asked.is_compared:
        raise UsageError("--t sweep shows candidates and restores nothing.", "Leave --compare out.")
    if asked.mask is not None and asked.t not in (None, AUTO):
        raise UsageError("--mask sets the severity.", "Leave --t out.")
    if asked.color not in COLORS:
        raise UsageError(f"--color {asked.color} is unknown.", f"Choices: {', '.join(COLORS)}.")
    if asked.severity is not None and len(found) > 1:
        raise UsageError(f"--t {asked.t} says how badly, but not what happened to the picture.", "Add --op or --run.")


def _hidden(mask: Path, photograph: Photograph) -> Tensor:
    """Return the pixels of a photograph, in file orientation, that a mask picture marks: (H, W) bool."""
    import torch

    from colddiff_core.images import photograph as photographs

    drawn = photographs.read(mask)
    marked = photographs.upright(drawn, drawn.pixels).mean(0) > 0
    if drawn.alpha is not None:  # strokes on a transparent layer
        marked &= photographs.upright(drawn, drawn.alpha) > OPAQUE
    height, width = photograph.pixels.shape[-2:]
    numbers = torch.arange(height * width).view(1, height, width)
    upright = photographs.upright(photograph, numbers)[0]
    if marked.shape != upright.shape:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (marked.shape, upright.shape)]
        what = f"{mask} has {sizes[0]} pixels and the picture {sizes[1]}."
        raise UsageError(what, "Draw the mask on a copy of the picture, white where pixels are to be filled in.")
    hidden = torch.zeros(height * width, dtype=torch.bool)
    hidden[upright[marked]] = True
    return hidden.view(height, width)
