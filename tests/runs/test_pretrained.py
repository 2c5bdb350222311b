"""Runs that are bundled with the package: found by name, checked against the manifest, never written to."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, pictures_in

from colddiff_cli.__main__ import run
from colddiff_core import runs
from colddiff_core.config import presets
from colddiff_core.errors import UsageError
from colddiff_core.evaluation import classifier
from colddiff_core.inference.open_run import open_run
from colddiff_core.runs import checkpoint, pretrained
from colddiff_core.training import start
from tools import pretrain
from tools.recipes import RECIPES, Recipe

TINY_RECIPE = Recipe("digits-blur", "tiny digits", "digits", "CC BY 4.0", (), priors=(("gmm", 1),))
TEXTS = {".toml", ".md", ".json"}


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_run) -> Path:
    """A folder of two pretrained runs, made from a tiny run; read it, do not write to it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("published")
        patch.setattr(pretrained, "directory", lambda: folder)
        for name in ("digits-blur", "digits-blur-generate"):
            pretrain.export(TINY_RECIPE, runs.Run(tiny_run), name)
        return folder


@pytest.fixture
def bundled(published, monkeypatch, in_folder) -> Path:
    """The same folder as that of the installation, in an empty working folder."""
    monkeypatch.setattr(pretrained, "directory", lambda: published)
    return published


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in pretrain.files(folder)}


def test_the_weights_are_the_run_s_in_half_precision(bundled, tiny_run):
    own, half = (open_run(name, device="cpu") for name in (tiny_run, "pretrained:digits-blur"))
    assert half.step == own.step
    ours, theirs = (trained.experiment.restorer.unet.state_dict() for trained in (own, half))
    assert {value.dtype for value in theirs.values()} == {torch.float32, torch.bfloat16} & {
        value.dtype for value in ours.values()
    }
    for name, value in ours.items():
        assert torch.equal(theirs[name], value.float().half().to(value.dtype))


def test_it_holds_what_sampling_needs_and_no_more(bundled):
    inside = {path.relative_to(bundled / "digits-blur").as_posix() for path in pretrain.files(bundled / "digits-blur")}
    step = open_run("pretrained:digits-blur", device="cpu").step
    saved = f"checkpoints/step-{step:06d}"
    assert inside == {"run.toml", f"{saved}/ema.safetensors", f"{saved}/state.json", "priors/gmm-1.safetensors"}


@pytest.mark.parametrize(
    "call",
    [["sample"], ["eval", "--n", "4", "--features", "none"], ["compare", "--n", "4", "--features", "none"]],
    ids=lambda call: call[0],
)
def test_without_any_run_the_pretrained_one_is_used_and_the_first_line_says_so(bundled, capsys, call):
    before = digests(bundled)
    assert run(call) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "No runs in runs/, so this uses pretrained:digits-blur: tiny digits"
    assert digests(bundled) == before
    made = {"sample": ["digits-blur"], "eval": [], "compare": ["digits-blur"]}
    assert pictures_in(Path()) == made[call[0]]


