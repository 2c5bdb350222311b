"""`colddiff restore`: what happened to a picture is found out, the fitting run undoes it, the rest is left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finish, make_trainer, pictures_in
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import degradations, runs, seeds
from colddiff_core.config import presets
from colddiff_core.runs import pretrained
from tools import pretrain
from tools.recipes import Recipe

PHOTOS = ("data.margin=4", "data.crop=4", "train.precision=float32", "train.steps=1")
OPERATORS = {"blur": "blur", "pixelate": "pixelate", "mask": "holes", "desaturate": "desaturate"}  # preset -> operator

STEPS = {"blur": 32, "pixelate": 2, "mask": 20, "desaturate": 20}  # the presets', where a tiny run has 5


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder of tiny pretrained runs for photographs; read it, do not write to it."""
    with pytest.MonkeyPatch.context() as patch:
        folder, work = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("work")
        patch.setattr(pretrained, "directory", lambda: folder)
        patch.setattr("colddiff_core.training.sample_sheet.IMAGES", 2)
        for name in OPERATORS:
            steps = f"degradation.steps={STEPS[name]}"
            finish(make_trainer(work / name, *PHOTOS, steps, preset=f"photos-{name}-small"))
            recipe = Recipe(f"photos-{name}-small", f"photographs: {name}", "photographs", "CC0", ())
            pretrain.export(recipe, runs.Run(work / name), f"photos-{name}")
        return folder


@pytest.fixture
def bundled(published, monkeypatch, in_folder) -> Path:
    monkeypatch.setattr(pretrained, "directory", lambda: published)
    return published


