"""Machines that are to be migrated as soon as their guests have shut down.

What is waited for is in the machine's record, so it outlives the client, and mcvirtd. Nothing else is held meanwhile.
A guest shuts down when it likes: what stands against the migration just then, and may pass, is waited for, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mcvirt.errors import Conflict, Failed, McvirtError, UndoIncomplete, VmNotFound
from mcvirt.permissions import Permission
from mcvirt.types.migration import MigrationPlan, Waiting
from mcvirtd.auth.caller import ROOT, Caller
from mcvirtd.auth.rights import Rights
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.state.records import VmRecord
from mcvirtd.tasks.task import current_task, step
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.unsettled import SETTLE

# How long a cancellation may go unheard.
_SLICE = 0.5
# A node has started again by then, and a disk has got what it missed meanwhile.
_KEEP_TRYING = 600.0
_LOOK_AGAIN = 5.0


class Waits:
    """*stopping* says whether mcvirtd is about to end: then a wait that is broken off is taken up at the next start.

    *start* starts a machine of this node, whose lock is held.
    """

    def __init__(
        self, ground: Ground, rights: Rights, stopping: Callable[[], bool], start: Callable[[str], object]
    ) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._locks = ground.locks
        self._hypervisor = ground.hypervisor
        self._node = ground.node
        self._rights = rights
        self._stopping = stopping
        self._start = start
        self._lock = threading.Lock()
        self._here: set[str] = set()

    def left(self) -> dict[str, Waiting]:
        """Those of machines of this node that nobody is at."""
        with self._lock:
            here = set(self._here)
        machines = self._store.all(VmRecord).values()
        return {
            vm.name: vm.waiting
            for vm in machines
            if vm.node == self._node and vm.waiting is not None and vm.name not in here
        }

    def check(self, name: str) -> None:
        """Raise Conflict if the machine waits already."""
        vm = self._store.get(VmRecord, name)
        if vm is not None and vm.waiting is not None:
            raise Conflict(
                text=f"Virtual machine '{name}' waits already for its guest to shut down, to be migrated to node "
                f"'{vm.waiting.node}'. `mcvirt task list` shows the task; cancel that first."
            )

    def require(self, name: str, waiting: Waiting) -> None:
        """Raise NotPermitted unless who asked for it has the permissions for it now."""
        self._rights.require(self._who(waiting.by), Permission.MIGRATE_VM, name)
        if waiting.start_after:
            self.require_start(name, waiting.by)

    def require_start(self, name: str, by: str) -> None:
        """Raise NotPermitted unless *by*, who asked for the machine to be started some time ago, may start it now."""
        self._rights.require(self._who(by), Permission.CHANGE_VM_POWER_STATE, name)

    def _who(self, by: str) -> Caller:
        # Of two of this name, it is the one who has only what the record says.
        return Caller(user=by, root=by == ROOT and not self._rights.knows(ROOT))

    def _begin(self, name: str, waiting: Waiting) -> None:
        with self._store.change() as change:
            self.check(name)
            if change.get(VmRecord, name) is None:
                raise VmNotFound(name=name)
            change.edit(VmRecord, name, waiting=waiting)

    def end(self, name: str) -> None:
        """It is no longer waited."""
        vm = self._store.get(VmRecord, name)
        if vm is None or vm.waiting is None:
            return
        with self._store.change() as change:
            if change.get(VmRecord, name) is not None:
                change.edit(VmRecord, name, waiting=None)

    @contextmanager
    def at(self, name: str, begun: Waiting | None = None) -> Iterator[None]:
        """In the block somebody is at it; what ends it is that the block ends, but for the end of mcvirtd, and for an
        UndoIncomplete.

        What is *begun* only now is written down first; who takes up what nobody is at, does not find it meanwhile.
        """
        with self._lock:
            if name in self._here:
                raise Conflict(text=f"Virtual machine '{name}' is waited for already.")
            self._here.add(name)
        try:
            if begun is not None:
                self._begin(name, begun)
            ended = True
            try:
                yield
            except UndoIncomplete:
                # It is not known yet where the machine is. If it has stayed, it is taken up again after that.
                ended = current_task().cancelled.is_set()
                raise
            finally:
                if ended and not self._stopping():
                    with current_task().shielded():
                        self.end(name)
        finally:
            with self._lock:
                self._here.discard(name)

    def until_off(self, name: str, uuid: str) -> None:
        """Return when libvirt says that the guest is off; Conflict if the machine is another's, or nobody's, meanwhile.

        While libvirt does not answer, as before the first connection to it, nothing is known of the guest.
        """
        with step("Waiting for the guest to shut down"):
            while not self._off(uuid):
                current_task().check()
                vm = self._store.get(VmRecord, name)
                if vm is None or vm.uuid != uuid:
                    raise VmNotFound(name=name)
                if vm.node != self._node:
                    raise Conflict(text=f"Virtual machine '{name}' is on node '{vm.node}' by now.")

    def until_possible(self, look: Callable[[], MigrationPlan]) -> None:
        """Return when nothing stands against the migration any more that may pass, or when that has taken too long.

        What stands against it then is left to whoever migrates, who looks again.
        """
        why = _passes(look())
        if not why:
            return
        deadline = time.monotonic() + _KEEP_TRYING
        with step("Waiting until it can be migrated") as progress:
            while why and time.monotonic() < deadline:
                progress.waits(why)
                current_task().cancelled.wait(_LOOK_AGAIN)
                current_task().check()
                why = _passes(look())

    def give_up(self, name: str, waiting: Waiting, reason: McvirtError) -> Failed:
        """What is to be said of a machine that was not migrated although its guest has shut down.

        One that was to be started on the other node is to run: it is started here.
        """
        text = f"Virtual machine '{name}' was not migrated when its guest had shut down: {reason}"
        if not waiting.start_after:
            return Failed(text=f"{text} It stays on node '{self._node}', and is not started.")
        try:
            with self._locks.hold(f"vm:{name}"):
                # The start itself lets pass what is due of this task.
                if any(due["ticket"]["name"] == name for _, due in self._journal.due_of(SETTLE)):
                    raise Conflict(text="the migration is not settled yet.")
                self._start(name)
        except McvirtError as error:
            return Failed(text=f"{text} It could not be started on node '{self._node}' either: {error}")
        return Failed(text=f"{text} It was started on node '{self._node}' again.")

    def _off(self, uuid: str) -> bool:
        hypervisor = self._hypervisor
        return hypervisor.wait_connected(_SLICE) and hypervisor.wait_for(uuid, _is_off, _SLICE) and hypervisor.connected


def _passes(plan: MigrationPlan) -> str:
    """What stands against it, in sentences, if all of it may pass; '' otherwise, and where nothing does."""
    against = [check for check in plan.checks if not check.ok]
    return " ".join(check.text for check in against) if all(check.transient for check in against) else ""


def _is_off(state: DomainState | None) -> bool:
    return state is None or not state.active
