"""Bad command lines: one or two lines say what is wrong, where, and what to do; no file is left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from bombs import BOMB
from conftest import finish, left_behind, make_trainer
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import files, images
from colddiff_core.datasets import from_config
from colddiff_core.errors import MachineError
from colddiff_core.inference import open_run

BAD = [
    (["train", "--preset", "digit-blur"], "Did you mean 'digits-blur'"),
    (["train", "--preset", "digits-blur", "--set", "train.stpes=3"], "Did you mean 'steps'"),
    (["train", "--preset", "digits-blur", "--set", "degradation.name=blurr"], "Did you mean 'blur'"),
    (["train", "--preset", "digits-blur", "--set", "degradation.stdd=1"], "Did you mean 'std'"),
    (["train", "--preset", "digits-blur", "--set", "data.dataset=digit"], "Did you mean 'digits'"),
    (["train", "--preset", "digits-blur", "--set", "data.size=15"], "multiple of 4"),
    (["train", "--preset", "digits-blur", "--set", "data.dataset=folder"], "--data-dir"),
    (["train", "--preset", "digits-blur", "--set", "data.dataset=folder", "--data-dir", "absent"], "No such folder"),
    (["train", "--preset", "digits-blur", "--set", "data.dataset=folder", "--data-dir", "empty"], "No images in"),
    (["train", "--preset", "digits-blur", "--device", "cuda:9"], "no CUDA device"),
    (["train", "--preset", "digits-blur", "--device", "gpu"], "Unknown device"),
    (["train", "--preset", "digits-blur", "--out", "empty"], "exists already"),
    (["train", "--preset", "digits-blur", "--set", "sample.sampler=taco"], "Did you mean 'tacos'"),
    (["train", "--preset", "digits-blur", "--set", "sample.stride=21"], "at most T = 20"),
    (["train", "--preset", "digits-blur", "--data-dir", "empty"], "--data-dir has no effect"),
    (["train", "--preset", "digits-blur", "--out", "photo.png/run"], "is a file"),
    (["train", "--preset", "digits-blur", "--monitor"], "needs a terminal"),
    (["train", "--preset", "digits-blur", "--monitor", "--json"], "does not go with --json"),
    (["train", "--preset", "digits-blur", "--monitor", "--dry-run"], "does not go with --dry-run"),
    (["monitor"], "No runs"),
    (["monitor", "--once"], "No runs"),
    (["monitor", "nothing"], "No such run"),
    (["monitor", "empty"], "is not a run"),
    (["monitor", "RUN"], "needs a terminal"),
    (["monitor", "RUN", "--filter", "x*"], "No run matches x*"),
    (["monitor", "RUN", "--once", "--filter", "x*"], "No run matches x*"),
    (["train"], "--preset"),
    (
        ["train", "--preset", "digits-blur", "--set", "degradation.name=desaturate", "--set", "model.inputs=plain"],
        "color",
    ),
    (
        ["train", "--preset", "digits-blur", "--set", "degradation.name=pixelate", "--set", "degradation.steps=5"],
        "halved",
    ),
    (["train", "--preset", "digits-blur", "--set", "degradation.quantize=2000"], "at most 16"),
    (["train", "--preset", "digits-blur", "--set", "train.ema_decay=2.0"], "at most 1"),
    (["train", "--preset", "digits-blur", "--set", "data.channels=7"], "0, 1, 3"),
    (["train", "--preset", "digits-blur", "--seed", str(10**20)], "--seed"),
    (["train", "--preset", "digits-blur", "--dry-run", "--set", "data.dataset=digitz"], "Did you mean 'digits'"),
    (["train", "--preset", "digits-blur", "--dry-run", "--set", "degradation.stdd=3"], "Did you mean 'std'"),
    (["train", "--preset", "digits-blur", "--set", "train.lr=1e-3\ntrain.steps=2"], "not a number"),
    (["train", "--resume", "nothing"], "No such run"),
    (["train", "--resume", "RUN", "--dry-run"], "does not go with"),
    (["train", "--resume", "empty"], "is not a run"),
    (["train", "--resume", "RUN"], "is finished"),
    (["train", "--resume", "RUN", "--set", "model.width=9"], "keeps its configuration"),
    (["train", "--steps", "3"], "No such option"),
    (["eval", "nothing"], "No such run"),
    (["eval", "RUN", "--data-dir", "empty"], "digits comes with scikit-learn"),
    (["sample", "RUN", "--data-dir", "empty"], "--data-dir has no effect"),
    (["generate", "RUN", "--data-dir", "empty"], "--data-dir has no effect"),
    (["compare", "RUN", "--data-dir", "empty"], "--data-dir has no effect"),
    (["sample", "RUN", "--precision", "fp16"], "Choices: auto, bf16, float32."),
    (["generate", "RUN", "--precision", "fp16"], "Choices: auto, bf16, float32."),
    (["eval", "RUN", "--precision", "fp16"], "Choices: auto, bf16, float32."),
    (["compare", "RUN", "--precision", "fp16"], "Choices: auto, bf16, float32."),
    (["eval", "RUN", "--t", "99"], "out of range"),
    (["eval", "RUN", "--t", "0"], "out of range"),
    (["eval", "RUN", "--n", "0"], "greater than or equal to 1"),
    (["eval", "RUN", "--stride", "0"], "stride"),
    (["eval", "RUN", "--stride", "6"], "at most T = 5"),
    (["sample", "RUN", "--t", "-1"], "out of range"),
    (["sample", "RUN", "--sampler", "tacoz"], "Did you mean 'tacos'"),
    (["sample", "RUN", "absent.png"], "No such file"),
    (["sample", "absent.png"], "No such file"),
    (["sample", "RUN", "cut.png"], "cut.png"),
    (["sample", "RUN", "--out", "a.xyz"], "format"),
    (["sample", "RUN", "--stride", "0"], "stride"),
    (["sample", "RUN", "--stride", "6"], "at most T = 5"),
    (["sample", "RUN", "--sampler", "ddim"], "Use one of direct, naive, tacos"),
    (["generate", "RUN", "--prior", "normal"], "Use one of: gmm, degraded"),
    (["generate", "RUN", "--prior", "gm"], "Did you mean 'gmm'"),
    (["generate", "RUN", "--components", "2000", "--noise", "0"], "Use fewer --components"),
    (["generate", "RUN", "--components", "0"], "greater than or equal to 1"),
    (["generate", "RUN", "--prior", "degraded", "--components", "2"], "no components"),
    (["generate", "RUN", "--prior", "degraded", "--noise", "0.1"], "no symmetry"),
    (["generate", "RUN", "--noise", "-1"], "--noise"),
    (["generate", "RUN", "--noise", "nan"], "--noise"),
    (["generate", "RUN", "--noise", "inf"], "not finite"),
    (["generate", "RUN", "--noise", "1e30"], "Use 0 to 1"),
    (["compare", "RUN", "--noise", "1.5"], "Use 0 to 1"),
    (["generate", "RUN", "--class", "3"], "without classes"),
    (["generate", "RUN", "--n", "0"], "greater than or equal to 1"),
    (["generate", "RUN", "--interpolate", "1"], "greater than or equal to 2"),
    (["generate", "RUN", "--interpolate", "4", "--n", "4"], "both"),
    (["generate", "RUN", "--sampler", "ddpm"], "Gaussian noise"),
    (["generate", "RUN", "--sampler", "taco"], "Did you mean 'tacos'"),
    (["generate", "RUN", "--stride", "0"], "stride"),
    (["generate", "RUN", "--stride", "6"], "at most T = 5"),
    (["generate", "RUN", "--out", "a.xyz"], "format"),
    (["generate", "RUN", "--out", "photo.png"], "--force"),
    (["generate", "RUN", "--out-dir", "photo.png"], "is a file"),
    (["generate", "RUN", "--n", "2", "--out-dir", "new", "--out", "new/000000.png"], "Give another --out"),
    (["generate", "UNTRAINED"], "no checkpoint"),
    (["generate", "nothing"], "No such run"),
    (["compare", "RUN", "nothing"], "No such run"),
    (["compare", "RUN", "RUN2"], "data.size"),
    (["compare", "RUN", "RUN"], "named twice"),
    (["compare", "UNTRAINED"], "no checkpoint"),
    (["compare", "RUN", "--samplers", "tacos,nave"], "Did you mean 'naive'"),
    (["compare", "RUN", "--samplers", "ddpm"], "Gaussian noise"),
    (["compare", "RUN", "--samplers", "qqqq"], "Known: direct, naive, tacos."),
    (["compare", "RUN", "--samplers", " , "], "names no sampler"),
    (["compare", "RUN", "--strides", "1,x"], "whole numbers"),
    (["compare", "RUN", "--strides", "0"], "stride"),
    (["compare", "RUN", "--strides", "1,6"], "at most T = 5"),
    (["compare", "RUN", "--t", "99"], "out of range"),
    (["compare", "RUN", "--t", "3", "--generate"], "starts at T"),
    (["compare", "RUN", "--symmetry", "--noise", "0"], "--noise 0 is not possible"),
    (["compare", "RUN", "--symmetry", "--prior", "degraded"], "no symmetry"),
    (["compare", "RUN", "--generate", "--prior", "color"], "Use one of"),
    (["compare", "RUN", "--n", "0"], "greater than or equal to 1"),
    (["compare", "RUN", "--out", "photo.png"], "--force"),
    (["degrade", "cut.png", "--op", "blur"], "cut.png"),
    (["degrade", "absent.png", "--op", "blur"], "No such file"),
    (["degrade", "photo.png", "--op", "blurr"], "Did you mean 'blur'"),
    (["degrade", "photo.png", "--op", "BLUR"], "Did you mean 'blur'"),
    (["degrade", "photo.png", "--op", "blur", "--stdd", "1", "--debug"], "No such option"),
    (["degrade", "photo.png", "--op", "blur", "--strip", "500", "--steps", "499", "--out", "a.webp"], ".webp holds"),
    (["degrade", "photo.png", "--op", "blur", "--strip", "3", "--animate"], "one of them"),
    (["degrade", "photo.png", "--op", "animorph+animorph", "--second", "photo.png"], "only one part"),
    (["degrade", "photo.png", "--op", "blur", "--t", "301"], "out of range"),
    (["degrade", "photo.png", "--op", "blur", "--stdd", "3"], "No such option"),
    (["degrade", "photo.png", "--op", "blur", "--std", "wide"], "valid number"),
    (["degrade", "photo.png", "--op", "blur", "--kernel-size", "4"], "no center"),
    (["degrade", "photo.png", "--op", "mask", "--fill", "blue"], "gray, color"),
    (["degrade", "photo.png", "--op", "blur+mask+snoww"], "Did you mean 'snow'"),
    (["degrade", "gray.png", "--op", "desaturate"], "needs a color picture"),
    (["degrade", "photo.png", "--op", "pixelate", "--steps", "5"], "at most 4 steps"),
    (["degrade", "dot.png", "--op", "pixelate"], "a side of 1 pixel cannot be halved"),
    (["degrade", "bomb.png", "--op", "blur"], "too many pixels"),
    (["degrade", "zero.png", "--op", "blur"], "zero.png"),
    (["degrade", "photo.png", "--op", "animorph"], "--second"),
    (["degrade", "photo.png", "--op", "animorph", "--second", "empty"], "No images"),
    (["degrade", "photo.png", "--op", "blur", "--animate", "--t", "0"], "one frame"),
    (["degrade", "photo.png", "--op", "blur", "--strip", "5", "--t", "0"], "one frame"),
    (["degrade", "empty", "--op", "blur"], "No images in empty"),
    (["degrade", "*.tiff", "--op", "blur"], "No images in"),
    (["degrade", "--op", "blur"], "No image was named"),
    (["degrade", "photo.png", "gray.png", "--op", "blur", "--out", "a.png"], "--out-dir"),
    (["degrade", "photo.png", "--op", "blur", "--out", "photo.png"], "--force"),
    (["degrade", "photo.png", "--op", "blur", "--out", "a.xyz"], "format"),
    (["degrade", "photo.png", "--op", "blur", "--strip", "1"], "filmstrip"),
    (["degrade", "photo.png"], "--op"),
    (["degrade", "photo.png", "--op", "blur", "--resume"], "nothing to resume"),
    (["degrade", "photo.png", "--op", "blur", "--resume", "--out-dir", "new"], "nothing to resume"),
    (["degrade", "photo.png", "--op", "blur", "--resume", "--out-dir", "empty"], "nothing to resume"),
    (["degrade", "photo.png", "--op", "blur", "--resume", "--out", "a.png"], "--out names one"),
    (["degrade", "photo.png", "--op", "blur", "--resume", "--force", "--out-dir", "new"], "one of them"),
    (["degrade", "cut.png", "--op", "blur", "--out-dir", "new"], "cut.png"),
    (["sample", "RUN", "--resume"], "Name it with --out-dir"),
    (["sample", "RUN", "--resume", "--out-dir", "new"], "nothing to resume"),
    (["sample", "RUN", "--resume", "--force", "--out-dir", "new"], "one of them"),
    (["sample", "RUN", "cut.png", "--out-dir", "new"], "cut.png"),
    (["sample", "RUN", "empty"], "No images in empty"),
    (["sample", "RUN", "--n", "300"], "has room for 256 images"),
    (["sample", "RUN", "--out-dir", "photo.png"], "is a file"),
    (["sample", "RUN", "--n", "2", "--out-dir", "new", "--out", "new/000000-tacos-t005.png"], "Give another --out"),
    (["generate", "RUN", "--resume"], "Name it with --out-dir"),
    (["generate", "RUN", "--n", "2", "--resume", "--out-dir", "new"], "nothing to resume"),
    (["generate", "RUN", "--n", "2", "--resume", "--force", "--out-dir", "new"], "one of them"),
    (["presets", "nothing"], "Unknown preset"),
    (["nothing"], "nothing"),
]


@pytest.fixture(scope="module")
def other_runs(tmp_path_factory):
    """A run of images of another size, and one that was never trained."""
    folder = tmp_path_factory.mktemp("others")
    finish(make_trainer(folder / "larger", "data.size=16", "train.steps=1"))
    make_trainer(folder / "untrained").run.close()
    return {"RUN2": folder / "larger", "UNTRAINED": folder / "untrained"}


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_refused_in_two_lines_and_leaves_nothing(arguments, words, tiny_run, other_runs, photo, capsys):
    (photo.parent / "cut.png").write_bytes(photo.read_bytes()[:60])
    (photo.parent / "zero.png").write_bytes(b"")
    (photo.parent / "empty").mkdir()
    Image.new("L", (9, 9), 77).save(photo.parent / "gray.png")
    Image.new("RGB", (1, 1)).save(photo.parent / "dot.png")
    (photo.parent / "bomb.png").write_bytes(BOMB)
    before = left_behind(photo.parent), left_behind(tiny_run), photo.read_bytes()
    run_folders = {"RUN": tiny_run} | other_runs
    code = run([str(run_folders.get(word, word)) for word in arguments])
    message = capsys.readouterr().err
    assert code == 2, message
    assert words in message
    assert 1 <= len(message.splitlines()) <= 2
    assert "Traceback" not in message
    assert (left_behind(photo.parent), left_behind(tiny_run), photo.read_bytes()) == before


OUTPUTS = [
    ("--out", "empty", "is a folder"),
    ("--out", "photo.png/sheet.png", "photo.png is a file"),
    ("--out", "photo.png/new/sheet.png", "photo.png is a file"),
    ("--out", "/dev/null", "not an ordinary file"),
    ("--out", "closed/sheet.png", "cannot be written to"),
    ("--out", "closed/new/sheet.png", "cannot be written to"),
    ("--out-dir", "photo.png", "is a file"),
    ("--out-dir", "photo.png/new", "photo.png is a file"),
    ("--out-dir", "/dev/null", "is a file"),
    ("--out-dir", "closed", "cannot be written to"),
    ("--out-dir", "closed/new", "cannot be written to"),
]
WRITERS = {
    "degrade": ("--out", "--out-dir"),
    "sample": ("--out", "--out-dir"),
    "generate": ("--out", "--out-dir"),
    "compare": ("--out",),
}
WRITING = [(command, *output) for command, options in WRITERS.items() for output in OUTPUTS if output[0] in options]


@pytest.mark.parametrize(
    ("command", "option", "output", "words"), WRITING, ids=[" ".join(case[:3]) for case in WRITING]
)
def test_an_unwritable_output_is_refused_before_the_work(
    command, option, output, words, tiny_run, photo, monkeypatch, capsys
):
    (photo.parent / "empty").mkdir()
    (photo.parent / "closed").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed" and access(path, mode))
    monkeypatch.setattr(open_run, "open_run", lambda *a: pytest.fail("the run was opened"))
    monkeypatch.setattr(images, "read", lambda *a, **k: pytest.fail("the picture was read"))
    before = left_behind(photo.parent)
    inputs = ["photo.png", "--op", "blur"] if command == "degrade" else [str(tiny_run)]
    assert run([command, *inputs, option, output, "--force"]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "--force" not in message
    assert len(message.splitlines()) == 2
    assert left_behind(photo.parent) == before


@pytest.mark.parametrize(("command", "folder"), [("sample", "restored"), ("generate", "generated")])
def test_a_file_in_place_of_a_runs_folder_is_refused_before_the_work(
    command, folder, tiny_run, in_folder, monkeypatch, capsys
):
    copy = shutil.copytree(tiny_run, in_folder / "copy")
    (copy / folder).write_text("in the way")
    monkeypatch.setattr(from_config, "load_images", lambda *a: pytest.fail("the data set was read"))
    assert run([command, str(copy)]) == 2
    message = capsys.readouterr().err
    assert f"{folder} is a file" in message
    assert "--out" in message


def test_a_blocked_path_is_not_blamed_on_the_disk(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "new.txt", tmp_path / "file" / "new" / "new.txt"):
        with pytest.raises(MachineError) as caught, files.whole(path) as draft:
            draft.write_text("new")
        assert "room" not in caught.value.remedy
        assert "where a folder should be" in caught.value.remedy
    (tmp_path / "folder").mkdir()
    with pytest.raises(MachineError, match="where a folder should be"), files.whole(tmp_path / "folder") as draft:
        draft.write_text("new")
    assert left_behind(tmp_path) == ["file", "folder"]


def test_machine_errors_exit_with_1(in_folder, monkeypatch, capsys):
    from torchvision.datasets import MNIST

    def no_network(self):
        raise RuntimeError("network unreachable")

    monkeypatch.setattr(MNIST, "download", no_network)
    assert run(["train", "--preset", "mnist-blur-small", "--data-dir", "absent"]) == 1
    message = capsys.readouterr().err
    assert "could not be downloaded" in message
    assert len(message.splitlines()) == 2
    assert left_behind(in_folder) == []


def test_a_file_that_looks_like_an_option_is_told_from_one(photo, monkeypatch, capsys):
    monkeypatch.chdir(photo.parent)
    photo.rename("-dash.png")
    assert run(["degrade", "-dash.png", "--op", "blur", "--out", "x.png"]) == 2
    assert capsys.readouterr().err.splitlines() == ["colddiff: No such option: -d", "  For the file, write ./-dash.png"]
    assert run(["degrade", "./-dash.png", "--op", "blur", "--out", "x.png"]) == 0
