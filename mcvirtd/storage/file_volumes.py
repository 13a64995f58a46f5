"""Volumes that are files in a directory."""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from mcvirt import names
from mcvirt.errors import BadArgument, CommandFailed, ProgramMissing, VolumeExists, VolumeNotFound, VolumeUnusable
from mcvirt.units import MIB, SECTOR
from mcvirtd.host import content, files
from mcvirtd.host.run import installed, missing, run
from mcvirtd.storage.volumes import Found, Kind, Progress, Survey, Written, survey_of

MARK = ".mcvirt-"
GUESTS_USER = "libvirt-qemu"
WITHIN = 60.0
SLOWEST = 4 * MIB
"""Bytes per second that any storage in use can do."""

CONTAINERS = ("qcow", "qcow2", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels", "dmg", "bochs", "cloop")
_QCOW2_HEADER = struct.Struct(">4sIQIIQ")


class _Image(msgspec.Struct):
    """What we read of the report of `qemu-img info`."""

    format: str
    virtual_size: int = msgspec.field(name="virtual-size")
    backing: str | None = msgspec.field(name="backing-filename", default=None)
    details: dict[str, object] = msgspec.field(name="format-specific", default={})

    @property
    def elsewhere(self) -> bool:
        """Whether parts of its content are in other files, perhaps anywhere on this node."""
        data = self.details.get("data")
        return self.backing is not None or (isinstance(data, dict) and "data-file" in data)


class FileVolumes:
    """The files of a directory, all *format*; *guests_user* must be able to enter it (None: not checked)."""

    kind: Kind = "file"

    def __init__(self, directory: str, format: Written = "raw", *, guests_user: str | None = GUESTS_USER) -> None:
        self.location = names.directory(directory)
        self.format = format
        self._directory = Path(self.location)
        self._guests_user = guests_user

    def check(self) -> list[str]:
        faults = files.directory_faults(self._directory)
        if not faults and self._guests_user is not None:
            faults = files.traverse_faults(self._directory, self._guests_user)
        if self.format == "qcow2" and not installed("qemu-img"):
            faults.append(str(missing("qemu-img")))
        return faults

    def free(self) -> int:
        return files.space(self._directory).free

    def survey(self) -> Survey:
        return survey_of(self)

    def total(self) -> int:
        return files.space(self._directory).total

    def names(self) -> list[str]:
        with files.told("read", self._directory), os.scandir(self._directory) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False) and _can_be_name(entry.name)
            )

    def exists(self, name: str) -> bool:
        facts = self._facts(name)
        return facts is not None and stat.S_ISREG(facts.st_mode)

    def size(self, name: str) -> int:
        facts = self._regular(name)
        return facts.st_size if self.format == "raw" else self._qcow2_size(name)

    def path(self, name: str) -> str:
        return str(self._path(name))

    def create(
        self, name: str, size: int, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        size, path = content.whole_sectors(size), self._path(name)
        self._refuse_existing(name)
        content.Pace(size, progress, cancel).at(0)
        try:
            with files.told("create", path), files.new_file(path) as (part, descriptor):
                if self.format == "raw":
                    os.ftruncate(descriptor, size)
                else:
                    run(["qemu-img", "create", "-q", "-f", "qcow2", str(part), str(size)], within=WITHIN, cancel=cancel)
        except FileExistsError:
            raise VolumeExists(name=name, location=self.location) from None
        return size

    def create_bare(self, name: str, size: int) -> None:
        self.create(name, size)

    def grow(
        self, name: str, size: int, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        size, before = content.whole_sectors(size), self.size(name)
        if size <= before:
            return before
        content.Pace(size, progress, cancel).at(before)
        if self.format == "raw":
            files.grow(self._path(name), size)
        else:
            run(["qemu-img", "resize", "-q", "-f", "qcow2", self.path(name), str(size)], within=WITHIN, cancel=cancel)
        return size

    def delete(self, name: str) -> None:
        path = self._path(name)
        files.delete(files.part_of(path))
        files.delete(_content_of(path))
        if self._facts(name) is not None:
            self._regular(name)
            files.delete(path)

    def activate(self, name: str) -> str:
        self._regular(name)
        return self.path(name)

    def deactivate(self, name: str) -> None:
        self._regular(name)

    def check_import(self, name: str) -> Found:
        facts = self._regular(name)
        if facts.st_nlink > 1:
            raise self._unusable(name, "the file has other names too (hard links), perhaps outside of the directory.")
        image = self._image(name)
        # What looks like LUKS is a disk that its guest has encrypted as a whole.
        found = image.format if image.format in CONTAINERS else "raw"
        if found != self.format:
            reason = f"it is a {found} image, and the volumes here are {self.format}; `qemu-img convert` changes that."
            raise self._unusable(name, reason)
        if image.elsewhere:
            raise self._unusable(name, "it needs another file; `qemu-img convert` makes an image that stands alone.")
        size = facts.st_size if self.format == "raw" else image.virtual_size
        if size < SECTOR or size % SECTOR:
            raise self._unusable(name, f"its size, {size} bytes, is not a multiple of {SECTOR} bytes.")
        return Found(size=size, format=self.format)

    def fill(
        self,
        name: str,
        chunks: Iterable[bytes],
        *,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> int:
        size, path = self.size(name), self._path(name)
        if self.format == "raw":
            return content.fill(path, chunks, progress=progress, cancel=cancel)
        # qemu-img can't be fed through a pipe.
        raw = _content_of(path)
        files.delete(raw)
        try:
            files.create_sparse(raw, size)
            written = content.fill(raw, chunks, progress=progress, cancel=cancel)
            argv = ["qemu-img", "convert", "-q", "-n", "-t", "none", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
            run(argv, within=max(WITHIN, size / SLOWEST), cancel=cancel)
        finally:
            files.delete(raw)
        return written

    def copy(
        self, source: str, name: str, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        self._regular(source)
        self._refuse_existing(name)
        path = self._path(name)
        try:
            with files.told("create", path), files.new_file(path) as (_, descriptor):
                content.copy(self._path(source), descriptor, progress=progress, cancel=cancel)
        except FileExistsError:
            raise VolumeExists(name=name, location=self.location) from None
        return self.size(name)

    def mark(self, backend_id: str) -> None:
        files.write_atomically(self._mark(backend_id), f"{backend_id}\n".encode())

    def unmark(self, backend_id: str) -> None:
        files.delete(self._mark(backend_id))

    def marked_with(self) -> frozenset[str]:
        with files.told("read", self._directory):
            found = [name for name in os.listdir(self._directory) if name.startswith(MARK)]  # noqa: PTH208
        return frozenset(name.removeprefix(MARK) for name in found)

    def _path(self, name: str) -> Path:
        if names.volume_name(name).startswith("."):
            raise BadArgument(what=f"volume name '{name}'", why="the name of a file must not begin with a dot.")
        return self._directory / name

    def _mark(self, backend_id: str) -> Path:
        return self._directory / f"{MARK}{names.object_id(backend_id, 'sb', 'storage backend')}"

    def _facts(self, name: str) -> os.stat_result | None:
        path = self._path(name)
        with files.told("read", path):
            try:
                return path.lstat()
            except FileNotFoundError:
                return None

    def _regular(self, name: str) -> os.stat_result:
        facts = self._facts(name)
        if facts is None:
            raise VolumeNotFound(name=name, location=self.location)
        if not stat.S_ISREG(facts.st_mode):
            kind = "a link" if stat.S_ISLNK(facts.st_mode) else "a directory or something else"
            raise self._unusable(name, f"it is not a file but {kind}.")
        return facts

    def _refuse_existing(self, name: str) -> None:
        if self._facts(name) is not None:
            raise VolumeExists(name=name, location=self.location)

    def _qcow2_size(self, name: str) -> int:
        path = self._path(name)
        with files.told("read", path), files.opened(path, os.O_RDONLY) as descriptor:
            header = os.pread(descriptor, _QCOW2_HEADER.size, 0)
        if len(header) < _QCOW2_HEADER.size or not header.startswith(b"QFI\xfb"):
            raise self._unusable(name, "it is not a qcow2 image.")
        size: int = _QCOW2_HEADER.unpack(header)[5]
        return size

    def _image(self, name: str) -> _Image:
        try:
            report = run(["qemu-img", "info", "-U", "--output=json", self.path(name)], within=WITHIN).stdout
            return msgspec.json.decode(report, type=_Image)
        except ProgramMissing:
            raise
        except (CommandFailed, msgspec.MsgspecError) as error:
            raise self._unusable(name, f"qemu-img does not understand it: {error}") from error

    def _unusable(self, name: str, reason: str) -> VolumeUnusable:
        return VolumeUnusable(name=name, location=self.location, reason=reason)


def _content_of(path: Path) -> Path:
    """Where the content of a volume is kept until it is in the volume."""
    return path.with_name(f".{path.name}.content")


def _can_be_name(name: str) -> bool:
    try:
        return bool(names.volume_name(name))
    except BadArgument:
        return False
