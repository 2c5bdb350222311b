"""Measure the memory of a running command: python benchmarks/memory.py [--every S] -- colddiff train ...

Prints a line at intervals: seconds, and MiB of the command and its children, both their own (anonymous) memory and
mapped files, which the system reclaims when it needs the memory.
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


def memory_of(root: psutil.Process) -> tuple[float, float]:
    """Return the MiB of own memory and of mapped files of a process and its children."""
    own = mapped = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = process.memory_info()
            mapped += memory.shared
            own += memory.rss - memory.shared
    return own / MIB, mapped / MIB


def main(arguments: Sequence[str]) -> int:
    """Run the command until it ends and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=60, help="seconds between two lines (60)")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    started, rows = time.monotonic(), []
    process = subprocess.Popen(options.command, stdout=sys.stderr)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            rows.append((round(time.monotonic() - started), *map(round, memory_of(psutil.Process(process.pid)))))
            if not options.json:
                print("{:6} s {:7} MiB own {:7} MiB mapped".format(*rows[-1]), flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(options.every)
    if options.json:
        print(json.dumps({"command": options.command, "seconds_own_mapped": rows}))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
