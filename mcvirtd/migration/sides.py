"""Moving one side of the replicated hard drives of this node's machines: the contract MoveApi."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from mcvirt.api.move import MoveApi
from mcvirt.errors import Conflict, McvirtError, Refused, SeveralReasons
from mcvirt.types.move import MovePlan, MoveReport
from mcvirtd.auth.caller import current_caller
from mcvirtd.drbd.former_legs import has_former_leg
from mcvirtd.drbd.replacing import Replacing
from mcvirtd.migration.side_plans import SidePlanner, nodes_after
from mcvirtd.state.records import BackendRecord, DiskRecord, FormerLegRecord, VmRecord
from mcvirtd.state.store import Change
from mcvirtd.tasks.task import current_task, step
from mcvirtd.vm.design import Machine
from mcvirtd.vm.ground import Ground

log = logging.getLogger(__name__)

DELETED_WITHIN = 30.0
AGAIN_AFTER = 60.0
_LOOK_EVERY = 1.0


class Sides(MoveApi):
    """See the contract. While data is copied only the hard drives are held: the machine can be started and stopped."""

    def __init__(
        self,
        ground: Ground,
        *,
        planner: SidePlanner,
        replacing: Replacing,
        reachable: Callable[[str], bool],
        deleted_within: float = DELETED_WITHIN,
    ) -> None:
        self._store = ground.store
        self._locks = ground.locks
        self._node = ground.node
        self._planner = planner
        self._replacing = replacing
        self._reachable = reachable
        self._deleted_within = deleted_within
        self._lock = threading.Lock()
        self._here: set[str] = set()
        self._tried: dict[str, float] = {}
        self._deleted = threading.Condition()
        ground.store.subscribe(self._on_change)

    def plan(self, name: str, destination: str, source: str | None = None, force: bool = False) -> MovePlan:
        return self._planner.prepare(name, destination, source, force=force).plan

    def move(self, name: str, destination: str, source: str | None = None, force: bool = False) -> MoveReport:
        begun = time.monotonic()
        with self._at(name):
            disks = [disk.id for disk in self._planner.prepare(name, destination, source, force=force).disks]
            with self._locks.hold(*(f"disk:{disk}" for disk in disks)):
                # The machine is neither started nor migrated in the moment in which its disks change over.
                with self._locks.hold(f"vm:{name}"):
                    with step("Checking"):
                        prepared = self._planner.prepare(name, destination, source, force=force)
                        self._require(prepared.plan, [disk.id for disk in prepared.disks] == disks)
                    by = current_caller().user or "root"
                    self._replacing.make(prepared.disks, prepared.source, destination, ports=prepared.ports, by=by)
                self._replacing.finish(disks, self._also(name))
            left = self._wait_deleted(disks, prepared.source)
        return MoveReport(
            name=name,
            source=prepared.source,
            destination=destination,
            disks=tuple(disks),
            size=prepared.plan.size,
            seconds=round(time.monotonic() - begun, 3),
            left=left,
        )

    @staticmethod
    def _require(plan: MovePlan, same: bool) -> None:
        against: list[Refused] = [Conflict(text=check.text) for check in plan.checks if not check.ok]
        if not same:
            against.append(Conflict(text=f"The disks of virtual machine '{plan.name}' were changed meanwhile."))
        if against:
            raise SeveralReasons.of(against)

    # --- what an earlier process began --------------------------------------------------------------------------------

    def left(self) -> dict[str, str]:
        """The machines of which disks are being copied and nobody is at it, with who wants it."""
        found: dict[str, str] = {}
        for claim in self._replacing.left():
            disk = self._store.get(DiskRecord, claim.disk)
            name = disk.vm if disk is not None and disk.vm is not None else claim.disk
            found[name] = claim.replacement.by if claim.replacement is not None else ""
        with self._lock:
            now = time.monotonic()
            return {
                name: by
                for name, by in found.items()
                if name not in self._here and now - self._tried.get(name, -AGAIN_AFTER) >= AGAIN_AFTER
            }

    def go_on(self, name: str) -> MoveReport:
        """Finish what an earlier process began for the machine (or the hard drive, if no machine has it)."""
        begun = time.monotonic()
        with self._at(name):
            claims = [claim for claim in self._replacing.left() if self._is_of(claim.disk, name)]
            if not claims:
                raise Conflict(text=f"No hard drive of '{name}' is being moved.")
            disks = [claim.disk for claim in claims]
            source = claims[0].replacement.source if claims[0].replacement is not None else ""
            destination = next(node for node in claims[0].nodes if node != self._node)
            with self._locks.hold(*(f"disk:{disk}" for disk in disks)):
                self._replacing.finish(disks, self._also(name))
            left = self._wait_deleted(disks, source)
        size = sum(disk.size for each in disks if (disk := self._store.get(DiskRecord, each)) is not None)
        return MoveReport(
            name=name,
            source=source,
            destination=destination,
            disks=tuple(disks),
            size=size,
            seconds=round(time.monotonic() - begun, 3),
            left=left,
        )

    def _is_of(self, disk: str, name: str) -> bool:
        record = self._store.get(DiskRecord, disk)
        return name == (record.vm if record is not None and record.vm is not None else disk)

    @contextmanager
    def _at(self, name: str) -> Iterator[None]:
        with self._lock:
            if name in self._here:
                raise Conflict(text=f"Disks of '{name}' are being moved already; `mcvirt task list` shows the task.")
            self._here.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._here.discard(name)
                self._tried[name] = time.monotonic()

    # --- parts --------------------------------------------------------------------------------------------------------

    def _also(self, name: str) -> Callable[[Change, Sequence[DiskRecord], str], None]:
        def also(change: Change, before: Sequence[DiskRecord], new: str) -> None:
            vm = change.get(VmRecord, name)
            if vm is None:
                return  # the disks are nobody's by now
            if vm.node not in (None, self._node):
                raise Conflict(text=f"Virtual machine '{name}' was given to node '{vm.node}' meanwhile.")
            source = next((node for disk in before for node in disk.nodes if node != self._node), "")
            disks = tuple(disk for disk in change.all(DiskRecord).values() if disk.vm == name)

            def there(disk: DiskRecord) -> bool:
                backend = change.get(BackendRecord, disk.backend)
                return backend is not None and backend.shared and new in backend.nodes

            change.edit(VmRecord, name, nodes=nodes_after(Machine(vm=vm, disks=disks), source, new, there))

        return also

    def _wait_deleted(self, disks: Sequence[str], source: str) -> bool:
        """Wait until the old node has deleted what it had, if it answers; whether it has not."""

        def remains() -> bool:
            return any(has_former_leg(self._store, disk, source) for disk in disks)

        if not source or not remains():
            return False
        with suppress(McvirtError), step(f"Deleting what node {source} has"):
            task, deadline = current_task(), time.monotonic() + self._deleted_within
            with self._deleted:
                while remains() and self._reachable(source) and not task.cancelled.is_set():
                    if (left := deadline - time.monotonic()) <= 0:
                        break
                    # That it is deleted is an event; that the node is gone is not.
                    self._deleted.wait(min(left, _LOOK_EVERY))
        return remains()

    def _on_change(self, change: Change) -> None:
        if any(kind == FormerLegRecord.kind for kind, _ in change.deletes):
            with self._deleted:
                self._deleted.notify_all()
