"""A series of pictures in a folder: whose it is, what is kept of it, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import left_behind, pictures_in
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_cli.picture_series import series
from colddiff_core import images
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.images.sheets import GAP_PIXELS, HEAD_PIXELS

BLUR = ["--op", "noise", "--steps", "10", "--t", "4"]


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in left_behind(folder)}


def states_in(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes where a file is written again, even with the same bytes."""
    found = {name: (folder / name).stat() for name in pictures_in(folder)}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


@pytest.fixture
def photos(in_folder: Path) -> Path:
    (in_folder / "in").mkdir()
    for number in range(6):
        Image.effect_noise((12, 12), 40).convert("RGB").save(in_folder / "in" / f"{number}.png")
    return in_folder / "in"


def opened(folder: Path, resume: bool = False, force: bool = False, names: str = "ab", **settings) -> series.Series:
    targets = [folder / f"{name}.png" for name in names]
    return series.Series(targets, "paint", {"t": 3, "deep": {"std": 1.0}} | settings, resume=resume, force=force)


def fill(own: series.Series, *numbers: int) -> None:
    for number in numbers:
        images.write(Image.new("L", (2, 2)), own.place(number))


def test_a_series_is_marked_before_its_first_picture_and_gone_on_with(tmp_path):
    folder = tmp_path / "out"
    with opened(folder) as own:
        assert not folder.exists()
        place = own.place(0)
        (mark,) = left_behind(folder)
        assert json.loads((folder / mark).read_text()) == {
            "command": "paint",
            "settings": {"t": 3, "deep": {"std": 1.0}},
            "pictures": ["a.png", "b.png"],
        }
        images.write(Image.new("L", (2, 2)), place)
    with opened(folder, resume=True) as own:
        assert own.kept == {0}
        assert not own.is_complete
        assert not own.lacks([0])
        assert own.lacks([0, 1])
        assert not own.lacks(range(2, 9))
        fill(own, 1)
    with opened(folder, resume=True) as own:
        assert own.is_complete
    assert left_behind(folder) == [mark, "a.png", "b.png"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t": 5}, "t was 3, now 5"),
        ({"deep": {"std": 2.0}}, "std was 1.0, now 2.0"),
        ({"names": "abc"}, "other names"),
        ({"more": None, "t": 4, "label": 7}, "t was 3, now 4, label was left out, now 7"),
    ],
)
def test_other_settings_are_no_series_to_go_on_with(tmp_path, changes, words):
    with opened(tmp_path) as own:
        fill(own, 0)
    before = bytes_in(tmp_path)
    with pytest.raises(UsageError, match=words):
        opened(tmp_path, resume=True, **changes)
    assert bytes_in(tmp_path) == before
    with pytest.raises(UsageError, match="nothing to go on with"):
        opened(tmp_path / "elsewhere", resume=True)
    with pytest.raises(UsageError, match="overwrites"):
        opened(tmp_path, resume=True, force=True)
    with pytest.raises(UsageError, match="exists already") as refusal:
        opened(tmp_path)
    assert "--resume" in refusal.value.remedy


def test_changed_inputs_are_told_from_others(photos):
    was = series.fingerprint(sorted(photos.iterdir()))
    assert series.fingerprint(sorted(photos.iterdir())) == was
    os.utime(photos / "1.png", ns=(1, 1))
    now = series.fingerprint(sorted(photos.iterdir()))
    assert list(series._differences({"inputs": was}, {"inputs": now})) == [series.DIGESTS["digest"]]
    (photos / "1.png").unlink()
    now = series.fingerprint(sorted(photos.iterdir()))
    assert list(series._differences({"inputs": was}, {"inputs": now})) == ["files was 6, now 5"]


def test_two_calls_are_not_at_work_on_the_same_pictures(tmp_path):
    with opened(tmp_path) as first:
        with opened(tmp_path) as late, opened(tmp_path, t=9) as other:
            fill(first, 0)
            with pytest.raises(MachineError, match="Another process"):
                late.place(0)
            with pytest.raises(UsageError, match="exists already"):
                other.place(0)
        with pytest.raises(MachineError, match="Another process"):
            opened(tmp_path, resume=True)
        with opened(tmp_path, names="bc", t=9) as other, pytest.raises(MachineError, match="Another process"):
            other.place(0)
        fill(first, 1)
    with opened(tmp_path, resume=True) as again:
        assert again.is_complete
    assert len(left_behind(tmp_path)) == 3


def test_a_call_that_was_overtaken_before_its_first_picture_overwrites_nothing(tmp_path):
    with opened(tmp_path) as late:
        with opened(tmp_path) as first:
            fill(first, 0, 1)
        with pytest.raises(UsageError, match="exists already"):
            late.place(0)
    with opened(tmp_path, resume=True) as again:
        assert again.is_complete


