"""What hard drives of one storage type can do: kept on one node (or on shared storage), or mirrored between two."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, Protocol

import msgspec

from mcvirtd.state.records import DiskRecord
from mcvirtd.state.store import Change
from mcvirtd.storage.planning import DiskPlan
from mcvirtd.tasks.transaction import Transaction

UsedPaths = Callable[[], Collection[str]]
"""The paths that any domain of libvirt's has on this node."""


class DiskSource(msgspec.Struct, frozen=True, kw_only=True):
    """How a hypervisor opens a hard drive on this node; *direct*: past the page cache, which not all storage can."""

    path: str
    kind: Literal["file", "block"]
    format: Literal["raw", "qcow2"]
    direct: bool = True


class DiskKind(Protocol):
    """The hard drives of one storage type. Records are looked at here and left to the caller."""

    # --- checks: they change nothing --------------------------------------------------------------------------------

    def available(self, record: DiskRecord) -> str:
        """Why the disk can't be used on this node now, in a sentence; '' if it can."""

    def takes_over(self, record: DiskRecord) -> str:
        """Why this node can't go on with the disk where the one that used it is gone, in a sentence; '' if it can."""

    def movable(self, record: DiskRecord) -> bool:
        """Whether another one of the disk's nodes may have its data without this one's doing."""

    def source(self, record: DiskRecord) -> DiskSource:
        """Where the hypervisor finds the disk, and how its volume is written; known before it exists."""

    def check_grow(self, record: DiskRecord, new_size: int) -> None:
        """Raise all that stands against making an available disk *new_size* bytes long, which is more than it has."""

    def check_delete(self, record: DiskRecord) -> None:
        """Raise if the disk's volumes can't be deleted now."""

    def check_unused(self, record: DiskRecord) -> None:
        """Raise Conflict if a domain of libvirt's has the disk, whoever gave it to it."""

    # --- acts -------------------------------------------------------------------------------------------------------

    def create(self, tx: Transaction, plan: DiskPlan) -> DiskRecord:
        """Make a planned disk: all of it, or nothing; a crash leaves nothing either."""

    def keep(self, change: Change, record: DiskRecord) -> None:
        """In the change that stores a disk just made: what was taken for the making only is given up."""

    def grow(self, record: DiskRecord, new_size: int) -> int:
        """Make the disk at least *new_size* long and return what it is then; can be repeated after a crash."""

    def finish_growth(self, record: DiskRecord, was: int) -> None:
        """The record has the new size, after *was*: what is left to be done; can be repeated after a crash."""

    def activate(self, record: DiskRecord) -> str:
        """Make the disk ready for a guest of this node; returns its path."""

    def deactivate(self, record: DiskRecord) -> None:
        """No guest of this node has the disk any more. Its data stays."""

    def take_down(self, record: DiskRecord) -> None:
        """End what its nodes have to do with the disk. No data is touched, and a failure leaves all as it was."""

    def bring_up(self, record: DiskRecord) -> None:
        """Undo ``take_down``, as far as that is possible now."""

    def delete_volume(self, record: DiskRecord) -> None:
        """Delete the disk's data; nothing happens if it is gone."""

    def forget(self, record: DiskRecord) -> None:
        """The record is about to go although not all data can be reached: delete what can be."""
