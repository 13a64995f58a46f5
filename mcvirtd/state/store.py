"""The one store: configuration records, journal, tasks, sessions and audit in one SQLite file.

Records are read from memory and changed through one door: `with store.change() as change`. All that a change puts and
deletes is committed together, with its journal entries, under one new revision of the configuration; then the memory
is exchanged and subscribers are told. Nobody sees half a change, and after a crash either all of it is there or none.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import msgspec

from mcvirt.errors import Conflict, StateNotWritable
from mcvirtd.state import file, schema
from mcvirtd.state.records import RECORDS, Record

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)
_encode = msgspec.json.Encoder().encode
_decoders = {kind: msgspec.json.Decoder(cls) for kind, cls in RECORDS.items()}


class Change:
    """Records to put and to delete together. Reads through it see what it has put so far."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.puts: dict[tuple[str, str], Record] = {}
        self.deletes: set[tuple[str, str]] = set()
        self.statements: list[tuple[str, tuple[Any, ...]]] = []

    def get(self, cls: type[R], key: str) -> R | None:
        """The record as this change leaves it, or None."""
        place = (cls.kind, key)
        if place in self.deletes:
            return None
        found = self.puts.get(place)
        return found if isinstance(found, cls) else self._store.get(cls, key)

    def all(self, cls: type[R]) -> dict[str, R]:
        """All records of a kind by key, as this change leaves them."""
        found = {key: record for key, record in self._store.all(cls).items() if (cls.kind, key) not in self.deletes}
        found.update({key: record for (_, key), record in self.puts.items() if isinstance(record, cls)})
        return found

    def put(self, record: Record) -> None:
        """Store *record* instead of the one with its key, if there is one."""
        # Written and read back: what can't be read back must not be stored.
        _decoders[record.kind].decode(_encode(record))
        place = (record.kind, record.key)
        self.deletes.discard(place)
        self.puts[place] = record

    def edit(self, cls: type[R], key: str, **fields: Any) -> R:
        """Put the record with *fields* replaced; Conflict if it is gone."""
        record = self.get(cls, key)
        if record is None:
            raise Conflict(text=f"The {cls.kind} '{key}' was deleted meanwhile.")
        changed = msgspec.structs.replace(record, **fields)
        self.put(changed)
        return changed

    def delete(self, cls: type[Record], key: str) -> None:
        """Delete the record; nothing happens if there is none."""
        self.puts.pop((cls.kind, key), None)
        self.deletes.add((cls.kind, key))

    def execute(self, statement: str, arguments: tuple[Any, ...] = ()) -> None:
        """Run *statement* on the other tables (journal, task, ...) in the same commit."""
        self.statements.append((statement, arguments))


class Turns(Protocol):
    """How a change of the shared configuration gets its place among those of other members."""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """In the block nobody else makes a change, and everything that was changed before is here."""
        yield

    def commit(self, change: Change) -> None:
        """Have *change* stored by the cluster; when this returns, it is also stored here."""


