"""Published weights: no network and no real ones."""

from __future__ import annotations

import hashlib
import pickle
import socket
from pathlib import Path

import pytest
import safetensors.torch
import torch

from colddiff_core import weights
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.weights import ALEXNET, INCEPTION, Published


class Evil:
    """What would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """Without a network, and without what the user's own torch hub holds."""

    def refuse(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def published(tmp_path):
    """Small weights "published" as a file on this disk."""
    path = tmp_path / "web" / "small.pth"
    path.parent.mkdir()
    torch.save({"a": torch.arange(3000.0)}, path)
    return Published("a small network", path.name, path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())


def _two_lines(error: BaseException) -> str:
    assert len(str(error).splitlines()) == 2
    return str(error)


@pytest.mark.parametrize("wanted", [INCEPTION, ALEXNET])
def test_a_digest_begins_as_the_file_name_says(wanted):
    assert wanted.file.endswith(f"-{wanted.sha256[:8]}.pth")
    assert wanted.url.endswith(f"/{wanted.file}")
    assert len(wanted.sha256) == 64


def test_a_file_given_comes_first_then_the_folder_then_torch_hub(tmp_path):
    given, folder = tmp_path / "given.safetensors", tmp_path / "weights"
    places = [given, folder / ALEXNET.file, tmp_path / "torch" / "hub" / "checkpoints" / ALEXNET.file]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for expected in places:
        assert weights.locate(ALEXNET, folder, given if given.exists() else None) == expected
        expected.unlink()


def test_missing_weights_say_what_to_put_where(tmp_path):
    with pytest.raises(UsageError) as error:
        weights.locate(INCEPTION, tmp_path / "weights")
    told = _two_lines(error.value)
    assert all(part in told for part in (INCEPTION.url, str(tmp_path / "weights"), "--weights FILE"))
    with pytest.raises(UsageError, match=r"No such file: .*absent\.pth"):
        weights.locate(INCEPTION, tmp_path, tmp_path / "absent.pth")


def test_a_download_is_kept_under_its_name_and_read(tmp_path, published):
    told = []
    path = weights.fetch(published, tmp_path / "weights", lambda *bytes_: told.append(bytes_))
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert list(path.parent.iterdir()) == [path]
    found = weights.read(published, path)
    assert torch.equal(found.tensors["a"], torch.arange(3000.0))
    assert found.about() == {"weights": "small.pth", "sha256": published.sha256}
    told.clear()
    assert weights.fetch(published, path.parent, lambda *bytes_: told.append(bytes_)) == path
    assert not told


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"<html>" + content])
def test_a_wrong_download_is_refused_and_nothing_stays(tmp_path, published, damage):
    source = tmp_path / "web" / "small.pth"
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(MachineError) as error:
        weights.fetch(published, tmp_path / "weights")
    assert published.url in _two_lines(error.value)
    assert not list((tmp_path / "weights").iterdir())


def test_without_a_network_the_message_says_how_to_do_without(tmp_path):
    with pytest.raises(MachineError) as error:
        weights.fetch(ALEXNET, tmp_path / "weights")
    told = _two_lines(error.value)
    assert all(part in told for part in (ALEXNET.url, str(tmp_path / "weights"), "--weights FILE"))
    assert not list((tmp_path / "weights").iterdir())


def test_a_folder_that_cannot_be_written_is_not_taken_for_the_network(tmp_path, published):
    (tmp_path / "weights").touch()
    with pytest.raises(MachineError, match="Cannot write"):
        weights.fetch(published, tmp_path / "weights")


@pytest.mark.parametrize("name", ["small.pth", "other.pt", "other.safetensors", "noname"])
def test_what_is_not_the_published_file_is_never_unpickled(tmp_path, published, name):
    path, written = tmp_path / name, tmp_path / "written"
    path.write_bytes(pickle.dumps(Evil(written)))
    with pytest.raises(UsageError) as error:
        weights.read(published, path)
    assert str(path) in _two_lines(error.value)
    assert not written.exists()


def test_not_even_the_published_file_may_run_code(tmp_path):
    path, written = tmp_path / "evil.pth", tmp_path / "written"
    path.write_bytes(pickle.dumps(Evil(written), protocol=2))  # the one torch.load knows
    wanted = Published("evil", path.name, path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(pickle.UnpicklingError):
        weights.read(wanted, path)
    assert not written.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path, published, suffix):
    path = tmp_path / f"short{suffix}"
    whole = (tmp_path / "web" / "small.pth").read_bytes()
    if suffix == ".safetensors":
        whole = safetensors.torch.save({"a": torch.zeros(100)})
    path.write_bytes(whole[:-10])
    with pytest.raises(UsageError) as error:
        weights.read(published, path)
    assert str(path) in _two_lines(error.value)
