"""Volumes that need nothing but a directory, or not even that."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcvirt.errors import Failed, FileFailed, NoSpaceLeft, VolumeInUse, VolumeNotFound, VolumeUnusable
from mcvirt.units import GIB, MIB
from mcvirtd.storage.file_volumes import FileVolumes
from mcvirtd.storage.simulated_volumes import SimulatedVolumes
from mcvirtd.storage.volumes import Volumes
from tests.unit.storage.volumes_contract import NAME, BoundedContract, VolumesContract


class TestSimulated(VolumesContract, BoundedContract):
    @pytest.fixture
    def volumes(self) -> Volumes:
        return SimulatedVolumes(capacity=GIB)

    def content(self, volumes: Volumes, name: str) -> bytes:
        assert isinstance(volumes, SimulatedVolumes)
        volumes.activate(name)
        return volumes.content(name).ljust(volumes.size(name), b"\0")


class TestRawFiles(VolumesContract):
    @pytest.fixture
    def volumes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volumes:
        volumes = FileVolumes(str(tmp_path), "raw", guests_user=None)
        # What qemu-img says is for the node ring; here a raw file is a raw file.
        monkeypatch.setattr(volumes, "_image", lambda name: _raw_image())
        return volumes


def _raw_image() -> object:
    from mcvirtd.storage.file_volumes import _Image

    return _Image(format="raw", virtual_size=0)


@pytest.fixture
def files(tmp_path: Path) -> FileVolumes:
    return FileVolumes(str(tmp_path), "raw", guests_user=None)


def test_new_file_is_sparse_and_private(files: FileVolumes, tmp_path: Path) -> None:
    files.create(NAME, 10 * GIB)
    facts = (tmp_path / NAME).stat()
    assert (facts.st_size, facts.st_blocks, facts.st_mode & 0o777) == (10 * GIB, 0, 0o600)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_copy_of_a_sparse_file_is_sparse(files: FileVolumes, tmp_path: Path) -> None:
    files.create(NAME, 10 * GIB)
    with (tmp_path / NAME).open("r+b") as disk:
        disk.seek(5 * GIB)
        disk.write(b"here")
    files.copy(NAME, "copy")
    assert (tmp_path / "copy").stat().st_blocks * 512 < MIB
    with (tmp_path / "copy").open("rb") as disk:
        disk.seek(5 * GIB)
        assert disk.read(5) == b"here\0"


def test_links_are_neither_followed_nor_deleted(files: FileVolumes, tmp_path: Path) -> None:
    victim = tmp_path.parent / "victim"
    victim.write_bytes(b"precious" * 64)
    (tmp_path / "link").symlink_to(victim)
    assert files.names() == []
    assert not files.exists("link")
    for refused in (
        lambda: files.delete("link"),
        lambda: files.size("link"),
        lambda: files.activate("link"),
        lambda: files.grow("link", GIB),
        lambda: files.fill("link", [b"x"]),
        lambda: files.copy("link", "copy"),
        lambda: files.check_import("link"),
    ):
        with pytest.raises(VolumeUnusable, match="a link"):
            refused()
    assert victim.read_bytes() == b"precious" * 64
    assert (tmp_path / "link").is_symlink()


def test_directories_are_not_volumes(files: FileVolumes, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(VolumeUnusable):
        files.delete("folder")
    assert (tmp_path / "folder").is_dir()


def test_what_a_power_failure_left_is_no_volume_and_delete_clears_it(files: FileVolumes, tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.part").write_bytes(b"half")
    (tmp_path / f".{NAME}.content").write_bytes(b"half")
    assert files.names() == []
    with pytest.raises(VolumeNotFound):
        files.activate(NAME)
    files.create(NAME, MIB)
    files.delete(NAME)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_hard_linked_file_is_not_imported(files: FileVolumes, tmp_path: Path) -> None:
    (tmp_path.parent / "shadow").write_bytes(bytes(512))
    (tmp_path / "import").hardlink_to(tmp_path.parent / "shadow")
    with pytest.raises(VolumeUnusable, match="hard links"):
        files.check_import("import")


def test_size_no_file_can_have_is_refused_and_leaves_nothing(files: FileVolumes, tmp_path: Path) -> None:
    with pytest.raises(Failed):
        files.create(NAME, 2**62)
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("prepare", "fault"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text(""), "not a directory"),
    ],
)
def test_bad_locations_say_what_is_wrong(tmp_path: Path, prepare: object, fault: str) -> None:
    path = tmp_path / "location"
    prepare(path)  # type: ignore[operator]
    volumes = FileVolumes(str(path), guests_user=None)
    (said,) = volumes.check()
    assert fault in said
    assert str(path) in said
    with pytest.raises(FileFailed, match=str(path)):
        volumes.create(NAME, MIB)
    with pytest.raises(FileFailed):
        volumes.names()


def test_next_call_fails_as_told_and_only_that_one() -> None:
    volumes = SimulatedVolumes()
    volumes.fail_next("create", NoSpaceLeft(action="create", path=NAME))
    volumes.fail_next("create", ConnectionError("the answer was lost"), done=True)
    with pytest.raises(NoSpaceLeft):
        volumes.create(NAME, MIB)
    assert volumes.names() == []
    with pytest.raises(ConnectionError):
        volumes.create(NAME, MIB)
    assert volumes.names() == [NAME]
    volumes.create("other", MIB)
    assert ("create", "other") in volumes.calls


def test_open_simulated_volume_is_in_use() -> None:
    volumes = SimulatedVolumes()
    volumes.create(NAME, MIB)
    volumes.open.add(NAME)
    with pytest.raises(VolumeInUse):
        volumes.delete(NAME)
