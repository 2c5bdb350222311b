"""Hostile files are refused in two lines or accepted: no traceback, hang, crash, stray write or code execution."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fuzz_worker
import fuzzing
import hostile
import pytest
import tally
from hypothesis import given
from hypothesis import strategies as st
from mutation import mutate

from colddiff_cli.__main__ import run
from colddiff_core import images, runs
from colddiff_core.config import presets, schema
from colddiff_core.errors import UsageError
from colddiff_core.files import parse_json
from colddiff_core.runs import checkpoint

KEPT = sorted(fuzzing.KEPT.glob("*/*"))
KINDS = ("tracebacks", "hangs", "crashes", "writes_outside", "code_run")
SHORT = {"images": 30, "archives": 20, "presets": 24, "runs": 16, "checkpoints": 14, "priors": 6, "weights": 8}
LONG = {
    "images": 4000,
    "archives": 1500,
    "presets": 2000,
    "runs": 1200,
    "checkpoints": 900,
    "priors": 400,
    "weights": 600,
}  # 10,600
REGRESSIONS = [  # seeds of the long form that failed once
    ("archives", 10273),
    ("archives", 11232),
    ("archives", 11491),
    ("checkpoints", 10312),
    ("checkpoints", 10800),
    ("images", 10851),
    ("images", 13974),
    ("images", 30713),
    ("images", 32694),
    ("images", 33669),
    ("runs", 11102),
]
FIRST_LONG = 50_000  # first seed of the long form; 10,000 and 30,000 were tried before


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return the worker's folder, with a valid run."""
    path = tmp_path_factory.mktemp("hostile")
    fuzz_worker.make_base(path)
    return path


def check(outcomes: list[fuzzing.FuzzOutcome]) -> None:
    """Add outcomes to the tally and fail on any problem."""
    for outcome in outcomes:
        refused = any(code > 0 for code in outcome.codes)
        problems = {kind: int(kind in outcome.problems) for kind in KINDS}
        tally.add(outcome.target, inputs=1, refused=int(refused), taken=int(not refused), **problems)
    bad = [str(outcome) for outcome in outcomes if outcome.problems]
    assert not bad, "\n".join(bad[:10])


def _refusal(act: Callable[[], object]) -> UsageError | None:
    """Return the two-line error that something is refused with, None if it is accepted."""
    try:
        act()
    except UsageError as error:
        lines = str(error).splitlines()
    else:
        return None
    assert len(lines) == 2
    return UsageError(*lines)


@pytest.fixture(scope="module")
def outcomes(folder) -> list[fuzzing.FuzzOutcome]:
    """Return the outcomes of the short form, all from one worker, which takes a second to start."""
    fresh = [(target, seed) for target, count in SHORT.items() for seed in range(count)]
    return fuzzing.run(folder, [*((path.parent.name.partition("@")[0], path) for path in KEPT), *REGRESSIONS, *fresh])


@pytest.mark.parametrize("target", sorted(SHORT))
def test_hostile_inputs(outcomes, target):
    mine = [outcome for outcome in outcomes if outcome.target == target and outcome.seed.isdigit()]
    assert len(mine) == SHORT[target] + sum(name == target for name, _ in REGRESSIONS)
    check(mine)


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(LONG))
def test_ten_thousand_hostile_inputs(folder, target):
    check(fuzzing.run(folder, [(target, FIRST_LONG + number) for number in range(LONG[target])]))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_regressions_stay_fixed(outcomes, path):
    check([outcome for outcome in outcomes if outcome.seed == str(path)])


def test_a_case_depends_on_its_target_and_seed_only(outcomes, folder):
    for target, seed in ((target, seed) for target in fuzzing.TARGETS for seed in range(5)):
        assert fuzzing.case(target, seed, folder / "base") == fuzzing.case(target, seed, folder / "base")


@pytest.mark.parametrize("name", ["gray.png", "gray.jpg"])
def test_a_picture_cut_at_any_byte(tmp_path, name):
    whole = hostile.pictures()[name]
    for length in range(len(whole)):
        path = tmp_path / name
        path.write_bytes(whole[:length])
        refusal = _refusal(lambda path=path: images.read_bytes(path, size=8))
        is_accepted = refusal is None  # the last bytes of a file may carry no data
        assert is_accepted or str(path) in refusal.what
        tally.add("images", inputs=1, refused=int(not is_accepted), taken=int(is_accepted))
    assert images.read_bytes(tmp_path / name, content=whole).shape == (1, 18, 24)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(hostile.NAMES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = [(section, key) for section, kind in schema.SECTIONS.items() for key in kind.__dataclass_fields__]


@given(st.sampled_from(KEYS), ANYTHING)
def test_any_value_of_any_setting_is_accepted_or_refused(key, value):
    table = {key[0]: {key[1]: value}}
    _refusal(lambda: presets.from_table(table, "x.toml"))


@given(
    st.dictionaries(st.text(max_size=12) | st.sampled_from([*schema.SECTIONS, "paper", "name"]), ANYTHING, max_size=5)
)
def test_any_table_is_accepted_or_refused(table):
    refusal = _refusal(lambda: presets.from_table(table, "x.toml"))
    assert refusal is None or "x.toml" in refusal.what


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_preset_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    refusal = _refusal(lambda: presets.load(str(path)))
    assert refusal is None or str(path) in refusal.what


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6, "[" * 10**6 + "]" * 10**6])
def test_endless_nesting_is_refused_as_json(text):
    with pytest.raises(ValueError, match="deep"):
        parse_json(text)


