"""Show training progress in the terminal, as a bar or as lines, say how long it will take, and handle Ctrl-C."""

from __future__ import annotations

import collections
import math
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from colddiff_cli.console.screen import Screen
from colddiff_core.config import presets
from colddiff_core.distributed import environment
from colddiff_core.text import counted, shell_word

if TYPE_CHECKING:
    from colddiff_core.training.tick import Tick
    from colddiff_core.training.trainer import Trainer
    from colddiff_core.training.validation import ValidationRecord

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LINE_EVERY_SECONDS = 10.0  # without a terminal
# The first estimate needs this many steps, or this many seconds if they are slow; later ones use the newest steps.
MEASURED_STEPS, MEASURED_SECONDS = 5, 20.0
MOST_MEASURED = 100
MINUTE, HOUR, DAY = 60, 3600, 86_400  # seconds
SHORT_SECONDS = 10.0  # not worth a line
BUSY_SHARE = 0.3  # of the processors, used by other programs: worth a remark


COMPILED = {  # by mode of torch.compile
    "default": "fused kernels",
    "reduce-overhead": "fused kernels, launched together as CUDA graphs",
    "max-autotune": "the fastest kernels, found by trial",
}
FIRST_STEPS = {"max-autotune": "several minutes"}


def introduce(screen: Screen, trainer: Trainer) -> None:
    """Print the run, its images, network and device, and whether the network is compiled."""
    from colddiff_core import devices

    built, config = trainer.experiment, trainer.experiment.config
    count = sum(p.numel() for p in built.restorer.parameters())
    dtype = str(built.restorer.unet.body_dtype).removeprefix("torch.")
    where = f"step {trainer.step} of {config.train.steps}" if trainer.step else f"{config.train.steps} steps"
    screen.say(f"{trainer.run.path}: {config.description or config.name}")
    screen.say(
        f"{len(trainer.train_set):,} images of {_shape(built.shape)}, "
        f"{built.operator.name} T={built.operator.steps}, {count / 1e6:.1f} M parameters, "
        f"{dtype} body on {_machines(devices.describe(built.device))}, {where}"
    )
    if built.device.type != "cpu" or trainer.stepper.compile_mode:
        screen.say(_compilation(trainer))


def _compilation(trainer: Trainer) -> str:
    """Return a line that says whether the network is compiled, and in which mode or why not."""
    from colddiff_core.models import compiling

    mode, requested = trainer.stepper.compile_mode, trainer.settings.compile
    if mode:
        long = FIRST_STEPS.get(mode, "a minute or two")
        return f"compiling the network (train.compile={mode}: {COMPILED[mode]}); the first steps take {long}"
    if requested == compiling.OFF:
        return "the network is not compiled: train.compile=off"
    if environment.process_info().is_alone:
        return f"the network is not compiled: compiling pays off from {compiling.MIN_EVALUATIONS:,} steps"
    return "the network is not compiled: with several processes, set train.compile to a mode"


