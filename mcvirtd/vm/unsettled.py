"""Machines of which it is not known yet where they, or their disks, are, or whether they will go on being there."""

from __future__ import annotations

from mcvirt.errors import Conflict
from mcvirtd.state.records import DiskRecord, ReplicaClaimRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.task import current_task
from mcvirtd.tasks.transaction import Journal

SETTLE = "migration.settle"


def settled(journal: Journal, name: str, *, went: VmRecord | None = None) -> None:
    """No migration of the machine is to be settled, but perhaps the current task's own; Conflict otherwise.

    Its guest may run on the other node, whatever the record says. One that *went* there, by its record, is not meant:
    only its end is outstanding.
    """
    for task, arguments in journal.due_of(SETTLE):
        ticket = arguments["ticket"]
        there = went is not None and (ticket["uuid"], ticket["target"]) == (went.uuid, went.node)
        if ticket["name"] == name and task != current_task().id and not there:
            raise Conflict(
                text=f"The migration of virtual machine '{name}' to node '{ticket['target']}' is not settled yet, and "
                f"so it may run there. It is settled as soon as node '{ticket['target']}' can be asked; `mcvirt task "
                "list` shows it."
            )


def forget(journal: Journal, went: VmRecord) -> None:
    """What was outstanding of the migration to the node of the record *went* is not wanted any more."""
    for _, arguments in journal.due_of(SETTLE):
        ticket = arguments["ticket"]
        if (ticket["uuid"], ticket["target"]) == (went.uuid, went.node):
            journal.withdraw(SETTLE, ticket=ticket)


def disks_rest(store: Store, name: str) -> None:
    """No hard drive of the machine is being moved to another node; Conflict otherwise."""
    for disk in store.all(DiskRecord).values():
        if disk.vm == name and store.get(ReplicaClaimRecord, disk.id) is not None:
            raise Conflict(
                text=f"Hard drives of virtual machine '{name}' are being moved to another node. Wait until that is "
                "done, or cancel it: `mcvirt task list` shows the task."
            )


def stays(vm: VmRecord | None) -> None:
    """The machine is nobody's who deletes it; Conflict otherwise.

    Who deletes one that is registered nowhere holds the locks of its own node alone: of the others only the order of
    changes tells.
    """
    if vm is not None and vm.deleter and vm.node is None:
        raise Conflict(
            text=f"Virtual machine '{vm.name}' is being deleted. `mcvirt delete {vm.name}` finishes a deletion that "
            "has failed."
        )