@pytest.mark.parametrize(
    "content", [b"a=" + b"[" * 10_000_000, b"a." * 2000 + b"a=1", b"a={a=" * 600, b"a = 1\n" * 10**6]
)
def test_ten_megabytes_of_nesting_are_refused_as_a_preset(tmp_path, content):
    path = tmp_path / "deep.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"deep\.toml"):
        presets.load(str(path))


def test_mutations_depend_on_their_generator_only():
    content = json.dumps(list(range(300))).encode()
    assert all(mutate(content, random.Random(seed)) == mutate(content, random.Random(seed)) for seed in range(50))
    assert len({mutate(content, random.Random(seed)) for seed in range(50)}) > 40


@pytest.mark.parametrize("name", runs.OWN)
def test_links_in_a_run_are_not_written_through(own_run, tmp_path, capsys, name):
    path = own_run
    outside = tmp_path / "outside"
    if name == "classes.json":  # this run has none
        (path / name).write_text("[]")
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != "lock"}
    assert run(["train", "--resume", str(path), "--set", "train.steps=8"]) == 2
    assert "is a link" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before
    tally.add("links and pipes", inputs=1, refused=1)


@pytest.mark.parametrize("place", ["checkpoints/step-000009", "checkpoints/step-000006/ema.safetensors", "priors"])
@pytest.mark.parametrize("kind", ["dangling", "pipe", "device"])
def test_dangling_links_pipes_and_devices_do_not_block(own_run, tmp_path, capsys, place, kind):
    path = own_run
    shutil.rmtree(path / "checkpoints" / "step-000003")
    spoiled = path / place
    if spoiled.is_file():
        spoiled.unlink()
    if kind == "pipe":
        os.mkfifo(spoiled)
    else:
        spoiled.symlink_to("/nowhere" if kind == "dangling" else "/dev/zero")
    code = run(["generate", "--noise", "0.002", str(path), "--n", "1", "--out", str(tmp_path / "a.png")])
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert "Unexpected" not in errors
    assert code == (2 if "ema" in place else 0), errors
    for log in runs.LOGS:
        (path / log).unlink()
        os.mkfifo(path / log)
    assert runs.Run(path).metrics() == []
    assert run(["train", "--resume", str(path), "--set", "train.steps=8"]) in (1, 2)
    assert len([line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]) == 2
    tally.add("links and pipes", inputs=1, refused=1)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 10**6},
        {"averaged": 2**63},
        {"falls": 10**400},
        {"falls": 7},
        {"skipped_in_a_row": -1},
        {"provenance": {"operator": [10**400] * 18, "settings": {"model": {"width": [[]] * 10**5}}}},
        {"provenance": {"images": {"count": "x\n" * 10**5}}},
        {"step": True},
    ],
    ids=lambda change: str(change)[:30],
)
def test_any_state_of_a_checkpoint_is_accepted_or_refused(own_run, tmp_path, capsys, change):
    path = own_run
    file = runs.Run(path).newest_checkpoint() / "state.json"
    state = json.loads(file.read_text()) | change
    file.write_text(json.dumps(state | {"digest": checkpoint.digest(state)}))
    generate = ["generate", "--noise", "0.002", str(path), "--n", "1", "--out", str(tmp_path / "a.png")]
    for words in (generate, ["train", "--resume", str(path), "--set", "train.steps=7"]):
        assert run(words) in (0, 1, 2)
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
        assert len(lines) <= 2, lines
        assert "Unexpected" not in "".join(lines)


def test_what_the_image_library_logs_is_not_printed(photo):
    """A TIFF of 60,000 samples per pixel is reported in two lines: without a handler, Python prints log messages."""
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 60_000, 200), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 60_000), (278, 4, 1, 16), (279, 4, 1, 256)]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(200_000)
    photo.with_name("a.tif").write_bytes(content)
    # A fresh Python: pytest handles what is logged, also in the processes forked from it.
    words = [sys.executable, "-m", "colddiff_cli", "degrade", "a.tif", "--op", "blur"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=photo.parent)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 2, ended.stderr
