"""`colddiff sample --degraded` on the user's own files: the result is sharper and of the same size."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import finish, left_behind, make_trainer, pictures_in
from PIL import Image, ImageCms, ImageDraw, ImageFilter

from colddiff_cli.__main__ import run

PHOTOS = ("data.margin=4", "data.crop=4", "train.precision=float32")


@pytest.fixture(scope="module")
def photo_runs(tmp_path_factory) -> Path:
    """A folder of tiny runs, each by an operator of photographs; read them, do not write to them."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("blur", "mask", "snow"):
        finish(make_trainer(folder / name, *PHOTOS, "degradation.steps=8", preset=f"photos-{name}-small"))
    return folder


@pytest.fixture
def blurred(in_folder) -> Path:
    picture = Image.new("RGB", (90, 61), "gray")
    draw = ImageDraw.Draw(picture)
    for index in range(14):
        color = (37 * index % 256, 91 * index % 256, 255 - 53 * index % 256)
        draw.ellipse((index * 7 - 9, 4 * index % 50, index * 7 + 12, 4 * index % 50 + 17), fill=color)
    picture = picture.filter(ImageFilter.GaussianBlur(1.2))
    path = in_folder / "blurred.jpg"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(path, quality=97, exif=exif, icc_profile=profile, dpi=(300, 300))
    return path


