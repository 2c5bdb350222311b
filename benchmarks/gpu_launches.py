"""What a training step asks of a GPU, counted without one: python benchmarks/gpu_launches.py [PRESET...]

Prints a Markdown table with the kernels that a step launches, how often the CPU waits for the GPU, and the most memory
that torch allocates; with `--before CHECKOUT`, those of another checkout's code too. It uses the null CUDA runtime of
tests/cuda, so it needs Linux, gcc and torch's CUDA build. Launches follow from the code and torch's version, not from
the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cuda"))
import null_cuda

PRESETS = ("mnist-blur", "mnist-blur-small", "celeba-blur", "celeba-snow-small", "celeba-animorph", "cifar10-mask")
PHOTOGRAPHS = ("photos-blur", "photos-blur degradation.jpeg=50", "photos-mask", "photos-snow", "digits-holes")


def counted(root: Path, variables: dict[str, str], cases: list[str]) -> list[dict[str, Any]]:
    """Return the counts of the third step of each training, by the code of a checkout."""
    environment = null_cuda.environment(variables, root)
    command = [
        sys.executable,
        str(null_cuda.ROOT / "tests" / "cuda" / "cuda_worker.py"),
        *(f"train {case}" for case in cases),
    ]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def cells(found: dict[str, Any]) -> list[str]:
    """Return a table's cells for the counts of one training."""
    if "failed" in found:
        return ["fails", "", ""]
    return [f"{found['launches']:,}", str(found["waits"]), f"{found['peak_gib']:.2f}"]


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", help="presets, with KEY=VALUE behind in the same argument")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    arguments = parser.parse_args()
    cases = arguments.presets or [*PRESETS, *PHOTOGRAPHS]
    roots = [*([arguments.before.resolve()] if arguments.before else []), null_cuda.ROOT]
    with tempfile.TemporaryDirectory() as folder:
        try:
            variables = null_cuda.build(Path(folder))
        except null_cuda.UnavailableError as error:
            print(f"gpu_launches.py: {error}", file=sys.stderr)
            return 1
        sides = [counted(root, variables, cases) for root in roots]
    names = ("launches", "waits", "peak GiB")
    when = [f"{name} {word}".strip() for word in (["before", "now"] if len(roots) > 1 else [""]) for name in names]
    print("| preset | images |", *(f"{name} |" for name in when))
    print("|---|---:|", *("---:|" for _ in when))
    for case, *found in zip(cases, *sides, strict=True):
        row = [case, str(found[-1].get("images", "")), *(cell for side in found for cell in cells(side))]
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