def test_a_bundled_prior_needs_no_images(bundled, capsys, monkeypatch):
    from colddiff_core.datasets import from_config

    monkeypatch.setattr(from_config, "load_images", lambda *_: pytest.fail("training images were read"))
    assert (
        run(["generate", "--noise", "0.002", "pretrained:digits-blur-generate", "--prior", "gmm", "--n", "2", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["run"] == "pretrained:digits-blur-generate"
    assert Path(result["picture"]) == Path("digits-blur-generate/generated/gmm-tacos.png")


def test_another_prior_is_fitted_and_kept_in_the_working_folder(bundled):
    before = digests(bundled)
    assert run(["generate", "--noise", "0.002", "--prior", "gmm", "--components", "2", "--n", "2"]) == 0
    assert digests(bundled) == before
    assert Path("digits-blur-generate/priors/gmm-2.safetensors").is_file()


def test_a_run_of_one_s_own_comes_first(bundled, tiny_run, capsys):
    shutil.copytree(tiny_run, "runs/mine")
    assert run(["sample", "--n", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "runs/mine"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("pretrained:digit-blur", "Did you mean 'digits-blur'?"),
        ("pretrained:", "Known: digits-blur, digits-blur-generate."),
        ("digits-blur", "The bundled one is pretrained:digits-blur."),
    ],
)
def test_a_name_that_is_none_is_told_the_nearest(bundled, capsys, name, remedy):
    assert run(["sample", name]) == 2
    assert remedy in capsys.readouterr().err


def test_an_installation_without_them_says_how_to_get_them(in_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "directory", lambda: tmp_path / "none")
    assert run(["sample", "pretrained:digits-blur"]) == 2
    error = capsys.readouterr().err
    assert "this installation came without the pretrained runs" in error
    assert "git checkout -- pretrained" in error
    assert run(["sample"]) == 2
    assert "No runs in runs/" in capsys.readouterr().err
    assert run(["restore", "photo.png"]) == 2
    assert "this installation came without the pretrained runs" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["run.toml", "ema.safetensors", "state.json", "gmm-1.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_one_is_told_in_two_lines(published, tmp_path, in_folder, monkeypatch, capsys, file, damage):
    folder = shutil.copytree(published, tmp_path / "installed")
    monkeypatch.setattr(pretrained, "directory", lambda: folder)
    paths = sorted(folder.rglob(file))
    path = next((path for path in paths if path.is_relative_to(folder / "digits-blur")), paths[0])
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        if file == "SHA256SUMS":
            path.write_text(path.read_text().replace("digits-blur/", "digits-blot/"))
    assert run(["sample", "pretrained:digits-blur"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 2
    if (file, damage) != ("run.toml", "missing"):  # then the name is unknown
        assert "is damaged" in error[0]
        assert "Reinstall colddiff" in error[1]


def test_a_bundled_classifier_is_used_and_checked(published, tiny_run, tmp_path, in_folder, monkeypatch, capsys):
    folder = shutil.copytree(published, tmp_path / "installed")
    monkeypatch.setattr(pretrained, "directory", lambda: folder)
    pretrain.publish_classifier(runs.Run(tiny_run), None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "_train", lambda *_: pytest.fail("a classifier was trained"))
    assert run(["eval", "pretrained:digits-blur", "--n", "4", "--json"]) == 0
    assert "fd" in json.loads(capsys.readouterr().out)["metrics"]["direct"]
    (path,) = (folder / classifier.PUBLISHED).iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert run(["eval", "pretrained:digits-blur", "--n", "4"]) == 2
    assert f"{path} is damaged" in capsys.readouterr().err


def test_fine_tuning_starts_from_its_weights_and_says_so(bundled, tmp_path, monkeypatch):
    monkeypatch.setattr("colddiff_core.training.sample_sheet.IMAGES", 2)
    out = tmp_path / "tuned"
    call = ["train", "--from", "pretrained:digits-blur", "--set", "train.steps=1", "--set", "train.lr=1e-12"]
    assert run([*call, "--out", str(out)]) == 0
    tuned = runs.Run(out)
    assert tuned.config().train.initial == "pretrained:digits-blur"
    first = tuned.events()[0]
    ema = next((bundled / "digits-blur").rglob("ema.safetensors"))
    assert first["event"] == "initialized"
    assert first["run"] == "pretrained:digits-blur"
    assert first["sha256"] == hashlib.sha256(ema.read_bytes()).hexdigest()
    tensors = checkpoint.read(tuned.newest_checkpoint()).tensors[checkpoint.MODEL]
    origin = checkpoint.read(ema.parent, (checkpoint.AVERAGE,)).tensors[checkpoint.AVERAGE]
    for name, value in origin.items():
        torch.testing.assert_close(tensors[name], value.float(), rtol=0, atol=1e-6)
    state = checkpoint.read_state(tuned.newest_checkpoint())
    assert state["provenance"]["settings"]["train"]["initial"] == "pretrained:digits-blur"


def test_a_fine_tuning_stopped_before_its_first_checkpoint_starts_from_the_same_weights(bundled, tmp_path):
    config = presets.load("digits-blur", [*TINY, "train.initial=pretrained:digits-blur", "train.precision=float32"])
    first = start.start(config, tmp_path / "tuned", "cpu")
    begun = {name: value.clone() for name, value in first.parts.network.state_dict().items()}
    first.train_set.close()
    first.run.close()
    again = start.resume(str(tmp_path / "tuned"), [], "cpu")
    for name, value in again.parts.network.state_dict().items():
        assert torch.equal(value, begun[name])
    again.train_set.close()
    again.run.close()


def test_weights_of_another_network_are_refused_and_nothing_is_left(bundled, tmp_path, capsys):
    out = tmp_path / "tuned"
    call = ["train", "--from", "pretrained:digits-blur", "--set", "model.width=12", "--out", str(out)]
    assert run(call) == 2
    assert "pretrained:digits-blur has another network" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["train", "--resume", "pretrained:digits-blur"], "colddiff train --from pretrained:digits-blur"),
        (["train", "--resume", "pretrained:digits-blur", "--nproc", "2"], "train --from pretrained:digits-blur"),
        (["train"], "Name a --preset, a run to start --from, or a run to --resume."),
        (["train", "--from", "pretrained:digits-blur", "--resume", "x"], "--from does not go with --resume"),
        (["train", "--from", "nothing"], "No such run: nothing"),
        (["monitor", "pretrained:digits-blur", "--once"], "there is nothing to watch"),
        (["runs", "digits-blot"], "Did you mean 'digits-blur'?"),
    ],
)
def test_what_it_is_not_for_is_refused(bundled, capsys, call, message):
    assert run(call) == 2
    assert message in capsys.readouterr().err
    assert pictures_in(Path()) == []


def test_runs_lists_them_after_one_s_own(bundled, tiny_run, capsys):
    shutil.copytree(tiny_run, "runs/mine")
    assert run(["runs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == ["runs/mine", "pretrained:digits-blur", "pretrained:digits-blur-generate"]
    assert listed["pretrained:digits-blur"]["description"] == "tiny digits"
    assert run(["runs"]) == 0
    assert "pretrained:digits-blur" in capsys.readouterr().out


def test_those_of_this_checkout_are_whole_small_and_described():
    if not pretrained.names():
        pytest.skip("needs the folder pretrained/, which is absent")
    assert set(pretrained.names()) <= set(RECIPES)
    total = 0
    for name in pretrained.names():
        folder = pretrained.find(name)
        size = sum(path.stat().st_size for path in pretrain.files(folder))
        total += size
        assert size <= pretrain.MOST_BYTES
        card = (folder / pretrained.CARD).read_text(encoding="utf-8")
        assert RECIPES[name].license in card
        for words in ("Data:", "steps of", "seed", "hours on", "## Measured"):
            assert words in card, f"{name}: {words}"
        state = checkpoint.read_state(runs.Run(folder).path / "checkpoints" / next((folder / "checkpoints").iterdir()))
        assert state["channels"] in (1, 3)
        for path in pretrain.files(folder):
            assert path.suffix in TEXTS | {".safetensors"}
            if path.suffix in TEXTS:
                assert "/tmp" not in path.read_text(encoding="utf-8")
                assert "/home" not in path.read_text(encoding="utf-8")
    assert total <= pretrain.MOST_BYTES_OF_ALL
    with pytest.raises(UsageError):
        pretrained.find("nothing")
