"""The restorers of one call: that of one run, or those of the pretrained runs, each opened when a picture needs it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colddiff_cli.console.screen import Screen
from colddiff_cli.jobs import open_run
from colddiff_cli.picture_series import per_file
from colddiff_core import runs
from colddiff_core.config.sizes import in_words, sides
from colddiff_core.errors import UsageError
from colddiff_core.runs import pretrained
from colddiff_core.text import nearest, shell_word

if TYPE_CHECKING:
    from torch import Tensor

    from colddiff_core.degradations import Degradation, Estimate
    from colddiff_core.experiment import Experiment
    from colddiff_core.inference.open_run import TrainedRun
    from colddiff_core.inference.photograph import PhotographRestorer

AUTO, SWEEP = "auto", "sweep"
COLORS = ("channels", "luma")  # how a gray run restores a color picture
PHOTOGRAPHS = "photos-"  # the pretrained runs for photographs are called so
SMALL_SETS = frozenset({"digits", "mnist", "cifar10"})  # whole images of a few pixels: networks that know nothing else
MOST_TIMES = 2  # a picture's shorter side to that of such images


@dataclasses.dataclass(frozen=True)
class RestoreOptions:
    """The options of one call; None is the run's or the operator's default."""

    t: str | None
    mask: Path | None
    color: str
    is_consistent: bool | None
    is_compared: bool
    sampler: str | None
    stride: int | None
    out: Path | None
    out_dir: Path | None
    seed: int
    is_resumed: bool
    is_forced: bool

    @property
    def is_sweep(self) -> bool:
        """Whether candidates at several severities are asked for."""
        return self.t == SWEEP

    @property
    def severity(self) -> int | None:
        """The severity that was given, None to estimate it."""
        return None if self.t in (None, AUTO, SWEEP) else whole(self.t)


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A run that was opened to restore pictures."""

    trained: TrainedRun
    worker: PhotographRestorer

    @property
    def label(self) -> str:
        """What people call the run."""
        return self.trained.run.label

    def check(self, picture: Tensor) -> None:
        """Refuse a picture (C, H, W) that is nothing like the images that the run was trained on.

        A network that has seen only whole images of a few pixels, or in gray, makes noise of a photograph. One that
        was trained on windows of photographs (`data.crop`) restores any size, and in gray each channel of a color.

        Raises:
            UsageError: The run cannot restore such a picture.
        """
        data, own = self.trained.experiment.config.data, self.trained.experiment.channels
        channels, height, width = picture.shape
        is_gray_only = channels > own
        if data.crop or min(height, width) <= MOST_TIMES * max(sides(data.size)):
            return
        if not is_gray_only and data.dataset not in SMALL_SETS:
            return
        color = "gray" if own == 1 else "color"
        trained = f"whole {color} images of {in_words(data.size)} pixels ({data.dataset})"
        given = f"this one has {width}x{height}{' in color' if is_gray_only else ''}"
        what = f"{self.label} was trained on {trained}, and {given}: it would return noise."
        instead = _for_photographs(self.worker.operator.name)
        remedy = f"Use colddiff restore without --run ({instead}), or scale it to {in_words(data.size)} pixels."
        raise UsageError(what, remedy)


@dataclasses.dataclass(frozen=True)
class Restorers:
    """The restorers to choose from.

    Attributes:
        found: The runs by the names of their operators. With several, each picture says which one it needs.
        opened: Those that were needed so far, by operator.
    """

    screen: Screen
    asked: RestoreOptions
    found: Mapping[str, runs.Run]
    device: str
    overrides: tuple[str, ...]
    opened: dict[str, OpenedRun] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def only(self) -> str | None:
        """The operator, if there is just one; else None."""
        return next(iter(self.found)) if len(self.found) == 1 else None

    @functools.cached_property
    def operators(self) -> dict[str, Degradation]:
        """All operators, built without their networks."""
        from colddiff_core import experiment

        return {name: experiment.build_operator(run.config()) for name, run in self.found.items()}

    def open(self, name: str) -> OpenedRun:
        """Return the restorer for an operator.

        Raises:
            UsageError: The options do not fit the run, or it cannot be opened.
        """
        if name not in self.opened:
            self.opened[name] = self._open(self.found[name])
        return self.opened[name]

    def open_all(self) -> None:
        """Open every run now: the processes of a job can only do that together."""
        for name in self.found:
            self.open(name)

    def choose(self, path: Path, picture: Tensor) -> tuple[str, Estimate | None]:
        """Return the operator that most probably degraded a picture (C, H, W) float32 in [-1, 1], with its estimate.

        Args:
            path: The picture's file, for messages.

        Raises:
            per_file.NothingToDoError: The picture shows no trace of any.
        """
        if self.only is not None:
            return self.only, None
        from colddiff_core.degradations.estimation.choice import choose

        choice = choose(picture[None], self.operators)
        if choice.name is None:
            what = f"No trace of {_listed(list(self.operators))} was found: nothing to restore."
            op = next(iter(self.found))
            remedy = f"If you see one, compare candidates: colddiff restore {shell_word(path)} --op {op} --sweep"
            raise per_file.NothingToDoError(what, remedy)
        return choice.name, choice.estimates[choice.name]

    def settings(self) -> dict[str, Any]:
        """Return what the pictures of this call depend on, options not included."""
        if self.only is not None:
            trained = self.open(self.only).trained
            return open_run.described(trained.run, trained.experiment, trained.step)
        from colddiff_core import experiment

        digests = {run.label: pretrained.digest(run.path) for run in self.found.values()}
        return {"runs": digests, "device": self.device, "settings": self.overrides, "versions": experiment.versions()}

    def _open(self, run: runs.Run) -> OpenedRun:
        from colddiff_core.distributed import group
        from colddiff_core.models import memory

        trained = open_run.open_run(run, self.device, self.overrides)
        built = trained.experiment
        tile = group.current().broadcast_json(memory.tile_side(built.config.model, built.body_dtype, built.device))
        worker = dataclasses.replace(_worker(built, self.asked), tile=tile)
        if not built.bits and worker.needs_inverse:
            what = "this run was trained on pictures not rounded to 8 bits, so it amplifies the rounding in yours"
            self.screen.warn(f"{what}. Train one with degradation.quantize=8, such as a photos- preset.")
        t, steps = self.asked.severity, built.operator.steps
        if t is not None and not 0 <= t <= steps:
            what = f"t = {t} is out of range for {built.operator.name}."
            raise UsageError(what, f"Use 0 to {steps} (its steps).")
        return OpenedRun(trained, worker)


