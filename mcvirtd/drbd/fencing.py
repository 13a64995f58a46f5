"""Telling the other side that its data is old, before this one goes on without it.

The kernel asks for it when a Primary loses its connection, and when a side without one is to become Primary. DRBD's own
link may be cut where the nodes still reach each other: then the answer keeps two sides from going their own ways.

The kernel asks once. Where the other node could not be told just then, it is told as soon as it can be: else it would
take what it has for good when this node is gone, and nobody would know better.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

from mcvirt.errors import CommandFailed, DeadlinePassed, McvirtError
from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd import handler
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.resources import replicas_on
from mcvirtd.drbd.status import GAP, Event
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.state.store import Store

log = logging.getLogger(__name__)

Fenced = Literal["outdated", "primary", "failed"]
CUT_WITHIN = 12.0
FENCE_WITHIN = 15.0
_AT_ONCE = 4


class Other(Protocol):
    """Asks another node to have its leg marked as old; raises NodeUnreachable."""

    def __call__(self, node: str, disk: str, within: float, *, again: bool = False) -> Fenced:
        """*again*: the kernel here does not wait for the answer any more."""


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
        self._outdated: set[str] = set()
        self._asking = threading.Lock()
        reader.subscribe(self._on_event)

    def _on_event(self, event: Event, state: ResourceState | None) -> None:
        # Whatever the other side was told, it may have got all data since.
        if event.verb == GAP or state is None or state.connected:
            self._outdated.discard(event.resource)

    def fence(self, resource: str) -> int:
        """What the handler program is to end with, after the other side was told."""
        disk = replicas_on(self._store, self._node).get(resource)
        if disk is None:
            log.error("DRBD asks to fence the other side of %s, of which there is no record", resource)
            return handler.FAILED
        self._outdated.discard(resource)
        other = self._other_node(disk)
        try:
            fenced = self._other(other, disk.id, FENCE_WITHIN)
        except McvirtError as error:
            log.warning("DRBD: node %s can't be told that its data of %s is old: %s", other, resource, error)
            return handler.UNREACHABLE
        log.info("DRBD: the data of %s on node %s: %s", resource, other, fenced)
        if fenced == "outdated":
            self._outdated.add(resource)
        return {"outdated": handler.OUTDATED, "primary": handler.PRIMARY}.get(fenced, handler.FAILED)

    def fence_again(self) -> None:
        """Tell the other sides that do not know it yet, as far as they can be asked; for a timer, and who comes back.

        It is done only for machines that are registered here and disks that they use: what is Primary for any other
        reason has nothing that the other side lacks, and for a moment only.
        """
        if not self._asking.acquire(blocking=False):
            return
        try:
            due = [(name, disk) for name, disk in replicas_on(self._store, self._node).items() if self._due(name, disk)]
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fence") as pool:
                list(pool.map(lambda each: self._fence_again(*each), due))
        finally:
            self._asking.release()

    def _due(self, name: str, disk: DiskRecord) -> bool:
        # The kernel's word for the other side is not asked: where nobody answered it took that one for outdated.
        state = self._reader.state(name)
        if state is None or state.role != "Primary" or state.connection == "Connected" or state.split_brain:
            return False
        vm = self._store.get(VmRecord, disk.vm) if disk.vm is not None else None
        here = vm is not None and vm.node == self._node
        return here and name not in self._outdated and bool(self._other_node(disk)) and self._in_use(disk)

    def _fence_again(self, name: str, disk: DiskRecord) -> None:
        other = self._other_node(disk)
        try:
            fenced = self._other(other, disk.id, FENCE_WITHIN, again=True)
        except McvirtError as error:
            log.info("DRBD: node %s still can't be told that its data of %s is old: %s", other, name, error)
            return
        if fenced != "outdated":
            log.warning("DRBD: node %s, told again that its data of %s is old, says: %s", other, name, fenced)
            return
        log.warning("DRBD: node %s knows now that its data of %s is old", other, name)
        state = self._reader.state(name)
        if state is not None and not state.connected:
            self._outdated.add(name)

    def _other_node(self, disk: DiskRecord) -> str:
        return next((name for name in disk.nodes if name != self._node), "")

    def outdate(self, disk_id: str, sender: str, *, again: bool = False) -> Fenced:
        """Mark this node's data of a hard drive as old, because *sender* goes on without it.

        Told *again* it may be too late: nothing is done if the machine is this node's by now.
        """
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
            if again:
                vm = self._store.get(VmRecord, found[0][1].vm or "")
                if vm is not None and vm.node == self._node:
                    return "failed"
                if state is not None and state.disk in ("Inconsistent", "Outdated"):
                    return "outdated"  # or worse, which the kernel refuses to make of it
            self._outdate(name)
        except (CommandFailed, DeadlinePassed) as error:
            log.warning("DRBD resource %s can't be outdated: %s", name, error)
            return "failed"
        return "outdated"