def photograph(size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """A sharp photograph with color, (H, W, 3) uint8: the flower that comes with scikit-learn."""
    from sklearn.datasets import load_sample_image

    return np.array(Image.fromarray(load_sample_image("flower.jpg")).resize(size, Image.Resampling.LANCZOS))


def degraded(preset: str, t: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    config = presets.load(f"photos-{preset}-small").degradation
    op = degradations.build(config.name, **config.parameters)
    x0 = torch.from_numpy(photograph(size)).permute(2, 0, 1)[None] / 127.5 - 1
    frozen = op.freeze(x0, generator=seeds.generator("restore"))
    levels = ((op(x0, t, frozen)[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("preset", "t"), [("blur", 12), ("pixelate", 2), ("mask", 12), ("desaturate", 15)])
def test_what_happened_is_found_out_and_the_fitting_run_undoes_it(bundled, capsys, preset, t):
    degraded(preset, t).save("photo.png")
    assert run(["restore", "photo.png", "--json"]) == 0
    captured = capsys.readouterr()
    (file,) = json.loads(captured.out)["files"]
    assert file["operator"] == OPERATORS[preset]
    assert file["run"] == f"pretrained:photos-{preset}"
    assert file["output"] == "photo-restored.png"
    assert Image.open("photo-restored.png").size == (160, 120)
    assert captured.err.startswith(f"photo.png: {file['trace']} (t = {file['t']} of ")
    assert f"restored with pretrained:photos-{preset}" in captured.err
    assert pictures_in(Path()) == ["photo-restored.png", "photo.png"]


def test_a_picture_without_a_trace_is_left_alone_and_told_how_to_go_on(bundled, capsys):
    Image.fromarray(photograph()).save("photo.png")
    assert run(["restore", "photo.png"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert error[0].startswith("colddiff: photo.png: No trace of ")
    assert "--sweep" in error[1]
    assert pictures_in(Path()) == ["photo.png"]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (64, 48)], ids=str)
def test_one_color_is_left_alone(bundled, capsys, size):
    Image.new("RGB", size, (90, 160, 40)).save("flat.png")
    assert run(["restore", "flat.png"]) == 1
    assert "No trace of" in capsys.readouterr().err
    assert pictures_in(Path()) == ["flat.png"]


def test_each_picture_of_a_folder_gets_its_own_run_and_the_undegraded_is_skipped(bundled, capsys):
    Path("in").mkdir()
    degraded("blur", 12).save("in/a.png")
    Image.fromarray(photograph()).save("in/b.png")
    degraded("pixelate", 2).save("in/c.png")
    assert run(["restore", "in", "--out-dir", "out", "--compare", "--json"]) == 0
    captured = capsys.readouterr()
    files = json.loads(captured.out)["files"]
    assert [file["operator"] for file in files] == ["blur", "pixelate"]
    assert "in/b.png: No trace of" in captured.err
    names = ["a-compared.png", "a-restored.png", "c-compared.png", "c-restored.png"]
    assert pictures_in(Path("out")) == names
    before = {name: Path("out", name).read_bytes() for name in names}
    Path("out/c-restored.png").unlink()
    assert run(["restore", "in", "--out-dir", "out", "--compare", "--resume"]) == 0
    assert {name: Path("out", name).read_bytes() for name in names} == before


def test_a_mask_takes_the_run_that_fills_holes(bundled, capsys):
    Image.fromarray(photograph()).save("photo.png")
    mask = Image.new("L", (160, 120))
    mask.paste(255, (40, 40, 60, 60))
    mask.save("mask.png")
    assert run(["restore", "photo.png", "--mask", "mask.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["operator"] == "holes"
    before, after = (np.array(Image.open(name)) for name in ("photo.png", "photo-restored.png"))
    assert (before[:30] == after[:30]).all()
    assert (before[45:55, 45:55] != after[45:55, 45:55]).any()


def test_op_and_severity_that_are_named_are_taken(bundled, capsys):
    Image.fromarray(photograph()).save("photo.png")
    assert run(["restore", "photo.png", "--op", "blur", "--t", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["run"], result["files"][0]["t"]) == ("pretrained:photos-blur", 5)


def test_a_sweep_shows_candidates(bundled, capsys):
    degraded("blur", 12).save("photo.png")
    assert run(["restore", "photo.png", "--sweep", "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["operator"] == "blur"
    assert len(file["candidates"]) > 2
    assert pictures_in(Path()) == ["photo-sweep.png", "photo.png"]


def test_sample_degraded_without_a_run_is_the_same(bundled, capsys):
    degraded("blur", 12).save("photo.png")
    assert run(["sample", "photo.png", "--degraded", "--out", "a.png"]) == 0
    assert run(["restore", "photo.png", "--out", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_run_of_one_s_own_is_used_when_named(bundled, capsys):
    degraded("blur", 12).save("photo.png")
    shutil.copytree(bundled / "photos-blur", "runs/mine")
    assert run(["restore", "photo.png", "--run", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "runs/mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.png", "--t", "5"], "not what happened to the picture.\n  Add --op or --run."),
        (["photo.png", "--t", "many", "--op", "blur"], "--t many is not a severity"),
        (["photo.png", "--t", "99", "--op", "blur"], "t = 99 is out of range for blur"),
        (["photo.png", "--sweep", "--t", "5"], "--sweep tries several severities"),
        (["photo.png", "--op", "blurr"], "Did you mean 'blur'?"),
        (["photo.png", "--op", "blur", "--mask", "mask.png"], "--mask does not go with blur"),
        (["photo.png", "--mask", "small.png"], "small.png has 3x2 pixels and the picture 16x12"),
        (["photo.png", "--mask", "none.png"], "No such file: none.png"),
        (["photo.png", "--run", "pretrained:photo-blur"], "Did you mean 'photos-blur'?"),
        (["photo.png", "--run", "pretrained:photos-blur", "--op", "holes"], "restores from blur"),
        (["nothing.png"], "No such file: nothing.png"),
        (["photo.png", "--out", "a.gif"], "Unknown image format"),
        (["photo.png", "--color", "red"], "--color red is unknown"),
        ([], "Missing argument"),
    ],
)
def test_wrong_requests_are_refused_in_two_lines_and_leave_nothing(bundled, capsys, arguments, message):
    degraded("blur", 12, (16, 12)).save("photo.png")
    Image.new("L", (3, 2), 255).save("small.png")
    Image.new("L", (16, 12), 255).save("mask.png")
    before = pictures_in(Path())
    assert run(["restore", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 2
    assert pictures_in(Path()) == before
