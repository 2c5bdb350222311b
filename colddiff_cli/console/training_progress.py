"""Show training progress in the terminal, as a bar or as lines, say how long it will take, and handle Ctrl-C."""

from __future__ import annotations

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
# The estimate is made from this many steps, or fewer if they are slow.
MEASURED_STEPS, MEASURED_SECONDS = 5, 20.0
MINUTE, HOUR, DAY = 60, 3600, 86_400  # seconds
SHORT_SECONDS = 10.0  # not worth a line
BUSY_SHARE = 0.3  # of the processors, used by other programs: worth a remark


def introduce(screen: Screen, trainer: Trainer) -> None:
    """Print the run, its images, network and device."""
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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=screen.console,
        disable=not screen.is_terminal,
    )
    started = printed = time.monotonic()
    first = trainer.step
    # A GPU works on while this process goes ahead, so the time between two steps says nothing there.
    forecast = Forecast(first) if trainer.experiment.device.type == "cpu" else None
    machine = MachineUse() if forecast else None
    with progress:
        task = progress.add_task("", total=trainer.settings.steps, completed=first, note="")
        for tick in trainer.steps():
            progress.update(task, completed=tick.step)
            seconds = forecast.add(tick, trainer.settings.steps) if forecast else None
            if seconds is not None and machine is not None:
                forecast = None
                _announce(screen, trainer, seconds, machine.by_others())
            first = min(first, tick.step - 1)  # recovery may go back to before the resumed step
            if tick.is_paused:
                place = shell_word(trainer.run.path)
                screen.say(f"Paused at step {tick.step} as requested. To continue: colddiff monitor {place}")
            if tick.validation is not None:
                _report(screen, tick.validation, tick.step)
            if tick.metrics is None:
                continue
            note = f"loss {tick.metrics['loss']:.4f}  {tick.metrics['images_per_second']:,.0f} images/s"
            progress.update(task, note=note)
            now = time.monotonic()
            if not screen.is_terminal and (now - printed > LINE_EVERY_SECONDS or tick.step == trainer.settings.steps):
                printed = now
                left = (now - started) / (tick.step - first) * (trainer.settings.steps - tick.step)
                screen.say(f"step {tick.step}/{trainer.settings.steps}  {note}  {left:,.0f} s left")


def _report(screen: Screen, found: ValidationRecord, step: int) -> None:
    """Say what a validation has found."""
    if found.rmse is None:
        return
    best = f"best so far: RMSE {found.rmse:.4f}"
    is_best = found.best_step == step
    since = f" at step {found.best_step}, {counted(found.failures, 'check')} ago"
    screen.say(f"step {step}: validated, {best}{'' if is_best else since}")


class Forecast:
    """Estimates from the first steps how long the rest will take.

    The very first step does not count: it also builds tables and fills caches.
    """

    def __init__(self, step: int) -> None:
        """Start the clock at the step that the training starts from."""
        self._last = time.monotonic()
        self._step = step
        self._is_warm = False
        self._durations: list[float] = []

    def add(self, tick: Tick, steps: int) -> float | None:
        """Return the seconds that the training up to `steps` still takes, once enough steps are measured."""
        now = time.monotonic()
        if tick.step != self._step and self._is_warm:
            self._durations.append(now - self._last)
        self._is_warm = self._is_warm or tick.step != self._step  # a pause and its end are ticks without a step
        self._step, self._last = tick.step, now
        if len(self._durations) < MEASURED_STEPS and sum(self._durations) < MEASURED_SECONDS:
            return None
        return statistics.median(self._durations) * (steps - tick.step)


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
    """Say how long the training will take, and where that is days, which preset is made for a CPU.

    Args:
        screen: Where to say it.
        trainer: The training.
        seconds: How long it will take.
        others: How many processors other programs use.
    """
    if seconds >= SHORT_SECONDS:
        screen.say(f"{about(seconds)} on this CPU{_busy(others)}")
    name = trainer.experiment.config.name
    small = f"{name}-small"
    if seconds >= DAY and small in presets.names():
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