def _shape(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    order = "" if height == width else " (height, width, channels)"
    return f"{height}x{width}x{channels}{order}"


def _machines(device: str) -> str:
    """Return the device, with the number of processes if there are several."""
    process = environment.process_info()
    return device if process.is_alone else f"{device}, each of {process.count} processes"


def work(screen: Screen, trainer: Trainer) -> bool:
    """Train with a progress display; return False if a signal stopped it early, after saving."""
    try:
        with _interrupts(screen, trainer):
            _watch(screen, trainer)
    finally:
        trainer.train_set.close()
    trainer.run.close()
    if trainer.is_finished:
        return True
    screen.say(f"Stopped at step {trainer.step}; saved.")
    return False


@contextmanager
def _interrupts(screen: Screen, trainer: Trainer) -> Iterator[None]:
    """Stop after the current step on Ctrl-C, SIGTERM or SIGHUP; a second Ctrl-C interrupts at once."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        trainer.stop(signal.Signals(number).name)
        screen.say("Finishing this step and saving ...")

    previous: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in ENDINGS}
    for number, handler in previous.items():
        if number != signal.SIGHUP or handler != signal.SIG_IGN:  # keep nohup's choice
            signal.signal(number, on_signal)
    try:
        yield
    except BaseException:
        # torchrun's agent signals the others when one fails; ignore that, so that the error is still reported.
        if not environment.process_info().is_alone:
            previous = dict.fromkeys(previous, signal.SIG_IGN)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(screen: Screen, trainer: Trainer) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from colddiff_core.training.step import UNTRIED

    progress = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=screen.console,
        disable=not screen.is_terminal,
    )
    printed = time.monotonic()
    steps = trainer.settings.steps
    has_cpu = trainer.experiment.device.type == "cpu"
    forecast = Forecast(trainer.step, UNTRIED if trainer.stepper.compile_mode else 1)
    machine = MachineUse() if has_cpu else None
    is_announced = False
    note = ""
    with progress:
        task = progress.add_task("", total=steps, completed=trainer.step, note="")
        for tick in trainer.steps():
            # On a GPU steps are asynchronous: only reading metrics waits for them, so only those ticks can be timed.
            seconds = forecast.add(tick, steps, is_measured=has_cpu or tick.metrics is not None)
            if tick.metrics is not None:
                note = f"loss {tick.metrics['loss']:.4f}  {tick.metrics['images_per_second']:,.0f} images/s"
            line = f"{note}{_left(seconds)}".lstrip()
            progress.update(task, completed=tick.step, note=line)
            if seconds is not None and not is_announced:
                is_announced = True
                _announce(screen, trainer, seconds, machine.by_others() if machine else 0.0)
            if tick.is_paused:
                place = shell_word(trainer.run.path)
                screen.say(f"Paused at step {tick.step} as requested. To continue: colddiff monitor {place}")
            if tick.validation is not None:
                _report(screen, tick.validation, tick.step)
            if tick.metrics is None or screen.is_terminal:
                continue
            now = time.monotonic()
            if now - printed > LINE_EVERY_SECONDS or tick.step == steps:
                printed = now
                screen.say(f"step {tick.step}/{steps}  {line}")


def _left(seconds: float | None) -> str:
    """Return the time left, to append to a line; empty if it is not known, or at the end."""
    return f"  {about(seconds)} left" if seconds else ""


def _report(screen: Screen, found: ValidationRecord, step: int) -> None:
    """Say what a validation has found."""
    if found.rmse is None:
        return
    best = f"best so far: RMSE {found.rmse:.4f}"
    is_best = found.best_step == step
    since = f" at step {found.best_step}, {counted(found.failures, 'check')} ago"
    screen.say(f"step {step}: validated, {best}{'' if is_best else since}")


class Forecast:
    """Estimates how long the rest of a training takes: the steps left times the median duration of recent steps.

    The first steps do not count, because they also build tables, fill caches and compile the network. Pauses do not
    count either.
    """

    def __init__(self, step: int, warm_up: int = 1) -> None:
        """Start timing at `step`, where this training starts; its first `warm_up` steps do not count."""
        self._began = self._seen = time.monotonic()  # start of the steps being timed; time of the newest tick
        self._step = step
        self._to_warm_up = warm_up
        self._taken = 0  # steps since `_began`
        self._measured_steps, self._measured_seconds = 0, 0.0
        self._durations: collections.deque[float] = collections.deque(maxlen=MOST_MEASURED)  # seconds per step

    def add(self, tick: Tick, steps: int, *, is_measured: bool = True) -> float | None:
        """Return the seconds left until step `steps`; None until enough steps are timed.

        `is_measured`: whether all steps so far are complete, so that they took the time since the last such tick.
        """
        now = time.monotonic()
        if tick.step == self._step:  # a pause and its end are ticks without a step
            self._began += now - self._seen
        else:
            self._taken += 1
        self._step, self._seen = tick.step, now
        if is_measured and self._taken:
            self._measure(now - self._began)
            self._began = now
        if self._measured_steps < MEASURED_STEPS and self._measured_seconds < MEASURED_SECONDS:
            return None
        return statistics.median(self._durations) * (steps - tick.step)

    def _measure(self, seconds: float) -> None:
        """Record the duration of the steps since the last measurement."""
        if self._to_warm_up <= 0:
            self._durations.append(seconds / self._taken)
            self._measured_steps += self._taken
            self._measured_seconds += seconds
        self._to_warm_up -= self._taken
        self._taken = 0


class MachineUse:
    """Measures how much of this machine's processors other programs use, from its creation on."""

    def __init__(self) -> None:
        self._busy, self._own, self._clock = self._measured()

    @staticmethod
    def _measured() -> tuple[float, float, float]:
        import psutil  # 20 ms, which other commands need not pay

        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        # "steal" is what the host of a virtual machine gave to others.
        busy = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
        return busy, own.user + own.system, time.monotonic()

    def by_others(self) -> float:
        """Return how many processors others have used on average: 0.5 is half of one."""
        busy, own, clock = self._measured()
        seconds = clock - self._clock
        return max(0.0, busy - self._busy - (own - self._own)) / seconds if seconds > 0 else 0.0


def _announce(screen: Screen, trainer: Trainer, seconds: float, others: float) -> None:
    """Say how long the training will take, and if that is days on a CPU, name the preset made for CPUs.

    Args:
        screen: Where to say it.
        trainer: The training.
        seconds: How long it will take.
        others: How many processors other programs use.
    """
    if seconds >= SHORT_SECONDS:
        unit = "CPU" if trainer.experiment.device.type == "cpu" else "GPU"
        screen.say(f"{about(seconds)} on this {unit}{_busy(others)}")
    name = trainer.experiment.config.name
    small = f"{name}-small"
    if trainer.experiment.device.type == "cpu" and seconds >= DAY and small in presets.names():
        screen.warn(
            f"{name} is made for a GPU; for a CPU there is {small}: press Ctrl-C, then colddiff train --preset {small}"
        )


def _busy(others: float) -> str:
    """Return what to say of the processors that other programs use; empty if that is little."""
    count = environment.processors()
    if others < BUSY_SHARE * count:
        return ""
    return f"; other programs use {min(others, count):.1f} of its {count} processors"


def about(seconds: float) -> str:
    """Return a duration in words, rounded: "about 2 min"."""
    if seconds < 1.5 * MINUTE:
        return f"about {math.ceil(seconds / 10) * 10} s"
    if seconds < 1.5 * HOUR:
        return f"about {seconds / MINUTE:.0f} min"
    if seconds < DAY:
        return f"about {seconds / HOUR:.0f} h"
    return f"about {seconds / DAY:.0f} days" if seconds >= 9.5 * DAY else f"about {seconds / DAY:.1f} days"
