"""How a migration ended: found out from libvirt on both nodes, and brought to its end, one way or the other.

The same is done when all went well, when something failed, and by the next process after a death: so there is one way
to the end, and it is tried by every migration. The rules: where the guest runs, there the machine is. A guest that
stands still on this node, and is nowhere else, runs on here. Nothing is decided while the other node can't be asked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from mcvirt.errors import (
    Busy,
    Conflict,
    Failed,
    McvirtError,
    MigratedOnly,
    NodeUnreachable,
    NotPermitted,
    TaskCancelled,
    Unreachable,
    VmAlreadyRunning,
    VmNotFound,
)
from mcvirt.types.arrival import Whereabouts
from mcvirt.types.migration import MigrationReport
from mcvirtd.hypervisor.moving import JobResult, MovingVerbs
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.migration import sockets
from mcvirtd.migration.disks import Ask, DisksOfMachines
from mcvirtd.migration.ticket import Ticket, nodes_at
from mcvirtd.state.records import DiskRecord, NodeRecord, VmRecord
from mcvirtd.tasks.engine import CLOSING
from mcvirtd.tasks.task import current_task, step
from mcvirtd.vm.design import Machine
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.unsettled import SETTLE

log = logging.getLogger(__name__)

# libvirt itself waits 30 s for a domain that is busy.
ABANDON_WITHIN = 60.0
START_WITHIN = 60.0
_JOB_ENDS_WITHIN = 30.0
_LOOK_EVERY = 0.1
Outcome = Literal["here", "there", "gone"]


class Settlement:
    """Ends migrations of machines of this node.

    *may_start* raises NotPermitted where a user, named after the machine, may not start it.
    """

    def __init__(
        self,
        ground: Ground,
        hypervisor: MovingVerbs,
        disks: DisksOfMachines,
        ask: Ask,
        *,
        may_start: Callable[[str, str], None],
    ) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._locks = ground.locks
        self._domains = ground.domains
        self._node = ground.node
        self._hypervisor = hypervisor
        self._disks = disks
        self._ask = ask
        self._may_start = may_start
        ground.journal.register(SETTLE, self._settle_entry)

    def due(self) -> list[Ticket]:
        """The migrations from this node that are under way, or are not settled yet."""
        return [Ticket.from_journal(arguments["ticket"]) for _, arguments in self._journal.due_of(SETTLE)]

    def left(self) -> list[Ticket]:
        """Those of them that nobody in this process works at."""
        due = self._journal.due_of(SETTLE)
        return [Ticket.from_journal(given["ticket"]) for task, given in due if not self._journal.at_work(task)]

    def _settle_entry(self, ticket: dict[str, Any]) -> None:
        found = Ticket.from_journal(ticket)
        vm = self._store.get(VmRecord, found.name)
        if vm is None or vm.node == self._node:  # so that nobody sends it here just now
            sockets.forget(found.name)
        outcome = self.settle(found)
        words = {
            "here": f"Virtual machine '{found.name}' stays on node '{found.source}': its migration was undone.",
            "there": f"Virtual machine '{found.name}' was found on node '{found.target}': its migration was finished.",
            "gone": f"Virtual machine '{found.name}' was deleted or moved on meanwhile; nothing of it was left here.",
        }
        sentence, done = words[outcome], outcome == "there"
        if done and found.start_after:
            try:
                self._start_late(found)
            except MigratedOnly as error:
                sentence, done = str(error), False
        log.warning("%s", sentence)
        current_task().conclude(sentence, done=done)

    def settle(self, ticket: Ticket, result: JobResult | None = None) -> Outcome:
        """Find out where the machine is, and leave it there alone; *result* is what is known of a success.

        Raises NodeUnreachable and its like where that can't be known or done now.
        """
        with self._locks.hold(f"vm:{ticket.name}"):
            vm = self._store.get(VmRecord, ticket.name)
            if vm is None or vm.uuid != ticket.uuid or vm.node not in (ticket.source, ticket.target):
                self._abandon_there(ticket)
                self._clear_here(ticket, vm)
                return "gone"
            machine = self._domains.machine(ticket.name)
            if vm.node == ticket.target:
                return self._finish(ticket, machine)
            self._domains.require_libvirt()
            here = self._hypervisor.look(ticket.uuid)
            if ticket.online and self._went(ticket, here):
                self._leave(ticket, machine, result)
                return self._finish(ticket, self._domains.machine(ticket.name))
            return self._stay(ticket, machine)

    def _there(self, ticket: Ticket) -> Whereabouts:
        if self._store.get(NodeRecord, ticket.target) is None:
            return Whereabouts()  # it was removed from the cluster, which needs an operator's word that it is off
        answer = self._ask(ticket.target, "whereabouts", uuid=ticket.uuid)
        return msgspec.json.decode(answer, type=Whereabouts)

    def _went(self, ticket: Ticket, here: DomainState | None) -> bool:
        there = self._there(ticket)
        if here is not None and here.running:
            if there.running:
                raise Failed(
                    text=f"Virtual machine '{ticket.name}' runs on both nodes '{ticket.source}' and '{ticket.target}'. "
                    f"Turn one of them off at once: `virsh destroy {ticket.name}` on that node."
                )
            return False
        if there.running:
            return True
        if here is not None and here.active:
            return False  # it stands still here, and has not begun to run there
        # It runs nowhere: its guest has ended. There, if it ever came to be at home there. What stands there and is not
        # yet, waits for what is never sent, and has not all of the disks.
        return there.defined

    # --- there ------------------------------------------------------------------------------------------------------

    def _leave(self, ticket: Ticket, machine: Machine, result: JobResult | None) -> None:
        """Commit that the machine is on the other node."""
        self._off(ticket.uuid)
        self._disks.each("switch", machine, ticket)
        self.commit(ticket, result)

    def _off(self, uuid: str) -> None:
        state = self._hypervisor.look(uuid)
        if state is not None and state.active:
            if state.running:
                raise Conflict(text="its guest runs on this node again.")
            self._hypervisor.destroy(uuid)
        self._hypervisor.undefine(uuid)

    def commit(self, ticket: Ticket, result: JobResult | None) -> None:
        """Store that the machine is on the other node."""
        report = MigrationReport(
            source=ticket.source,
            target=ticket.target,
            online=ticket.online,
            seconds=round(max(0.0, time.time() - ticket.begun), 3),
            downtime=None if result is None else result.downtime,
            size=None if result is None else result.size,
            at=datetime.now(UTC),
            by=ticket.by,
        )
        with self._store.change() as change:
            now = change.get(VmRecord, ticket.name)
            if now is None:
                raise VmNotFound(name=ticket.name)
            if now.node != ticket.source:
                raise Conflict(text=f"Virtual machine '{ticket.name}' was given to another node meanwhile.")
            change.edit(
                VmRecord,
                ticket.name,
                node=ticket.target,
                nodes=nodes_at(now, ticket.target),
                last_migration=report,
                waiting=None,
            )
            for disk in ticket.copied:
                change.edit(DiskRecord, disk, nodes=(ticket.target,))

    def _finish(self, ticket: Ticket, machine: Machine) -> Outcome:
        self._off(ticket.uuid)
        with ThreadPoolExecutor(1, thread_name_prefix="finish") as pool:
            there = pool.submit(self._ask, ticket.target, "finish", name=ticket.name)
            try:
                self._disks.each("finish", machine, ticket)
            except Exception:
                if (error := there.exception()) is not None:  # only one of the two can be raised
                    log.warning("%s was not finished on node %s either: %s", ticket.name, ticket.target, error)
                raise
            there.result()
        self._disks.each("part", machine, ticket)
        return "there"

    def start(self, ticket: Ticket) -> None:
        """Have the machine started on the other node, where it is now; nothing is done if it runs.

        MigratedOnly if it is not to be; after another error it is to be asked for again.
        """
        try:
            with step(f"Starting the machine on node {ticket.target}"), suppress(VmAlreadyRunning):
                self._ask(ticket.target, "start", within=START_WITHIN, name=ticket.name)
        except (Unreachable, Busy):
            raise  # nobody has refused it, and whether it was done is not always known
        except McvirtError as error:
            if isinstance(error, TaskCancelled) and current_task().cancelled_by == CLOSING:
                raise NodeUnreachable(node=self._node, reason="mcvirtd is stopping.") from None
            raise MigratedOnly(name=ticket.name, node=ticket.target, reason=str(error)) from error

    def _start_late(self, ticket: Ticket) -> None:
        """The same long after it was asked for, perhaps: by somebody who may not have it any more."""
        try:
            self._may_start(ticket.name, ticket.by)
        except NotPermitted as error:
            raise MigratedOnly(name=ticket.name, node=ticket.target, reason=str(error)) from error
        self.start(ticket)

    def _clear_here(self, ticket: Ticket, vm: VmRecord | None) -> None:
        if vm is None or vm.uuid != ticket.uuid or vm.node != self._node:
            state = self._hypervisor.look(ticket.uuid)
            if state is None or not state.active:
                self._hypervisor.undefine(ticket.uuid)
        if vm is not None and vm.uuid == ticket.uuid:
            self._disks.each("finish", self._domains.machine(ticket.name), ticket)
            self._disks.each("part", self._domains.machine(ticket.name), ticket)

    def _abandon_there(self, ticket: Ticket) -> None:
        if self._store.get(NodeRecord, ticket.target) is not None:
            self._ask(ticket.target, "abandon", within=ABANDON_WITHIN, traveller=msgspec.to_builtins(ticket.traveller))

    # --- here -------------------------------------------------------------------------------------------------------

    def _stay(self, ticket: Ticket, machine: Machine) -> Outcome:
        """Nothing of the machine on the other node, and the guest as it was."""
        self._abandon_there(ticket)
        self._disks.each("abandon", machine, ticket)
        state = self._hypervisor.look(ticket.uuid)
        if state is None or not state.persistent:
            self._domains.define(machine)
        if state is not None and state.active and not state.running and ticket.online and _migrating(state):
            self._hypervisor.resume(ticket.uuid)
        self._disks.each("mend", machine, ticket)
        if ticket.online:
            self._until_no_job(ticket)
        return "here"

    def _until_no_job(self, ticket: Ticket) -> None:
        """libvirt may still be ending what was begun by a process that died; it takes no other migration until then."""
        deadline = time.monotonic() + _JOB_ENDS_WITHIN
        while self._hypervisor.is_busy(ticket.uuid):
            if time.monotonic() > deadline:  # it may be somebody else's
                log.warning("libvirt still works on domain '%s'", ticket.name)
                return
            threading.Event().wait(_LOOK_EVERY)


def _migrating(state: DomainState) -> bool:
    return state.reason in ("migrating", "migration failed", "paused", "")
