"""Output that cannot be encoded or written: no traceback, one line, and an exit code that tells."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from conftest import TINY

HOME = Path(__file__).parents[2]
LOST = "colddiff: The output could not be written: No space left on device.\n"
SETTINGS = [word for value in TINY for word in ("--set", value)]
QUICK = [
    ["--help"],
    ["--version"],
    [],
    ["--show-completion", "bash"],
    ["--show-completion", "zsh"],
    ["--show-completion", "fish"],
    ["train", "--help"],
    ["degrade", "--op", "snow", "--help"],
    ["presets"],
    ["presets", "digits-blur"],
    ["runs"],
    ["runs", "pretrained:digits-blur"],
]
JSON = [
    ["presets", "--json"],
    ["presets", "digits-blur", "--json"],
    ["runs", "--json"],
    ["runs", "pretrained:digits-blur", "--json"],
    ["monitor", "RUN", "--json"],
    ["train", "--preset", "digits-blur", "--dry-run", "--json"],
]
WORK = [
    ["monitor", "RUN", "--once"],
    ["train", "--preset", "digits-blur", "--dry-run"],
    ["train", "--preset", "digits-blur", *SETTINGS, "--out", "trained"],
    ["degrade", "phöto.png", "--op", "blur"],
    ["degrade", "phöto.png", "--op", "blur", "--strip", "3"],
    ["degrade", "phöto.png", "--op", "blur", "--describe"],
    ["degrade", "phöto.png", "phöto.png", "--op", "blur", "--out-dir", "degräded"],
    ["sample", "RUN", "--n", "2"],
    ["sample", "RUN", "phöto.png"],
    ["generate", "RUN", "--n", "2", "--noise", ".002"],
    ["restore", "phöto.png", "--op", "blur", "--t", "2"],
    ["eval", "RUN", "--n", "2", "--features", "none"],
    ["eval", "RUN", "--n", "2", "--features", "none", "--by-severity"],
    ["compare", "RUN", "--n", "2", "--features", "none"],
    ["data", "pack", "pictures", "--out-dir", "päcked"],
]
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def name_of(arguments: list[str]) -> str:
    return " ".join(word for word in arguments if word not in SETTINGS)


@pytest.fixture
def place(own_run, photo):
    """A folder with a run, a picture and a folder of pictures, whose names are not ASCII."""
    photo.rename(photo.with_name("phöto.png"))
    (photo.parent / "pictures" / "ä").mkdir(parents=True)
    for name in ("ö", "ü"):
        (photo.parent / "pictures" / "ä" / f"{name}.png").write_bytes((photo.parent / "phöto.png").read_bytes())
    return photo.parent


def open_streams(path: str | None, encoding: str, errors: str) -> None:
    """Write output to a file, and both streams in an encoding; a `prepare` for `processes.start`."""
    if path is not None:
        os.dup2(os.open(path, os.O_WRONLY), 1)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        how = errors if descriptor == 1 else "backslashreplace"
        setattr(sys, name, os.fdopen(descriptor, "w", -1, encoding, how, closefd=False))


def finished(
    arguments: list[str], place: Path, path: str | None = None, encoding: str = "utf-8"
) -> processes.CommandProcess:
    words = [str(place / "run") if word == "RUN" else word for word in arguments]
    prepare = functools.partial(open_streams, path, encoding, "strict")
    process = processes.start(words, place, prepare=prepare)
    process.wait(120)
    return process


@pytest.mark.parametrize("arguments", [*QUICK, *JSON, *WORK], ids=name_of)
def test_lost_output_is_a_failure_in_one_line(arguments, place):
    process = finished(arguments, place, "/dev/full")
    errors = process.err.read_text()
    usage = 2 if not arguments else 1  # without arguments the help is an error already
    assert process.returncode == usage, errors
    lines = [line for line in errors.splitlines(keepends=True) if not line.startswith("warning:")]
    if usage == 1:
        assert lines[-1] == LOST
    if "--json" not in arguments:
        assert lines == ([LOST] if usage == 1 else [])


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [*(("ascii", words) for words in [*QUICK, *JSON, *WORK]), *(("latin-1", words) for words in QUICK)],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_output_in_any_encoding(arguments, place, encoding):
    process = finished(arguments, place, encoding=encoding)
    output, errors = process.out.read_bytes().decode(encoding), process.err.read_bytes().decode(encoding)
    assert process.returncode == (0 if arguments else 2), errors
    assert output or errors
    assert "Error" not in errors
    assert "Traceback" not in errors
    if "--json" in arguments:
        json.loads(output)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_fresh_python_in_any_locale(name, place):
    """Also for errors, with names that the encoding lacks."""
    environment = {key: value for key, value in os.environ.items() if key not in ("LC_ALL", "LANG", "LC_CTYPE")}
    environment |= {"PYTHONPATH": str(HOME)} | ENCODINGS[name]
    for arguments, code in ((["--help"], 0), (["presets"], 0), (["degrade", "äbsent\u4e2d.png", "--op", "blur"], 2)):
        words = [sys.executable, "-m", "colddiff_cli", *map(os.fsencode, arguments)]
        done = subprocess.run(words, cwd=place, env=environment, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        assert b"Error" not in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["presets", "digits-blur"], ["presets", "--json"], ["runs"]])
def test_a_reader_that_stops_is_no_failure(arguments, place):
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "colddiff_cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(HOME)}
    done = subprocess.run(
        words, cwd=place, env=environment, stdout=writing, stderr=subprocess.PIPE, check=False, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_a_closed_stream_is_no_failure(redirection, place):
    words = ["sh", "-c", f'"$0" -m colddiff_cli presets digits-blur {redirection}', sys.executable]
    done = subprocess.run(
        words, cwd=place, env=os.environ | {"PYTHONPATH": str(HOME)}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
