"""Volumes that are files, with the real qemu-img and real file systems."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcvirt.errors import FileFailed, NoSpaceLeft, VolumeUnusable
from mcvirt.units import GIB, MIB
from mcvirtd.storage.file_volumes import FileVolumes
from mcvirtd.storage.volumes import Volumes
from tests.unit.storage.volumes_contract import NAME, VolumesContract


def command(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


class TestRawFilesForReal(VolumesContract):
    @pytest.fixture
    def volumes(self, tmp_path: Path) -> Volumes:
        return FileVolumes(str(tmp_path), "raw", guests_user=None)


class TestQcow2(VolumesContract):
    @pytest.fixture
    def volumes(self, tmp_path: Path) -> Volumes:
        return FileVolumes(str(tmp_path), "qcow2", guests_user=None)

    def content(self, volumes: Volumes, name: str) -> bytes:
        path = Path(volumes.activate(name))
        raw = path.parent.parent / f"{name}.raw"
        command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
        return raw.read_bytes()

    def test_files_are_private_and_nothing_is_left_beside_them(self, volumes: Volumes, tmp_path: Path) -> None:
        volumes.create(NAME, GIB)
        volumes.fill(NAME, [b"x" * MIB])
        volumes.grow(NAME, 2 * GIB)
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
        assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
        assert (tmp_path / NAME).stat().st_blocks * 512 < 8 * MIB
        assert json.loads(command("qemu-img", "info", "--output=json", tmp_path / NAME))["virtual-size"] == 2 * GIB
        command("qemu-img", "check", "-q", "-f", "qcow2", tmp_path / NAME)


class TestImport:
    @pytest.fixture
    def raw(self, tmp_path: Path) -> FileVolumes:
        return FileVolumes(str(tmp_path), "raw", guests_user=None)

    @pytest.fixture
    def qcow2(self, tmp_path: Path) -> FileVolumes:
        return FileVolumes(str(tmp_path), "qcow2", guests_user=None)

    def test_other_format_is_refused(self, raw: FileVolumes, qcow2: FileVolumes, tmp_path: Path) -> None:
        command("qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "a", "4M")
        command("qemu-img", "create", "-q", "-f", "vmdk", tmp_path / "b", "4M")
        command("qemu-img", "create", "-q", "-f", "raw", tmp_path / "c", "4M")
        for volumes, name, what in ((raw, "a", "qcow2"), (raw, "b", "vmdk"), (qcow2, "b", "vmdk"), (qcow2, "c", "raw")):
            with pytest.raises(VolumeUnusable, match=f"it is a {what} image"):
                volumes.check_import(name)
        assert raw.check_import("c").size == qcow2.check_import("a").size == 4 * MIB

    def test_image_that_needs_another_file_is_refused(self, qcow2: FileVolumes, tmp_path: Path) -> None:
        secret = tmp_path.parent / "secret"
        secret.write_bytes(b"secret".ljust(MIB))
        command("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", tmp_path / "backed", "4M")
        command("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", tmp_path / "split", "4M")
        for name in ("backed", "split"):
            with pytest.raises(VolumeUnusable, match="needs another file"):
                qcow2.check_import(name)

    def test_disk_encrypted_by_its_guest_is_raw(self, raw: FileVolumes, tmp_path: Path) -> None:
        (tmp_path / "luks").write_bytes(b"LUKS\xba\xbe\x00\x01".ljust(MIB, b"\0"))
        try:
            assert raw.check_import("luks").size == MIB
        except VolumeUnusable as refused:
            assert "does not understand" in str(refused)

    def test_odd_size_and_garbage_are_refused(self, raw: FileVolumes, qcow2: FileVolumes, tmp_path: Path) -> None:
        (tmp_path / "odd").write_bytes(b"x" * 1000)
        (tmp_path / "empty").touch()
        (tmp_path / "broken").write_bytes(b"QFI\xfb\x00\x00\x00\x03" + b"\xff" * 500)
        for volumes, name in ((raw, "odd"), (raw, "empty"), (qcow2, "broken"), (raw, "broken")):
            with pytest.raises(VolumeUnusable):
                volumes.check_import(name)


class TestFullFileSystem:
    """On a file system of 8 MiB."""

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Path]:
        try:
            command("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path)
        except subprocess.CalledProcessError:
            pytest.skip("no file system can be mounted here")
        yield tmp_path
        command("umount", tmp_path)

    def test_no_space_is_said_and_copy_leaves_nothing(self, small: Path) -> None:
        volumes = FileVolumes(str(small), guests_user=None)
        volumes.create(NAME, 64 * MIB)
        with pytest.raises(NoSpaceLeft, match="not enough space left to fill"):
            volumes.fill(NAME, (b"x" * MIB for _ in range(64)))
        volumes.delete(NAME)
        volumes.create(NAME, 6 * MIB)
        volumes.fill(NAME, (b"x" * MIB for _ in range(6)))
        with pytest.raises(NoSpaceLeft):
            volumes.copy(NAME, "copy")
        assert [path.name for path in small.iterdir()] == [NAME]

    def test_read_only_location_is_said(self, small: Path) -> None:
        command("mount", "-o", "remount,ro", small)
        volumes = FileVolumes(str(small), guests_user=None)
        assert "read-only" in volumes.check()[0]
        with pytest.raises(FileFailed, match="Read-only"):
            volumes.create(NAME, MIB)


def test_location_that_guests_cannot_enter_is_said(tmp_path: Path) -> None:
    (tmp_path / "closed" / "disks").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    volumes = FileVolumes(str(tmp_path / "closed" / "disks"), guests_user="nobody")
    (said,) = volumes.check()
    assert "nobody" in said
    assert said.count("/") >= 2
