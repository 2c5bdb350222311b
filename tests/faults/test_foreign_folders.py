"""In a folder from someone else: links, pipes and files with holes where a command keeps its own hidden files."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from torch._inductor.runtime.cache_dir_utils import cache_dir

from colddiff_cli.__main__ import run
from colddiff_cli.jobs import background
from colddiff_cli.monitor.data.sample_sheets import SampleSheets
from colddiff_core import datasets, devices, files
from colddiff_core.datasets import cache
from colddiff_core.errors import ColddiffError, MachineError, UsageError
from colddiff_core.evaluation import classifier, published_weights, resumable
from colddiff_core.runs import Run, checkpoint, control, create

SERIES = [
    ["degrade", "in", "--op", "noise", "--t", "4", "--out-dir", "out"],
    ["sample", "run", "in", "--out", "sheet.png", "--out-dir", "out"],
    ["restore", "in", "--run", "run", "--t", "2", "--out-dir", "out"],
    ["generate", "run", "--n", "2", "--noise", "0.002", "--out", "grid.png", "--out-dir", "out"],
]
EVAL = ["eval", "run", "--n", "2", "--features", "none"]
PRECIOUS = "precious"
TERABYTE = 1 << 40
LONG_AGO = 100 * 86_400


@pytest.fixture
def precious(own_run, in_folder) -> Path:
    """A folder of the user's, beside a run and pictures from someone else: an old hidden file and an old folder."""
    folder = in_folder / "precious"
    (folder / "letters").mkdir(parents=True)
    for path in (folder / "file", folder / ".bashrc", folder / "letters" / "1"):
        path.write_text(PRECIOUS)
    old = time.time() - LONG_AGO
    for path in (folder / ".bashrc", folder / "letters"):
        os.utime(path, (old, old))
    (in_folder / "in").mkdir()
    Image.radial_gradient("L").resize((12, 12)).save(in_folder / "in" / "a.png")
    return folder


def check_precious(folder: Path) -> None:
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == dict.fromkeys(("file", ".bashrc", "letters/1"), PRECIOUS)


def put_link(path: Path, precious: Path) -> None:
    path.symlink_to(precious / "file")


def put_dangling_link(path: Path, precious: Path) -> None:
    path.symlink_to(precious / "new")


def put_hard_link(path: Path, precious: Path) -> None:
    path.hardlink_to(precious / "file")


