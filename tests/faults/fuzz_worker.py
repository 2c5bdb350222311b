"""Try hostile inputs in one guarded process: fuzz_worker.py FOLDER TARGET SEED, or `serve` in a fork."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
CPU_SECONDS = 20.0  # for one command; on a busy machine it takes longer by the clock
TIMEOUT_SECONDS = 80.0  # for one that waits
MEMORY_BYTES = 4 << 30  # that a command may add to the process
CODE = frozenset({"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.spawn", "os.fork",
                  "os.posix_spawn", "os.forkpty", "pty.spawn", "ctypes.dlopen", "socket.connect",
                  "socket.getaddrinfo", "webbrowser.open"})  # fmt: skip
CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.truncate": 1, "os.symlink": 2,
           "os.link": 2, "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.mkfifo": 1, "shutil.rmtree": 1}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class SlowError(BaseException):
    """A command that takes too long."""


class Guard:
    """An audit hook that refuses to write outside some folders or to run anything."""

    def __init__(self) -> None:
        self.roots: tuple[str, ...] = ()
        self.is_on = False
        self.violations: dict[str, str] = {}
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "ctypes.dlopen" and not str(arguments[0]).startswith(
            (*self.roots, os.getcwd(), "in/", "out/", "run/")
        ):
            return  # libraries open themselves
        if event in CODE:
            self._refuse("code_run", f"{event} {arguments!r:.200}")
        elif event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or not (set(str(mode or "")) & set("wax+") or (flags or 0) & WRITING):
                return
            self._check(event, path, -1)
        elif event in CHANGES:
            folders = [entry for entry in arguments[CHANGES[event] :] if isinstance(entry, int) and entry >= 0]
            targets = arguments[: CHANGES[event]] if event != "os.symlink" else arguments[1:2]
            for path in targets:
                if not isinstance(path, int):
                    self._check(event, path, folders[-1] if folders and event in ("os.remove", "os.rmdir") else -1)

    def _check(self, event: str, path: Any, folder: int) -> None:
        place = os.fsdecode(path)
        if folder >= 0 and not os.path.isabs(place):
            place = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), place)
        place = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(place))), os.path.basename(place))
        if (
            place != os.devnull
            and not place.startswith(tuple(f"{root}/" for root in self.roots))
            and place not in self.roots
        ):
            self._refuse("writes_outside", f"{event} {place}")

    def _refuse(self, kind: str, what: str) -> None:
        self.violations.setdefault(kind, what)
        raise PermissionError(f"guard: {what}")

    @contextlib.contextmanager
    def over(self, *roots: Path) -> Iterator[None]:
        self.roots, self.violations, self.is_on = tuple(os.path.realpath(root) for root in roots), {}, True
        try:
            yield
        finally:
            self.is_on = False


def make_base(folder: Path) -> None:
    """Make the valid run to derive cases from."""
    from conftest import finish, make_trainer

    changes = ("model.width=4", "train.keep=1", "train.sample_every=3", "data.size=8")
    finish(make_trainer(folder / "making", *changes))
    (folder / "making").rename(folder / "base")


def prepare(folder: Path) -> tuple[Path, Path]:
    """Return (base, work): a valid run to derive cases from, made on first use, and the working folder."""
    base, work = folder / "base", folder / "work"
    if not base.exists():
        make_base(folder)
    shutil.rmtree(work, ignore_errors=True)
    for name in ("in", "out"):
        (work / name).mkdir(parents=True)
    os.chdir(work)
    return base, work


def execute(arguments: list[str]) -> tuple[int, str, str]:
    """Run a command line in this process; return exit code, stdout and stderr."""
    from colddiff_cli.__main__ import run

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _load(*arguments[1:]) if arguments[0] == "LOAD" else run(arguments)
    texts = [stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err)]
    return code, texts[0], texts[1]


def _load(folder: str, split: Any) -> int:
    """Load a folder as a data set, as training does, with errors reported as by the command line."""
    from colddiff_cli import __main__ as cli
    from colddiff_cli.console.screen import one_line_warnings
    from colddiff_core import datasets

    try:
        with one_line_warnings():
            found = datasets.load("folder", datasets.DatasetRequest(split, 8, directory=Path(folder)))
    except Exception as error:  # as in `run`
        return cli._explain(error)
    return 0 if len(found) else 99


def complaints(code: int, out: str, err: str) -> str:
    """Return what is wrong with the end of a command, empty if nothing."""
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    if code not in (0, 1, 2):
        return f"exit code {code}: {err[-300:]}"
    if "Traceback" in err or "Unexpected" in err or re.search(r"\.py:\d+: \w*Warning", err):
        return err[-1500:]
    if code and not 1 <= len(lines) <= 2:
        return f"{len(lines)} lines: {err[-500:]}"
    if CONTROLS.search(out + err) or max(map(len, lines), default=0) > 2000:
        return f"controls or too long: {(out + err)[:500]!r}"
    return ""


def digest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, empty for folders."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def _unusable(run: Path, code: int, before: dict[str, str]) -> str:
    """Return what a resumed run has lost, empty if nothing."""
    after = digest(run)
    if code:
        kept = {
            path: held for path, held in before.items() if Path(path).name == "state.json" or path.endswith("tensors")
        }
        aside = {held for path, held in after.items() if ".damaged-" in path}
        lost = [path for path, held in kept.items() if after.get(path) != held and held not in aside]
        return f"changed or gone: {lost}" if lost else ""
    from colddiff_core import runs

    return "" if runs.is_whole(run / "checkpoints" / "step-000007") else "no whole checkpoint"


def attempt(guard: Guard, base: Path, work: Path, target: str, seed: str) -> tuple[list[int], dict[str, str]]:
    """Try a case; return the exit codes and the problems by kind."""
    import fuzzing

    case = fuzzing.case(target, int(seed), base) if seed.isdigit() else fuzzing.kept_case(Path(seed))
    for name in ("in", "out", "run"):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / "in").mkdir()
    (work / "out").mkdir()
    if any("run" in command for command in case.commands):
        shutil.copytree(base, work / "run")
    for name, content in case.files.items():
        (work / name).write_bytes(content)
    problems: dict[str, str] = {}
    codes = []
    for command in case.commands:
        inputs, run_before = digest(work / "in"), digest(work / "run")
        _set_timers(CPU_SECONDS, TIMEOUT_SECONDS)
        try:
            with guard.over(work / "out", work / "run", work.parent / "cache"):
                code, out, err = execute(command)
            _set_timers(0, 0)
            if problem := complaints(code, out, err):
                problems.setdefault("tracebacks", f"{command}: {problem}")
        except SlowError:
            code = -1
            problems.setdefault("hangs", f"{command}: {''.join(traceback.format_exc(limit=-6))}")
        except BaseException as error:
            code = -2
            problems.setdefault("tracebacks", f"{command}: {type(error).__name__}: {error}")
        finally:
            _set_timers(0, 0)
        codes.append(code)
        problems |= {kind: f"{command}: {what}" for kind, what in guard.violations.items()}
        if digest(work / "in") != inputs or sorted(os.listdir(work)) not in (["in", "out"], ["in", "out", "run"]):
            problems.setdefault("writes_outside", f"{command}: inputs changed, or {sorted(os.listdir(work))}")
        if command[:2] == ["train", "--resume"] and (lost := _unusable(work / "run", code, run_before)):
            problems.setdefault("tracebacks", f"{command}: {lost}")
    return codes, problems


def _set_timers(cpu_seconds: float, seconds: float) -> None:
    """Have SlowError raised after so much time of the processors, or by the clock; zeros turn it off."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def serve(folder: Path, cases: list[tuple[str, str]], outcomes: Connection) -> int:
    """Try cases; send an empty line when ready, and a line for each outcome."""
    try_all(folder, cases, lambda line: outcomes.send_bytes(line.encode()))
    return 0


def try_all(folder: Path, cases: Iterable[tuple[str, str]], report: Callable[[str], object]) -> None:
    """Prepare this process, report an empty line, and try cases."""
    sys.dont_write_bytecode = True
    os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "120"}
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    import torch

    torch.set_num_threads(1)

    def slow(number: int, frame: FrameType | None) -> None:
        raise SlowError

    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, slow)
    base, work = prepare(folder)
    import fuzzing

    shutil.copytree(base, work / "run")
    execute(list(fuzzing.READERS[2]))
    if not (base / "priors").exists():
        shutil.copytree(work / "run" / "priors", base / "priors")
    for command in (*fuzzing.READERS, fuzzing.EVAL, fuzzing.RESUME, ["train", "--preset", "digits-blur", "--dry-run"]):
        execute(list(command))  # do all late imports before the guard is on
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    guard = Guard()
    report("")
    for target, seed in cases:
        codes, problems = attempt(guard, base, work, target, seed)
        report(json.dumps({"target": target, "seed": seed, "codes": codes, "problems": problems}))


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]
    try_all(Path(sys.argv[1]).resolve(), [(sys.argv[2], sys.argv[3])], print)
