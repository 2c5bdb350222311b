"""Files that cannot be read are named, with the reason: by train and its events, by eval, pack, and from the cache."""

from __future__ import annotations

import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_files import record_decoded, use_temporary_cache
from conftest import TINY
from PIL import Image
from shard_files import members_of, open_split, png, tar, write_shards

from colddiff_cli.__main__ import run
from colddiff_core import datasets
from colddiff_core.datasets import DatasetRequest
from colddiff_core.errors import ColddiffWarning

NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, form)
    return stream.getvalue()


REASONS = {
    "cut.png": (encoded("PNG")[:1500], "truncated"),
    "cut.jpg": (encoded("JPEG")[:700], "truncated"),
    "cut.webp": (encoded("WEBP")[:300], "truncated"),
    "empty.png": (b"", "empty"),
    "page.png": (b"\n<!DOCTYPE html><html>Sign in to the network</html>", "a web page"),
    "page.jpg": (b"<html><body>404</body></html>", "a web page"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
    "text.png": (b"this is text", "not an image"),
}


@pytest.fixture
def pictures(in_folder: Path, monkeypatch) -> Path:
    use_temporary_cache(in_folder, monkeypatch)
    for split, count in (("train", 20), ("val", 4)):
        (in_folder / "pictures" / split / "a").mkdir(parents=True)
        for number in range(count):
            Image.new("L", (12, 12), number).save(in_folder / "pictures" / split / "a" / f"{number}.png")
    return in_folder / "pictures"


def ask(root: Path, split: str = "train") -> datasets.ImageSet:
    return datasets.load("folder", DatasetRequest(split, 12, 1, root))


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_is_short(pictures, name):
    content, why = REASONS[name]
    (pictures / "train" / "a" / name).write_bytes(content)
    images = ask(pictures)
    assert (images.skipped, images.skipped_files) == (1, (f"a/{name} ({why})",))


def test_train_prints_them_and_keeps_them_in_its_events(pictures, in_folder, capsys):
    for name, (content, _) in REASONS.items():
        (pictures / "train" / "a" / name).write_bytes(content)
    (pictures / "train" / "notes.odd").write_bytes(b"no picture")
    (pictures / "other").mkdir()
    settings = [word for setting in TINY for word in ("--set", setting)]
    command = ["train", "--preset", "digits-blur", "--set", "data.dataset=folder", "--data-dir", str(pictures)]
    assert run([*command, *settings, "--set", "data.channels=1", "--out", "run"]) == 0
    printed = capsys.readouterr()
    events = [json.loads(line) for line in (in_folder / "run" / "events.jsonl").read_text().splitlines()]
    kept = [event["message"] for event in events if event["event"] == "warning"]
    for line in (
        "left out 8 training files that could not be read: a/cut.jpg (truncated), a/cut.png (truncated), "
        "a/cut.webp (truncated) and 5 more",
        "left out 1 file in no known picture format (notes.odd)",
        "train is trained on, val is held out; not used: other",
    ):
        assert printed.err.count(line) == 1
        assert sum(line in message for message in kept) == 1


def test_a_cached_set_still_names_them(pictures, monkeypatch):
    (pictures / "train" / "a" / "cut.png").write_bytes(REASONS["cut.png"][0])
    first = ask(pictures)
    decoded = record_decoded(monkeypatch)
    again = ask(pictures)
    assert decoded == []
    assert again.skipped_files == first.skipped_files == ("a/cut.png (truncated)",)


def test_a_cache_entry_without_names_is_made_again(pictures, in_folder, monkeypatch):
    (pictures / "train" / "a" / "cut.png").write_bytes(REASONS["cut.png"][0])
    ask(pictures)
    (entry,) = (in_folder / "cache" / "colddiff" / "decoded").glob("*.json")
    old = json.loads(entry.read_text())
    del old["skipped_files"], old["remarks"]
    entry.write_text(json.dumps(old))
    assert ask(pictures).skipped_files == ("a/cut.png (truncated)",)


def test_pack_names_them(pictures, capsys):
    for name, (content, _) in REASONS.items():
        (pictures / "train" / "a" / name).write_bytes(content)
    assert run(["data", "pack", str(pictures), "--out-dir", "out"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("train:"))
    assert "left out 8 files that could not be read: " in line
    assert line.endswith(" and 5 more")
    assert line.count("a/") == 3
    assert run(["data", "pack", str(pictures), "--out-dir", "again", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["train"]["skipped_files"]) == 3


def test_a_set_of_unreadable_files_is_refused_with_their_names(pictures):
    for path in (pictures / "val" / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(datasets.base.UsageError, match=r"4 images tried: a/0\.png \(empty\), .* and 1 more"):
        ask(pictures, "test")


def test_records_of_shards_are_named(tmp_path, monkeypatch):
    use_temporary_cache(tmp_path, monkeypatch)
    root = write_shards(tmp_path / "data")
    (root / "train-001.tar").write_bytes(tar([*members_of(0, 3), ("x.png", png(1)[:40]), ("y.png", b"")]))
    shards = open_split(root)
    shards.rows(torch.arange(len(shards)))
    assert shards.skipped == 2
    assert sorted(shards.skipped_files)[1] == "image 5 of 'train-001.tar' (empty)"
    held = datasets.load("shards", DatasetRequest("train", 4, 3, root))
    assert held.skipped_files[1] == "image 5 of 'train-001.tar' (empty)"


def test_a_remark_is_printed_once(pictures):
    (pictures / "train" / "notes.odd").write_bytes(b"no picture")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ColddiffWarning)
        ask(pictures)
        ask(pictures)
    assert len(said) == 1


def test_files_of_several_images_are_named_also_from_the_cache(pictures, monkeypatch):
    """Only their first image is used: a scan of several pages, an animation."""
    frames = [Image.fromarray(np.roll(NOISE, shift)) for shift in range(3)]
    for number, name in enumerate(("pages.tif", "moves.gif", "more.webp", "also.png")):
        frames[0].save(pictures / "train" / "a" / f"x{number}-{name}", save_all=True, append_images=frames[1:])
    decoded = record_decoded(monkeypatch)
    line = "4 files have several images, of which the first is used (a/x0-pages.tif, a/x1-moves.gif, a/x2-more.webp"
    with pytest.warns(ColddiffWarning, match=re.escape(line)):
        first = ask(pictures)
    assert len(decoded) == 24
    assert ask(pictures).remarks == first.remarks
    assert len(decoded) == 24
    assert not ask(pictures, "test").remarks
