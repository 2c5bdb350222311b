"""Outputs say which file they are made of, and every legal file name works."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import left_behind, pictures_in
from PIL import Image
from series_folders import BLUR, bytes_below

from colddiff_cli.__main__ import run
from colddiff_cli.picture_series import naming
from colddiff_core import files

BYTES = 255
NAMES = {
    "ascii": "a" * (BYTES - 4),
    "umlauts": "ä" * ((BYTES - 4) // 2),
    "cjk": "漢" * ((BYTES - 4) // 3),
    "emoji": "a" + "🙂" * ((BYTES - 5) // 4),
    "dots": "a." * ((BYTES - 4) // 2),
    "shorter": "b" * 241,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number, name in enumerate(NAMES.values()):
        Image.new("L", (12, 12), 40 * number).save(f"in/{name}.png")
    return tmp_path


def test_every_legal_name_works_and_stays_unique(folder, capsys):
    assert run(["degrade", "in", *BLUR, "--out-dir", "out", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len({*result["files"]}) == len(NAMES)
    assert sorted(result["inputs"]) == sorted(f"in/{name}.png" for name in NAMES.values())
    for made in result["files"]:
        assert Path(made).is_file()
        assert made.endswith("-noise-t004.png")
        assert len(os.fsencode(Path(made).name)) <= BYTES
    assert len(pictures_in(Path("out"))) == len(NAMES)
    whole = bytes_below(Path("out"))
    for made in result["files"][::2]:
        Path(made).unlink()
    assert run(["degrade", "in", *BLUR, "--out-dir", "out", "--resume"]) == 0
    assert bytes_below(Path("out")) == whole


@pytest.mark.parametrize("command", ["restore", "sweep", "sample", "degraded"])
def test_every_command_takes_long_names(folder, tiny_run, command, capsys):
    own = str(tiny_run)
    calls = {
        "restore": ["restore", "in", "--run", own, "--t", "1", "--compare"],
        "sweep": ["restore", "in", "--run", own, "--sweep"],
        "sample": ["sample", own, "in", "--stride", "5"],
        "degraded": ["sample", own, "in", "--degraded", "--t", "1"],
    }
    assert run([*calls[command], "--out-dir", "out"]) == 0, capsys.readouterr()
    assert len([*Path("out").glob("*.png")]) == len(NAMES) * (2 if command == "restore" else 1)


def test_a_long_name_given_with_out_works(folder):
    name = "o" * (BYTES - 4) + ".png"
    assert run(["degrade", f"in/{NAMES['ascii']}.png", *BLUR, "--out", name]) == 0
    assert Path(name).is_file()


def test_drafts_of_long_names_are_found_again():
    for name in NAMES.values():
        draft = files.beside(Path(f"{name}.png"))
        assert len(os.fsencode(draft.name)) <= BYTES
        assert draft.suffix == ".png"
        assert files.drafted(draft.name) == files.draft_name(f"{name}.png")
    assert files.draft_name("a.png") == "a.png"


def test_different_long_names_stay_different_and_are_not_cut_inside_a_character():
    names = ["ä" * 200 + end for end in ("x", "y")]
    fitted = [files.fitted(name, "-restored.png") for name in names]
    assert len({*fitted}) == 2
    for name in fitted:
        assert len(os.fsencode(name)) <= BYTES
        assert name.startswith("ä" * 99)
        assert name.encode().decode() == name


@pytest.mark.parametrize(
    ("names", "made"),
    [
        (["a/x.png", "a/y.png"], ["x-e.png", "y-e.png"]),
        (["a/x.png", "b/y.png"], ["x-e.png", "y-e.png"]),
        (["a/x.png", "b/x.png"], ["a/x-e.png", "b/x-e.png"]),
        (["a/x.png", "a/b/x.png", "c.png"], ["a/x-e.png", "a/b/x-e.png", "c-e.png"]),
        (["a/x.png", "a/x.jpg"], ["x-e.png", "x-e-2.png"]),
        (["a/x.png", "a/x.jpg", "b/x.png"], ["a/x-e.png", "a/x-e-2.png", "b/x-e.png"]),
        (["x.png", "x.png"], ["x-e.png", "x-e-2.png"]),
        (["../x.png", "x.png"], ["x-e.png", "HERE/x-e.png"]),
    ],
)
def test_files_of_one_name_keep_their_folders(tmp_path, monkeypatch, names, made):
    monkeypatch.chdir(tmp_path)
    here = Path.cwd().name
    found = naming.targets([Path(name) for name in names], Path("out"), "e.png")
    assert found == [Path("out", name.replace("HERE", here)) for name in made]


def test_the_mapping_is_printed_and_in_json_and_in_the_manifest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, place in enumerate(("a", "b")):
        Path(place).mkdir()
        Image.new("RGB", (12, 12), (90 * number, 0, 0)).save(f"{place}/x.png")
    call = ["degrade", "a", "b/x.png", *BLUR, "--out-dir", "out"]
    assert run(call) == 0
    assert capsys.readouterr().out.splitlines() == [f"{p}/x.png -> out/{p}/x-noise-t004.png" for p in ("a", "b")]
    (path,) = Path("out").glob(".colddiff-*.json")
    manifest = json.loads(path.read_text())
    assert manifest["pictures"] == ["a/x-noise-t004.png", "b/x-noise-t004.png"]
    assert manifest["inputs"] == ["a/x.png", "b/x.png"]
    whole = bytes_below(Path("out"))
    Path("out/b/x-noise-t004.png").unlink()
    Path("out/b/.x-noise-t004-0123abcd.png").write_bytes(b"draft")
    assert run([*call, "--resume", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["inputs"] == manifest["inputs"]
    assert result["files"] == [f"out/{name}" for name in manifest["pictures"]]
    assert bytes_below(Path("out")) == whole
    assert left_behind(Path("out/b")) == ["x-noise-t004.png"]


def test_own_pictures_in_subfolders_are_not_taken_for_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("in/a", "in/b"):
        Path(place).mkdir(parents=True)
        Image.new("RGB", (12, 12), "teal").save(f"{place}/x.png")
    call = ["degrade", "in", *BLUR, "--out-dir", "in"]
    assert run(call) == 0
    whole = bytes_below(Path("in"))
    assert len(whole) == 4
    Path("in/b/x-noise-t004.png").unlink()
    assert run([*call, "--resume"]) == 0
    assert bytes_below(Path("in")) == whole


def test_a_manifest_of_an_earlier_version_is_still_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x", "y"):
        Image.new("RGB", (12, 12), "teal").save(f"{name}.png")
    call = ["degrade", "x.png", "y.png", *BLUR, "--out-dir", "out"]
    assert run(call) == 0
    (path,) = Path("out").glob(".colddiff-*.json")
    older = json.loads(path.read_text())
    del older["inputs"]
    path.write_text(json.dumps(older))
    Path("out/x-noise-t004.png").unlink()
    assert run([*call, "--resume"]) == 0
    assert len(pictures_in(Path("out"))) == 2
