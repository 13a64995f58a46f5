"""Sides of hard drives that have been replaced by ones on other nodes: each node deletes its own, as soon as it can.

That there is one is in the records, from the change on that gives the hard drive its new side: so a node that was away
then does it when it is back, whoever is gone by that time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from mcvirt.errors import McvirtError
from mcvirtd.state.records import DiskRecord, FormerLegRecord, ReplicaClaimRecord
from mcvirtd.state.store import Change, Store

log = logging.getLogger(__name__)


def former_leg(disk: DiskRecord, node: str) -> FormerLegRecord:
    """The record that *node* is to delete the side of *disk* that it has until now."""
    port = disk.replica.port if disk.replica is not None else 0
    return FormerLegRecord(name=_name(disk.id, node), disk=disk.id, node=node, backend=disk.backend, port=port)


def has_former_leg(store: Store, disk: str, node: str) -> bool:
    """Whether *node* still has to delete what it had of the hard drive."""
    return store.get(FormerLegRecord, _name(disk, node)) is not None


def forget_node(change: Change, node: str) -> None:
    """What a node has that is no member any more is out of everybody's reach."""
    for record in list(change.all(FormerLegRecord).values()):
        if record.node == node:
            change.delete(FormerLegRecord, record.name)


def _name(disk: str, node: str) -> str:
    return f"{disk}@{node}"


class FormerLegs:
    """Those on this node. *drop* deletes all that there is here of a hard drive, by its ID and backend."""

    def __init__(self, store: Store, node: str, drop: Callable[[str, str], None]) -> None:
        self._store = store
        self._node = node
        self._drop = drop
        self._lock = threading.Lock()

    def settle(self) -> None:
        """Delete them; for a timer. One that can't be now is tried again. Others do nothing while one is at it."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            for record in list(self._store.all(FormerLegRecord).values()):
                if record.node != self._node or self._is_wanted(record.disk):
                    continue
                try:
                    self._drop(record.disk, record.backend)
                    with self._store.change() as change:
                        change.delete(FormerLegRecord, record.name)
                except McvirtError as error:
                    log.warning("what this node had of hard drive %s is deleted later: %s", record.disk, error)
                else:
                    log.info("what this node had of hard drive %s was deleted: it is on other nodes now", record.disk)
        finally:
            self._lock.release()

    def _is_wanted(self, disk: str) -> bool:
        """Whatever has come of it, data that the records speak of is never deleted."""
        record, claim = self._store.get(DiskRecord, disk), self._store.get(ReplicaClaimRecord, disk)
        return (record is not None and self._node in record.nodes) or (claim is not None and self._node in claim.nodes)
