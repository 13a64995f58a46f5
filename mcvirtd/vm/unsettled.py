"""Machines of this node of which it is not known yet whether they are on another by now."""

from __future__ import annotations

from mcvirt.errors import Conflict
from mcvirtd.tasks.task import current_task
from mcvirtd.tasks.transaction import Journal

SETTLE = "migration.settle"


def settled(journal: Journal, name: str) -> None:
    """No migration of the machine is to be settled, but perhaps the current task's own; Conflict otherwise.

    Its guest may run on the other node, whatever the record says.
    """
    for task, arguments in journal.due_of(SETTLE):
        ticket = arguments["ticket"]
        if ticket["name"] == name and task != current_task().id:
            raise Conflict(
                text=f"The migration of virtual machine '{name}' to node '{ticket['target']}' is not settled yet, and "
                f"so it may run there. It is settled as soon as node '{ticket['target']}' can be asked; `mcvirt task "
                "list` shows it."
            )
