"""A series of pictures in a folder: whose it is, what is kept of it, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import left_behind
from PIL import Image
from series_folders import BLUR, bytes_in, noise_photos, states_in

from colddiff_cli.__main__ import run
from colddiff_cli.picture_series import manifest, series
from colddiff_core import images
from colddiff_core.errors import MachineError, UsageError


@pytest.fixture
def photos(in_folder: Path) -> Path:
    return noise_photos(in_folder / "in")


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
    with pytest.raises(UsageError, match="nothing to resume"):
        opened(tmp_path / "elsewhere", resume=True)
    with pytest.raises(UsageError, match="overwrites"):
        opened(tmp_path, resume=True, force=True)
    with pytest.raises(UsageError, match="exists already") as refusal:
        opened(tmp_path)
    assert "--resume" in refusal.value.remedy


def test_changed_inputs_are_detected(photos):
    was = manifest.fingerprint(sorted(photos.iterdir()))
    assert manifest.fingerprint(sorted(photos.iterdir())) == was
    os.utime(photos / "1.png", ns=(1, 1))
    now = manifest.fingerprint(sorted(photos.iterdir()))
    assert list(manifest.differences({"inputs": was}, {"inputs": now})) == [manifest.DIGESTS["digest"]]
    (photos / "1.png").unlink()
    now = manifest.fingerprint(sorted(photos.iterdir()))
    assert list(manifest.differences({"inputs": was}, {"inputs": now})) == ["files was 6, now 5"]


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


def test_a_call_overtaken_before_its_first_picture_overwrites_nothing(tmp_path):
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


def test_only_leftovers_of_a_kill_are_removed(tmp_path):
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
        with pytest.raises(UsageError, match="nothing to resume"):
            opened(tmp_path, resume=True)
    with opened(tmp_path) as own:
        fill(own, 0)
    assert (tmp_path / name).read_bytes() == whole


def test_ctrl_c_prints_how_to_resume(tmp_path, photos, monkeypatch, capsys):
    write, done = images.write, []

    def interrupt(picture, path):
        if len(done) == 3:
            raise KeyboardInterrupt
        write(picture, path)
        done.append(path)

    monkeypatch.setattr(images, "write", interrupt)
    assert run(["degrade", "in", *BLUR, "--out-dir", "out"]) == 130
    message = capsys.readouterr().err
    assert "3 of 6 images are in out" in message
    assert "--resume" in message
    assert len(message.splitlines()) == 2
    monkeypatch.setattr(images, "write", write)
    assert run(["degrade", "in", *BLUR, "--out-dir", "out", "--resume"]) == 0
    assert "6 images (3 of them kept): out" in capsys.readouterr().out
    assert run(["degrade", "in", *BLUR, "--out-dir", "whole"]) == 0
    assert bytes_in(Path("out")) == bytes_in(Path("whole"))


def test_degrade_makes_what_is_missing_by_its_place_in_the_list(photos, capsys):
    (photos / "3.png").write_bytes(b"broken")
    command = ["degrade", "in", *BLUR, "--out-dir", "out", "--json"]
    assert run(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert (len(result["files"]), result["kept"]) == (5, 0)
    whole, states = bytes_in(Path("out")), states_in(Path("out"))
    for name in ("out/1-noise-t004.png", "out/5-noise-t004.png"):
        Path(name).unlink()
    assert run([*command, "--resume"]) == 0
    captured = capsys.readouterr()
    assert "3.png" in captured.err
    again = json.loads(captured.out)
    assert (again["files"], again["kept"]) == (result["files"], 3)
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


def test_many_are_counted_and_few_are_named(photos, capsys):
    assert run(["degrade", "in", *BLUR, "--out-dir", "few"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    for number in range(6, 20):
        shutil.copy(photos / "0.png", photos / f"{number}.png")
    assert run(["degrade", "in", *BLUR, "--out-dir", "many"]) == 0
    assert capsys.readouterr().out == "20 images: many\n"
    assert run(["degrade", "in", *BLUR, "--out-dir", "many", "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "Nothing is missing: all were there already."
