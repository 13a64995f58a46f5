"""Verifying hard drives: one of this node, and many on all nodes, some at the same time."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Protocol

from mcvirt import names
from mcvirt.errors import Conflict, DeadlinePassed, McvirtError, NotFound, VmNotFound
from mcvirt.types.drbd import ResourceState
from mcvirt.types.verification import Verification
from mcvirtd.drbd.comparing import Comparison, Kernel
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.reader import Reader, describe
from mcvirtd.drbd.verifications import Verifications, shown
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import Progress, current_task, step
from mcvirtd.tasks.transaction import Journal

log = logging.getLogger(__name__)

SCHEDULE = "schedule"
UNLIMIT = "drbd.unlimit_rate"
LOOK_EVERY = 0.5
ALIVE_WITHIN = 10.0
SETTLE_WITHIN = 5.0


class Throttle(Kernel, Protocol):
    """DRBD on this node, which can be made slower."""

    def limit_rate(self, name: str, rate: int) -> None:
        """Compare and copy at most *rate* bytes a second, until ``unlimit_rate``."""

    def unlimit_rate(self, name: str) -> None:
        """As fast as ever; nothing if there is no such resource."""


def known_state(reader: Reader, disk: DiskRecord) -> ResourceState:
    """What the kernel of this node says of the hard drive; Conflict where it says nothing."""
    reader.require_alive(ALIVE_WITHIN)
    state = reader.state(resource_name(disk.id))
    if state is None:
        raise Conflict(text=f"{named(disk)} is not set up on this node: DRBD's kernel module does not know it.")
    return state


def named(disk: DiskRecord) -> str:
    """The hard drive, for a sentence."""
    return f"Hard drive {disk.id} (disk {disk.slot} of '{disk.vm}')" if disk.vm else f"Hard drive {disk.id}"


def replicated(store: Store, name: str) -> list[DiskRecord]:
    """The replicated hard drives of the virtual machine *name*; if none is called so, the one that has it as its ID."""
    if store.get(VmRecord, name) is None:
        disk = store.get(DiskRecord, name)
        if disk is None and names.is_id(name, "hd"):
            raise NotFound(kind="hard drive", name=name, hint=" `mcvirt hard-drive list` shows all of them.")
        if disk is None:
            raise VmNotFound(name=names.printable(name))
        if disk.replica is None:
            raise Conflict(text=f"{named(disk)} is not replicated.")
        return [disk]
    disks = [disk for disk in store.all(DiskRecord).values() if disk.vm == name and disk.replica is not None]
    return sorted(disks, key=lambda disk: (disk.slot or 0, disk.id))


def check_verifiable(disk: DiskRecord, state: ResourceState) -> None:
    """Raise Conflict, with the reason, if the two sides can't be compared now."""
    why = ""
    if state.checking:
        why = f"it is being verified already ({state.done or 0:.0f}% are done)."
    elif state.copying:
        why = "its two sides are being made equal just now; wait until that is done."
    elif not state.connected:
        why = f"its two sides are not connected ({state.connection}"
        why += ", and they have split: `mcvirt drbd split-brain show`)." if state.split_brain else ")."
    elif not state.both_good:
        why = f"not both sides have good data: {describe(state)}"
    if why:
        raise Conflict(text=f"{named(disk)} can't be verified: {why}")


class Verifier:
    """Verifies hard drives whose replica is on this node. *read_there* is the other side's counter of bytes read."""

    def __init__(
        self,
        *,
        kernel: Throttle,
        reader: Reader,
        verifications: Verifications,
        journal: Journal,
        locks: Locks,
        read_there: Callable[[DiskRecord], int | None],
        comparison: Comparison | None = None,
        settle_within: float = SETTLE_WITHIN,
    ) -> None:
        self._kernel = kernel
        self._reader = reader
        self._verifications = verifications
        self._journal = journal
        self._locks = locks
        self._read_there = read_there
        self._comparison = comparison or Comparison(kernel, reader)
        self._settle_within = settle_within
        journal.register(UNLIMIT, self._unlimit_later, alone=True)

    def verify(self, disk: DiskRecord, by: str, rate: int, report: Callable[[int], None]) -> Verification:
        """Verify *disk* and record how that ended; what keeps it from being begun is raised, and recorded nowhere."""
        name = known_state(self._reader, disk).name
        with suppress(DeadlinePassed):
            # One that was just made, or copied, is told of bit by bit.
            self._reader.wait(name, _settled, self._settle_within, current_task().cancelled)
        check_verifiable(disk, known_state(self._reader, disk))
        with self._locks.hold(f"disk:{disk.id}"):
            state = known_state(self._reader, disk)
            check_verifiable(disk, state)
            with self._limited(disk.id, state.name, rate):
                outcome, unfinished = None, self._verifications.begin(disk.id, by)
                try:
                    outcome = self._comparison.run(state, current_task(), report, lambda: self._read_there(disk))
                finally:
                    if outcome is None:
                        self._verifications.forget(unfinished)
                run = self._verifications.end(unfinished, outcome)
        current_task().check()
        return shown(disk, run)

    @contextmanager
    def _limited(self, disk: str, resource: str, rate: int) -> Iterator[None]:
        """In the block at most *rate* bytes a second; that it is over never decides what the block comes to."""
        if not rate:
            yield
            return
        # Should mcvirtd die: a limit that stays makes every copy of this disk as slow.
        due = self._journal.add(0, "redo", UNLIMIT, {"disk": disk})
        try:
            self._kernel.limit_rate(resource, rate)
            yield
        finally:
            try:
                self._kernel.unlimit_rate(resource)
                self._journal.forget(due)
            except McvirtError as error:
                log.warning("the rate of %s stays limited until this has been tried again: %s", resource, error)

    def _unlimit_later(self, disk: str) -> None:
        with self._locks.hold(f"disk:{disk}"):
            self._kernel.unlimit_rate(resource_name(disk))


def _settled(state: ResourceState | None) -> bool:
    return state is None or not state.connected or state.both_good or state.checking or state.copying


One = Callable[[DiskRecord, Callable[[int], None]], Verification]


def verify_many(disks: Sequence[DiskRecord], one: One, at_once: int) -> dict[str, Verification | McvirtError]:
    """Verify *disks*, by *one*, so many at once; the result, or why there is none, by the disk's ID.

    Cancelling the task ends those that have begun, and lets no other begin.
    """
    if not disks:
        return {}
    name = f"Verifying hard drive {disks[0].id}" if len(disks) == 1 else f"Verifying {len(disks)} hard drives"
    behind = {disk.id: 0 for disk in disks}
    results: dict[str, Verification | McvirtError] = {}
    ended = threading.Event()

    def work(disk: DiskRecord) -> None:
        if ended.is_set():
            return
        try:
            results[disk.id] = one(disk, lambda done: behind.__setitem__(disk.id, done))
        except McvirtError as error:
            results[disk.id] = error
        behind[disk.id] = disk.size

    pool = ThreadPoolExecutor(max(1, at_once), thread_name_prefix="verify")
    with step(name, total=sum(disk.size for disk in disks), unit="B") as progress, pool:
        try:
            futures = [pool.submit(contextvars.copy_context().run, work, disk) for disk in disks]
            _until_done(futures, progress, behind)
        finally:
            ended.set()
    return results


def _until_done(futures: Sequence[Future[None]], progress: Progress, behind: dict[str, int]) -> None:
    left = set(futures)
    while left:
        done, left = wait(left, LOOK_EVERY, FIRST_COMPLETED)
        for future in done:
            future.result()
        progress.at(sum(behind.values()))
