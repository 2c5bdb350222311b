"""No file that colddiff reads can run code, start a program or cause a download."""

from __future__ import annotations

import ast
import pickle
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import tally

from colddiff_cli.__main__ import run

PACKAGES = [Path(__file__).parents[2] / name for name in ("colddiff_core", "colddiff_cli")]


@pytest.mark.parametrize("value", ["/tmp/x", "../../x"])
def test_a_run_file_cannot_cause_a_download(own_run, tmp_path, capsys, value, monkeypatch):
    from torchvision.datasets import MNIST

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


def test_a_run_file_cannot_bring_in_a_shard_command(own_run, tmp_path, capsys):
    (tmp_path / "shards").mkdir()
    for split in ("train", "test"):
        command = f"pipe:touch {shlex.quote(str(tmp_path))}/ran\n"
        (tmp_path / "shards" / f"{split}.urls").write_text(command)
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
    assert (tmp_path / "ran").exists()  # the user named the folder


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
    # Shards may be commands in lists that the user names; a test above checks that a run file cannot bring them in.
    assert started == ["shards/archive.py", "jobs/background.py"]


def _check_call(path: Path, call: ast.Call) -> None:
    where = f"{path}:{call.lineno}"
    keywords = {word.arg: word.value for word in call.keywords}
    name = ast.unparse(call.func)
    assert name not in CALLS, where
    assert not name.startswith(("os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn")), where
    if name == "torch.load":
        assert "weights_only" in keywords, where
        assert ast.unparse(keywords["weights_only"]) == "True", where
    if "allow_pickle" in keywords:
        assert ast.unparse(keywords["allow_pickle"]) == "False", where
    assert "shell" not in keywords, where
    if name.startswith("subprocess."):
        assert isinstance(call.args[0], ast.List), where


class EvilPickle:
    """Writes a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


PLACES = {
    "weights.pt": ["eval", "run", "--n", "2", "--features", "inception", "--weights", "weights.pt"],
    "weights.pth": ["eval", "run", "--n", "2", "--features", "inception", "--weights", "weights.pth"],
    "weights.safetensors": ["eval", "run", "--n", "2", "--features", "inception", "--weights", "weights.safetensors"],
    "run/checkpoints/step-000006/model.safetensors": ["train", "--resume", "run", "--set", "train.steps=7"],
    "run/checkpoints/step-000006/ema.safetensors": [
        "generate",
        "--noise",
        "0.002",
        "run",
        "--n",
        "1",
        "--out",
        "a.png",
    ],
    "run/checkpoints/step-000006/state.json": ["generate", "--noise", "0.002", "run", "--n", "1", "--out", "a.png"],
    "run/priors/gmm-1.safetensors": ["generate", "--noise", "0.002", "run", "--n", "1", "--out", "a.png"],
    "run/run.toml": ["eval", "run"],
    "picture.png": ["degrade", "picture.png", "--op", "blur"],
    "preset.toml": ["train", "--preset", "preset.toml"],
}


@pytest.mark.parametrize("place", sorted(PLACES))
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_in_place_of_any_file_is_not_run(own_run, in_folder, capsys, place, kind):
    import torch

    path, marker = in_folder / place, in_folder / "made"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(EvilPickle(marker), protocol=2))
    else:
        torch.save({"a": EvilPickle(marker)}, path)
    code = run(PLACES[place])
    errors = capsys.readouterr().err
    assert not marker.exists(), "its code ran"
    assert "Traceback" not in errors
    assert "Unexpected" not in errors
    is_needless = place.startswith("run/priors") or "checkpoints" in place  # fitted again; an older checkpoint is used
    assert code == 2 or is_needless, errors
    tally.add("pickles", inputs=1, refused=int(code > 0), taken=int(code == 0), code_run=0)


def test_a_postscript_file_named_png_is_not_run(in_folder, capsys, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    (in_folder / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF\n")
    assert run(["degrade", "a.png", "--op", "blur"]) == 2
    assert "not an image that can be read" in capsys.readouterr().err
