"""Hostile inputs by target and seed, and the worker process that tries them.

A case depends only on its target and seed. To repeat one, with the worker's output on the terminal:

    python tests/faults/fuzz_worker.py FOLDER TARGET SEED

FOLDER is empty or was used this way before.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import random
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fuzz_worker
import hostile
import numpy as np
import processes
import safetensors.numpy
from mutation import mutate

from colddiff_core.runs.checkpoint import digest

KEPT = Path(__file__).parent / "kept"
SILENCE_SECONDS = 200.0  # without output, after which a worker counts as hung; its own alarm is earlier
CHECKPOINT = "step-000006"
TENSOR_FILES = ("model", "ema", "optimizer")
RUN_FILES = (
    "run.toml",
    "metrics.jsonl",
    "events.jsonl",
    "lock",
    f"samples/{CHECKPOINT}.json",
    f"samples/{CHECKPOINT}.png",
)
READERS = (
    ["monitor", "run", "--once"],
    ["monitor", "run", "--once", "--json"],
    ["generate", "--noise", "0.002", "run", "--n", "1", "--out", "out/a.png"],
)
EVAL = ["eval", "run", "--n", "2", "--features", "none"]
RESUME = ["train", "--resume", "run", "--set", "train.steps=7"]
GIVEN = {"images": "in/x.png", "presets": "in/x.toml", "weights": "in/w.safetensors"}  # path of a kept file
COMMANDS = {  # for kept files
    "images": [["degrade", "in/x.png", "--op", "blur", "--size", "16", "--out", "out/a.png"]],
    "archives": [["LOAD", "in", "train"], ["LOAD", "in", "test"]],
    "presets": [["train", "--preset", "in/x.toml", "--dry-run"]],
    "runs": [*READERS, EVAL, RESUME],
    "checkpoints": [READERS[2], RESUME],
    "priors": [READERS[2]],
    "weights": [["eval", "run", "--n", "2", "--features", "inception", "--weights", "in/w.safetensors"]],
}
OPERATORS = ("blur", "mask", "pixelate", "desaturate")


@dataclasses.dataclass(frozen=True)
class FuzzCase:
    """Files to write into the worker's folder over the valid ones, and commands to run on them."""

    files: dict[str, bytes]
    commands: list[list[str]]


def case(target: str, seed: int, base: Path) -> FuzzCase:
    """Return a case; `base` is a valid run that some are derived from."""
    return TARGETS[target](random.Random(f"{target} {seed}"), base)


def kept_case(path: Path) -> FuzzCase:
    """Return the case for a file kept as TARGET/NAME, or TARGET@FILE/NAME with `~` for the slashes in FILE."""
    target, _, name = path.parent.name.partition("@")
    name = name.replace("~", "/") or GIVEN[target]
    return FuzzCase({name: path.read_bytes()}, [list(command) for command in COMMANDS[target]])


@functools.cache
def _pictures() -> dict[str, bytes]:
    return hostile.pictures()


@functools.cache
def _bombs() -> list[bytes]:
    return hostile.bombs()


def _bad_picture(rng: random.Random) -> tuple[str, bytes]:
    name, content = rng.choice(sorted(_pictures().items()))
    if rng.random() < 0.05:
        content = rng.choice(_bombs())
    elif rng.random() < 0.93:
        others = [other for key, other in _pictures().items() if key[-4:] == name[-4:]]
        content = mutate(content, rng, others)
    if rng.random() < 0.1:
        name = (
            f"{name.partition('.')[0]}.{rng.choice(('png', 'jpg', 'gif', 'webp', 'tif', 'bmp', 'PNG', 'txt', 'eps'))}"
        )
    return name, content


def _images(rng: random.Random, base: Path) -> FuzzCase:
    if rng.random() < 0.03:
        files = {f"in/{number}-{name}": content for number in range(6) for name, content in [_bad_picture(rng)]}
        return FuzzCase(files, [["degrade", "in", "--op", rng.choice(OPERATORS), "--size", "16", "--out-dir", "out"]])
    name, content = _bad_picture(rng)
    size = ["--size", "16"] if rng.random() < 0.9 else []
    steps = ["--steps", "3"] if not size else []
    return FuzzCase(
        {f"in/{name}": content},
        [["degrade", f"in/{name}", "--op", rng.choice(OPERATORS), *size, *steps, "--out", "out/a.png"]],
    )


def _archives(rng: random.Random, base: Path) -> FuzzCase:
    content = hostile.archive(rng, _pictures())
    if rng.random() < 0.6:
        content = mutate(content, rng)
    ending = rng.choice(("tar", "tar.gz", "tgz"))
    files = {f"in/train.{ending}": content, f"in/test.{ending}": content}
    return FuzzCase(files, [["LOAD", "in", split] for split in ("train", "test")])


