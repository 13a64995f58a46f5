"""The directory of ISO images on this node.

QEMU runs as another user and must be able to read the images, so the directory and mcvirtd's own one above it can be
entered by all, and the images be read by all. What is still arriving is hidden, and root's alone. The SHA-256 of an
image is kept beside it, with the size and time of the file it was taken of: whoever replaces the file by hand makes it
unknown, not wrong.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mcvirt import names
from mcvirt.errors import AlreadyExists, BadArgument, NotFound
from mcvirt.units import MIB
from mcvirtd.host import files

log = logging.getLogger(__name__)
RESERVE = 256 * MIB
"""What images leave free: the state file is on the same file system."""

MOST_BYTES = 128 * 1024 * MIB
_PARTS = (".upload-", ".download-")
_DIGEST = ".sha256"


class IsoFile(msgspec.Struct, frozen=True, kw_only=True):
    """An image; *sha256* is '' where it is not known."""

    name: str
    size: int
    sha256: str


class IsoLibrary:
    """The images below *state*, mcvirtd's own directory."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self.directory = state / "iso"
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Make the directory, and clear away what an earlier process left half done. To be called before all else."""
        with files.told("prepare", self.directory):
            self.directory.mkdir(mode=0o755, exist_ok=True)
            self._state.chmod(0o711)
            self.directory.chmod(0o755)
            there = sorted(entry.name for entry in os.scandir(self.directory))
        for name in there:
            orphan = name.startswith(".") and name.endswith(_DIGEST) and name[1 : -len(_DIGEST)] not in there
            if orphan or name.startswith(_PARTS) or (name.startswith("..") and name.endswith(".new")):
                log.info("clearing %s away", self.directory / name)
                files.delete(self.directory / name)

    def list(self) -> tuple[IsoFile, ...]:
        """All images, by name."""
        with files.told("read", self.directory), os.scandir(self.directory) as entries:
            found = sorted(entry.name for entry in entries if _is_image(entry))
        images = []
        for name in found:
            with contextlib.suppress(NotFound):  # deleted meanwhile
                images.append(self.find(name))
        return tuple(images)

    def find(self, name: str) -> IsoFile:
        """The image; NotFound if there is none."""
        path = self._path(name)
        with files.told("read", path):
            try:
                facts = path.lstat()
            except FileNotFoundError:
                facts = None
        if facts is None or not stat.S_ISREG(facts.st_mode):
            raise NotFound(kind="ISO image", name=path.name, hint=" `mcvirt iso list` shows all of them.")
        return IsoFile(name=path.name, size=facts.st_size, sha256=self._digest(path, facts))

    def path(self, name: str) -> str:
        """Where the hypervisor finds the image; NotFound if there is none."""
        return str(self.directory / self.find(name).name)

    def refuse_existing(self, name: str) -> None:
        """Raise AlreadyExists if there is such an image."""
        path = self._path(name)
        if os.path.lexists(path):
            raise AlreadyExists(kind="ISO image", name=path.name)

    def room(self) -> int:
        """The bytes that new images can take."""
        return max(0, files.space(self.directory).free - RESERVE)

    @contextlib.contextmanager
    def new_part(self, name: str) -> Iterator[int]:
        """A descriptor for a new hidden file for what is arriving; *name* is one that `is_part`."""
        part = self.part(name)
        with files.told("create", part), files.opened(part, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
            yield descriptor

    def part(self, name: str) -> Path:
        """Where the hidden file is."""
        if not name.startswith(_PARTS) or "/" in name or not name.isprintable():
            raise BadArgument(what=f"part '{names.printable(name)}'", why="no part is called so.")
        return self.directory / name

    def drop_part(self, part: str) -> None:
        """Delete the hidden file; none is fine."""
        files.delete(self.part(part))

    def publish(self, part: str, name: str, sha256: str) -> IsoFile:
        """Make the whole and right content of a part the image *name*; AlreadyExists if there is one by now.

        The part is gone then. Whatever happens, the image is there as a whole or not at all.
        """
        source, target = self.part(part), self._path(name)
        with files.told("store", target):
            with files.opened(source, os.O_RDWR) as descriptor:
                os.fchmod(descriptor, 0o644)
                os.fsync(descriptor)
                facts = os.fstat(descriptor)
            with self._lock:
                self.refuse_existing(target.name)
                line = f"{sha256} {facts.st_size} {facts.st_mtime_ns}\n"
                files.write_atomically(self._digest_path(target), line.encode())
                try:
                    target.hardlink_to(source)
                except FileExistsError:
                    raise AlreadyExists(kind="ISO image", name=target.name) from None
            source.unlink()
            files.sync_directory(self.directory)
        return IsoFile(name=target.name, size=facts.st_size, sha256=sha256)

    def delete(self, name: str) -> None:
        """Delete the image; none is fine."""
        path = self._path(name)
        with self._lock:
            files.delete(path)
            files.delete(self._digest_path(path))

    def _path(self, name: str) -> Path:
        return self.directory / names.iso_name(name)

    @staticmethod
    def _digest_path(path: Path) -> Path:
        return path.with_name(f".{path.name}{_DIGEST}")

    def _digest(self, path: Path, facts: os.stat_result) -> str:
        try:
            digest, size, time = self._digest_path(path).read_text().split()
        except (OSError, ValueError):
            return ""
        return digest if (size, time) == (str(facts.st_size), str(facts.st_mtime_ns)) else ""


def checked_digest(sha256: str) -> str:
    """*sha256* in lower case, if it is 64 hex digits."""
    digest = sha256.strip().lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise BadArgument(what=f"SHA-256 '{names.printable(sha256)}'", why="it is written as 64 hex digits.")
    return digest


def _is_image(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False) and names.iso_name(entry.name) == entry.name
    except BadArgument:
        return False
