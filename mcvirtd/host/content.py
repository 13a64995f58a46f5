"""The bytes of files and block devices: copy, fill and wipe, with progress, and ended by a cancel."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mcvirt.errors import BadArgument, FileFailed, TaskCancelled
from mcvirt.units import MIB, SECTOR
from mcvirtd.host.files import opened, told, write_all

Progress = Callable[[int, int], None]
"""Is told the bytes done so far, and how many there are in all."""

PIECE = 4 * MIB
WIPE_PIECE = 64 * MIB
RESTORE_PIECE = 64 * 1024
BLKZEROOUT = 0x127F
_NO_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EBADF)
_NO_ZEROOUT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)


def whole_sectors(size: int) -> int:
    """*size* bytes rounded up to whole sectors, of which disks have some."""
    if size < 1:
        raise BadArgument(what="volume size", why="a size must be more than zero.")
    return -(-size // SECTOR) * SECTOR


class Pace:
    """Reports progress, and raises TaskCancelled once *cancel* is set."""

    def __init__(self, total: int, progress: Progress | None, cancel: threading.Event | None) -> None:
        self.total, self.progress, self.cancel = total, progress, cancel

    def at(self, done: int) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise TaskCancelled(by="")
        if self.progress is not None:
            self.progress(done, self.total)


def length(path: Path) -> int:
    """The bytes in the file or block device."""
    with told("read", path), opened(path, os.O_RDONLY) as descriptor:
        return os.lseek(descriptor, 0, os.SEEK_END)


def copy(source: Path, target: int, *, progress: Progress | None = None, cancel: threading.Event | None = None) -> int:
    """Copy what is in *source* to the descriptor *target*, which must read as zeros; returns the length of *source*.

    Holes, and in block devices zeros, are left out. The target is durable afterwards; as for its length, a file that
    is shorter becomes as long as *source*.
    """
    with opened(source, os.O_RDONLY) as descriptor:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        pace = Pace(size, progress, cancel)
        copy_piece = _copy_range if stat.S_ISREG(os.fstat(target).st_mode) else _copy_read
        for start, end in _pieces(descriptor, size):
            pace.at(start)
            copy_piece(descriptor, target, start, end - start)
        if os.lseek(target, 0, os.SEEK_END) < size:
            os.ftruncate(target, size)
        os.fsync(target)
        pace.at(size)
    return size


def _pieces(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts that hold data, in pieces; a block device does not know of holes."""
    known = stat.S_ISREG(os.fstat(descriptor).st_mode)
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA) if known else position
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE) if known else size
        while start < end:
            yield start, min(start + PIECE, end)
            start += PIECE
        position = end


def _copy_range(source: int, target: int, start: int, count: int) -> None:
    done = 0
    while done < count:
        try:
            copied = os.copy_file_range(source, target, count - done, start + done, start + done)
        except OSError as error:
            if error.errno not in _NO_COPY_RANGE:
                raise
            copied = 0
        if not copied:
            return _copy_read(source, target, start + done, count - done)
        done += copied
    return None


def _copy_read(source: int, target: int, start: int, count: int) -> None:
    done = 0
    while done < count:
        data = os.pread(source, count - done, start + done)
        if not data:
            return  # it became shorter meanwhile
        _write_at(target, data, start + done)
        done += len(data)


def _write_at(target: int, data: bytes, position: int) -> None:
    """Write *data*, unless it is zeros, which are there already."""
    if data.count(0) == len(data):
        return
    os.lseek(target, position, os.SEEK_SET)
    write_all(target, data)


def restore(source: Path, target: Path, *, length: int | None = None, progress: Progress | None = None) -> int:
    """Make block device *target* hold what *source* holds, durably, by writing what differs; returns how much did.

    Of a target that is longer than *length* the rest stays as it is. *source* is read past the page cache, which knows
    nothing of what was written below it.
    """
    written = 0
    with (
        told("restore", target),
        opened(source, os.O_RDONLY | os.O_DIRECT) as reads,
        opened(target, os.O_RDWR) as writes,
        mmap.mmap(-1, PIECE) as buffer,
    ):
        size = os.lseek(writes, 0, os.SEEK_END)
        size = size if length is None else min(size, length)
        pace = Pace(size, progress, None)
        for start in range(0, size, PIECE):
            pace.at(start)
            count = min(PIECE, size - start)
            if os.preadv(reads, [memoryview(buffer)[:count]], start) != count:
                raise FileFailed(action="restore", path=str(target), reason=f"{source} is shorter.")
            wanted, there = buffer[:count], os.pread(writes, count, start)
            for at in range(0, count if wanted != there else 0, RESTORE_PIECE):
                data = wanted[at : at + RESTORE_PIECE]
                if data != there[at : at + RESTORE_PIECE]:
                    os.lseek(writes, start + at, os.SEEK_SET)
                    write_all(writes, data)
                    written += len(data)
        os.fsync(writes)
        pace.at(size)
    return written


def fill(
    path: Path,
    chunks: Iterable[bytes],
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> int:
    """Write *chunks* to the start of a file or block device that reads as zeros, durably; returns how many bytes.

    Content that does not fit is FileFailed, with as much written as fitted.
    """
    position = 0
    with told("fill", path), opened(path, os.O_WRONLY) as target:
        size = os.lseek(target, 0, os.SEEK_END)
        pace = Pace(size, progress, cancel)
        for chunk in chunks:
            pace.at(position)
            if position + len(chunk) > size:
                raise FileFailed(action="fill", path=str(path), reason=f"there is more content than its {size} bytes.")
            _write_at(target, chunk, position)
            position += len(chunk)
        os.fsync(target)
        pace.at(position)
    return position


def wipe(
    path: Path, *, start: int = 0, progress: Progress | None = None, cancel: threading.Event | None = None
) -> None:
    """Make everything from *start* to the end of the block device (or file) read as zeros, durably."""
    with told("wipe", path), opened(path, os.O_RDWR) as descriptor:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        pace = Pace(size - start, progress, cancel)
        zero = _zero_by_kernel
        for position in range(start, size, WIPE_PIECE):
            pace.at(position - start)
            count = min(WIPE_PIECE, size - position)
            if not zero(descriptor, position, count):
                zero = _zero_by_writing
                zero(descriptor, position, count)
        os.fsync(descriptor)
        pace.at(size - start)


def _zero_by_kernel(descriptor: int, start: int, count: int) -> bool:
    if (start | count) % SECTOR:
        return False
    try:
        fcntl.ioctl(descriptor, BLKZEROOUT, struct.pack("QQ", start, count))
    except OSError as error:
        if error.errno in _NO_ZEROOUT:
            return False
        raise
    return True


def _zero_by_writing(descriptor: int, start: int, count: int) -> bool:
    os.lseek(descriptor, start, os.SEEK_SET)
    zeros = bytes(min(PIECE, count))
    while count:
        piece = min(PIECE, count)
        write_all(descriptor, memoryview(zeros)[:piece])
        count -= piece
    return True
