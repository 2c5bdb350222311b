"""Files that mean harm: refused in a line or two or taken; no traceback, hang, crash, write elsewhere or code run."""

from __future__ import annotations

import ast
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import fuzzing
import hostile
import pytest
import tally
from conftest import finish, make_trainer
from hypothesis import given
from hypothesis import strategies as st
from mutation import mutate

from colddiff_cli.__main__ import run
from colddiff_core import images, runs
from colddiff_core.config import presets, schema
from colddiff_core.errors import UsageError
from colddiff_core.files import parse_json
from colddiff_core.runs import checkpoint

PACKAGES = [Path(__file__).parents[2] / name for name in ("colddiff_core", "colddiff_cli")]
KEPT = sorted(fuzzing.KEPT.glob("*/*"))
KINDS = ("tracebacks", "hangs", "crashes", "writes_outside", "code_run")
SHORT = {"images": 80, "archives": 40, "presets": 60, "runs": 50, "checkpoints": 40, "priors": 15, "weights": 20}
LONG = {
    "images": 4000,
    "archives": 1500,
    "presets": 2000,
    "runs": 1200,
    "checkpoints": 900,
    "priors": 400,
    "weights": 600,
}  # 10,600
ONCE = [  # seeds of the long form that failed once
    ("archives", 10273),
    ("archives", 11232),
    ("archives", 11491),
    ("checkpoints", 10312),
    ("checkpoints", 10800),
    ("images", 10851),
    ("images", 13974),
    ("runs", 11102),
]
FIRST_LONG = 10_000  # seeds of the long form begin here


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the worker works; the sound run in it is made once."""
    return tmp_path_factory.mktemp("hostile")


def check(outcomes: list[fuzzing.FuzzOutcome]) -> None:
    """Count what came of cases; fail where anything was wrong with one."""
    for outcome in outcomes:
        refused = any(code > 0 for code in outcome.codes)
        told = {kind: int(kind in outcome.problems) for kind in KINDS}
        tally.add(outcome.target, inputs=1, refused=int(refused), taken=int(not refused), **told)
    bad = [str(outcome) for outcome in outcomes if outcome.problems]
    assert not bad, "\n".join(bad[:10])


def _refusal(act: Callable[[], object]) -> UsageError | None:
    """Return the error that something is refused with, two lines; None where it is taken."""
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
    """What came of the short form's cases: all by one worker, for it takes seconds to begin."""
    fresh = [(target, seed) for target, count in SHORT.items() for seed in range(count)]
    return fuzzing.run(folder, [*((path.parent.name.partition("@")[0], path) for path in KEPT), *ONCE, *fresh])


@pytest.mark.parametrize("target", sorted(SHORT))
def test_hostile_inputs(outcomes, target):
    mine = [outcome for outcome in outcomes if outcome.target == target and outcome.seed.isdigit()]
    assert len(mine) == SHORT[target] + sum(name == target for name, _ in ONCE)
    check(mine)


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(LONG))
def test_ten_thousand_hostile_inputs(folder, target):
    check(fuzzing.run(folder, [(target, FIRST_LONG + number) for number in range(LONG[target])]))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_failed_is_well(outcomes, path):
    check([outcome for outcome in outcomes if outcome.seed == str(path)])


def test_a_case_follows_from_its_target_and_seed(outcomes, folder):
    for target, seed in ((target, seed) for target in fuzzing.TARGETS for seed in range(5)):
        assert fuzzing.case(target, seed, folder / "base") == fuzzing.case(target, seed, folder / "base")


@pytest.mark.parametrize("name", ["gray.png", "gray.jpg"])
def test_a_picture_cut_at_any_byte(tmp_path, name):
    whole = hostile.pictures()[name]
    for length in range(len(whole)):
        path = tmp_path / name
        path.write_bytes(whole[:length])
        refusal = _refusal(lambda path=path: images.read_bytes(path, size=8))
        taken = refusal is None  # the last bytes of a file may say nothing
        assert taken or str(path) in refusal.what
        tally.add("images", inputs=1, refused=int(not taken), taken=int(taken))
    assert images.read_bytes(tmp_path / name, content=whole).shape == (1, 18, 24)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(hostile.NAMES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = [(section, key) for section, kind in schema.SECTIONS.items() for key in kind.__dataclass_fields__]


@given(st.sampled_from(KEYS), ANYTHING)
def test_any_value_of_any_setting_is_taken_or_refused(key, value):
    table = {key[0]: {key[1]: value}}
    _refusal(lambda: presets.from_table(table, "x.toml"))


@given(
    st.dictionaries(st.text(max_size=12) | st.sampled_from([*schema.SECTIONS, "paper", "name"]), ANYTHING, max_size=5)
)
def test_any_table_is_taken_or_refused(table):
    refusal = _refusal(lambda: presets.from_table(table, "x.toml"))
    assert refusal is None or "x.toml" in refusal.what


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_preset_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    refusal = _refusal(lambda: presets.load(str(path)))
    assert refusal is None or str(path) in refusal.what


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6, "[" * 10**6 + "]" * 10**6])
def test_nesting_without_end_is_no_json(text):
    with pytest.raises(ValueError, match="deep"):
        parse_json(text)