def _bad_table(table: dict[str, Any], text: bytes, rng: random.Random) -> bytes:
    """Return a bad TOML file: bad values, bad bytes, or no TOML at all."""
    kind = rng.random()
    if kind < 0.55:
        try:
            return hostile.to_toml(hostile.corrupted(table, rng, rng.choice((0.03, 0.1, 0.4)))).encode()
        except UnicodeEncodeError:
            return b"\xff"
    return mutate(text, rng) if kind < 0.93 else rng.choice(hostile.texts())


def _presets(rng: random.Random, base: Path) -> FuzzCase:
    text = (Path(__file__).parents[2] / "presets" / f"{rng.choice(('digits-blur', 'mnist-mask'))}.toml").read_bytes()
    table = tomllib.loads((base / "run.toml").read_text()) if rng.random() < 0.5 else tomllib.loads(text.decode())
    table.pop("versions", None)
    command = ["train", "--preset", "in/x.toml", "--dry-run"]
    if rng.random() < 0.2:
        command += [
            "--set",
            f"{rng.choice(('train.steps', 'data.size', 'model.multipliers', 'x.y'))}={hostile.value(rng)!r}",
        ]
    command = [word.replace("\x00", "") for word in command]  # which no command line can contain
    degrade = ["degrade", "in/p.png", "--preset", "in/x.toml", "--size", "16", "--out", "out/a.png"]
    files = {"in/x.toml": _bad_table(table, text, rng), "in/p.png": _pictures()["rgb.png"]}
    return FuzzCase(files, [command] + [degrade] * (rng.random() < 0.4))


def _is_cheap(text: bytes) -> bool:
    """Return whether a run.toml is refused or needs little enough work for a test."""
    try:
        table = tomllib.loads(text.decode())
        sections = [section for section in table.values() if isinstance(section, dict)]
        numbers = [n for section in sections for n in section.values() if isinstance(n, int | float)]
        multipliers = table.get("model", {}).get("multipliers", [])
        return all(n <= 100 or n >= 10**7 for n in numbers) and str(multipliers) in ("[1, 2]", "[]", "")
    except (ValueError, RecursionError, AttributeError):
        return True


def _runs(rng: random.Random, base: Path) -> FuzzCase:
    name = rng.choice(RUN_FILES)
    valid = (base / name).read_bytes()
    if name == "run.toml":
        bad = _bad_table(tomllib.loads(valid.decode()), valid, rng)
        if not _is_cheap(bad):
            return FuzzCase({f"run/{name}": bad}, [list(READERS[0]), list(READERS[1])])
        commands = [rng.choice(READERS[:2]), READERS[2], rng.choice((EVAL, RESUME))]
        return FuzzCase({f"run/{name}": bad}, [list(command) for command in commands])
    if name.endswith(".png"):
        bad = _bad_picture(rng)[1]
    elif rng.random() < 0.6:
        lines = (
            [json.loads(line) for line in valid.decode().splitlines()] if name.endswith("l") else [json.loads(valid)]
        )
        corrupted = [hostile.corrupted(line, rng, 0.15) for line in lines]
        bad = "\n".join(json.dumps(line) for line in corrupted).encode() + b"\n" * (rng.random() < 0.9)
    else:
        bad = mutate(valid, rng) if rng.random() < 0.85 else rng.choice(hostile.texts())
    last = [list(RESUME)] if name in ("metrics.jsonl", "events.jsonl", "lock") and rng.random() < 0.4 else []
    return FuzzCase({f"run/{name}": bad}, [list(READERS[0]), list(READERS[1]), *last])


