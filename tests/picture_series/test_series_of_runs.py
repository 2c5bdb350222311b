"""Series of pictures by `sample` and `generate`: the same images however many, and resumed without a trace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import left_behind, pictures_in
from PIL import Image
from series_folders import BLUR, bytes_below, bytes_in, noise_photos, states_in

from colddiff_cli.__main__ import run
from colddiff_core.images.sheets import GAP_PIXELS, HEAD_PIXELS


@pytest.fixture
def photos(in_folder: Path) -> Path:
    return noise_photos(in_folder / "in")


@pytest.fixture
def own_run(tiny_run, in_folder) -> Path:
    return shutil.copytree(tiny_run, in_folder / "own")


def test_sample_writes_each_image_as_it_is_however_many_are_asked_for(own_run, photos, capsys):
    command = ["sample", "own", "--stride", "5", "--json", "--out-dir"]
    assert run([*command, "many", "--n", "70"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["files"][3] == "many/000003-tacos-t005.png"
    assert (result["n"], result["kept"], len(result["files"])) == (70, 0, 70)
    with Image.open(result["picture"]) as sheet:
        assert sheet.height == HEAD_PIXELS + GAP_PIXELS + 32 * (72 + GAP_PIXELS)
    assert run([*command, "few", "--n", "5"]) == 0
    for name in pictures_in(Path("few")):
        assert Path("few", name).read_bytes() == Path("many", name).read_bytes()
    whole, states = bytes_in(Path("many")), states_in(Path("many"))
    gone = ["000002-tacos-t005.png", "000069-tacos-t005.png"]
    for name in gone:
        Path("many", name).unlink()
    capsys.readouterr()
    assert run([*command, "many", "--n", "70", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 68
    assert bytes_in(Path("many")) == whole
    now = states_in(Path("many"))
    assert [name for name in now if now[name] != states[name]] == gone
    sheets = left_behind(own_run / "restored")
    assert run([*command, "many", "--n", "70", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] is None
    assert left_behind(own_run / "restored") == sheets
    assert run([*command, "many", "--n", "70", "--resume", "--sampler", "direct"]) == 2
    assert "sampler was tacos, now direct" in capsys.readouterr().err


def test_sample_takes_folders_and_globs_and_leaves_out_what_is_broken(own_run, photos, capsys):
    (photos / "3.png").write_bytes(b"broken")
    (photos / "deep").mkdir()
    shutil.copy(photos / "1.png", photos / "deep" / "1.png")
    command = ["sample", "own", "--out-dir", "out", "in", "in/[01].png"]
    assert run(command) == 0
    output = capsys.readouterr().out
    assert "3.png" in output
    assert "8 images: out" in output
    stems = ["0", "0", "1", "1", "2", "4", "5"]
    assert [path.name.split("-")[0] for path in sorted(Path("out").glob("*.png"))] == stems
    assert left_behind(Path("out/deep")) == ["1-tacos-t005.png"]  # two files of one name keep their folders
    assert "1-tacos-t005-2.png" in left_behind(Path("out"))  # one file named twice
    Path("out/4-tacos-t005.png").unlink()
    whole = bytes_below(Path("out"))
    assert run([*command, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 7
    assert whole.items() <= bytes_below(Path("out")).items()
    Path("runs").mkdir()
    own_run.rename("runs/own")
    assert run(["sample", "in", "--out-dir", "new"]) == 0
    assert run(["sample", "in/[0]*.png", "--out-dir", "newer"]) == 0
    assert pictures_in(Path("newer")) == ["0-tacos-t005.png"]


def test_a_named_picture_that_is_broken_stops_sample(own_run, photos, capsys):
    (photos / "3.png").write_bytes(b"broken")
    assert run(["sample", "own", "in/0.png", "in/3.png", "--out-dir", "out"]) == 2
    assert "3.png" in capsys.readouterr().err
    assert not Path("out").exists()


def test_other_channels_than_the_runs_are_reported(own_run, photos, capsys):
    Image.new("L", (9, 9)).save("gray.png")
    for given, words in (
        (["in"], "the run was trained in gray: 6 color pictures are restored in gray"),
        (["in/1.png", "gray.png"], "the run was trained in gray: 1 color picture is restored in gray"),
    ):
        assert run(["sample", "own", *given]) == 0
        warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
        assert warned == [f"warning: {words}"]
    assert run(["sample", "own", "gray.png"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_color_run_warns_about_gray_pictures(tmp_path, in_folder, capsys):
    from conftest import finish, make_trainer

    finish(make_trainer(in_folder / "colour", "data.channels=3", "train.steps=1"))
    Image.new("L", (9, 9)).save("gray.png")
    assert run(["sample", "colour", "gray.png"]) == 0
    assert "the run was trained in color: 1 gray picture is restored in color" in capsys.readouterr().out


def test_a_sheet_names_what_does_not_fit_on_it(own_run, capsys):
    assert run(["sample", "own", "--n", "100", "--sampler", "direct"]) == 0
    assert run(["sample", "own", "--n", "257"]) == 2
    assert "--out-dir" in capsys.readouterr().err
    assert run(["sample", "own", "--n", "70", "--out-dir", "out", "--sampler", "direct"]) == 0
    assert "on the sheet: the first 64 of 70 images" in capsys.readouterr().out
    assert run(["generate", "--noise", "0.002", "own", "--n", "65", "--stride", "5", "--out-dir", "made"]) == 0
    assert "on the grid: the first 64 of 65 images" in capsys.readouterr().out


def test_generate_goes_on_and_measures_as_an_undisturbed_call(own_run, capsys):
    command = [
        "generate",
        "--noise",
        "0.002",
        "own",
        "--n",
        "20",
        "--json",
        "--out-dir",
        "out",
        "--diversity",
        "--animate",
    ]
    assert run(command) == 0
    result = json.loads(capsys.readouterr().out)
    whole = bytes_in(Path("out"))
    Path("out/000018.png").unlink()
    assert run([*command, "--resume"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["kept"] == 19
    assert again["figures"] == result["figures"]
    assert bytes_in(Path("out")) == whole
    for kind in ("picture", "animation", "neighbours"):
        assert again[kind] != result[kind]
        assert Path(again[kind]).read_bytes() == Path(result[kind]).read_bytes()
    assert run(["generate", "--noise", "0.002", "own", "--n", "21", "--out-dir", "out", "--resume"]) == 2
    assert "n was 20, now 21" in capsys.readouterr().err


WRITING = [
    ["degrade", "in/0.png", *BLUR],
    ["degrade", "in", *BLUR, "--out-dir", "out"],
    ["degrade", "in/0.png", *BLUR, "--animate", "--out", "film.gif"],
    ["degrade", "in/0.png", *BLUR, "--strip", "3", "--out", "strip.png"],
    ["sample", "own", "--n", "3"],
    ["sample", "own", "--n", "3", "--out", "sheet.png"],
    ["sample", "own", "--n", "3", "--animate"],
    ["sample", "own", "--n", "3", "--animate", "--out", "way.webp"],
    ["sample", "own", "--n", "3", "--out-dir", "out"],
    ["sample", "own", "in", "--out-dir", "out"],
    ["generate", "--noise", "0.002", "own", "--n", "3"],
    ["generate", "--noise", "0.002", "own", "--n", "3", "--animate", "--out", "way.gif"],
    ["generate", "--noise", "0.002", "own", "--n", "3", "--diversity"],
    ["generate", "--noise", "0.002", "own", "--n", "3", "--out-dir", "out"],
    ["compare", "own", "--n", "3"],
    ["compare", "own", "--noise", "0.002", "--n", "3", "--generate"],
    ["compare", "own", "--n", "3", "--out", "compared.png"],
    ["eval", "own", "--n", "3"],
    ["presets", "digits-blur"],
]


@pytest.mark.parametrize("command", WRITING, ids=[" ".join(command) for command in WRITING])
def test_no_command_changes_what_an_earlier_one_wrote(command, own_run, photos, monkeypatch):

    def state() -> dict[str, tuple[int, bytes]]:
        files = [path for path in photos.parent.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    assert run(command) == 0
    first = state()
    assert run(command) in (0, 2)
    now = state()
    assert first.items() <= now.items()
