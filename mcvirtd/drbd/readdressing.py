"""Replicated hard drives follow the cluster addresses of their two nodes.

Each node does its own side, as soon as it knows of the change: a node that was away then does so when it has caught up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from mcvirt.errors import McvirtError
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.resources import replicas_on
from mcvirtd.state.records import DiskRecord, NodeRecord
from mcvirtd.state.store import Store

log = logging.getLogger(__name__)


class Readdressing:
    """*readdress* has the leg of a hard drive here use the addresses that are on record; False if it can't be now.

    It is not asked to where *moving* says of a resource that its guest is on its way from one node to the other.
    """

    def __init__(
        self, *, store: Store, node: str, readdress: Callable[[str], bool], moving: Callable[[str], bool]
    ) -> None:
        self._store = store
        self._node = node
        self._readdress = readdress
        self._moving = moving
        self._lock = threading.Lock()
        self._done: dict[str, tuple[str | None, ...]] = {}

    def follow(self) -> None:
        """Look at all legs that are not known to be right; those for which it is too early are looked at again."""
        with self._lock:
            disks = {disk.id: disk for disk in replicas_on(self._store, self._node).values()}
            self._done = {disk: addresses for disk, addresses in self._done.items() if disk in disks}
            for disk in disks.values():
                if self._moving(resource_name(disk.id)):
                    continue
                wanted = self._addresses(disk)
                # Without the other node, or its address, the leg stays as it was.
                if len(wanted) != 2 or None in wanted or self._done.get(disk.id) == wanted:
                    continue
                try:
                    if self._readdress(disk.id):
                        self._done[disk.id] = wanted
                except McvirtError as error:
                    log.warning("the addresses of hard drive %s can't be set now: %s", disk.id, error)

    def _addresses(self, disk: DiskRecord) -> tuple[str | None, ...]:
        nodes = (self._store.get(NodeRecord, name) for name in disk.nodes)
        return tuple(node.address if node is not None else None for node in nodes)