def test_a_picture_is_restored_and_keeps_all_else(photo_runs, blurred, capsys):
    assert run(["sample", str(photo_runs / "blur"), "blurred.jpg", "--degraded"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("blurred.jpg: a blur of ")
    assert "(t = " in lines[0]
    assert "% sure" in lines[0]
    assert lines[-1] == "blurred-restored.png"
    before, after = Image.open(blurred), Image.open("blurred-restored.png")
    assert after.size == before.size == (90, 61)
    assert after.mode == "RGB"
    assert after.info["icc_profile"] == before.info["icc_profile"]
    assert dict(after.getexif()) == dict(before.getexif())
    assert after.tobytes() != before.tobytes()
    assert pictures_in(Path()) == ["blurred-restored.png", "blurred.jpg"]


def test_the_same_call_gives_the_same_bytes_and_refuses_to_overwrite(photo_runs, blurred, capsys):
    call = ["sample", str(photo_runs / "blur"), "blurred.jpg", "--degraded", "--t", "5", "--out"]
    assert run([*call, "a.png"]) == run([*call, "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert run([*call, "a.png"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run([*call, "a.jpg"]) == 0
    assert Image.open("a.jpg").format == "JPEG"


def test_json_reports_files_and_estimated_severity(photo_runs, blurred, capsys):
    call = ["sample", str(photo_runs / "blur"), "blurred.jpg", "--degraded", "--json"]
    assert run([*call, "--compare"]) == 0
    result = json.loads(capsys.readouterr().out)
    file = result["files"][0]
    assert (file["input"], file["output"], file["compared"]) == (
        "blurred.jpg",
        "blurred-restored.png",
        "blurred-compared.png",
    )
    assert 0 <= file["low"] <= file["t"] <= file["high"] <= result["steps"] == 8
    assert 0 <= file["confidence"] <= 1
    assert run([*call, "--force", "--t", "7", "--sampler", "tacos", "--no-consistent"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["files"][0]["t"] == 7
    assert "confidence" not in result["files"][0]
    assert (result["sampler"], result["consistent"]) == ("tacos", False)


def test_compare_shows_both_upright_and_at_full_size(photo_runs, blurred):
    assert run(["sample", str(photo_runs / "blur"), "blurred.jpg", "--degraded", "--compare"]) == 0
    both = Image.open("blurred-compared.png")
    assert both.height == 90  # as the orientation tag has it
    assert both.width > 2 * 61
    assert both.getexif().get(0x0112, 1) == 1


def test_sweep_writes_candidates_and_restores_nothing(photo_runs, blurred, capsys):
    assert run(["sample", str(photo_runs / "blur"), "blurred.jpg", "--degraded", "--t", "sweep"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "blurred-sweep.png"
    strip = Image.open("blurred-sweep.png")
    assert strip.width > 4 * 61
    assert pictures_in(Path()) == ["blurred-sweep.png", "blurred.jpg"]
    assert run(["sample", str(photo_runs / "blur"), "blurred.jpg", "--degraded", "--t", "sweep", "--compare"]) == 2


def test_a_mask_is_drawn_on_the_upright_picture(photo_runs, blurred, capsys):
    mask = Image.new("L", (61, 90))
    ImageDraw.Draw(mask).rectangle((50, 10, 56, 14), fill=255)
    mask.save("mask.png")
    call = ["sample", str(photo_runs / "mask"), "blurred.jpg", "--degraded", "--mask"]
    assert run([*call, "mask.png", "--out", "filled.png"]) == 0
    assert "from the mask" in capsys.readouterr().out
    turned = [Image.open(name).transpose(Image.Transpose.ROTATE_270) for name in ("blurred.jpg", "filled.png")]
    rows, columns = np.nonzero((np.asarray(turned[0]) != np.asarray(turned[1])).any(-1))
    where = set(zip(columns.tolist(), rows.tolist(), strict=True))
    assert where
    assert where <= {(x, y) for x in range(50, 57) for y in range(10, 15)}
    strokes = Image.new("RGBA", (61, 90), (255, 255, 255, 0))
    ImageDraw.Draw(strokes).rectangle((50, 10, 56, 14), fill=(255, 255, 255, 255))
    strokes.save("strokes.png")
    assert run([*call, "strokes.png", "--out", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("filled.png").read_bytes()
    Image.new("L", (90, 61), 255).save("lying.png")
    assert run([*call, "lying.png", "--force"]) == 2
    assert "has 90x61 pixels and the picture 61x90" in capsys.readouterr().err


def test_a_folder_goes_in_and_out_and_can_be_gone_on_with(photo_runs, blurred, capsys):
    Path("in").mkdir()
    for index in range(3):
        Image.open(blurred).rotate(40 * index).save(f"in/{index}.png")
    Path("in/broken.png").write_bytes(b"no picture")
    call = ["sample", str(photo_runs / "blur"), "in", "--degraded", "--out-dir", "out", "--compare"]
    assert run(call) == 0
    assert "broken.png is not an image" in capsys.readouterr().out
    names = sorted([f"{index}-{kind}.png" for index in range(3) for kind in ("restored", "compared")])
    assert pictures_in(Path("out")) == names
    written = {name: Path("out", name).read_bytes() for name in names}
    for name in ("1-restored.png", "2-compared.png"):
        Path("out", name).unlink()
    assert run([*call, "--resume", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kept"] == 1  # of the pictures that have both
    assert [file["output"] for file in result["files"]] == [f"out/{index}-restored.png" for index in range(3)]
    assert {name: Path("out", name).read_bytes() for name in names} == written
    assert run([*call, "--resume", "--t", "3"]) == 2
    assert "t was auto, now 3" in capsys.readouterr().err


def test_without_knowledge_of_the_snow_it_is_restored_in_one_step(photo_runs, blurred, capsys):
    call = ["sample", str(photo_runs / "snow"), "blurred.jpg", "--degraded", "--t", "4", "--json"]
    assert run(call) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["sampler"] == "direct"
    assert run([*call, "--force", "--sampler", "tacos"]) == 2
    assert "needs the random choices of snow" in capsys.readouterr().err


def test_a_gray_run_reports_how_it_converts_color(tiny_run, blurred, capsys):
    Image.open(blurred).resize((24, 16)).save("small.png")
    call = ["sample", str(tiny_run), "small.png", "--degraded", "--t", "2", "--out"]
    assert run([*call, "a.png"]) == 0
    assert "each channel is restored separately" in capsys.readouterr().out
    assert run([*call, "b.png", "--colour", "luma"]) == 0
    assert "only its brightness is restored" in capsys.readouterr().out
    assert Image.open("a.png").size == Image.open("b.png").size == (24, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No picture to restore was named"),
        (["blurred.jpg", "--t", "9"], "t = 9 is out of range for blur"),
        (["blurred.jpg", "--t", "-1"], "t = -1 is out of range for blur"),
        (["blurred.jpg", "--t", "much"], "--t much is not a severity"),
        (["blurred.jpg", "--mask", "blurred.jpg"], "blur hides no pixels"),
        (["blurred.jpg", "--mask", "none.png"], "No such file: none.png"),
        (["blurred.jpg", "--mask", "blurred.jpg", "--t", "3"], "--mask sets the severity"),
        (["blurred.jpg", "--mask", "blurred.jpg", "--t", "sweep"], "--mask sets the severity"),
        (["blurred.jpg", "--colour", "red"], "--color red is unknown"),
        (["blurred.jpg", "--sampler", "taco"], "tacos"),
        (["blurred.jpg", "--stride", "0"], "stride"),
        (["blurred.jpg", "--out", "a.gif"], "Unknown image format: a.gif"),
        (["blurred.jpg", "--out", "a.png", "--out-dir", "b"], "--out names a picture and --out-dir a folder"),
        (["blurred.jpg", "--resume", "--out", "a.png"], "--resume completes a folder"),
        (["blurred.jpg", "blurred.jpg", "--out", "a.png"], "--out names one picture, but there are 2"),
        (["nothing.png"], "No such file: nothing.png"),
        (["blurred.jpg", "--n", "4"], "--n counts test images"),
        (["blurred.jpg", "--animate"], "--animate"),
    ],
)
def test_impossible_requests_are_refused_in_two_lines_and_leave_nothing(
    arguments, message, photo_runs, blurred, capsys
):
    assert run(["sample", str(photo_runs / "blur"), *arguments, "--degraded"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 2
    assert left_behind(Path()) == ["blurred.jpg"]


@pytest.mark.parametrize(
    "option", [["--mask", "blurred.jpg"], ["--compare"], ["--consistent"], ["--colour", "luma"], ["--t", "auto"]]
)
def test_options_for_degraded_pictures_are_refused_for_others(option, photo_runs, blurred, capsys):
    assert run(["sample", str(photo_runs / "blur"), "blurred.jpg", *option]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 2


def test_consistency_needs_a_linear_operator(photo_runs, blurred, capsys):
    assert run(["sample", str(photo_runs / "snow"), "blurred.jpg", "--degraded", "--consistent"]) == 2
    assert "snow is not linear" in capsys.readouterr().err


def test_force_never_takes_an_input_away(photo_runs, blurred, capsys):
    Path("in").mkdir()
    for name in ("a", "b", "a-restored"):
        Image.open(blurred).save(f"in/{name}.png")
    before = {name: Path("in", name).read_bytes() for name in left_behind(Path("in"))}
    call = ["sample", str(photo_runs / "blur"), "in", "--degraded", "--out-dir", "in", "--force"]
    assert run(call) == 2
    assert "in/a-restored.png is one of the input pictures" in capsys.readouterr().err
    assert {name: Path("in", name).read_bytes() for name in left_behind(Path("in"))} == before


def test_comparison_files_of_equal_names_do_not_collide(photo_runs, blurred, capsys):
    for folder in ("x", "y"):
        Path(folder).mkdir()
        Image.open(blurred).save(f"{folder}/s.png")
    Image.open(blurred).save("x/s.jpg")
    Image.open(blurred).save("x/s-restored-2.png")
    names = ["x/s.png", "y/s.png", "x/s.jpg", "x/s-restored-2.png"]
    call = ["sample", str(photo_runs / "blur"), *names, "--degraded", "--out-dir", "out", "--compare", "--t", "2"]
    assert run(call) == 0
    assert len(list(Path("out").rglob("*.png"))) == 8
    lines = capsys.readouterr().out.splitlines()
    assert {"y/s.png -> out/y/s-restored.png", "x/s.jpg -> out/x/s-restored-2.png"} <= {*lines}


def test_a_sweep_needs_no_estimate(photo_runs, blurred, capsys):
    Image.new("RGB", (9, 9), "teal").save("flat.png")
    assert run(["sample", str(photo_runs / "blur"), "flat.png", "--degraded", "--t", "sweep"]) == 0
    assert Path("flat-sweep.png").is_file()


def test_a_run_trained_on_unrounded_pictures_gets_a_warning(tiny_run, blurred, capsys):
    Image.open(blurred).resize((24, 16)).save("small.png")
    assert run(["sample", str(tiny_run), "small.png", "--degraded", "--t", "2"]) == 0
    assert "not rounded to 8 bits" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["sample", "RUN", "--degraded"], ["restore", "--run", "RUN"]])
@pytest.mark.parametrize("more", [["--t", "2"], ["--t", "2", "--color", "luma"], []])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_run_of_small_images_refuses_a_photograph(tiny_run, blurred, capsys, command, more, mode):
    Image.open(blurred).convert(mode).save("photo.png")
    call = [str(tiny_run) if word == "RUN" else word for word in command]
    assert run([*call[:1], *call[1:], "photo.png", *more]) == 2
    what, remedy = capsys.readouterr().err.splitlines()
    assert "trained on whole gray images of 12x12 pixels (digits)" in what
    assert "90x61" in what
    assert ("in color" in what) == (mode == "RGB")
    assert "pretrained:photos-blur" in remedy
    assert pictures_in(Path()) == ["blurred.jpg", "photo.png"]


def test_a_gray_run_of_windows_restores_color_of_any_size(blurred, tmp_path, capsys):
    gray = ("data.channels=1", *PHOTOS, "degradation.steps=8")
    finish(make_trainer(tmp_path / "gray", *gray, preset="photos-blur-small"))
    call = ["restore", "blurred.jpg", "--run", str(tmp_path / "gray"), "--t", "2", "--out"]
    assert run([*call, "a.png"]) == 0
    assert "each channel is restored separately" in capsys.readouterr().out


def test_a_folder_keeps_what_fits_a_run_of_small_images(tiny_run, blurred, capsys):
    Path("in").mkdir()
    Image.open(blurred).save("in/photo.png")
    Image.open(blurred).resize((24, 16)).save("in/small.png")
    assert run(["restore", "in", "--run", str(tiny_run), "--t", "2", "--out-dir", "out"]) == 0
    assert "in/photo.png" in capsys.readouterr().out
    assert pictures_in(Path("out")) == ["small-restored.png"]


def test_a_pipe_is_not_waited_for(photo_runs, blurred, capsys):
    os.mkfifo("pipe.png")
    assert run(["sample", str(photo_runs / "blur"), "pipe.png", "--degraded"]) == 2
    assert "Cannot read pipe.png: it is not an ordinary file" in capsys.readouterr().err
