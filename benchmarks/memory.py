"""What memory a command takes while it goes on: python benchmarks/memory.py [--every S] -- colddiff train ...

Prints a line every so often: seconds, and MiB of the command and what it started, of its own (anonymous) and of files
that it has mapped, which the system takes back when others need the room.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

MIB = 2**20


def held(root: psutil.Process) -> tuple[float, float]:
    """Return the MiB that a process and its children have of their own, and of files."""
    own = mapped = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = process.memory_info()
            mapped += memory.shared
            own += memory.rss - memory.shared
    return own / MIB, mapped / MIB


def main(words: Sequence[str]) -> int:
    """Run the command to its end; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=60, help="seconds (60)")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args(words)
    started, rows = time.monotonic(), []
    process = subprocess.Popen(asked.command, stdout=sys.stderr)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            rows.append((round(time.monotonic() - started), *map(round, held(psutil.Process(process.pid)))))
            if not asked.json:
                print("{:6} s {:7} MiB own {:7} MiB mapped".format(*rows[-1]), flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(asked.every)
    if asked.json:
        print(json.dumps({"command": asked.command, "seconds_own_mapped": rows}))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