def test_pictures_that_another_call_has_made_are_not_taken_for_ones_own(tmp_path):
    with opened(tmp_path) as own:
        fill(own, 0)
    with opened(tmp_path, names="bc", t=9) as other:
        fill(other, 0, 1)
    with pytest.raises(UsageError, match="t was 9, now 3"):
        opened(tmp_path, resume=True)
    with opened(tmp_path, force=True) as own:
        fill(own, 0, 1)
    with pytest.raises(UsageError):
        opened(tmp_path, names="bc", t=9, resume=True)
    with opened(tmp_path, resume=True) as own:
        assert own.is_complete


def test_what_a_kill_leaves_is_cleared_and_nothing_else(tmp_path):
    with opened(tmp_path) as own:
        fill(own, 0)
    for name in (".b-0123abcd.png", ".a-00000000.png", ".c-0123abcd.png", ".b-0123abcd.txt", "b-0123abcd.png"):
        (tmp_path / name).write_bytes(b"half")
    with opened(tmp_path, resume=True):
        pass
    left = [name for name in left_behind(tmp_path) if not name.startswith(".colddiff-")]
    assert left == [".b-0123abcd.txt", ".c-0123abcd.png", "a.png", "b-0123abcd.png"]


def test_half_a_mark_is_none(tmp_path):
    with opened(tmp_path) as own:
        fill(own, 0)
    (name,) = (name for name in left_behind(tmp_path) if name.startswith("."))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / "a.png").unlink()
    for part in (b"", whole[:20], b"[]\n", b"{}\n"):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(UsageError, match="nothing to go on with"):
            opened(tmp_path, resume=True)
    with opened(tmp_path) as own:
        fill(own, 0)
    assert (tmp_path / name).read_bytes() == whole


def test_ctrl_c_tells_how_to_go_on(tmp_path, photos, monkeypatch, capsys):
    write, done = images.write, []

    def interrupt(picture, path):
        if len(done) == 3:
            raise KeyboardInterrupt
        write(picture, path)
        done.append(path)

    monkeypatch.setattr(images, "write", interrupt)
    assert run(["degrade", "in", *BLUR, "--out-dir", "out"]) == 130
    told = capsys.readouterr().err
    assert "3 of 6 images are in out" in told
    assert "--resume" in told
    assert len(told.splitlines()) == 2
    monkeypatch.setattr(images, "write", write)
    assert run(["degrade", "in", *BLUR, "--out-dir", "out", "--resume"]) == 0
    assert "6 images (3 of them kept): out" in capsys.readouterr().out
    assert run(["degrade", "in", *BLUR, "--out-dir", "whole"]) == 0
    assert bytes_in(Path("out")) == bytes_in(Path("whole"))


