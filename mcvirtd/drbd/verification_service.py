"""Verifying and resynchronising, as operators ask for it: which disks, on which nodes, and what is said of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from mcvirt import names
from mcvirt.api.verification import VerificationApi
from mcvirt.errors import (
    BadArgument,
    Conflict,
    McvirtError,
    NotFound,
    Refused,
    SeveralReasons,
    TaskCancelled,
    VerificationFailed,
)
from mcvirt.types.task import TaskInfo
from mcvirt.types.verification import Resynced, Verification, VerificationState, VerifySettings
from mcvirt.units import KIB, format_size
from mcvirtd.auth.caller import SYSTEM, Caller, called_by, current_caller
from mcvirtd.drbd import schedule
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.resyncing import Resync, source_of
from mcvirtd.drbd.verifications import Verifications, shown
from mcvirtd.drbd.verifying import SCHEDULE, Verifier, known_state, named, replicated, verify_many
from mcvirtd.state.records import DiskRecord, DrbdRecord, VerificationRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.engine import CLOSING
from mcvirtd.tasks.task import current_task, step

log = logging.getLogger(__name__)

MOST_AT_ONCE = 32
# One that is interrupted again and again is left alone until the schedule's next moment.
MOST_TRIES = 3
LEAST_RATE = 64 * KIB


class Errands(Protocol):
    """Has another node do an operation, and follows it."""

    def run(
        self, node: str, operation: str, arguments: dict[str, Any], heard: Callable[[TaskInfo], None]
    ) -> msgspec.Raw: ...


class VerificationService(VerificationApi):
    """See the contract. *clock* tells the time of day, with its zone."""

    def __init__(
        self,
        *,
        store: Store,
        node: str,
        reader: Reader,
        verifier: Verifier,
        verifications: Verifications,
        resync: Resync,
        errands: Errands,
        clock: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self._store = store
        self._node = node
        self._reader = reader
        self._verifier = verifier
        self._verifications = verifications
        self._resync = resync
        self._errands = errands
        self._clock = clock
        self._scheduled = threading.Lock()

    # --- verifying ----------------------------------------------------------------------------------------------------

    def verify(self, name: str) -> tuple[Verification, ...]:
        """Verify all replicated hard drives of a virtual machine."""
        return self._all_passed(self._replicated(name))

    def verify_all(self) -> tuple[Verification, ...]:
        """Verify all replicated hard drives of the cluster."""
        return self._all_passed([disk for disk in self._disks() if disk.replica is not None])

    def verify_disk(self, disk: str) -> Verification:
        """Verify one hard drive."""
        record = self._disk(disk)
        with step(f"Verifying hard drive {record.id}", total=record.size, unit="B") as progress:
            return self._one(record, progress.at)

    def verify_due(self) -> tuple[Verification, ...]:
        """Verify what is due by the schedule, and in this node's care."""
        if not self._scheduled.acquire(blocking=False):
            raise Conflict(text=f"The scheduled verifications of node '{self._node}' go on already.")
        try:
            due = self.due()
            try:
                self._verify(due, SCHEDULE)
            except TaskCancelled as cancelled:
                if current_task().cancelled_by != CLOSING:
                    for disk in self.due():
                        self._verifications.skip(disk.id, SCHEDULE, str(cancelled))
                raise
            states = {disk.id: self._store.get(VerificationRecord, disk.id) for disk in due}
            return tuple(shown(disk, state.runs[-1]) for disk in due if (state := states[disk.id]) and state.runs)
        finally:
            self._scheduled.release()

    @property
    def busy(self) -> bool:
        """Whether scheduled verifications go on here."""
        return self._scheduled.locked()

    def due(self) -> list[DiskRecord]:
        """The hard drives in this node's care for which the schedule's last moment has passed unheeded.

        A moment before the schedule was set, or before a hard drive was made, does not count; one that passed while
        mcvirtd was stopped does.
        """
        settings = self._drbd()
        plan = schedule.parse(settings.verify_schedule)
        if plan is None:
            return []
        moment = plan.last(self._clock())
        if not _later(moment, settings.verify_since):
            return []
        mine = (disk for disk in self._disks() if disk.replica is not None and self._keeper(disk) == self._node)
        return [disk for disk in mine if _later(moment, disk.made) and not self._heeded(disk.id, moment)]

    def _heeded(self, disk: str, moment: datetime) -> bool:
        record = self._store.get(VerificationRecord, disk) or VerificationRecord(disk=disk)
        results = [run.result for run in record.runs if run.by == SCHEDULE and run.started >= moment]
        return any(result != "interrupted" for result in results) or len(results) >= MOST_TRIES

    def _all_passed(self, disks: Sequence[DiskRecord]) -> tuple[Verification, ...]:
        results = self._verify(disks, current_caller().user or "root")
        passed = [result for result in results.values() if isinstance(result, Verification)]
        passed = [result for result in passed if result.result == "clean"]
        problems = [text for disk in disks if (text := _problem(disk, results.get(disk.id)))]
        errors = [error for error in results.values() if isinstance(error, Refused)]
        if problems and len(errors) == len(disks):
            raise SeveralReasons.of(errors)  # nothing was begun
        if problems:
            raise VerificationFailed(text=" ".join(problems), passed=[each.disk for each in passed])
        return tuple(passed)

    def _verify(self, disks: Sequence[DiskRecord], by: str) -> dict[str, Verification | McvirtError]:
        settings = self._drbd()
        rate = settings.verify_rate if by == SCHEDULE else 0

        def one(disk: DiskRecord, report: Callable[[int], None]) -> Verification:
            try:
                return self._one(disk, report, by, rate)
            except McvirtError as error:
                if by == SCHEDULE and not isinstance(error, TaskCancelled):
                    log.warning("scheduled verification: %s", error)
                    self._verifications.skip(disk.id, by, str(error))
                raise

        return verify_many(disks, one, settings.verify_concurrency)

    def _one(self, disk: DiskRecord, report: Callable[[int], None], by: str = "", rate: int = 0) -> Verification:
        keeper = self._keeper(disk)
        if keeper == self._node:
            return self._verifier.verify(disk, by or current_caller().user or "root", rate, report)

        def heard(info: TaskInfo) -> None:
            if info.steps:
                report(info.steps[-1].done)

        answer = self._errands.run(keeper, "verification.verify_disk", {"disk": disk.id}, heard)
        return msgspec.json.decode(answer, type=Verification)

    # --- what is known ------------------------------------------------------------------------------------------------

    def states(self, name: str | None = None) -> tuple[VerificationState, ...]:
        """The last verifications."""
        disks = self._replicated(name) if name is not None else [disk for disk in self._disks() if disk.replica]
        found = []
        for disk in disks:
            record = self._store.get(VerificationRecord, disk.id) or VerificationRecord(disk=disk.id)
            found.append(
                VerificationState(
                    disk=disk.id,
                    vm=disk.vm,
                    slot=disk.slot,
                    nodes=disk.nodes,
                    failed=record.failed,
                    out_of_sync=record.out_of_sync,
                    runs=tuple(shown(disk, run) for run in record.runs),
                )
            )
        return tuple(found)

    def settings(self) -> VerifySettings:
        """When, how many at once and how fast."""
        record = self._drbd()
        return VerifySettings(
            schedule=record.verify_schedule, concurrency=record.verify_concurrency, rate=record.verify_rate
        )

    def set_schedule(
        self, schedule: str | None = None, concurrency: int | None = None, rate: int | None = None
    ) -> VerifySettings:
        """Change what is named; another schedule than before begins with its next moment."""
        fields: dict[str, Any] = {}
        if schedule is not None:
            _parsed(schedule)
            fields["verify_schedule"] = " ".join(schedule.lower().split())
        if concurrency is not None:
            if not 1 <= concurrency <= MOST_AT_ONCE:
                raise BadArgument(what="concurrency", why=f"{concurrency} is not between 1 and {MOST_AT_ONCE}.")
            fields["verify_concurrency"] = concurrency
        if rate is not None:
            if rate and rate < LEAST_RATE:
                why = f"{rate} bytes a second is too slow; {format_size(LEAST_RATE)} is the least, and 0 no limit."
                raise BadArgument(what="rate", why=why)
            fields["verify_rate"] = rate
        with self._store.change() as change:
            before = change.get(DrbdRecord, "drbd") or DrbdRecord()
            after = msgspec.structs.replace(before, **fields)
            if after.verify_schedule != before.verify_schedule:
                after = msgspec.structs.replace(after, verify_since=self._clock().astimezone(UTC))
            if after != before:
                change.put(after)
        return self.settings()

    # --- resynchronising ----------------------------------------------------------------------------------------------

    def resync(
        self, name: str, source_node: str | None = None, disk: int | None = None, full: bool = False
    ) -> tuple[Resynced, ...]:
        """Copy what differs from one node to the other."""
        disks = self._replicated(name)
        if disk is not None:
            disks = [each for each in disks if each.slot == disk]
            if not disks:
                raise NotFound(kind="replicated disk", name=str(disk), hint=f" `mcvirt info {name}` shows all.")
        elif not full:
            disks = [each for each in disks if self._differs(each)] or disks
        if source_node is not None:
            self._check_source_node(source_node, disks)
        sources = {
            each.id: source_node or source_of(each, known_state(self._reader, each), self._node) for each in disks
        }
        return tuple(self._copy(each.id, sources[each.id], full) for each in disks)

    def copy_from(self, disk: str, source: str, full: bool = False, known_only: bool = False) -> Resynced:
        """The same for one hard drive."""
        record = self._disk(disk)
        self._check_source_node(source, [record])
        verified = self._store.get(VerificationRecord, disk)
        failed = verified is not None and verified.failed and not known_only
        return self._resync.run(record, self._node, full=full, failed=failed)

    def level(self, disk: DiskRecord) -> None:
        """Make both sides equal where the kernels know them not to be, and Conflict if they are.

        From the node on which the machine runs, whichever has begun to grow the disk; if it does not, from this one.
        """
        state = known_state(self._reader, disk)
        if state.peer_role != "Primary" or state.role == "Primary":
            self._resync.run(disk, self._node, full=False, failed=False)
            return
        # The user who grew the disk may not repair disks, and may have gone.
        with called_by(Caller(user=SYSTEM, root=True)):
            self._copy(disk.id, source_of(disk, state, self._node), full=False, known_only=True)

    def _copy(self, disk: str, source: str, full: bool, known_only: bool = False) -> Resynced:
        if source == self._node:
            return self.copy_from(disk, source, full, known_only)
        asked = {"disk": disk, "source": source, "full": full, "known_only": known_only}
        with step(f"Copying hard drive {disk} from {source}"):
            answer = self._errands.run(source, "verification.copy_from", asked, lambda info: None)  # noqa: ARG005
        return msgspec.json.decode(answer, type=Resynced)

    def _differs(self, disk: DiskRecord) -> bool:
        record = self._store.get(VerificationRecord, disk.id)
        state = self._reader.state(f"mcvirt-{disk.id}")
        return (record is not None and record.failed) or (state is not None and state.out_of_sync > 0)

    def _check_source_node(self, source: str, disks: Collection[DiskRecord]) -> None:
        for disk in disks:
            if source not in disk.nodes:
                raise BadArgument(
                    what=f"source node '{names.printable(source)}'",
                    why=f"{named(disk)} is on {' and '.join(disk.nodes)}.",
                )

    # --- parts --------------------------------------------------------------------------------------------------------

    def _disks(self) -> list[DiskRecord]:
        disks = self._store.all(DiskRecord).values()
        return sorted(disks, key=lambda disk: (disk.vm or "", disk.slot or 0, disk.id))

    def _disk(self, disk: str) -> DiskRecord:
        record = self._store.get(DiskRecord, names.object_id(disk, "hd", "hard drive"))
        if record is None:
            raise NotFound(kind="hard drive", name=disk, hint=" `mcvirt hard-drive list` shows all of them.")
        if record.replica is None:
            raise Conflict(text=f"{named(record)} is not replicated: there is nothing to compare it with.")
        return record

    def _replicated(self, name: str) -> list[DiskRecord]:
        disks = replicated(self._store, name)
        if not disks:
            raise Conflict(text=f"Virtual machine '{name}' has no replicated hard drive.")
        return disks

    def _keeper(self, disk: DiskRecord) -> str:
        """The node that verifies it: where its machine is registered, and otherwise one that has it."""
        vm = self._store.get(VmRecord, disk.vm) if disk.vm else None
        if vm is not None and vm.node in disk.nodes:
            return str(vm.node)
        return min(disk.nodes)

    def _drbd(self) -> DrbdRecord:
        return self._store.get(DrbdRecord, "drbd") or DrbdRecord()


def _parsed(text: str) -> None:
    schedule.parse(text)


def _later(moment: datetime, since: datetime | None) -> bool:
    """Whether *moment* came after *since*; None is before all of them."""
    return since is None or moment > since


def _problem(disk: DiskRecord, result: Verification | McvirtError | None) -> str:
    """What is to be said of a disk that did not pass; "" of one that did."""
    if result is None:
        return f"{named(disk)} was not verified."
    if isinstance(result, McvirtError):
        return str(result)
    if result.result == "clean":
        return ""
    nodes = " and ".join(disk.nodes)
    if result.result == "differences":
        amount = format_size(result.out_of_sync)
        return f"{named(disk)}: {amount} ({result.out_of_sync} bytes) differ between {nodes}."
    return f"The verification of {named(disk)} was interrupted, and so not passed: {result.reason}"