class Store:
    """The state file at *path*. Thread-safe. StateRefused: the file can't be used, and was left alone."""

    def __init__(self, path: Path, *, upgrades: Sequence[schema.Upgrade] = schema.UPGRADES) -> None:
        self.path = path
        # Held while the file is written or asked; *_turn* is held by who makes a change, for as long as that takes.
        self._lock = threading.RLock()
        self._turn = threading.RLock()
        self._changer = 0
        self._turns: Turns | None = None
        self._subscribers: list[Callable[[Change], None]] = []
        self._records: dict[str, dict[str, Record]] = {kind: {} for kind in RECORDS}
        self._revision = 0
        self._db = file.open_state(path, upgrades)
        try:
            self._load()
        except (sqlite3.Error, TypeError, ValueError) as error:
            self._db.close()
            raise file.refused(path, error) from None
        except BaseException:
            self._db.close()
            raise

    def _load(self) -> None:
        for kind, key, revision, data in self._db.execute("SELECT kind, key, revision, data FROM record"):
            decoder = _decoders.get(kind)
            try:
                if decoder is None:
                    raise msgspec.ValidationError(f"unknown kind {kind}")
                record = decoder.decode(data)
                if record.key != key:
                    raise msgspec.ValidationError("its key is another one")
            except (msgspec.MsgspecError, TypeError) as error:
                reason = f"the {kind} '{key}' (revision {revision}) in it can't be read: {error}"
                raise file.damaged(self.path, reason) from None
            self._records[kind][key] = record
        (revision,) = self._db.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()
        self._revision = int(revision)

    @property
    def revision(self) -> int:
        """How many changes the configuration has seen."""
        return self._revision

    def get(self, cls: type[R], key: str) -> R | None:
        """The record of that kind and key, or None."""
        found = self._records[cls.kind].get(key)
        return found if isinstance(found, cls) else None

    def all(self, cls: type[R]) -> Mapping[str, R]:
        """All records of a kind by key, as they are now; later changes do not show in it."""
        return MappingProxyType(self._records[cls.kind])  # type: ignore[arg-type]

    def subscribe(self, callback: Callable[[Change], None]) -> None:
        """Call *callback* with every committed change, in order, in the thread that made it.

        It must be quick, and can't make a change itself.
        """
        self._subscribers.append(callback)

    @contextmanager
    def change(self) -> Iterator[Change]:
        """A change that is committed when the block ends, unless it ends with an exception.

        One change is made at a time: what the block reads stays true until the commit. Keep it short, and do nothing
        in it but read and put. Raises StateNotWritable when the file can't take it; then nothing has changed.
        """
        turns = self._turns
        with self._turn, turns.turn() if turns is not None else nullcontext():
            self._not_within_a_change()
            self._changer = threading.get_ident()
            try:
                change = Change(self)
                yield change
                if turns is not None and (change.puts or change.deletes):
                    turns.commit(change)
                else:
                    self._commit(change)
            finally:
                self._changer = 0

    @contextmanager
    def note(self) -> Iterator[Change]:
        """Statements on this node's own tables (journal, tasks, ...), committed together when the block ends.

        It waits for no other node, and for no change that is being made. Records can't be put in it.
        """
        self._not_within_a_change()
        change = Change(self)
        yield change
        if change.puts or change.deletes:
            raise RuntimeError("records are changed with change()")
        self._commit(change)

    def _not_within_a_change(self) -> None:
        if self._changer == threading.get_ident():
            # It would be stored although the change around it may yet fail.
            raise RuntimeError("a change within a change")

    def replicate_with(self, turns: Turns) -> None:
        """From now on changes of records are ordered by *turns*."""
        self._turns = turns

    def _commit(self, change: Change) -> None:
        if not (change.puts or change.deletes or change.statements):
            return
        with self._lock:
            self.apply(change, self._revision + (1 if change.puts or change.deletes else 0))

    def apply(self, change: Change, revision: int, *, everything: bool = False) -> None:
        """Store *change* as *revision*; with *everything*, instead of all records there are."""
        with self._lock:
            try:
                self._write(change, revision, everything=everything)
            except sqlite3.Error as error:
                raise StateNotWritable(path=str(self.path), reason=f"{error}.") from None
            self._exchange(change, revision)

    def _write(self, change: Change, revision: int, *, everything: bool) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if everything:
                self._db.execute("DELETE FROM record")
            for (kind, key), record in change.puts.items():
                self._db.execute("REPLACE INTO record VALUES (?, ?, ?, ?)", (kind, key, revision, _encode(record)))
            for kind, key in change.deletes:
                self._db.execute("DELETE FROM record WHERE kind = ? AND key = ?", (kind, key))
            for statement, arguments in change.statements:
                self._db.execute(statement, arguments)
            if revision != self._revision:
                self._db.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (str(revision),))
            self._db.execute("COMMIT")
        except BaseException:
            # After some errors SQLite has rolled back already, and says that there is nothing to.
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _exchange(self, change: Change, revision: int) -> None:
        # Readers hold no lock: the dictionaries are never changed in place, and all kinds are exchanged at once.
        everything = dict(self._records)
        for kind in {kind for kind, _ in (*change.puts, *change.deletes)}:
            everything[kind] = dict(everything[kind])
        for (kind, key), record in change.puts.items():
            everything[kind][key] = record
        for kind, key in change.deletes:
            everything[kind].pop(key, None)
        self._records = everything
        self._revision = revision
        for callback in self._subscribers:
            try:
                callback(change)
            except Exception:  # the change is made: who made it must not take it for failed, and undo things
                log.exception("a subscriber of the state failed")

    def execute(self, statement: str, arguments: tuple[Any, ...] = ()) -> None:
        """Run one statement on the tables that are not records, durably."""
        with self.note() as note:
            note.execute(statement, arguments)

    def query(self, statement: str, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows of a SELECT on the tables that are not records."""
        with self._lock:
            try:
                return self._db.execute(statement, arguments).fetchall()
            except sqlite3.Error as error:
                raise file.refused(self.path, error) from None

    def compact(self) -> None:
        """Write the file anew, so that nothing is left in it of what was deleted."""
        with self._lock:
            try:
                self._db.execute("VACUUM")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error as error:
                raise StateNotWritable(path=str(self.path), reason=f"{error}.") from None

    def close(self) -> None:
        """Write everything into the one file and close it."""
        with self._lock:
            self._db.close()