def put_pipe(path: Path, precious: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("put", [put_link, put_dangling_link, put_hard_link, put_pipe])
@pytest.mark.parametrize("more", [[], ["--force"]], ids=["first", "forced"])
@pytest.mark.parametrize("words", SERIES, ids=lambda words: words[0])
def test_a_series_does_not_write_its_manifest_through_a_link(words, more, put, precious, in_folder, capsys):
    assert run(words) == 0
    (manifest,) = (in_folder / "out").glob(".colddiff-*.json")  # its name is predictable
    for path in [*(in_folder / "out").iterdir(), *in_folder.glob("*.png")]:
        path.unlink()
    put(manifest, precious)
    capsys.readouterr()
    assert run([*words, *more]) in (1, 2)
    assert len(capsys.readouterr().err.splitlines()) <= 3  # a warning about the run among them
    check_precious(precious)
    assert not list((in_folder / "out").glob("*.png"))


@pytest.mark.parametrize("is_resumed", [False, True])
def test_partial_results_remove_and_write_nothing_through_links(precious, in_folder, is_resumed, capsys):
    folder = in_folder / "run" / "evaluated"
    folder.symlink_to(precious)
    assert run(EVAL) == 0  # the partial results are elsewhere
    check_precious(precious)
    folder.unlink()
    folder.mkdir()
    own = folder / ("0" * 16)
    own.symlink_to(precious)
    with pytest.raises(MachineError, match="is a link"):
        resumable.PartialResults(own, is_resumed=is_resumed)
    own.unlink()
    own.with_suffix(resumable.LOCK).symlink_to(precious / "new")
    with pytest.raises(ColddiffError, match="is a link"):
        resumable.PartialResults(own, is_resumed=is_resumed)
    check_precious(precious)


def test_only_partial_results_become_stale(precious, in_folder):
    """A pretrained run's are in a folder of the working folder, which may have been there before."""
    (precious / ("a" * 16)).symlink_to(precious / "letters")
    abandoned = precious / ("b" * 16)
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    resumable.PartialResults(precious / ("c" * 16)).close(is_done=True)
    assert not abandoned.exists()
    (precious / ("a" * 16)).unlink()
    check_precious(precious)


@pytest.fixture
def cached(precious, tmp_path, monkeypatch) -> Path:
    """The folder that decoded images are cached in, of which this test has its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(cache, "RESERVE_BYTES", 0)
    return tmp_path / "cache" / "colddiff" / "decoded"


def load(root: Path) -> datasets.ImageSet:
    """Load a folder of images; write some into it first if it does not exist."""
    if not root.exists():
        for split in ("train", "test"):
            (root / split).mkdir(parents=True)
            for number in range(10):
                Image.new("L", (9, 9), 20 * number).save(root / split / f"{number}.png")
    return datasets.load("folder", datasets.DatasetRequest("train", 8, 0, root))


def test_no_hidden_file_is_removed_where_the_cache_leads(cached, precious, tmp_path):
    cached.parent.mkdir(parents=True)
    cached.symlink_to(precious)
    load(tmp_path / "data")
    written = list(precious.glob("?" * 32 + ".*"))
    assert written
    for path in written:
        path.unlink()
    check_precious(precious)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, TERABYTE)


def test_only_a_draft_of_a_run_is_removed_by_the_next_one_of_its_name(precious, own_run):
    config = Run(own_run).config()
    named_like_a_draft = precious.rename(precious.with_name(".new-0123abcd"))
    draft = own_run.with_name(".new-4567cdef")
    (draft / "samples").mkdir(parents=True)
    create(own_run.with_name("new"), config, {}).close()
    assert not draft.exists()
    check_precious(named_like_a_draft)


PUTS: list[Callable[[Path], None]] = [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), sparse]


@pytest.mark.parametrize("suffix", [".json", ".npy"])
@pytest.mark.parametrize("put", PUTS)
def test_cached_images_that_are_pipes_or_endless_are_made_again(cached, tmp_path, suffix, put):
    images = load(tmp_path / "data")
    (entry,) = cached.glob(f"*{suffix}")
    entry.unlink()
    put(entry)
    assert load(tmp_path / "data").pixels.equal(images.pixels)


def test_the_lock_of_the_cache_creates_nothing_through_a_link(cached, precious, tmp_path):
    cached.parent.mkdir(parents=True)
    cached.with_suffix(".lock").symlink_to(precious / "new")
    load(tmp_path / "data")
    check_precious(precious)


def test_the_dashboard_writes_nothing_through_links(precious, own_run):
    (own_run / "control").rmdir()
    (own_run / "control").symlink_to(precious)
    with pytest.raises(MachineError, match="is a link"):
        control.ask(own_run, "pause")
    (own_run / background.LOG).symlink_to(precious / "new")
    with pytest.raises(MachineError, match="is a link"), background._log(own_run):
        pass
    check_precious(precious)


LOGS = ["metrics.jsonl", "events.jsonl"]
READERS: list[list[str]] = [
    ["monitor", "run", "--once"],
    ["monitor", "run", "--json"],
    ["runs"],
    EVAL,
    ["train", "--resume", "run", "--set", "train.steps=8"],
]


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("words", READERS, ids=lambda words: " ".join(words[:2]))
def test_logs_with_holes_take_neither_time_nor_memory(words, name, own_run, in_folder, capsys):
    sparse(own_run / name)
    begun = time.monotonic()
    code = run(words)
    assert time.monotonic() - begun < 20
    errors = capsys.readouterr().err
    assert "memory" not in errors
    if words[0] == "train":
        assert code == 1
        assert "File too large" in errors
        assert (own_run / name).stat().st_size == TERABYTE
    else:
        assert code == 0


def tensor_file(header: bytes, size: int = 0) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        os.truncate(path, 8 + len(header) + size)

    return write


def described(size: int) -> bytes:
    return json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()


MANY = {f"k{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(200_000)}
WEIGHTS = {"terabyte": tensor_file(described(TERABYTE), TERABYTE), "many": tensor_file(json.dumps(MANY).encode())}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("words", READERS[2:], ids=lambda words: " ".join(words[:2]))
def test_weights_that_are_endless_are_refused(words, kind, own_run, in_folder, capsys):
    for folder in (own_run / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text())
        state = {key: value for key, value in state.items() if key not in ("sha256", "digest")}
        (folder / "state.json").write_text(json.dumps(state))
        for name in checkpoint.TENSOR_FILES:
            WEIGHTS[kind](folder / name)
    begun = time.monotonic()
    code = run(words)
    assert time.monotonic() - begun < 20
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) <= 2
    assert code == (0 if words[0] == "runs" else 2)
    if words[0] != "runs":
        assert ("header" if kind == "many" else "larger than memory") in errors


def test_a_file_that_memory_has_no_room_for_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    monkeypatch.setattr(files, "LARGE_BYTES", 500)
    monkeypatch.setattr(files, "free_bytes", lambda: 1999)
    with pytest.raises(OSError, match="memory"):
        files.read_ordinary(path)
    monkeypatch.setattr(files, "free_bytes", lambda: 2000)
    assert files.read_ordinary(path) == bytes(1000)


@pytest.mark.parametrize("put", PUTS)
def test_weights_in_the_cache_and_notes_of_a_sheet_that_are_endless_are_left_alone(put, tmp_path, own_run):
    path = tmp_path / "weights.safetensors"
    put(path)
    with pytest.raises(UsageError, match="Cannot read"):
        published_weights.read(published_weights.INCEPTION, path)
    assert not classifier._read(path, classifier.Classifier(1, 10))
    samples = own_run / "samples"
    samples.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(samples / "step-000001.png")
    put(samples / "step-000001.json")
    sheet = SampleSheets(samples).load("step-000001.png")
    assert sheet is None or sheet.metadata == {}
    assert (sheet is None) == (not (samples / "step-000001.json").is_file())


def test_code_that_torch_compiled_is_not_kept_where_others_can_write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    devices.choose("cpu")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    devices.choose("cpu")
    assert Path(cache_dir()).parent == tmp_path / "cache" / "colddiff"
    assert Path(cache_dir()).stat().st_mode & 0o077 == 0
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    devices.choose("cpu")  # a home that cannot be written
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
