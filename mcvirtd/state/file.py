"""Opening the state file: made whole or not at all, looked at before it is touched, and owned by one process."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from mcvirt.errors import StateRefused
from mcvirtd.state import schema

_MAGIC = b"SQLite format 3\0"
_NO_SHARED_INDEX = frozenset({sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP})
# A daemon that is being restarted may not be quite gone yet.
_PATIENCE = 5.0


def open_state(path: Path, upgrades: Sequence[schema.Upgrade]) -> sqlite3.Connection:
    """The file at *path*, made if there is none, lifted to the newest version, and closed to all other processes.

    StateRefused: it can't be used, and was left as it is.
    """
    if not os.path.lexists(path):
        _create(path, upgrades)
    try:
        inspected = _inspect(path, len(upgrades))
        path.chmod(0o600)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_PATIENCE)
    except (sqlite3.Error, OSError, ValueError) as error:  # SQLite quotes damaged names in its own sentences
        raise refused(path, error) from None
    try:
        # In exclusive mode a second process can't even read the file.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        if not inspected:
            _judge(path, db, len(upgrades))
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        schema.upgrade(db, upgrades)
    except (sqlite3.Error, ValueError) as error:
        db.close()
        raise refused(path, error) from None
    except BaseException:
        db.close()
        raise
    _clear_leftovers(path)
    return db


def damaged(path: Path, reason: str) -> StateRefused:
    """The content of the file is not what it should be."""
    return StateRefused(
        path=str(path),
        reason=reason if reason.endswith(".") else reason + ".",
        hint="Restore it from a backup, or move it away to start with nothing.",
    )


def refused(path: Path, error: Exception) -> StateRefused:
    """What SQLite or the kernel said about the file, as an error of ours."""
    if isinstance(error, OSError):
        hint = "Look at the disk and at the permissions."
        return StateRefused(path=str(path), reason=f"{error.strerror}.", hint=hint)
    code = getattr(error, "sqlite_errorcode", None)
    kind = None if code is None else code & 0xFF
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StateRefused(path=str(path), reason="another mcvirtd is using it.", hint="Stop that one first.")
    if kind in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
    ):
        hint = "Look at the disk, the space on it, and the permissions."
        return StateRefused(path=str(path), reason=f"{error}.", hint=hint)
    return damaged(path, f"it is damaged ({error}).")


def _create(path: Path, upgrades: Sequence[schema.Upgrade]) -> None:
    # Under another name first: a file of that name is whole, and an empty one was cut off by something else.
    wal = path.with_name(path.name + "-wal")
    if wal.exists():
        raise damaged(path, f"it is missing, although its newest changes are there, in {wal}.")
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        db = sqlite3.connect(new, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = FULL")
            schema.upgrade(db, upgrades)
        finally:
            db.close()
        try:
            path.hardlink_to(new)
        except FileExistsError:
            pass  # another mcvirtd was faster: it has the file open, and that will be said
        new.unlink()
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except (sqlite3.Error, OSError) as error:
        new.unlink(missing_ok=True)
        raise refused(path, error) from None


def _inspect(path: Path, newest: int) -> bool:
    """Look at the file without changing a byte of it; False if there is no room to do that."""
    with path.open("rb") as stream:
        head = stream.read(len(_MAGIC))
    if head != _MAGIC:
        raise damaged(path, "it is empty." if not head else "it is not a state file.")
    try:
        with _reading(path) as db:
            _judge(path, db, newest)
    except sqlite3.OperationalError as error:
        # On a full disk there is no room for the index of the log that readers share. In exclusive mode none is needed.
        if error.sqlite_errorcode not in _NO_SHARED_INDEX:
            raise
        return False
    return True


def _judge(path: Path, db: sqlite3.Connection, newest: int) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > newest:
        raise StateRefused(
            path=str(path),
            reason=f"it was written by a newer mcvirtd (version {version}, this one knows {newest}).",
            hint="Install that version of mcvirt again, or restore a backup.",
        )
    if version < 1:
        raise damaged(path, "it is not a state file.")
    if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise damaged(path, "it is damaged.")


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    wal, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    # An ordinary connection would move what a crash left in the log into the file, and make a log if there is none.
    mode = "mode=ro" if wal.exists() else "immutable=1"
    indexed = index.exists()
    db = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None, timeout=_PATIENCE)
    try:
        yield db
    finally:
        db.close()
        if not indexed:
            index.unlink(missing_ok=True)


def _clear_leftovers(path: Path) -> None:
    for left in path.parent.glob(f"{path.name}.*.new*"):
        left.unlink(missing_ok=True)
