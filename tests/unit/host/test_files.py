"""Files are whole or not there, and links are not followed."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from mcvirt.errors import FileFailed, NoSpaceLeft, TaskCancelled
from mcvirt.units import GIB, MIB
from mcvirtd.host import content, files


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


def test_write_replaces_whole_with_the_mode(tmp_path: Path) -> None:
    target = tmp_path / "config"
    files.write_atomically(target, b"old", mode=0o644)
    held = target.open("rb")
    files.write_atomically(target, b"new", mode=0o640)
    assert (target.read_bytes(), held.read(), target.stat().st_mode & 0o777) == (b"new", b"old", 0o640)
    assert names(tmp_path) == ["config"]
    held.close()


def test_two_threads_that_write_the_same_file_do_not_take_each_others_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "config"
    real = os.fsync
    nested = threading.Thread(target=files.write_atomically, args=(target, b"second"))

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if threading.current_thread() is not nested and nested.ident is None:
            nested.start()
            nested.join(30)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_atomically(target, b"first")
    assert target.read_bytes() == b"first"
    assert names(tmp_path) == ["config"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_failed_write_keeps_the_old_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    target = tmp_path / "config"
    files.write_atomically(target, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FileFailed if code == errno.EIO else NoSpaceLeft, match=str(target)):
        files.write_atomically(target, b"new")
    with pytest.raises((FileFailed, NoSpaceLeft)):
        files.create_sparse(tmp_path / "disk", 512)
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["config"]


def test_file_and_directory_are_synced_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.lstrip("."))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    files.create_sparse(tmp_path / "disk", 512)
    files.delete(tmp_path / "disk")
    assert synced == ["disk.part", tmp_path.name, tmp_path.name]


def test_sparse_file_is_exact_and_exclusive(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    files.create_sparse(disk, 3 * GIB + 1)
    assert (disk.stat().st_size, disk.stat().st_blocks, disk.stat().st_mode & 0o777) == (3 * GIB + 1, 0, 0o600)
    with pytest.raises(FileExistsError):
        files.create_sparse(disk, 512)
    assert disk.stat().st_size == 3 * GIB + 1
    assert names(tmp_path) == ["disk"]


def test_file_system_without_links_does_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    files.create_sparse(tmp_path / "disk", 512)
    with pytest.raises(FileExistsError):
        files.create_sparse(tmp_path / "disk", 1024)
    assert names(tmp_path) == ["disk"]
    assert (tmp_path / "disk").stat().st_size == 512


def test_grow_never_shrinks(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"data")
    files.grow(disk, 10)
    files.grow(disk, 5)
    assert disk.read_bytes() == b"data" + bytes(6)


def test_links_are_not_followed(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"keep")
    link.symlink_to(victim)
    for act in (lambda: files.grow(link, 100), lambda: content.wipe(link), lambda: content.fill(link, [b"x"])):
        with pytest.raises(FileFailed):
            act()
    files.write_atomically(link, b"new")
    assert (victim.read_bytes(), link.is_symlink()) == (b"keep", False)
    link.unlink()
    link.symlink_to(victim)
    assert files.delete(link)
    assert victim.read_bytes() == b"keep"


def test_delete_says_whether_there_was_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert files.delete(tmp_path / "file")
    assert not files.delete(tmp_path / "file")
    with pytest.raises(FileFailed, match="delete"):
        files.delete(tmp_path)


def test_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    space = files.space(tmp_path)
    assert 0 < space.free <= space.total
    with pytest.raises(FileFailed):
        files.space(tmp_path / "nothing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_traverse_faults_follow_owner_group_and_others(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for path in (*tmp_path.parents[:3], tmp_path, inner.parent, inner):
        if not path.stat().st_mode & stat.S_ISVTX:  # that is everybody's already
            path.chmod(0o755)
    assert files.traverse_faults(inner, "nobody") == []
    assert files.traverse_faults(inner, "nobody-of-that-name") == []
    inner.parent.chmod(0o750)
    assert str(inner.parent) in files.traverse_faults(inner, "nobody")[0]
    assert files.traverse_faults(inner, "root") == []
    os.chown(inner.parent, 65534, 0)
    assert files.traverse_faults(inner, "nobody") == []
    inner.parent.chmod(0o077)
    assert files.traverse_faults(inner, "nobody") != []
    inner.parent.chmod(0o755)


# --- content ------------------------------------------------------------------------------------------------------


def test_copy_keeps_data_and_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(64 * MIB)
        for position in (0, 20 * MIB + 3, 64 * MIB - 2):
            file.seek(position)
            file.write(b"ab")
    seen: list[tuple[int, int]] = []
    with files.opened(target, os.O_RDWR | os.O_CREAT) as descriptor:
        assert content.copy(source, descriptor, progress=lambda *at: seen.append(at)) == 64 * MIB
    assert seen[-1] == (64 * MIB, 64 * MIB)
    assert target.stat().st_size == 64 * MIB
    assert target.stat().st_blocks * 512 < MIB
    assert target.read_bytes() == source.read_bytes()


def test_copy_without_help_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "other file system")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    (tmp_path / "source").write_bytes(b"x" * (9 * MIB + 7))
    with files.opened(tmp_path / "target", os.O_RDWR | os.O_CREAT) as descriptor:
        content.copy(tmp_path / "source", descriptor)
    assert (tmp_path / "target").read_bytes() == b"x" * (9 * MIB + 7)


def test_copy_is_cancelled_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 20 * MIB)
    cancel, seen = threading.Event(), []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done:
            cancel.set()

    with files.opened(tmp_path / "target", os.O_RDWR | os.O_CREAT) as descriptor, pytest.raises(TaskCancelled):
        content.copy(tmp_path / "source", descriptor, progress=progress, cancel=cancel)
    assert seen == [0, 4 * MIB]


@pytest.mark.parametrize("start", [0, 512, 1000, 70 * MIB])
def test_wipe_zeroes_from_the_start_to_the_end(tmp_path: Path, start: int) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * (70 * MIB + 1024))
    seen: list[tuple[int, int]] = []
    content.wipe(disk, start=start, progress=lambda *at: seen.append(at))
    total = 70 * MIB + 1024 - start
    assert (seen[0], seen[-1]) == ((0, total), (total, total))
    data = disk.read_bytes()
    assert data[:start] == b"x" * start
    assert data[start:].count(0) == total
