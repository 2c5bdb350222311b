"""The file lock: who gets it, and what happens without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

import pytest

from colddiff_core.errors import MachineError
from colddiff_core.files import FileLock, whole
from colddiff_core.paths import cache_folder


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / "lock"
    with FileLock.take(path) as lock:
        assert lock.is_held
        with pytest.raises(BlockingIOError):
            FileLock.take(path)
    assert not lock.is_held
    lock.release()  # a second time does nothing
    with FileLock.wait(path):
        pass
    assert path.exists()


def test_the_content_is_replaced_in_place(tmp_path):
    path = tmp_path / "lock"
    with FileLock.take(path) as lock:
        before = path.stat().st_ino
        for content in (b"a long one", b"short"):
            lock.write(content)
            assert path.read_bytes() == content
            assert lock.size == len(content)
        os.utime(path, (0, 0))
        lock.touch()
        assert path.stat().st_mtime > 0
        assert path.stat().st_ino == before


def test_a_lock_that_may_not_be_created_names_the_path_it_is_about(tmp_path):
    with pytest.raises(MachineError, match="Cannot write a run: No such file"):
        FileLock.take(tmp_path / "lock", flags=0, about="a run")
    assert not (tmp_path / "lock").exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FileLock.take(tmp_path / "lock") as first, FileLock.take(tmp_path / "lock") as second:
        assert first.is_held
        assert second.is_held
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        FileLock.wait(tmp_path / "lock")


def test_a_file_removed_before_it_was_locked_is_created_again(tmp_path, monkeypatch):
    path, flock = tmp_path / "lock", fcntl.flock
    removed = []

    def remove_first(descriptor: int, how: int) -> None:
        if not removed:
            path.unlink()
            removed.append(path)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with FileLock.take(path) as lock:
        assert os.path.samestat(os.fstat(lock.fileno()), path.stat())


def test_cache_folders_are_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("weights") == tmp_path / "colddiff" / "weights"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_use_what_is_created(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        FileLock.take(tmp_path / "lock").release()
        with whole(tmp_path / "picture.png") as draft:
            draft.write_bytes(b"new")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "picture.png"
    path.write_bytes(b"private")
    path.chmod(mode)
    with whole(path) as draft:
        draft.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_is_replaced_and_its_target_is_left_alone(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    with whole(link) as draft:
        draft.write_bytes(b"new")
    assert (target.read_bytes(), link.read_bytes()) == (b"old", b"new")
    assert not link.is_symlink()
