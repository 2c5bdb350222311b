"""Measure the dashboard in its own terminal: time to open, cost of following a run, slowdown of training.

Usage: python benchmarks/monitor.py open [LINES] | follow [LINES] | training [SECONDS] | sheet
open: seconds until the screen is up, until it shows the newest step and until the whole curve is read, for a run
of 400 lines and one of LINES (1,000,000); medians of 5. follow: CPU time of the dashboard in percent of one core
while lines are added to a run of LINES. training: steps per second of digits-blur with the dashboard running and
stopped, alternating, and the 95 % interval of the mean ratio. sheet: seconds from a sample sheet's event to its
step on the screen.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import random
import select
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from golden_runs import metrics, write_run, write_sheet

REPEATS = 5
ROWS, COLUMNS = 48, 160
FOLLOW_SECONDS = 20.0
TURNS = 40  # pairs of periods with the dashboard running and stopped


class Terminal:
    """A dashboard in a pseudo-terminal; `screen` is everything written to it."""

    def __init__(self, folder: Path) -> None:
        self.screen = b""
        self.began = time.perf_counter()
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
            os.execv(sys.executable, [sys.executable, "-m", "colddiff_cli", "monitor"])
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def read(self, seconds: float) -> bytes:
        """Return the first output within that time, empty if there is none."""
        if not select.select([self.file], [], [], seconds)[0]:
            return b""
        data = os.read(self.file, 1 << 16)
        # Answer the queries for the terminal type and the cell size.
        for question, answer in ((b"\x1b[c", b"\x1b[?62;22c"), (b"\x1b[16t", b"\x1b[6;20;10t")):
            if question in data:
                os.write(self.file, answer)
        self.screen += data
        return data

    def until(self, text: bytes, limit: float = 30.0) -> float:
        """Wait for a text; return the seconds since the start."""
        start = max(0, len(self.screen) - 200)
        while text not in self.screen[start:]:
            self.read(0.01)
            if time.perf_counter() - self.began > limit:
                raise TimeoutError(f"{text!r} did not come")
        return time.perf_counter() - self.began

    def wait(self, seconds: float) -> None:
        """Let it run and read its output."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            self.read(left)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.file)


def make_run(root: Path, lines: int) -> Path:
    """Write a run with that many lines of metrics."""
    path = write_run(root / "runs", "long", steps=2 * lines, step=10)
    with (path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(metrics(step)) + "\n" for step in range(1, lines + 1))
    for name in ("run.toml", "metrics.jsonl", "events.jsonl", "lock"):
        os.utime(path / name)
    return path


def opening(root: Path, lines: int) -> None:
    for count in (400, lines):
        folder = root / str(count)
        size = (make_run(folder, count) / "metrics.jsonl").stat().st_size
        stands, newest, read = [], [], []
        for _ in range(REPEATS):
            terminal = Terminal(folder)
            stands.append(terminal.until(b"Curves"))
            newest.append(terminal.until(f"step {count:,}".encode()))
            last = 0.0
            while time.perf_counter() - terminal.began < newest[-1] + (3 if count == 400 or last == 0 else 0) + 15:
                if b"% read" in terminal.read(0.2):
                    last = time.perf_counter() - terminal.began
                elif time.perf_counter() - terminal.began > max(last, newest[-1]) + 2:
                    break
            read.append(max(last, newest[-1]))
            terminal.close()
        summary = f"{count:>9,} lines ({size / 1e6:.0f} MB): screen {statistics.median(stands):.2f} s"
        print(f"{summary}, newest step {statistics.median(newest):.2f} s, whole curve {statistics.median(read):.1f} s")


def following(root: Path, lines: int) -> None:
    path = make_run(root, lines)
    terminal = Terminal(root)
    terminal.until(f"step {lines:,}".encode())
    terminal.wait(15)  # until the whole curve is read
    process = psutil.Process(terminal.pid)
    step = lines
    for per_second in (0, 2, 50):
        before, began = process.cpu_times(), time.perf_counter()
        while time.perf_counter() - began < FOLLOW_SECONDS:
            if per_second:
                with (path / "metrics.jsonl").open("a") as file:
                    for _ in range(max(1, per_second // 2)):
                        step += 1
                        file.write(json.dumps(metrics(step)) + "\n")
            os.utime(path / "lock")
            terminal.wait(0.5)
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        share = used / (time.perf_counter() - began)
        print(f"{lines:,} lines and {per_second} more a second: {share:.1%} of one core")
    print(f"memory {process.memory_info().rss / 1e6:.0f} MB")
    terminal.close()


def train(root: Path, *changes: str) -> subprocess.Popen[bytes]:
    words = [word for change in changes for word in ("--set", change)]
    command = [sys.executable, "-m", "colddiff_cli", "train", "--preset", "digits-blur", *words]
    started = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (root / "runs" / "digits-blur" / "metrics.jsonl").exists():
        time.sleep(0.2)
    return started


def training(root: Path, seconds: float) -> None:
    trainer = train(root, "train.steps=100000", "train.log_every=5", "train.sample_every=0")
    path = root / "runs" / "digits-blur" / "metrics.jsonl"

    def pace() -> float:
        """Return steps per second over the next seconds, by the trainer's clock."""
        ends = []
        for wait in (0.0, seconds):
            terminal.wait(wait)
            ends.append(json.loads(path.read_bytes().split(b"\n")[-2]))  # the last may be half a line
        return (ends[1]["step"] - ends[0]["step"]) / (ends[1]["elapsed"] - ends[0]["elapsed"])

    ratios = []
    terminal = Terminal(root)
    try:
        terminal.wait(10)
        for turn in range(TURNS):
            paces = {}
            # A stopped dashboard costs nothing; alternate, because the machine's own speed drifts by a tenth.
            for sign in (signal.SIGCONT, signal.SIGSTOP) if turn % 2 else (signal.SIGSTOP, signal.SIGCONT):
                os.kill(terminal.pid, sign)
                paces[sign] = pace()
            ratios.append(paces[signal.SIGCONT] / paces[signal.SIGSTOP])
    finally:
        terminal.close()
        trainer.kill()
    numbers = random.Random(0)
    means = sorted(statistics.mean(numbers.choices(ratios, k=len(ratios))) for _ in range(2000))
    summary = f"{statistics.mean(ratios):.3f} ({means[50]:.3f} to {means[-51]:.3f}, {TURNS} pairs)"
    print(f"training speed with the dashboard running, relative to stopped: {summary}")


def sheet(root: Path) -> None:
    path = make_run(root, 400)
    terminal = Terminal(root)
    terminal.until(b"step 400")
    terminal.wait(2)
    delays = []
    for number in range(1, 11):
        step = 1000 * number + 7
        write_sheet(path, step)
        written = time.perf_counter()
        terminal.until(f"step {step:,}".encode(), limit=90)
        delays.append(time.perf_counter() - written)
    terminal.close()
    print(f"a sheet is on the screen after {statistics.median(delays):.2f} s (median), {max(delays):.2f} s at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["open", "follow", "training", "sheet"])
    parser.add_argument("values", nargs="*")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="colddiff-bench-"))
    number = float(options.values[0]) if options.values else None
    try:
        if options.what == "open":
            opening(root, int(number or 1_000_000))
        elif options.what == "follow":
            following(root, int(number or 1_000_000))
        elif options.what == "training":
            training(root, number or 5.0)
        else:
            sheet(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
