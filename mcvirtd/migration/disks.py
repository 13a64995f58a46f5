"""How disks go with their machine: one way for each kind of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from mcvirt.types.vm import StorageType
from mcvirtd.migration.ticket import Ticket
from mcvirtd.migration.volumes import Copies
from mcvirtd.state.records import BackendRecord, DiskRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.task import step
from mcvirtd.vm.design import Machine

MAKE_WITHIN = 60.0
_SLOWEST = 20 * 1024 * 1024

Ask = Callable[..., msgspec.Raw]
"""(node, operation, within=seconds, **arguments): an operation of ArrivalApi on another node."""


class MigrationDisks(Protocol):
    """The disks of one kind of a machine that is migrated. All is called on the node that has it, in this order.

    Each act may be repeated, also by the next process, and for what was never begun: after a death, `switch` and
    `finish` follow where the guest turns out to be on the other node, `abandon` and `mend` where it is here.
    """

    def check(self, disks: Sequence[DiskRecord], ticket: Ticket) -> Sequence[str]:
        """What stands against it that the other node can't see, a sentence each. Changes nothing."""

    def prepare(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Make the disks ready for the guest's coming on the other node."""

    def broken(self, disks: Sequence[DiskRecord]) -> str:
        """Why the guest must not go there any more, in a sentence; '' while it may. It is asked again and again."""

    def let_go(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing is on its way any more, however it ended: what is kept up while a guest travels, may go.

        It is not known yet on which node the guest is; that may take until somebody starts a libvirtd again.
        """

    def switch(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """The guest has left this node (or was off), and the records do not say so yet."""

    def finish(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """The records say that the machine is on the other node: nothing of the disks is needed here.

        Meanwhile the other node does the same for what it needed until then.
        """

    def part(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """All is done on both nodes: what can be made good without haste."""

    def abandon(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """The machine stays here. What the other node has made of its own, it was told to drop before."""

    def mend(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """The machine has stayed here, and its guest goes on: what can be made good without haste."""


class SharedDisks:
    """On storage that both nodes have: nothing is to be done."""

    def check(self, disks: Sequence[DiskRecord], ticket: Ticket) -> Sequence[str]:  # noqa: ARG002
        return ()

    def prepare(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing: they are there."""

    def broken(self, disks: Sequence[DiskRecord]) -> str:  # noqa: ARG002
        return ""

    def let_go(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing was kept up."""

    def switch(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing: both nodes may have them open."""

    def finish(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing is left here."""

    def part(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing was changed."""

    def abandon(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing was begun."""

    def mend(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing was changed."""


class CopiedDisks:
    """On storage of one node: QEMU copies them while the guest runs."""

    def __init__(self, ask: Ask, copies: Copies) -> None:
        self._ask = ask
        self._copies = copies

    def check(self, disks: Sequence[DiskRecord], ticket: Ticket) -> Sequence[str]:
        names = ", ".join(disk.id for disk in disks)
        if not disks or (ticket.copied and ticket.online):
            return ()
        if ticket.online:
            return (f"the data of {names} is on node '{ticket.source}' only. With --copy-storage it is sent along.",)
        return (
            f"the data of {names} is on node '{ticket.source}' only, and is sent along only while the guest runs: "
            "start the machine, and migrate it with --online --copy-storage.",
        )

    def prepare(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        for disk in disks:
            with step(f"Making the volume of {disk.id} on node {ticket.target}"):
                within = MAKE_WITHIN + disk.size / _SLOWEST
                self._ask(ticket.target, "make_volume", within=within, name=ticket.name, disk=disk.id)

    def broken(self, disks: Sequence[DiskRecord]) -> str:  # noqa: ARG002
        return ""

    def let_go(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing was kept up."""

    def switch(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing: they have been copied to the last byte."""

    def finish(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing: what is here is kept until the other node is done, too."""

    def part(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:  # noqa: ARG002
        for disk in disks:
            self._copies.drop(disk.id, disk.backend, disk.volume)

    def abandon(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing was changed here."""

    def mend(self, disks: Sequence[DiskRecord], ticket: Ticket) -> None:
        """Nothing was changed here."""


class DisksOfMachines:
    """All the disks of a machine, each by its kind."""

    def __init__(self, store: Store, local: CopiedDisks, replicated: MigrationDisks) -> None:
        self._store = store
        self._copied = local
        self._shared = SharedDisks()
        self._replicated = replicated

    def by_kind(self, machine: Machine) -> Sequence[tuple[MigrationDisks, Sequence[DiskRecord]]]:
        """The kinds that the machine has disks of."""
        found: dict[str, tuple[MigrationDisks, list[DiskRecord]]] = {}
        for disk in machine.disks:
            found.setdefault(*self._kind(disk))[1].append(disk)
        return list(found.values())

    def _kind(self, disk: DiskRecord) -> tuple[str, tuple[MigrationDisks, list[DiskRecord]]]:
        if disk.storage_type is StorageType.DRBD:
            return "replicated", (self._replicated, [])
        if self.is_local(disk):
            return "copied", (self._copied, [])
        return "shared", (self._shared, [])

    def is_local(self, disk: DiskRecord) -> bool:
        """Whether the disk's data is on one node, and would have to be copied."""
        backend = self._store.get(BackendRecord, disk.backend)
        return disk.storage_type is StorageType.LOCAL and (backend is None or not backend.shared)

    def each(self, act: str, machine: Machine, ticket: Ticket) -> None:
        """Do `prepare`, `let_go`, `switch`, `finish`, `part`, `abandon` or `mend` for all of them."""
        for kind, disks in self.by_kind(machine):
            do: Any = getattr(kind, act)
            do(disks, ticket)

    def broken(self, machine: Machine) -> str:
        """Why the guest must not go to the other node any more, in a sentence; '' while it may."""
        return next((why for kind, disks in self.by_kind(machine) if (why := kind.broken(disks))), "")
