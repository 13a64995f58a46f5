"""Telling the other side that its data is old, before this one goes on without it.

The kernel asks for it when a Primary loses its connection, and when a side without one is to become Primary. DRBD's own
link may be cut where the nodes still reach each other: then the answer keeps two sides from going their own ways.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, Protocol

from mcvirt.errors import CommandFailed, DeadlinePassed, McvirtError
from mcvirtd.drbd import handler
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.resources import replicas_on
from mcvirtd.state.records import DiskRecord
from mcvirtd.state.store import Store

log = logging.getLogger(__name__)

Fenced = Literal["outdated", "primary", "failed"]
CUT_WITHIN = 12.0
FENCE_WITHIN = 15.0


class Other(Protocol):
    """Asks another node to have its leg marked as old; raises NodeUnreachable."""

    def __call__(self, node: str, disk: str, within: float) -> Fenced: ...


class Fencing:
    """*outdate* marks the data of a resource here as old, *other* asks for that elsewhere.

    *in_use* says whether this side is Primary for a guest that runs here, and not for one that is on its way to here,
    or from here: while both sides are Primary, only the one with the guest may have the other one give way.
    """

    def __init__(
        self,
        *,
        store: Store,
        node: str,
        reader: Reader,
        outdate: Callable[[str], None],
        other: Other,
        in_use: Callable[[DiskRecord], bool] = lambda disk: True,  # noqa: ARG005
    ) -> None:
        self._store = store
        self._node = node
        self._reader = reader
        self._outdate = outdate
        self._other = other
        self._in_use = in_use

    def fence(self, resource: str) -> int:
        """What the handler program is to end with, after the other side was told."""
        disk = replicas_on(self._store, self._node).get(resource)
        if disk is None:
            log.error("DRBD asks to fence the other side of %s, of which there is no record", resource)
            return handler.FAILED
        other = next(iter(name for name in disk.nodes if name != self._node), "")
        try:
            fenced = self._other(other, disk.id, FENCE_WITHIN)
        except McvirtError as error:
            log.warning("DRBD: node %s can't be told that its data of %s is old: %s", other, resource, error)
            return handler.UNREACHABLE
        log.info("DRBD: the data of %s on node %s: %s", resource, other, fenced)
        return {"outdated": handler.OUTDATED, "primary": handler.PRIMARY}.get(fenced, handler.FAILED)

    def outdate(self, disk_id: str, sender: str) -> Fenced:
        """Mark this node's data of a hard drive as old, because *sender* goes on without it."""
        found = [(name, disk) for name, disk in replicas_on(self._store, self._node).items() if disk.id == disk_id]
        if not found or sender not in found[0][1].nodes:
            return "failed"
        name = found[0][0]
        try:
            state = self._reader.state(name)
            if state is not None:
                # The one who asks may have noticed first; the kernel refuses while it thinks that it is connected.
                state = self._reader.wait(name, lambda now: now is None or not now.connected, CUT_WITHIN)
            if state is not None and state.role == "Primary":
                return "primary" if self._in_use(found[0][1]) else "failed"
            self._outdate(name)
        except (CommandFailed, DeadlinePassed) as error:
            log.warning("DRBD resource %s can't be outdated: %s", name, error)
            return "failed"
        return "outdated"