def test_degrade_makes_what_is_missing_by_its_place_in_the_list(photos, capsys):
    (photos / "3.png").write_bytes(b"broken")
    command = ["degrade", "in", *BLUR, "--out-dir", "out", "--json"]
    assert run(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (len(told["files"]), told["kept"]) == (5, 0)
    whole, states = bytes_in(Path("out")), states_in(Path("out"))
    for name in ("out/1-noise-t004.png", "out/5-noise-t004.png"):
        Path(name).unlink()
    assert run([*command, "--resume"]) == 0
    captured = capsys.readouterr()
    assert "3.png" in captured.err
    again = json.loads(captured.out)
    assert (again["files"], again["kept"]) == (told["files"], 3)
    assert bytes_in(Path("out")) == whole
    now = states_in(Path("out"))
    assert [name for name in now if now[name] != states[name]] == ["1-noise-t004.png", "5-noise-t004.png"]
    (photos / "3.png").unlink()
    assert run([*command, "--resume"]) == 2
    assert "files was 6, now 5" in capsys.readouterr().err


def test_pictures_below_the_folder_they_are_made_of_are_not_taken_for_its_own(photos, capsys):
    for place in ("in/degraded", "in"):
        command = ["degrade", "in", *BLUR, "--out-dir", place]
        assert run(command) == 0
        whole = bytes_in(Path(place)) if place == "in/degraded" else None
        Path(place, "2-noise-t004.png").unlink()
        assert run([*command, "--resume"]) == 0, capsys.readouterr().err
        assert whole is None or bytes_in(Path(place)) == whole
        shutil.rmtree("in/degraded", ignore_errors=True)


def test_many_are_counted_and_few_are_told(photos, capsys):
    assert run(["degrade", "in", *BLUR, "--out-dir", "few"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    for number in range(6, 20):
        shutil.copy(photos / "0.png", photos / f"{number}.png")
    assert run(["degrade", "in", *BLUR, "--out-dir", "many"]) == 0
    assert capsys.readouterr().out == "20 images: many\n"
    assert run(["degrade", "in", *BLUR, "--out-dir", "many", "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "Nothing is missing: all were there already."


@pytest.fixture
def own_run(tiny_run, in_folder) -> Path:
    return shutil.copytree(tiny_run, in_folder / "own")


def test_sample_writes_each_image_as_it_is_however_many_are_asked_for(own_run, photos, capsys):
    command = ["sample", "own", "--json", "--out-dir"]
    assert run([*command, "many", "--n", "70"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"][3] == "many/000003-tacos-t005.png"
    assert (told["n"], told["kept"], len(told["files"])) == (70, 0, 70)
    with Image.open(told["picture"]) as sheet:
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
    assert run(["sample", "own", "--n", "70", "--out-dir", "many", "--resume", "--sampler", "direct"]) == 2
    assert "sampler was tacos, now direct" in capsys.readouterr().err


def test_sample_takes_folders_and_globs_and_leaves_out_what_is_broken(own_run, photos, capsys):
    (photos / "3.png").write_bytes(b"broken")
    (photos / "deep").mkdir()
    shutil.copy(photos / "1.png", photos / "deep" / "1.png")
    command = ["sample", "own", "--out-dir", "out", "in", "in/[01].png"]
    assert run(command) == 0
    told = capsys.readouterr().out
    assert "3.png" in told
    assert "8 images: out" in told
    stems = ["0", "0", "1", "1", "1", "2", "4", "5"]
    assert [name.split("-")[0] for name in pictures_in(Path("out"))] == stems
    assert "1-tacos-t005-3.png" in left_behind(Path("out"))
    Path("out/4-tacos-t005.png").unlink()
    whole = bytes_in(Path("out"))
    assert run([*command, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 7
    assert whole.items() <= bytes_in(Path("out")).items()
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


def test_channels_that_are_not_the_runs_are_told(own_run, photos, capsys):
    Image.new("L", (9, 9)).save("gray.png")
    for given, words in (
        (["in"], "6 pictures are in color and the run knows gray: they are restored in gray"),
        (["in/1.png", "gray.png"], "1 picture is in color and the run knows gray: it is restored in gray"),
    ):
        assert run(["sample", "own", *given]) == 0
        warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
        assert warned == [f"warning: {words}"]
    assert run(["sample", "own", "gray.png"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_color_run_tells_of_gray_pictures(tmp_path, in_folder, capsys):
    from conftest import finish, make_trainer

    finish(make_trainer(in_folder / "colour", "data.channels=3", "train.steps=1"))
    Image.new("L", (9, 9)).save("gray.png")
    assert run(["sample", "colour", "gray.png"]) == 0
    assert "1 picture is gray and the run knows color: it is restored in color" in capsys.readouterr().out


def test_a_sheet_says_what_has_no_room_on_it(own_run, capsys):
    assert run(["sample", "own", "--n", "100"]) == 0
    assert run(["sample", "own", "--n", "257"]) == 2
    assert "--out-dir" in capsys.readouterr().err
    assert run(["sample", "own", "--n", "70", "--out-dir", "out"]) == 0
    assert "on the sheet: the first 64 of 70 images" in capsys.readouterr().out
    assert run(["generate", "own", "--n", "65", "--out-dir", "made"]) == 0
    assert "on the grid: the first 64 of 65 images" in capsys.readouterr().out


def test_generate_goes_on_and_measures_as_an_undisturbed_call(own_run, monkeypatch, capsys):
    from colddiff_core.evaluation import classifier

    monkeypatch.setattr(classifier, "STEPS", 20)
    command = ["generate", "own", "--n", "20", "--json", "--out-dir", "out", "--diversity", "--animate"]
    assert run(command) == 0
    told = json.loads(capsys.readouterr().out)
    whole = bytes_in(Path("out"))
    Path("out/000018.png").unlink()
    assert run([*command, "--resume"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["kept"] == 19
    assert again["figures"] == told["figures"]
    assert bytes_in(Path("out")) == whole
    for kind in ("picture", "animation", "neighbours"):
        assert again[kind] != told[kind]
        assert Path(again[kind]).read_bytes() == Path(told[kind]).read_bytes()
    assert run(["generate", "own", "--n", "21", "--out-dir", "out", "--resume"]) == 2
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
    ["generate", "own", "--n", "3"],
    ["generate", "own", "--n", "3", "--animate", "--out", "way.gif"],
    ["generate", "own", "--n", "3", "--diversity"],
    ["generate", "own", "--n", "3", "--out-dir", "out"],
    ["compare", "own", "--n", "3"],
    ["compare", "own", "--n", "3", "--generate"],
    ["compare", "own", "--n", "3", "--out", "compared.png"],
    ["eval", "own", "--n", "3"],
    ["presets", "digits-blur"],
]


@pytest.mark.parametrize("command", WRITING, ids=[" ".join(command) for command in WRITING])
def test_no_command_changes_what_an_earlier_one_wrote(command, own_run, photos, monkeypatch):
    from colddiff_core.evaluation import classifier

    monkeypatch.setattr(classifier, "STEPS", 20)

    def state() -> dict[str, tuple[int, bytes]]:
        files = [path for path in photos.parent.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    assert run(command) == 0
    first = state()
    assert run(command) in (0, 2)
    now = state()
    assert first.items() <= now.items()
