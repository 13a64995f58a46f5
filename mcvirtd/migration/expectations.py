"""Machines that may come to this node: written down, so that the next process knows of them, too.

What has come of one is kept until its source has said how its migration ended. Until then its guest may run here, or
have ended here and left on this node alone what it wrote, while the record still names the source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mcvirt.errors import Conflict
from mcvirtd.state.records import NodeRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.task import current_task
from mcvirtd.tasks.transaction import Journal
from mcvirtd.vm.arrived import EXPECT
from mcvirtd.vm.ground import Ground


def awaited(store: Store, journal: Journal, name: str) -> bool:
    """Whether the machine may just be coming here, or have come without its record saying so."""
    return any(
        arguments["name"] == name and _counts(store, arguments["uuid"], arguments["source"], name)
        for _, arguments in journal.due_of(EXPECT)
    )


def _counts(store: Store, uuid: str, source: str, name: str) -> bool:
    vm = store.get(VmRecord, name)
    here = vm is not None and vm.uuid == uuid and vm.node == source
    # Without its source nobody will ever say how it ended; that it is lost was said when the node was removed.
    return here and store.get(NodeRecord, source) is not None


class Expectations:
    """What this node expects. *ask* asks an operation of ArrivalApi of another node."""

    def __init__(self, ground: Ground, ask: Callable[..., msgspec.Raw]) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._locks = ground.locks
        self._hypervisor = ground.hypervisor
        self._ask = ask
        ground.journal.register(EXPECT, self._settle)

    def begin(self, vm: VmRecord, source: str) -> None:
        """The machine may come from now on; on disk when this returns."""
        self._journal.add(0, "undo", EXPECT, {"name": vm.name, "uuid": vm.uuid, "source": source})

    def end(self, name: str) -> None:
        """It has come, or does not."""
        self._journal.withdraw(EXPECT, name=name)

    def _settle(self, name: str, uuid: str, source: str) -> None:
        if not _counts(self._store, uuid, source, name):
            return
        answer: Any = msgspec.json.decode(self._ask(source, "sends", uuid=uuid))
        if answer is not False:
            raise Conflict(
                text=f"Virtual machine '{name}' may have come from node '{source}', which has yet to settle that."
            )
        with self._locks.hold(f"vm:{name}"):
            if not self._is_due(name) or not _counts(self._store, uuid, source, name):
                return  # it is expected anew
            state = self._hypervisor.state(uuid)
            if state is not None and not state.active:
                self._hypervisor.undefine(uuid)

    def _is_due(self, name: str) -> bool:
        task = current_task().id
        return any(task == of and arguments["name"] == name for of, arguments in self._journal.due_of(EXPECT))
