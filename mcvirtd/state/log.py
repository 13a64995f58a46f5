"""The replication log in the state file: entries, epochs, promises, and what was kept aside.

A cluster of one writes no entries: nobody needs them, for a new member begins with a snapshot.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from mcvirt.errors import StateRefused
from mcvirtd.state.order import Entry, Epoch, Position, Snapshot
from mcvirtd.state.records import RECORDS, ClusterRecord, NodeRecord, Record
from mcvirtd.state.store import Change, Store

KEPT_ENTRIES = 10_000
_ROWS_AT_ONCE = 64
_encode = msgspec.json.Encoder().encode


Statement = tuple[str, tuple[Any, ...]]


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """Who made a change, and under which token it waits for it to come back."""

    node: str
    token: str


class Wire(msgspec.Struct, frozen=True):
    """A change as it travels: records to put, each with its kind, and (kind, key) pairs to delete."""

    puts: list[tuple[str, msgspec.Raw]] = []
    deletes: list[tuple[str, str]] = []
    origin: Origin | None = None


_wire = msgspec.json.Decoder(Wire)


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """A change that was stored here and is not part of the cluster's history; *data* is its JSON."""

    id: int
    time: float
    epoch: Epoch
    revision: int
    data: str


def to_wire(change: Change, origin: Origin | None = None) -> str:
    """The records of *change* in the form in which they travel; its statements stay here."""
    puts = [(kind, msgspec.Raw(_encode(record))) for (kind, _), record in change.puts.items()]
    return _encode(Wire(puts=puts, deletes=sorted(change.deletes), origin=origin)).decode()


