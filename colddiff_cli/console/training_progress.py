"""Show training progress in the terminal, as a bar or as lines, and handle Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from colddiff_cli.console.screen import Screen
from colddiff_core.distributed import environment

if TYPE_CHECKING:
    from colddiff_core.training.trainer import Trainer

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LINE_EVERY_SECONDS = 10.0  # without a terminal


def introduce(screen: Screen, trainer: Trainer) -> None:
    """Print the run, its images, network and device."""
    from colddiff_core import devices

    built, config = trainer.experiment, trainer.experiment.config
    count = sum(p.numel() for p in built.restorer.parameters())
    dtype = str(built.restorer.unet.body_dtype).removeprefix("torch.")
    where = f"step {trainer.step} of {config.train.steps}" if trainer.step else f"{config.train.steps} steps"
    screen.say(f"{trainer.run.path}: {config.description or config.name}")
    screen.say(
        f"{len(trainer.train_set):,} images of {config.data.size}x{config.data.size}x{built.channels}, "
        f"{built.operator.name} T={built.operator.steps}, {count / 1e6:.1f} M parameters, "
        f"{dtype} body on {_machines(devices.describe(built.device))}, {where}"
    )


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
        TextColumn("{task.fields[note]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=screen.console,
        disable=not screen.is_terminal,
    )
    started = printed = time.monotonic()
    first = trainer.step
    with progress:
        task = progress.add_task("", total=trainer.settings.steps, completed=first, note="")
        for tick in trainer.steps():
            progress.update(task, completed=tick.step)
            first = min(first, tick.step - 1)  # recovery may go back to before the resumed step
            if tick.is_paused:
                screen.say(f"Paused at step {tick.step} as requested. To continue: colddiff monitor {trainer.run.path}")
            if tick.metrics is None:
                continue
            note = f"loss {tick.metrics['loss']:.4f}  {tick.metrics['images_per_second']:,.0f} images/s"
            progress.update(task, note=note)
            now = time.monotonic()
            if not screen.is_terminal and (now - printed > LINE_EVERY_SECONDS or tick.step == trainer.settings.steps):
                printed = now
                left = (now - started) / (tick.step - first) * (trainer.settings.steps - tick.step)
                screen.say(f"step {tick.step}/{trainer.settings.steps}  {note}  {left:,.0f} s left")
