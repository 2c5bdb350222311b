"""Faults for a training's process: it is killed, stopped, or refused by the disk, at a chosen moment.

File operations are counted in one folder, the run. The faults:

operation  SIGKILL before the NUMBERth file operation: open, create, rename, remove, truncate.
line       SIGKILL halfway through the NUMBERth line of a log.
tensors    SIGKILL halfway through the NUMBERth tensor file.
slow       The NUMBERth tensor file and all later ones take LASTING milliseconds longer.
picture    SIGKILL halfway through the NUMBERth picture.
full       "No space left on device" from the NUMBERth operation on, for LASTING operations.
readonly   "Read-only file system" likewise.
hold       SIGSTOP before the NUMBERth line of a log, and again LASTING lines later, until SIGCONT.
moment     SIGSTOP after LASTING milliseconds of processor time from the NUMBERth line on, until SIGCONT.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
REFUSALS = {"full": errno.ENOSPC, "readonly": errno.EROFS}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_operation(fault: str, number: int, folder: str, lasting: int) -> None:
    done = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        if event not in OPERATIONS or not str(arguments[0]).startswith(folder):
            return
        if fault in REFUSALS:
            flags = arguments[2] if event == "open" else WRITING
            if not isinstance(flags, int) or not flags & WRITING:
                return
        done += 1
        if fault == "operation" and done == number:
            die()
        if fault in REFUSALS and number <= done < number + lasting:
            raise OSError(REFUSALS[fault], os.strerror(REFUSALS[fault]), str(arguments[0]))

    sys.addaudithook(hook)


def at_line(number: int) -> None:
    from colddiff_core import runs

    write, done = runs.RunWriter._write, 0

    def half(self: runs.RunWriter, name: str) -> bool:
        nonlocal done
        done += 1
        if done == number:
            lines = b"".join(self._unwritten[name])
            with (self.path / name).open("ab", buffering=0) as file:
                file.write(lines[: len(lines) // 2])
            die()
        return write(self, name)

    runs.RunWriter._write = half


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def before_lines(fault: str, number: int, lasting: int) -> None:
    from colddiff_core import runs

    write, done = runs.RunWriter._write, 0

    def counted(self: runs.RunWriter, name: str) -> bool:
        nonlocal done
        done += 1
        if fault == "hold" and done in (number, number + lasting):
            stop()
        if fault == "moment" and done == number:
            signal.signal(signal.SIGVTALRM, lambda *_: stop())
            signal.setitimer(signal.ITIMER_VIRTUAL, lasting / 1000)
        return write(self, name)

    runs.RunWriter._write = counted


def at_tensors(number: int) -> None:
    from colddiff_core import tensor_files

    write, done = tensor_files.write, 0

    def half(tensors: dict[str, object], path: Path) -> str:
        nonlocal done
        done += 1
        digest = write(tensors, path)
        if done == number:
            os.truncate(path, os.path.getsize(path) // 2)
            die()
        return digest

    tensor_files.write = half


def slow_tensors(number: int, lasting: int) -> None:
    from colddiff_core import tensor_files

    write, done = tensor_files.write, 0

    def slowly(tensors: dict[str, object], path: Path) -> str:
        nonlocal done
        done += 1
        digest = write(tensors, path)
        if done >= number:
            time.sleep(lasting / 1000)
        return digest

    tensor_files.write = slowly


def at_picture(number: int) -> None:
    from PIL import Image

    save, done = Image.Image.save, 0

    def half(self: Image.Image, path: Path, *arguments: object, **options: object) -> None:
        nonlocal done
        done += 1
        save(self, path, *arguments, **options)
        if done == number:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    Image.Image.save = half


def arm(fault: str, number: int, folder: str, lasting: int) -> None:
    """Prepare this process to meet a fault."""
    if fault in ("operation", *REFUSALS):
        at_operation(fault, number, folder, lasting)
    elif fault in ("hold", "moment"):
        before_lines(fault, number, lasting)
    elif fault == "slow":
        slow_tensors(number, lasting)
    elif fault != "none":
        {"line": at_line, "tensors": at_tensors, "picture": at_picture}[fault](number)