class StateLog:
    """The log of the member *name*, on its store. Called under the member's lock."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._waiting: dict[str, Change] = {}
        self._lock = threading.Lock()
        self._epochs = [
            (Epoch(number, leader), first)
            for number, leader, first in store.query("SELECT number, leader, first FROM epoch ORDER BY first, number")
        ]
        rows = store.query("SELECT value FROM meta WHERE name = 'promised'")
        if not self._epochs or not rows:
            self._begin()
        else:
            number, leader = msgspec.json.decode(rows[0][0])
            self._promised = Epoch(number, leader)

    def _begin(self) -> None:
        cluster = self._store.get(ClusterRecord, "cluster")
        first = Epoch(cluster.epoch, cluster.leader) if cluster is not None else Epoch(1, self._name)
        with self._store.note() as note:
            note.execute("DELETE FROM epoch")
            note.execute("INSERT INTO epoch VALUES (?, ?, 0)", first)
            note.execute("REPLACE INTO meta VALUES ('promised', ?)", (_encode(first).decode(),))
        self._epochs, self._promised = [(first, 0)], first

    # --- what is there ----------------------------------------------------------------------------------------------

    def position(self) -> Position:
        return Position(self._epochs[-1][0], self._store.revision)

    def promised(self) -> Epoch:
        return self._promised

    def epoch_of(self, revision: int) -> Epoch | None:
        if revision > self._store.revision:
            return None
        return next((epoch for epoch, first in reversed(self._epochs) if first <= revision), None)

    def epochs(self) -> Sequence[tuple[Epoch, int]]:
        return list(self._epochs)

    def after(self, revision: int, most: int | None = None) -> Sequence[Entry] | None:
        ((count,),) = self._store.query("SELECT COUNT(*) FROM change WHERE revision > ?", (revision,))
        if count != self._store.revision - revision:
            return None
        entries: list[Entry] = []
        size = 0
        while len(entries) < count and (most is None or size < most):
            rows = self._store.query(
                "SELECT revision, epoch, leader, before_epoch, before_leader, data FROM change WHERE revision > ? "
                "ORDER BY revision LIMIT ?",
                (entries[-1].revision if entries else revision, _ROWS_AT_ONCE),
            )
            for place, number, leader, before, before_leader, data in rows:
                if most is not None and entries and size + len(data) > most:
                    return entries
                entries.append(Entry(Epoch(number, leader), place, Epoch(before, before_leader), data))
                size += len(data)
        return entries

    def members(self) -> Mapping[str, bool]:
        return {name: record.away for name, record in self._store.all(NodeRecord).items()}

    def conflicts(self) -> Sequence[Conflict]:
        """What was kept aside, the oldest first."""
        rows = self._store.query("SELECT id, time, epoch, leader, revision, data FROM conflict ORDER BY id")
        return [
            Conflict(id=number, time=when, epoch=Epoch(epoch, leader), revision=revision, data=data)
            for number, when, epoch, leader, revision, data in rows
        ]

    def clear_conflicts(self, numbers: Collection[int]) -> int:
        """Delete those of them; returns how many there were."""
        there = {kept.id for kept in self.conflicts()} & set(numbers)
        for number in there:
            self._store.execute("DELETE FROM conflict WHERE id = ?", (number,))
        return len(there)

    # --- changes ----------------------------------------------------------------------------------------------------

    def wait_for(self, token: str, change: Change) -> None:
        """The statements of *change* are to be stored together with its records, when those come back as an entry."""
        with self._lock:
            self._waiting[token] = change

    def give_up(self, token: str) -> None:
        """Wait for it no longer."""
        with self._lock:
            self._waiting.pop(token, None)

    def promise(self, epoch: Epoch) -> None:
        change = Change(self._store)
        change.execute("REPLACE INTO meta VALUES ('promised', ?)", (_encode(epoch).decode(),))
        self._store.apply(change, self._store.revision)
        self._promised = epoch

    def append(self, entry: Entry) -> None:
        wire = _wire.decode(entry.change)
        change = self._read(wire)
        with self._lock:
            waiting = self._waiting.pop(wire.origin.token, None) if wire.origin is not None else None
        if waiting is not None:
            change.statements += waiting.statements
        if len(self.members()) > 1 or any(isinstance(record, NodeRecord) for record in change.puts.values()):
            change.execute(
                "REPLACE INTO change VALUES (?, ?, ?, ?, ?, ?)",
                (entry.revision, *entry.epoch, *entry.before, entry.change),
            )
            change.execute("DELETE FROM change WHERE revision <= ?", (entry.revision - KEPT_ENTRIES,))
        begins = entry.epoch != self._epochs[-1][0]
        if begins:
            change.execute("INSERT INTO epoch VALUES (?, ?, ?)", (*entry.epoch, entry.revision))
        promised = max(self._promised, entry.epoch)
        if promised != self._promised:
            change.execute("REPLACE INTO meta VALUES ('promised', ?)", (_encode(promised).decode(),))
        self._store.apply(change, entry.revision)
        if begins:
            self._epochs.append((entry.epoch, entry.revision))
        self._promised = promised

    def _read(self, wire: Wire) -> Change:
        change = Change(self._store)
        for kind, data in wire.puts:
            change.put(_record(kind, bytes(data)))
        for kind, key in wire.deletes:
            change.deletes.add((kind, key))
        return change

    def marked(self, away: Sequence[str], back: Sequence[str]) -> str:
        change = Change(self._store)
        for name in away:
            change.edit(NodeRecord, name, away=True)
        for name in back:
            change.edit(NodeRecord, name, away=False)
        return to_wire(change)

    def promotion(self, leader: str, number: int, away: Sequence[str]) -> str:
        change = Change(self._store)
        for name in away:
            change.edit(NodeRecord, name, away=True)
        change.edit(NodeRecord, leader, away=False)
        change.edit(ClusterRecord, "cluster", leader=leader, epoch=number)
        return to_wire(change)

    # --- everything at once -----------------------------------------------------------------------------------------

    def snapshot(self) -> str:
        change = Change(self._store)
        for cls in RECORDS.values():
            for record in self._store.all(cls).values():
                change.puts[record.kind, record.key] = record
        return to_wire(change)

    def whole(self) -> Snapshot:
        """The configuration as it is now, with its place."""
        return Snapshot(self.position(), list(self._epochs), self.snapshot())

    def replace(self, snapshot: Snapshot, kept_aside: Sequence[Entry], kept_whole: str | None) -> None:
        aside = [(entry.epoch, entry.revision, entry.change) for entry in kept_aside]
        if kept_whole is not None:
            aside.append((*self.position(), kept_whole))
        self._replace(snapshot, aside, ())

    def _replace(
        self, snapshot: Snapshot, aside: Sequence[tuple[Epoch, int, str]], statements: Sequence[Statement]
    ) -> None:
        change = self._read(_wire.decode(snapshot.content))
        for cls in RECORDS.values():
            change.deletes |= {(cls.kind, key) for key in self._store.all(cls) if (cls.kind, key) not in change.puts}
        change.statements += statements
        now = time.time()
        for epoch, revision, data in aside:
            change.execute(
                "INSERT INTO conflict (time, epoch, leader, revision, data) VALUES (?, ?, ?, ?, ?)",
                (now, *epoch, revision, data),
            )
        change.execute("DELETE FROM change")
        change.execute("DELETE FROM epoch")
        for epoch, first in snapshot.epochs:
            change.execute("INSERT INTO epoch VALUES (?, ?, ?)", (*epoch, first))
        promised = max(self._promised, snapshot.position.epoch)
        change.execute("REPLACE INTO meta VALUES ('promised', ?)", (_encode(promised).decode(),))
        change.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (str(snapshot.position.revision),))
        self._store.apply(change, snapshot.position.revision, everything=True)
        self._epochs = [(Epoch(*epoch), first) for epoch, first in snapshot.epochs]
        self._promised = promised

    def become(self, snapshot: Snapshot, promised: Epoch, statements: Sequence[Statement] = ()) -> None:
        """Take over the configuration of another cluster, as its new member, or that of none, as a cluster of one.

        *statements*, on the node's own tables, are stored in the same transaction.
        """
        before, self._promised = self._promised, promised
        try:
            self._replace(snapshot, [], statements)
        except BaseException:
            self._promised = before
            raise


def _record(kind: str, data: bytes) -> Record:
    cls = RECORDS.get(kind)
    try:
        if cls is None:
            raise msgspec.ValidationError(f"nothing is known here of the kind '{kind}'")
        return msgspec.json.decode(data, type=cls)
    except msgspec.MsgspecError as error:
        raise StateRefused(
            path="(a change from another node)",
            reason=f"a {kind} in it can't be read: {error}.",
            hint="Upgrade mcvirt on this node.",
        ) from None


def content(change: str) -> Mapping[str, Any]:
    """The JSON of a change that was kept aside, for people to look at."""
    found: Mapping[str, Any] = msgspec.json.decode(change)
    return found
