"""Replicated hard drives of a machine that is migrated: what is done on the node that has it. See MigrationDisks.

The guest that comes needs the disk on its new node before it has left the old one. So both sides may be Primary for as
long as the sending takes: a window on each node, of that resource alone, which is kept open by being renewed, by this
node on both. DRBD's connection is never touched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mcvirt.errors import McvirtError, NodeUnreachable
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.local_legs import States
from mcvirtd.drbd.reader import describe
from mcvirtd.drbd.rejoining import Rejoining
from mcvirtd.drbd.roles import Roles
from mcvirtd.drbd.windows import LEASE, RENEW_EVERY, Windows
from mcvirtd.migration.disks import Ask
from mcvirtd.migration.ticket import Ticket
from mcvirtd.state.records import DiskRecord, NodeRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.task import step

log = logging.getLogger(__name__)

ACT_WITHIN = 120.0


class ReplicatedDisks:
    """On this node; *ask* asks the other one."""

    def __init__(
        self,
        *,
        store: Store,
        states: States,
        roles: Roles,
        windows: Windows,
        rejoining: Rejoining,
        ask: Ask,
    ) -> None:
        self._store = store
        self._states = states
        self._roles = roles
        self._windows = windows
        self._rejoining = rejoining
        self._ask = ask
        self._lock = threading.Lock()
        self._renewals: dict[str, threading.Event] = {}

    # --- looking ------------------------------------------------------------------------------------------------------

    def check(self, disks: Sequence[DiskRecord], ticket: Ticket) -> Sequence[str]:
        """See MigrationDisks."""
        return [f"hard drive {disk.id} {why}" for disk in disks if (why := self._against(disk, ticket))]

    def _against(self, disk: DiskRecord, ticket: Ticket) -> str:
        if ticket.target not in disk.nodes:
            return f"is on the nodes {' and '.join(disk.nodes)} only, and can't be migrated to '{ticket.target}'."
        if disk.deleting:
            return "is being deleted."
        problem = self._roles.unequal(disk)
        return f"can't be migrated: {problem}" if problem else ""

    def broken(self, disks: Sequence[DiskRecord]) -> str:
        """See MigrationDisks."""
        for disk in disks:
            state = self._states.state(resource_name(disk.id))
            if state is None or not state.both_good:
                return f"the two sides of hard drive {disk.id} have lost each other: {describe(state)}"
        return ""

    # --- acts ---------------------------------------------------------------------------------------------------------

    def prepare(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """See MigrationDisks: offline nothing, for who starts the machine there makes its disks ready."""
        if not ticket.online:
            return
        with step(f"Letting both nodes use {', '.join(disk.id for disk in disks)}"):
            with ThreadPoolExecutor(1, thread_name_prefix="window") as pool:
                there = pool.submit(self._ask, ticket.target, "open_disks", within=ACT_WITHIN, name=ticket.name)
                for disk in disks:
                    self._windows.open(resource_name(disk.id))
                there.result()
            self._keep_open(disks, ticket)
            self._ask(ticket.target, "use_disks", within=ACT_WITHIN, name=ticket.name)

    def let_go(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:  # noqa: ARG002
        """See MigrationDisks: windows that nobody renews are closed by their guards, on the side without a guest."""
        self._stop_renewing(ticket.name)

    def switch(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:  # noqa: ARG002
        """See MigrationDisks."""
        for disk in disks:
            self._roles.demote(disk)

    def finish(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """See MigrationDisks."""
        self._stop_renewing(ticket.name)
        self.switch(disks, ticket)
        for disk in disks:
            self._windows.close(resource_name(disk.id))

    def part(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """See MigrationDisks."""
        if ticket.online:
            for disk in disks:
                self._rejoining.give_way(disk)

    def abandon(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """See MigrationDisks; the other node has closed its windows, and is Secondary."""
        self._stop_renewing(ticket.name)
        for disk in disks:
            self._windows.close(resource_name(disk.id))

    def mend(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """See MigrationDisks."""
        if not ticket.online or self._store.get(NodeRecord, ticket.target) is None:
            return
        for disk in disks:
            state = self._states.state(resource_name(disk.id))
            if state is not None and not state.connected and ticket.target in disk.nodes:
                self._ask(ticket.target, "rejoin_disk", within=ACT_WITHIN, name=ticket.name, disk=disk.id)

    # --- keeping windows open -----------------------------------------------------------------------------------------

    def _keep_open(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        stop = threading.Event()
        with self._lock:
            self._renewals[ticket.name] = stop
        names = [resource_name(disk.id) for disk in disks]
        threading.Thread(target=self._renew_on, args=(names, ticket, stop), name="windows", daemon=True).start()

    def _stop_renewing(self, name: str) -> None:
        with self._lock:
            stop = self._renewals.pop(name, None)
        if stop is not None:
            stop.set()

    def _renew_on(self, names: Sequence[str], ticket: Ticket, stop: threading.Event) -> None:
        """Renew on both nodes, or on neither: a node that is cut off from the other closes its windows by itself."""
        renewed = time.monotonic()
        while True:
            try:
                self._ask(ticket.target, "keep_disks", within=LEASE, name=ticket.name)
                if stop.is_set():
                    return
                for name in names:
                    self._windows.renew(name)
                renewed = time.monotonic()
            except NodeUnreachable:
                if time.monotonic() - renewed > LEASE:
                    return
            except McvirtError as error:
                log.info("the windows for %s are kept open no longer: %s", ticket.name, error)
                return
            if stop.wait(RENEW_EVERY):
                return