@pytest.mark.parametrize(
    "content", [b"a=" + b"[" * 10_000_000, b"a." * 2000 + b"a=1", b"a={a=" * 600, b"a = 1\n" * 10**6]
)
def test_ten_megabytes_of_nesting_are_no_preset(tmp_path, content):
    path = tmp_path / "deep.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"deep\.toml"):
        presets.load(str(path))


@pytest.mark.parametrize("value", ["/tmp/x", "../../x"])
def test_nothing_is_downloaded_into_a_folder_that_a_run_file_names(tmp_path, capsys, value, monkeypatch):
    from torchvision.datasets import MNIST

    finish(make_trainer(tmp_path / "run"))
    text = (tmp_path / "run" / "run.toml").read_text()
    place = tmp_path / value.strip("/.")
    text = text.replace('dataset = "digits"', 'dataset = "mnist"').replace(
        'directory = ""', f'directory = "{place}"', 1
    )
    (tmp_path / "run" / "run.toml").write_text(text)
    monkeypatch.setattr(MNIST, "download", lambda self: pytest.fail("it was downloaded"))
    for command in (["eval", "--n", "2"], ["sample"], ["train", "--resume"]):
        words = [*command, str(tmp_path / "run")] + (["--set", "train.steps=9"] if command[0] == "train" else [])
        assert run(words) in (1, 2)
        assert "MNIST is not in" in capsys.readouterr().err
    assert not place.exists()


def test_no_command_is_run_that_lies_in_a_folder_which_a_run_file_names(tmp_path, capsys):
    finish(make_trainer(tmp_path / "run"))
    (tmp_path / "shards").mkdir()
    for split in ("train", "test"):
        (tmp_path / "shards" / f"{split}.urls").write_text(f"pipe:touch {tmp_path}/ran\n")
    text = (tmp_path / "run" / "run.toml").read_text()
    text = text.replace('dataset = "digits"', 'dataset = "shards"')
    text = text.replace('directory = ""', f'directory = "{tmp_path}/shards"', 1)
    (tmp_path / "run" / "run.toml").write_text(text)
    for command in (["eval", "--n", "2"], ["sample"], ["train", "--resume"]):
        words = [*command, str(tmp_path / "run")] + (["--set", "train.steps=9"] if command[0] == "train" else [])
        assert run(words) == 2
        assert "commands need your consent" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert run(["eval", str(tmp_path / "run"), "--data-dir", str(tmp_path / "shards")]) == 2
    assert "exit code 0" in capsys.readouterr().err
    assert (tmp_path / "ran").exists()  # named by the user


def _trees() -> Iterator[tuple[Path, ast.AST]]:
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


FORBIDDEN = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__"}


def test_no_code_unpickles_or_runs_what_it_reads():
    started = []
    for path, tree in _trees():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.partition(".")[0] for name in names}
            assert not roots & FORBIDDEN, f"{path}:{node.lineno} imports {roots & FORBIDDEN}"
            if "subprocess" in roots:
                started.append(f"{path.parent.name}/{path.name}")
            if isinstance(node, ast.Call):
                _check_call(path, node)
    # Shards may be commands, in lists that the user names: the test below holds that no run's file brings them in.
    assert started == ["shards/archive.py", "jobs/background.py"]


def _check_call(path: Path, call: ast.Call) -> None:
    where = f"{path}:{call.lineno}"
    told = {word.arg: ast.unparse(word.value) for word in call.keywords}
    name = ast.unparse(call.func)
    assert name not in CALLS, where
    assert not name.startswith(("os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn")), where
    if name == "torch.load":
        assert told.get("weights_only") == "True", where
    assert told.get("allow_pickle", "False") == "False", where
    assert "shell" not in told, where
    if name.startswith("subprocess."):
        assert isinstance(call.args[0], ast.List), where


