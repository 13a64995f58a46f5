"""What is asked of the two sides of a split hard drive, and what the other node may ask of this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mcvirt import names
from mcvirt.api.split_brain import SplitPeerApi
from mcvirt.errors import Conflict, NotFound
from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.status import Progress as Position
from mcvirtd.state.records import DiskRecord, SplitUndoRecord
from mcvirtd.state.store import Store


class Kernel(Protocol):
    """What is asked of DRBD on this node."""

    def connect(self, name: str, *, discard_my_data: bool = False) -> None: ...
    def disconnect(self, name: str, *, force: bool = False) -> None: ...
    def primary(self, name: str, *, force: bool = False) -> None: ...
    def secondary(self, name: str) -> None: ...
    def progress(self) -> Mapping[int, Position]: ...
    def state(self, name: str) -> ResourceState | None: ...


class Kept(Protocol):
    """What is kept beside the hard drives on this node."""

    def make(self, disk: DiskRecord, progress: Callable[[int, int], None] | None = None) -> None: ...
    def drop(self, disk: DiskRecord) -> None: ...
    def length(self, disk: DiskRecord) -> int | None: ...
    def path(self, disk: DiskRecord) -> Path: ...
    def check_room(self, disks: Sequence[DiskRecord]) -> None: ...


class Checks(Protocol):
    """What keeps sides on this node from giving way, or from having their earlier data back; see SplitChecks."""

    def may_give_way(self, disks: Sequence[DiskRecord]) -> None: ...
    def may_take_back(self, disks: Sequence[DiskRecord]) -> None: ...
    def may_set_aside(self, disks: Sequence[DiskRecord]) -> None: ...


Ask = Callable[[str, str, dict[str, Any], float], msgspec.Raw]
"""Calls an operation of SplitPeerApi on another node: node, operation, arguments, seconds."""


def equal(state: ResourceState | None) -> bool:
    """Whether both sides are good and at rest, and no block of them is known to differ."""
    return state is not None and state.both_good and state.replication == "Established" and not state.out_of_sync


def written(kernel: Kernel, disk: DiskRecord) -> int | None:
    """How many bytes of the hard drive this side has written without the other; None where the kernel says nothing."""
    position = kernel.progress().get(disk.replica.minor) if disk.replica is not None else None
    return None if position is None else position.out_of_sync


class SplitPeer(SplitPeerApi):
    """What other nodes ask of this one: see SplitPeerApi."""

    def __init__(
        self, *, store: Store, node: str, kernel: Kernel, reader: Reader, asides: Kept, checks: Checks
    ) -> None:
        self._store = store
        self._node = node
        self._kernel = kernel
        self._reader = reader
        self._asides = asides
        self._checks = checks

    def may_give_way(self, disks: tuple[str, ...]) -> None:
        """Raise all that stands against this node's giving way."""
        self._checks.may_give_way([self._disk(disk) for disk in disks])

    def may_take_back(self, disks: tuple[str, ...]) -> None:
        """Raise all that stands against going on with what was set aside here."""
        self._checks.may_take_back([self._disk(disk) for disk in disks])

    def may_set_aside(self, disks: tuple[str, ...]) -> None:
        """Raise all that stands against a copy of what this node has."""
        self._checks.may_set_aside([self._disk(disk) for disk in disks])

    def meet(self, disk: str) -> None:
        """Look for the other side of the hard drive again."""
        state = self._reader.state(resource_name(self._disk(disk).id))
        if state is None:
            raise Conflict(text=f"Hard drive {disk} is not set up on node '{self._node}'.")
        if state.connection == "StandAlone":
            self._kernel.connect(state.name)

    def written(self, disk: str) -> int | None:
        """How many bytes this side has written without the other."""
        return written(self._kernel, self._disk(disk))

    def drop_aside(self, disk: str) -> None:
        """Delete that copy; Conflict if the records, as this node has them, say that it is wanted."""
        record, undo = self._disk(disk), self._store.get(SplitUndoRecord, disk)
        if undo is not None and undo.node == self._node:
            raise Conflict(text=f"What was set aside of hard drive {disk} on node '{self._node}' is wanted.")
        self._asides.drop(record)

    def _disk(self, disk: str) -> DiskRecord:
        record = self._store.get(DiskRecord, names.object_id(disk, "hd", "hard drive"))
        if record is None or record.replica is None or self._node not in record.nodes:
            raise NotFound(kind="replicated hard drive", name=names.printable(disk))
        return record