def _bad_tensors(valid: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with a false header, wrong tensors or wrong bytes."""
    length = int.from_bytes(valid[:8], "little")
    if rng.random() < 0.45:
        header = hostile.corrupted(json.loads(valid[8 : 8 + length]), rng, rng.choice((0.005, 0.02, 0.1)))
        try:
            text = json.dumps(header).encode()
        except ValueError:
            text = b"{}"
        text += b" " * (-len(text) % 8)
        size = len(text) if rng.random() < 0.9 else rng.choice((0, 2**40, 2**63, len(text) - 1))
        return size.to_bytes(8, "little") + text + valid[8 + length :]
    if rng.random() < 0.2:
        tensors = safetensors.numpy.load(valid)
        name = rng.choice(sorted(tensors))
        change = rng.randrange(4)
        if change == 0:
            tensors[name] = np.full_like(tensors[name], np.nan)
        elif change == 1:
            tensors[name] = tensors[name].reshape(-1)[:1]
        elif change == 2:
            tensors[name] = tensors[name].astype("int32")
        else:
            tensors[rng.choice(hostile.NAMES)] = tensors.pop(name)
        return safetensors.numpy.save(tensors)
    return mutate(valid, rng, [valid[: length // 2]])


def _checkpoints(rng: random.Random, base: Path) -> FuzzCase:
    folder = f"checkpoints/{CHECKPOINT}"
    name = rng.choice((*TENSOR_FILES, "state"))
    if name == "state":
        path = f"{folder}/state.json"
        valid = (base / path).read_bytes()
        whole = json.dumps(hostile.corrupted(json.loads(valid), rng, 0.2)).encode()
        bad = whole if rng.random() < 0.6 else mutate(valid, rng) if rng.random() < 0.8 else rng.choice(hostile.texts())
    else:
        path = f"{folder}/{name}.safetensors"
        bad = _bad_tensors((base / path).read_bytes(), rng)
    files = {f"run/{path}": bad}
    if rng.random() < 0.8:  # an attacker can compute digests, too
        files |= _sealed(path, bad, base)
    return FuzzCase(files, [list(READERS[2]), list(RESUME)])


def _sealed(path: str, bad: bytes, base: Path) -> dict[str, bytes]:
    """Return a checkpoint state whose digests match a bad file or a bad state, empty if it is not JSON."""
    place = f"checkpoints/{CHECKPOINT}/state.json"
    try:
        state = json.loads(bad if path == place else (base / place).read_bytes())
        if path != place:
            state["sha256"][Path(path).name] = hashlib.sha256(bad).hexdigest()
        state["digest"] = digest(state)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {f"run/{place}": json.dumps(state).encode()}


def _priors(rng: random.Random, base: Path) -> FuzzCase:
    path = "priors/gmm-1.safetensors"
    bad = _bad_tensors((base / path).read_bytes(), rng)
    return FuzzCase({f"run/{path}": bad}, [list(READERS[2])])


def _weights(rng: random.Random, base: Path) -> FuzzCase:
    name = f"in/w.{rng.choice(('pt', 'pth', 'safetensors', 'safetensors'))}"
    valid = (base / "priors/gmm-1.safetensors").read_bytes()
    bad = _bad_tensors(valid, rng) if rng.random() < 0.8 else rng.choice([*hostile.texts(), *_bombs()])
    return FuzzCase({name: bad}, [["eval", "run", "--n", "2", "--features", "inception", "--weights", name]])


TARGETS: dict[str, Callable[[random.Random, Path], FuzzCase]] = {
    "images": _images,
    "archives": _archives,
    "presets": _presets,
    "runs": _runs,
    "checkpoints": _checkpoints,
    "priors": _priors,
    "weights": _weights,
}


@dataclasses.dataclass(frozen=True)
class FuzzOutcome:
    """The exit codes of a case's commands, and the problems by kind."""

    target: str
    seed: str
    codes: list[int]
    problems: dict[str, str]

    def __str__(self) -> str:
        problems = "; ".join(f"{kind}: {details}" for kind, details in self.problems.items())
        return f"{problems}\n  repeat: python tests/faults/fuzz_worker.py FOLDER {self.target} {self.seed}"


def run(folder: Path, cases: Iterable[tuple[str, int | Path]]) -> list[FuzzOutcome]:
    """Try cases, (target, seed or kept file), in a worker process; start another if it dies or hangs."""
    outcomes: list[FuzzOutcome] = []
    left = [(target, str(seed)) for target, seed in cases]
    while left:
        results, ending = _worker(folder, left)
        outcomes += results
        done = len(results)
        if done < len(left):
            outcomes.append(FuzzOutcome(*left[done], [], {ending: "the worker ended"}))
            done += 1
        left = left[done:]
    return outcomes


def _worker(folder: Path, cases: list[tuple[str, str]]) -> tuple[list[FuzzOutcome], str]:
    """Return a worker's outcomes until it is done, dies or falls silent, and how it ended."""
    outcomes: list[FuzzOutcome] = []
    is_ready = False
    received, sent = multiprocessing.Pipe(duplex=False)
    worker = processes.fork(functools.partial(fuzz_worker.serve, folder, cases, sent))
    sent.close()  # the worker has its own
    with received:
        while received.poll(SILENCE_SECONDS):
            try:
                line = received.recv_bytes()
            except EOFError:
                errors = worker.communicate()[1]
                if not is_ready:
                    raise RuntimeError(f"the worker does not start: {errors}") from None
                return outcomes, "crashes"
            is_ready = True
            if line:
                outcomes.append(FuzzOutcome(**json.loads(line)))
    worker.kill()
    return outcomes, "hangs"
