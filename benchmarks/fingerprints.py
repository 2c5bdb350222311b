"""Hash what the main commands write for fixed seeds, to check that a refactoring changes no bytes.

`python benchmarks/fingerprints.py [FILE.json]` trains 60 steps, samples, generates, degrades by every operator and
evaluates, all through the command line, and prints one JSON object. Compare two versions on one machine with one
version of torch: other processors round differently.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

# The network and training that digits-blur had when docs/decisions/018-packages.md recorded its hashes.
THEN = (
    "model.width=32",
    'model.attention="middle"',
    "train.batch_size=64",
    "train.lr=1e-3",
    "train.precision=auto",
    "sample.stride=1",
)
SETTINGS = tuple(word for change in THEN for word in ("--set", change))
TRAINED = ("--set", "train.steps=60", "--seed", "1", "--device", "cpu")
TRAIN = ("train", "--preset", "digits-blur", *SETTINGS, *TRAINED, "--out", "run")
GENERATE_TRAIN = ("train", "--preset", "digits-blur-generate", *TRAINED, "--out", "generating")
OPERATORS = ("noise", "blur", "mask", "holes", "pixelate", "desaturate", "snow", "animorph", "blur+snow")
TIMING = "milliseconds"  # the only value of `eval --json` that a seed does not fix


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hashes = fingerprints(folder)
    text = json.dumps({"machine": platform.processor() or platform.machine(), "sha256": hashes}, indent=2)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def fingerprints(folder: Path) -> dict[str, str]:
    """Run the commands in `folder`; return the SHA-256 of every output by name."""
    _call(folder, *TRAIN)
    hashes = {
        f"train {path.name}": _sha(path.read_bytes())
        for path in sorted((folder / "run/checkpoints/step-000060").glob("*.safetensors"))
    }
    _call(folder, "sample", "run", "--n", "8", "--seed", "2", "--out-dir", "sampled")
    hashes["sample --out-dir"] = _folder_sha(folder / "sampled")
    _call(folder, *GENERATE_TRAIN)
    _call(folder, "generate", "generating", "--n", "8", "--seed", "3", "--out-dir", "generated")
    hashes["generate --n 8"] = _folder_sha(folder / "generated")
    picture, second = _picture(folder / "picture.png", 4), _picture(folder / "second.png", 7)
    for operator in OPERATORS:
        out = folder / f"{operator}.png"
        mixed = ("--second", str(second)) if "animorph" in operator else ()
        _call(folder, "degrade", str(picture), "--op", operator, "--t", "3", "--seed", "4", *mixed, "--out", str(out))
        hashes[f"degrade {operator}"] = _sha(out.read_bytes())
    figures = _call(folder, "eval", "run", "--n", "64", "--seed", "5", "--json")
    hashes["eval --json"] = _sha(json.dumps(_untimed(json.loads(figures)), sort_keys=True).encode())
    return hashes


def _picture(path: Path, factor: int) -> Path:
    """Write a fixed color picture with edges and gradients."""
    from PIL import Image

    side = 64
    pixels = bytes(
        value
        for y in range(side)
        for x in range(side)
        for value in (factor * x % 256, 4 * y, 255 if (x // 8 + y // 8) % 2 else 2 * (x + y))
    )
    Image.frombytes("RGB", (side, side), pixels).save(path)
    return path


def _untimed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _untimed(entry) for key, entry in value.items() if key not in (TIMING, "run", "sheet")}
    return value


def _folder_sha(folder: Path) -> str:
    return _sha(b"".join(path.read_bytes() for path in sorted(folder.glob("*.png"))))


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _call(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "colddiff_cli", *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ, check=False)
    if ended.returncode:
        raise SystemExit(f"colddiff {' '.join(arguments)}: exit {ended.returncode}\n{ended.stderr.strip()[-500:]}")
    return ended.stdout


if __name__ == "__main__":
    raise SystemExit(main())
