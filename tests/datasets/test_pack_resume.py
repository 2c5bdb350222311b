"""`colddiff data pack` in a folder that has shards: --resume and --force."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from conftest import left_behind, pictures_in
from pack_files import bytes_in, run_pack, write_tree

from colddiff_core.datasets.shards import pack


@pytest.fixture
def images(in_folder: Path) -> Path:
    return write_tree(in_folder / "images")


@pytest.mark.parametrize("at", [1, 11, 19, 24, 30])
@pytest.mark.parametrize("end", ["kill", "interrupt"])
def test_a_resumed_run_gives_the_same_bytes(images, monkeypatch, capsys, at, end):
    run_pack(images, "--out-dir", "expected", "--records", "6")
    add, places = pack._add, []

    def failing(archive, place, record):
        places.append(place)
        if len(places) == at:
            raise KeyboardInterrupt
        add(archive, place, record)

    monkeypatch.setattr(pack, "_add", failing)
    run_pack(images, "--out-dir", "out", "--records", "6", code=130)
    output = capsys.readouterr().err
    assert "run the same command with --resume" in output
    assert "shards.json" not in pictures_in(Path("out"))
    whole = [name for name in left_behind(Path("out")) if not name.startswith(".")]
    assert f"{len(whole)} complete shard" in output
    assert all((Path("out") / name).read_bytes() == (Path("expected") / name).read_bytes() for name in whole)
    if end == "kill":
        for draft in (".train-000000-0123abcd.tar", ".test-000001-0123abcd.tar", ".shards-0123abcd.json"):
            (Path("out") / draft).write_bytes(b"half")
    monkeypatch.undo()
    monkeypatch.chdir(images.parent)
    states = {name: (Path("out") / name).stat().st_mtime_ns for name in whole}
    if whole:
        run_pack(images, "--out-dir", "out", "--records", "6", code=2)
        assert "continue with --resume" in capsys.readouterr().err
    run_pack(images, "--out-dir", "out", "--records", "6", "--resume", "--json")
    assert json.loads(capsys.readouterr().out)["train"]["skipped"] == 1
    assert bytes_in(Path("out")) == bytes_in(Path("expected"))
    assert {name: (Path("out") / name).stat().st_mtime_ns for name in whole} == states
    assert [name for name in left_behind(Path("out")) if "0123abcd" in name] == []
    run_pack(images, "--out-dir", "out", "--records", "6", "--resume")
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("left", [None, 0, 1000, 2048 * 6, "garbage"])
def test_a_lost_or_truncated_shard_is_packed_again(images, capsys, left):
    run_pack(images, "--out-dir", "out", "--records", "6")
    expected = bytes_in(Path("out"))
    path = Path("out/train-000001.tar")
    if left is None:
        path.unlink()
    else:
        path.write_bytes(b"garbage" * 2000 if left == "garbage" else path.read_bytes()[:left])
    capsys.readouterr()
    run_pack(images, "--out-dir", "out", "--records", "6", "--resume")
    output = capsys.readouterr().out
    assert "Nothing to do" not in output
    assert "train: 23 images in 4 shards; left out 1 file" in output
    assert bytes_in(Path("out")) == expected


def test_a_run_with_other_settings_or_files_is_not_resumed(images, capsys):
    run_pack(images, "--out-dir", "out")
    for change, words in ((["--seed", 1], "seed was 0, now 1"), (["--size", 4], "size was 0, now 4")):
        run_pack(images, "--out-dir", "out", "--resume", *change, code=2)
        assert words in capsys.readouterr().err
    (images / "train" / "owl" / "07.png").unlink()
    run_pack(images, "--out-dir", "out", "--resume", code=2)
    assert "files was" in capsys.readouterr().err


def test_existing_shards_are_overwritten_only_by_force(images, capsys):
    run_pack(images, "--out-dir", "out", "--records", "4")
    run_pack(images, "--out-dir", "out", code=2)
    assert "exists already" in capsys.readouterr().err
    run_pack(images, "--out-dir", "out", "--force", "--records", "100")
    assert pictures_in(Path("out")) == ["shards.json", "test-000000.tar", "train-000000.tar"]
    for name in ("train-old.tar", "test.urls", "train-000000.tar.gz"):
        (Path("out") / name).write_bytes(b"")
        run_pack(images, "--out-dir", "out", "--force", code=2)
        assert f"{name} is in the way" in capsys.readouterr().err
        (Path("out") / name).unlink()


@pytest.mark.parametrize("name", ["999999999.png", "-5.png", "000000000.png", f"{'9' * 50}.png", "x.png", "\u0663.png"])
def test_a_shard_with_positions_that_cannot_be_is_packed_again(images, name):
    """Someone else's shard in the folder, or one of another program: the rest would be left out without a word."""
    run_pack(images, "--out-dir", "out", "--records", "6")
    expected = bytes_in(Path("out"))
    (Path("out") / "shards.json").unlink()
    content = next(images.rglob("*.png")).read_bytes()
    for shard in ("train-000000.tar", "train-000001.tar", "test-000000.tar"):
        with tarfile.open(Path("out") / shard, "w") as archive:
            for number in range(2):
                member = tarfile.TarInfo(name if number else "a.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    run_pack(images, "--out-dir", "out", "--records", "6", "--resume")
    assert bytes_in(Path("out")) == expected
