"""Files and directories: changes that are whole and durable when they return, and leave nothing when they fail."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mcvirt.errors import FileFailed, NoSpaceLeft

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes that a place can hold, and those that are free for us."""

    total: int
    free: int


@contextlib.contextmanager
def told(action: str, path: Path) -> Iterator[None]:
    """Turns what the kernel refuses into NoSpaceLeft or FileFailed, with *action* and *path* in the sentence.

    FileExistsError passes: the caller knows what it is that exists.
    """
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpaceLeft(action=action, path=str(path)) from error
        raise FileFailed(action=action, path=str(path), reason=f"{error.strerror}.") from error


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = 0o600) -> Iterator[int]:
    """A file descriptor for *path*, which is never reached through a link in its last part."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make what was created, renamed and deleted in the directory survive a power failure."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put *data* in the file: whoever reads it sees the old content or the new, also after a power failure."""
    # Another thread may be writing it, too.
    new = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    with told("write", path):
        try:
            with opened(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as descriptor:
                os.fchmod(descriptor, mode)
                write_all(descriptor, data)
                os.fsync(descriptor)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte of *data*, however many writes that takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextlib.contextmanager
def new_file(path: Path, *, mode: int = 0o600) -> Iterator[tuple[Path, int]]:
    """A hidden file, and a descriptor for it, that becomes *path* when the block ends, and is removed if it fails.

    The new file is durable then. Raises FileExistsError if *path* exists by then.
    """
    part = part_of(path)
    part.unlink(missing_ok=True)
    try:
        with opened(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode) as descriptor:
            os.fchmod(descriptor, mode)
            yield part, descriptor
            os.fsync(descriptor)
        _rename_to_new(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def part_of(path: Path) -> Path:
    """Where ``new_file`` keeps *path* until it is whole."""
    return path.with_name(f".{path.name}.part")


def _rename_to_new(old: Path, new: Path) -> None:
    try:
        new.hardlink_to(old)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without links: the check and the act are two steps there.
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from None
        old.rename(new)
        return
    old.unlink()


def create_sparse(path: Path, size: int, *, mode: int = 0o600) -> None:
    """Make a file of exactly *size* bytes that reads as zeros and takes no space yet; FileExistsError if it exists."""
    with told("create", path), new_file(path, mode=mode) as (_, descriptor):
        os.ftruncate(descriptor, size)


def grow(path: Path, size: int) -> None:
    """Make the file *size* bytes long, the new part reading as zeros; a file that is longer stays as it is."""
    with told("grow", path), opened(path, os.O_RDWR) as descriptor:
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)


def delete(path: Path) -> bool:
    """Delete the file for good; False if there was none. A link is deleted itself, not what it points to."""
    with told("delete", path):
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        sync_directory(path.parent)
        return True


def space(path: Path) -> Space:
    """The space of the file system that *path* is on."""
    with told("read the free space of", path):
        facts = os.statvfs(path)
    return Space(total=facts.f_blocks * facts.f_frsize, free=facts.f_bavail * facts.f_frsize)


def directory_faults(path: Path) -> list[str]:
    """What keeps us from keeping files in the directory, a sentence each; empty if nothing does."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return [f"The directory {path} does not exist."]
    except OSError as error:
        return [f"The directory {path} can't be read: {error.strerror}."]
    if not stat.S_ISDIR(mode):
        return [f"{path} is not a directory."]
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return [f"The directory {path} is on a file system that is mounted read-only."]
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return [f"The directory {path} is not writable for mcvirtd."]
    return []


def traverse_faults(path: Path, user: str) -> list[str]:
    """What keeps *user* from reaching files in the directory; empty if nothing does, or if there is no such user.

    Only the permission bits are judged: a directory with an access control list is taken to be as it should.
    """
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return []
    groups = {account.pw_gid, *(entry.gr_gid for entry in grp.getgrall() if user in entry.gr_mem)}
    real = path.resolve()
    for place in [*reversed(real.parents), real]:
        if not _may_traverse(place, account.pw_uid, groups):
            return [f"The user {user}, who runs virtual machines, may not enter {place}; `chmod o+x {place}` lets it."]
    return []


def _may_traverse(place: Path, uid: int, gids: set[int]) -> bool:
    try:
        facts = place.stat()
        if uid == 0 or "system.posix_acl_access" in os.listxattr(place):
            return True
    except OSError as error:
        return error.errno == errno.EOPNOTSUPP and _may_by_mode(facts, uid, gids)
    return _may_by_mode(facts, uid, gids)


def _may_by_mode(facts: os.stat_result, uid: int, gids: set[int]) -> bool:
    if facts.st_uid == uid:
        return bool(facts.st_mode & stat.S_IXUSR)
    if facts.st_gid in gids:
        return bool(facts.st_mode & stat.S_IXGRP)
    return bool(facts.st_mode & stat.S_IXOTH)
