"""Having a side of a hard drive in use again that was given up, taken down or cut off.

DRBD gives up a side whose storage fails, and the other side goes on alone. Nothing is chosen here: which of the two has
what the other one has not is known to the kernels, and they copy that and no more. So nothing is lost by attaching, and
nothing has to be undone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from mcvirt import names
from mcvirt.errors import (
    BadArgument,
    CommandFailed,
    Conflict,
    DeadlinePassed,
    Failed,
    NotFound,
    ResyncGoesOn,
    TaskCancelled,
    VmNotFound,
)
from mcvirt.types.drbd import Attached, ResourceState
from mcvirt.types.replica import LegCommand
from mcvirtd.cluster.errands import Errands
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.local_legs import Legs
from mcvirtd.drbd.reader import Reader, describe
from mcvirtd.drbd.resources import being_replaced
from mcvirtd.drbd.status import Event, Progress
from mcvirtd.drbd.verifying import named
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import current_task, step

LOOK_EVERY = 0.5
MEET_WITHIN = 60.0
"""How long two sides may take to find each other and to say what they have."""
STALLED_AFTER = 600.0


class Kernel(Protocol):
    """What is asked of DRBD on this node."""

    def progress(self) -> Mapping[int, Progress]:
        """How far what goes on is, by minor."""


def given_up(state: ResourceState | None, *, alone: bool = False) -> bool:
    """Whether a side is down, without its disk, or does not look for the other one; it is *alone* if there is none."""
    return state is None or state.disk == "Diskless" or (state.connection == "StandAlone" and not alone)


def failed_again(events: Sequence[Event], kind: str, field: str) -> bool:
    """Whether a disk that was attached during *events* was given up after that."""
    attached = False
    for event in events:
        disk = event.fields.get(field, "") if event.kind == kind else ""
        if attached and disk in ("Failed", "Diskless"):
            return True
        attached = attached or disk in ("Negotiating", "Inconsistent", "Outdated", "Consistent", "UpToDate")
    return False


class Attaching:
    """On this node, *node*, for hard drives that it has; for others through *errands*. *legs* are each node's."""

    def __init__(
        self,
        *,
        store: Store,
        node: str,
        legs: Callable[[str], Legs],
        reader: Reader,
        kernel: Kernel,
        locks: Locks,
        errands: Errands,
        meet_within: float = MEET_WITHIN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._node = node
        self._legs = legs
        self._reader = reader
        self._kernel = kernel
        self._locks = locks
        self._errands = errands
        self._meet_within = meet_within
        self._clock = clock

    def of_machine(self, name: str, node: str | None, slot: int | None) -> tuple[Attached, ...]:
        """Attach what is given up of a machine's hard drives, on one node or on both."""
        disks = [self._wanted(disk, node) for disk in self._of(name, slot)]
        done: list[Attached] = []
        reasons = Reasons()
        for disk in disks:
            # Of several, those that lack nothing are no reason to leave the others alone.
            with reasons.gather():
                done.append(self._attach(disk, node))
        if not done:
            reasons.raise_all()
        return tuple(done)

    def _attach(self, disk: DiskRecord, node: str | None) -> Attached:
        if self._node in disk.nodes:
            return self.of_disk(disk.id, self._node, node)
        at = disk.nodes[0]
        with step(f"Hard drive {disk.id} on node {at}"):
            asked = {"disk": disk.id, "at": at, "node": node}
            answer = self._errands.run(at, "drbd.attach_disk", asked, lambda info: None)  # noqa: ARG005
        return msgspec.json.decode(answer, type=Attached)

    def _of(self, name: str, slot: int | None) -> list[DiskRecord]:
        if self._store.get(VmRecord, name) is None:
            raise VmNotFound(name=names.printable(name))
        disks = [disk for disk in self._store.all(DiskRecord).values() if disk.vm == name and disk.replica is not None]
        if not disks:
            raise Conflict(text=f"Virtual machine '{name}' has no replicated hard drive.")
        found = [disk for disk in disks if slot in (None, disk.slot)]
        if not found:
            raise NotFound(kind="replicated disk", name=str(slot), hint=f" `mcvirt info {name}` shows all.")
        return sorted(found, key=lambda disk: disk.slot or 0)

    @staticmethod
    def _wanted(disk: DiskRecord, node: str | None) -> DiskRecord:
        if node is not None and node not in disk.nodes:
            why = f"{named(disk)} is on {' and '.join(disk.nodes)}."
            raise BadArgument(what=f"node '{names.printable(node)}'", why=why)
        return disk

    # --- one hard drive, on a node that has it ------------------------------------------------------------------------

    def of_disk(self, disk: str, at: str, node: str | None) -> Attached:
        """Attach what is given up of a hard drive, and return when both sides are equal."""
        record = self._store.get(DiskRecord, names.object_id(disk, "hd", "hard drive"))
        if record is None or record.replica is None or self._node != at or at not in record.nodes:
            raise Conflict(text=f"Hard drive {disk} has no leg on node '{self._node}', as far as that knows.")
        self._wanted(record, node)
        with self._locks.hold(f"disk:{disk}"):
            sides = self._sides(record, node)
            begun = False
            try:
                with self._reader.follow(resource_name(disk)) as followed:
                    for each in sides:
                        with step(f"Attaching hard drive {disk} on node {each}"):
                            self._up(record, each)
                            begun = True
                    copied = self._wait(record, sides, lambda: followed.events)
            except TaskCancelled as cancelled:
                if not begun:
                    raise
                raise ResyncGoesOn(**cancelled.fields) from None
        return Attached(disk=disk, nodes=tuple(sides), copied=copied)

    def _up(self, disk: DiskRecord, node: str) -> None:
        try:
            self._legs(node).command(disk.id, LegCommand.UP)
        except (CommandFailed, NotFound) as error:  # DRBD will not have it, or a volume is not there any more
            raise Failed(text=f"{named(disk)} can't be attached on node '{node}': {error}") from None

    def _sides(self, disk: DiskRecord, only: str | None) -> list[str]:
        """Where there is something to attach; raises what stands against it, and changes nothing."""
        states = {node: self._legs(node).state(disk.id) for node in disk.nodes}
        alone = len(disk.nodes) < 2
        sides = [node for node, state in states.items() if given_up(state, alone=alone) and only in (None, node)]
        why = ""
        if disk.deleting:
            why = "it is being deleted."
        elif moving := being_replaced(self._store, disk):
            why = moving
        elif any(state is not None and state.split_brain for state in states.values()):
            why = (
                "its two sides have been written to independently of each other (a split brain). "
                "`mcvirt drbd split-brain show` shows what is known, and resolves it."
            )
        elif not sides:
            said = "; ".join(f"on node '{node}' {describe(state)[:-1]}" for node, state in states.items())
            why = f"no side of it is down, without its disk or cut off: {said}."
        if why:
            raise Conflict(text=f"{named(disk)} can't be attached: {why}")
        reasons = Reasons()
        for node in sides:
            for fault in self._legs(node).outlook({disk.backend: 0}).faults:
                reasons.add(Conflict(text=f"{named(disk)} can't be attached on node '{node}': {fault}"))
        reasons.raise_all()
        return sides

    def _wait(self, disk: DiskRecord, sides: Sequence[str], events: Callable[[], Sequence[Event]]) -> int:
        """Return how many bytes were copied, once both sides have all; what fails meanwhile is told."""
        name = resource_name(disk.id)
        good = _good_alone if len(disk.nodes) < 2 else _equal
        most, left = 0, 0
        moved = self._clock()
        with step(f"Making both sides of hard drive {disk.id} equal"):
            while True:
                with suppress(DeadlinePassed):
                    # Only to look at the copying in between: what ends the waiting is an event.
                    self._reader.wait(name, good, LOOK_EVERY)
                    return most
                state = self._reader.state(name)
                self._refuse_failed(disk, sides, events())
                current_task().check()
                copying = state is not None and state.copying
                known = self._kernel.progress().get(state.minor or 0) if state is not None else None
                now = known.out_of_sync if copying and known is not None else 0
                if now != left:
                    moved, left, most = self._clock(), now, max(most, now)
                within = STALLED_AFTER if copying else self._meet_within
                if self._clock() - moved > within:
                    raise DeadlinePassed(
                        what=f"What {named(disk)} waits for", seconds=f"{within:.0f}", why=_late(disk, state)
                    )

    def _refuse_failed(self, disk: DiskRecord, sides: Sequence[str], events: Sequence[Event]) -> None:
        for node in sides:
            here = node == self._node
            if failed_again(events, *(("device", "disk") if here else ("peer-device", "peer-disk"))):
                raise Failed(
                    text=f"{named(disk)} was attached on node '{node}', and DRBD has given it up there again: storage "
                    f"backend '{disk.backend}' still fails on that node. The kernel's log there says more (`dmesg`)."
                )


def _equal(state: ResourceState | None) -> bool:
    return state is not None and state.both_good and not state.copying


def _good_alone(state: ResourceState | None) -> bool:
    return state is not None and state.disk == "UpToDate"


def _late(disk: DiskRecord, state: ResourceState | None) -> str:
    if state is not None and state.split_brain:
        return (
            "its two sides have been written to independently of each other (a split brain). "
            f"`mcvirt drbd split-brain show {disk.vm or ''}` shows what is known."
        )
    return f"{describe(state)} It goes on by itself as soon as it can."