def of_run(screen: Screen, name: str | None, operator: str | None = None) -> dict[str, runs.Run]:
    """Return a run, by name or the newest, by its operator; without any run, the pretrained ones for photographs.

    Raises:
        UsageError: There is no such run, or it has another operator.
    """
    from colddiff_core.distributed import group

    if name is None and not group.current().on_first(lambda: len(runs.listed())):
        return for_photographs(operator, hides=False)
    run = open_run.find(screen, name, "")
    own = run.config().degradation.name
    if operator not in (None, own):
        raise UsageError(f"--op {operator}: {run.label} restores from {own}.", "Leave out --op or --run.")
    return {own: run}


def operators_of_photographs() -> list[str]:
    """Return the operators that pretrained runs restore photographs from, for completion."""
    names = [name for name in pretrained.names() if name.startswith(PHOTOGRAPHS)]
    return sorted(runs.Run(pretrained.directory() / name).config().degradation.name for name in names)


def for_photographs(operator: str | None, *, hides: bool) -> dict[str, runs.Run]:
    """Return the pretrained runs that restore photographs, by operator.

    Args:
        operator: Only this one's; None for all.
        hides: Only those of operators that hide pixels, for a mask.

    Raises:
        UsageError: There is none for the operator, or none came with this installation.
    """
    names = [name for name in pretrained.names() if name.startswith(PHOTOGRAPHS)]
    if not names:
        pretrained.find(PHOTOGRAPHS + (operator or "blur"))  # raises the error that says what to do
    every = {run.config().degradation.name: run for run in (runs.Run(pretrained.find(name)) for name in names)}
    if operator is not None and operator not in every:
        remedy = f"{nearest(operator, every)} With a run of your own: --run RUN."
        raise UsageError(f"--op {operator}: no pretrained run restores photographs from it.", remedy)
    chosen = {operator: every[operator]} if operator is not None else every
    if not hides:
        return chosen
    from colddiff_core import experiment

    hiding = {name: run for name, run in chosen.items() if experiment.build_operator(run.config()).hides}
    if not hiding:
        raise UsageError(f"--mask does not go with {_listed(list(chosen))}: it hides no pixels.", "Leave one out.")
    return hiding


def _for_photographs(operator: str) -> str:
    """Return the names of the pretrained runs for photographs, of this operator if there is one, for a sentence."""
    names = [name for name in pretrained.names() if name.startswith(PHOTOGRAPHS)]
    own = [name for name in names if name == PHOTOGRAPHS + operator]
    return ", ".join(f"{pretrained.PREFIX}{name}" for name in own or names) or "runs for photographs"


def whole(text: str, *, is_degraded: bool = True) -> int:
    """Parse --t as a whole number; raises UsageError for anything else."""
    try:
        return int(text)
    except ValueError:
        if not is_degraded and text in (AUTO, SWEEP):
            what = f"--t {text} is for pictures that are already degraded."
            raise UsageError(what, "Use colddiff restore, or a whole number.") from None
        raise UsageError(f"--t {text} is not a severity.", f"Use a whole number, {AUTO} or {SWEEP}.") from None


def _worker(built: Experiment, asked: RestoreOptions) -> PhotographRestorer:
    from colddiff_core.inference import photograph as blind
    from colddiff_core.sampling import Sampling

    op = built.operator
    if op.second_field:
        what = f"{op.name} mixes in a second picture, and yours is unknown."
        raise UsageError(what, "Use a run of another operator.")
    can_project = op.is_linear and op.has_inverse
    if asked.is_consistent and not can_project:
        raise UsageError(f"--consistent: {op.name} is not linear, or has no inverse.", "Leave --consistent out.")
    sampling = Sampling.of(built.config, sampler=asked.sampler, stride=asked.stride, seed=asked.seed)
    dataclasses.replace(sampling, stride=min(sampling.stride, op.steps)).check(op)
    is_consistent = can_project if asked.is_consistent is None else asked.is_consistent
    return blind.PhotographRestorer(built, sampling, is_consistent, asked.color)  # type: ignore[arg-type]


def _listed(names: list[str]) -> str:
    """Join names for a sentence: "blur, holes or snow"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