class EvilPickle:
    """What would make a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


PLACES = {
    "weights.pt": ["eval", "run", "--n", "2", "--features", "inception", "--weights", "weights.pt"],
    "weights.pth": ["eval", "run", "--n", "2", "--features", "inception", "--weights", "weights.pth"],
    "weights.safetensors": ["eval", "run", "--n", "2", "--features", "inception", "--weights", "weights.safetensors"],
    "run/checkpoints/step-000006/model.safetensors": ["train", "--resume", "run", "--set", "train.steps=7"],
    "run/checkpoints/step-000006/ema.safetensors": ["generate", "run", "--n", "1", "--out", "a.png"],
    "run/checkpoints/step-000006/state.json": ["generate", "run", "--n", "1", "--out", "a.png"],
    "run/priors/gmm-1.safetensors": ["generate", "run", "--n", "1", "--out", "a.png"],
    "run/run.toml": ["eval", "run"],
    "picture.png": ["degrade", "picture.png", "--op", "blur"],
    "preset.toml": ["train", "--preset", "preset.toml"],
}


@pytest.mark.parametrize("place", sorted(PLACES))
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_in_place_of_any_file_runs_nothing(in_folder, capsys, place, kind):
    import torch

    finish(make_trainer(in_folder / "run"))
    path, made = in_folder / place, in_folder / "made"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(EvilPickle(made), protocol=2))
    else:
        torch.save({"a": EvilPickle(made)}, path)
    code = run(PLACES[place])
    told = capsys.readouterr().err
    assert not made.exists(), "its code ran"
    assert "Traceback" not in told
    assert "Unexpected" not in told
    is_needless = place.startswith("run/priors") or "checkpoints" in place  # fitted anew; an older checkpoint is used
    assert code == 2 or is_needless, told
    tally.add("pickles", inputs=1, refused=int(code > 0), taken=int(code == 0), code_run=0)


def test_a_postscript_that_calls_itself_a_picture_starts_nothing(in_folder, capsys, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    (in_folder / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF\n")
    assert run(["degrade", "a.png", "--op", "blur"]) == 2
    assert "not an image that can be read" in capsys.readouterr().err


def test_mutations_follow_from_their_generator():
    sound = json.dumps(list(range(300))).encode()
    assert all(mutate(sound, random.Random(seed)) == mutate(sound, random.Random(seed)) for seed in range(50))
    assert len({mutate(sound, random.Random(seed)) for seed in range(50)}) > 40


@pytest.mark.parametrize("name", runs.OWN)
def test_a_run_of_links_is_not_written_through(tmp_path, capsys, name):
    path = tmp_path / "run"
    finish(make_trainer(path, "train.steps=2"))
    outside = tmp_path / "outside"
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != "lock"}
    assert run(["train", "--resume", str(path), "--set", "train.steps=4"]) == 2
    assert "is a link" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before
    tally.add("links and pipes", inputs=1, refused=1)


@pytest.mark.parametrize("place", ["checkpoints/step-000009", "checkpoints/step-000002/ema.safetensors", "priors"])
@pytest.mark.parametrize("kind", ["dangling", "pipe", "device"])
def test_links_to_nowhere_pipes_and_devices_are_not_waited_for(tmp_path, capsys, place, kind):
    path = tmp_path / "run"
    finish(make_trainer(path, "train.steps=2"))
    spoiled = path / place
    if spoiled.is_file():
        spoiled.unlink()
    if kind == "pipe":
        os.mkfifo(spoiled)
    else:
        spoiled.symlink_to("/nowhere" if kind == "dangling" else "/dev/zero")
    code = run(["generate", str(path), "--n", "1", "--out", str(tmp_path / "a.png")])
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "Unexpected" not in told
    assert code == (2 if "ema" in place else 0), told
    for log in runs.LOGS:
        (path / log).unlink()
        os.mkfifo(path / log)
    assert runs.Run(path).metrics() == []
    assert run(["train", "--resume", str(path), "--set", "train.steps=4"]) in (1, 2)
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
    ids=str,
)
def test_any_state_of_a_checkpoint_is_taken_or_refused(tmp_path, capsys, change):
    path = tmp_path / "run"
    finish(make_trainer(path, "train.steps=2"))
    file = runs.Run(path).newest_checkpoint() / "state.json"
    state = json.loads(file.read_text()) | change
    file.write_text(json.dumps(state | {"digest": checkpoint.digest(state)}))
    generate = ["generate", str(path), "--n", "1", "--out", str(tmp_path / "a.png")]
    for words in (generate, ["train", "--resume", str(path), "--set", "train.steps=4"]):
        assert run(words) in (0, 1, 2)
        told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
        assert len(told) <= 2, told
        assert "Unexpected" not in "".join(told)
