"""Replicated hard drives: two legs, one on each of two nodes, made and deleted together.

The node at which this is done keeps the journal. Before anything exists a claim is stored in the whole cluster; the
legs are made at the same time, by the node that each is on; and the change that stores the hard drive's record takes
the claim away. Until then everything is undone by one act that goes by the claim, on both nodes, however often it
takes: the claim, and so the minor and the port, is given up only when neither node has anything left.
"""

from __future__ import annotations

import logging
import secrets
import string
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from mcvirt.errors import (
    Conflict,
    DeadlinePassed,
    Failed,
    McvirtError,
    NodeUnreachable,
    TaskCancelled,
    UndoIncomplete,
)
from mcvirt.types.drbd import ResourceState
from mcvirt.types.replica import LegCommand, LegSpec, Outlook
from mcvirt.units import format_size
from mcvirtd.drbd.claims import claim
from mcvirtd.drbd.config import metadata_size, resource_name
from mcvirtd.drbd.local_legs import AGREE_WITHIN, Legs, States
from mcvirtd.drbd.reader import describe
from mcvirtd.drbd.resources import being_replaced
from mcvirtd.drbd.roles import Roles
from mcvirtd.host.drbd_numbers import device_size
from mcvirtd.state.records import DiskRecord, NodeRecord, Replica, ReplicaClaimRecord, VerificationRecord
from mcvirtd.state.store import Change, Store
from mcvirtd.storage.kind import DiskSource, UsedPaths
from mcvirtd.storage.local_disks import refuse_used
from mcvirtd.storage.planning import DiskPlan
from mcvirtd.tasks.task import current_task, step
from mcvirtd.tasks.transaction import Journal, Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")

UNDO_CREATE = "drbd.undo_create"
CONNECT_WITHIN = 60.0
_ALPHABET = string.ascii_letters + string.digits
_SECRET_LENGTH = 40
_LOOK_FOR_CANCEL = 0.1
_AGAIN_AFTER = 0.1
_AT_ONCE = 64
_BITMAP_BLOCK = 4096


class ReplicatedDisks:
    """See DiskKind, and Replicas. *legs* are those on each node, *states* what this node's kernel says.

    *level* copies the blocks of a disk that the kernel here knows to differ to the other node.
    """

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        node: str,
        legs: Callable[[str], Legs],
        states: States,
        roles: Roles,
        used_paths: UsedPaths,
        level: Callable[[DiskRecord], None],
        device_size: Callable[[int], int] = device_size,
    ) -> None:
        self._store = store
        self._node = node
        self._legs = legs
        self._states = states
        self._roles = roles
        self._used_paths = used_paths
        self._level = level
        self._device_size = device_size
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="leg")
        journal.register(UNDO_CREATE, self._undo_create)

    # --- planning -----------------------------------------------------------------------------------------------------

    def needed(self, size: int) -> int:
        """How many bytes a leg takes on its backend."""
        return size + metadata_size(size)

    def outlooks(self, needed: Mapping[str, Mapping[str, int]]) -> Mapping[str, Outlook | McvirtError]:
        """What stands against new legs on the nodes, asked at the same time."""
        asked = {node: self._pool.submit(self._outlook, node, sizes) for node, sizes in needed.items()}
        return {node: future.result() for node, future in asked.items()}

    def _outlook(self, node: str, needed: Mapping[str, int]) -> Outlook | McvirtError:
        try:
            return self._legs(node).outlook(needed)
        except McvirtError as error:
            return error

    # --- checks: they change nothing ----------------------------------------------------------------------------------

    def available(self, record: DiskRecord) -> str:
        """Why the disk can't be used on this node now, in a sentence; '' if it can."""
        return self._roles.problem(record)

    def takes_over(self, record: DiskRecord) -> str:
        """Why this node can't go on with the disk where the one that used it is gone, in a sentence; '' if it can."""
        return self._roles.takes_over(record)

    def movable(self, record: DiskRecord) -> bool:
        """Both nodes have all of it."""
        return record.replica is not None

    def held(self) -> Sequence[str]:
        """The hard drives that this node is Primary for now."""
        return [
            disk.id
            for disk in self._store.all(DiskRecord).values()
            if disk.replica is not None
            and self._node in disk.nodes
            and (state := self._states.state(resource_name(disk.id))) is not None
            and state.role == "Primary"
        ]

    def source(self, record: DiskRecord) -> DiskSource:
        """DRBD's device, which is the same on both nodes."""
        return DiskSource(path=_device(record), kind="block", format="raw")

    def check_grow(self, record: DiskRecord, new_size: int) -> None:
        """Raise all that stands against growing both sides."""
        self._roles.check_both(record)
        more = self.needed(new_size) - self.needed(record.size)
        faults: list[str] = []
        for answer in self.outlooks({node: {record.backend: more} for node in record.nodes}).values():
            faults += [str(answer)] if isinstance(answer, McvirtError) else answer.faults
        if faults:
            raise Conflict(text=" ".join(faults))

    def check_delete(self, record: DiskRecord) -> None:
        """Raise if not both nodes can delete their leg now."""
        if why := being_replaced(self._store, record):
            raise Conflict(text=f"Hard drive {record.id} can't be deleted: {why}")
        for node in self._members(record.nodes):
            state = self._legs(node).state(record.id)
            if state is not None and state.role == "Primary" and state.open:
                raise Conflict(text=f"Hard drive {record.id} is in use on node '{node}'.")

    def check_unused(self, record: DiskRecord) -> None:
        """Raise Conflict if a domain of libvirt's on this node has the disk."""
        refuse_used(self._used_paths, _device(record), f"Hard drive {record.id}")

    # --- making -------------------------------------------------------------------------------------------------------

    def create(self, tx: Transaction, plan: DiskPlan) -> DiskRecord:
        """Make both legs, equal without copying anything: both were just made, and read as zeros."""
        name = resource_name(plan.id)
        with step(f"Reserving a minor and a port for hard drive {plan.id}"):
            tx.undo(UNDO_CREATE, disk=plan.id, backend=plan.backend, nodes=list(plan.nodes))
            taken = claim(self._store, plan, self._node)
        one, other = plan.nodes
        leg = LegSpec(
            disk=plan.id,
            backend=plan.backend,
            size=plan.size,
            minor=taken.minor,
            port=taken.port,
            secret="".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH)),
            nodes=(one, other),
        )
        with step(f"Creating hard drive {plan.id} on {one} and {other}", total=plan.size, unit="B") as progress:
            cancelled = current_task().cancelled
            self._on_each(
                plan.nodes,
                lambda node: self._legs(node).make(leg, progress=lambda done, _: progress.at(done), cancel=cancelled),
            )
        with step("Connecting both sides"):
            self._wait(name, _connected, CONNECT_WITHIN)
            self._legs(self._node).command(plan.id, LegCommand.NEW_CURRENT_UUID_CLEAN)
            # Once it is connected each kernel sends its state again, from a queue: "Inconsistent" may come after the
            # other one has taken both for equal. That would not send it anything, and it not know. What is paused is
            # told through the same queue, so that nothing older comes after it.
            self._on_each(plan.nodes, lambda node: self._legs(node).command(plan.id, LegCommand.PAUSE_SYNC))
            self._on_each(plan.nodes, lambda node: self._legs(node).command(plan.id, LegCommand.RESUME_SYNC))
            self._wait(name, _both_good, AGREE_WITHIN)
        replica = Replica(minor=leg.minor, port=leg.port, secret=leg.secret)
        record = plan.record(self._device_size(leg.minor))
        return msgspec.structs.replace(record, replica=replica, made=datetime.now(UTC))

    def keep(self, change: Change, record: DiskRecord) -> None:
        """The record has the minor and the port from now on."""
        change.delete(ReplicaClaimRecord, record.id)

    def _undo_create(self, disk: str, backend: str, nodes: list[str]) -> None:
        with self._store.change() as change:  # in its turn, so that nothing is being stored that is not seen
            made, claimed = change.get(DiskRecord, disk), change.get(ReplicaClaimRecord, disk)
        if made is not None:
            log.warning("hard drive %s was stored: it is kept", disk)
        elif claimed is not None:
            self._drop(disk, backend, nodes)
        if claimed is not None:
            with self._store.change() as change:
                change.delete(ReplicaClaimRecord, disk)

    def settle_claims(self) -> None:
        """Undo what a node was making that is no member any more, where this node was to have a leg of it."""
        members = self._store.all(NodeRecord)
        for claimed in list(self._store.all(ReplicaClaimRecord).values()):
            if claimed.coordinator in members or self._node not in claimed.nodes:
                continue
            log.warning("hard drive %s was being made by node %s, which is gone", claimed.disk, claimed.coordinator)
            if claimed.replacement is None:
                self._undo_create(claimed.disk, claimed.backend, list(claimed.nodes))
            else:
                # This is its new side, copied from one that is gone: its other one is what is left of it.
                self._drop(claimed.disk, claimed.backend, [self._node])
                with self._store.change() as change:
                    change.delete(ReplicaClaimRecord, claimed.disk)

    # --- what there is ------------------------------------------------------------------------------------------------

    def grow(self, record: DiskRecord, new_size: int) -> int:
        """Grow both legs, and then the device; the new part is zeros on both sides, so nothing is copied.

        Raises UndoIncomplete where both volumes may be longer by now, and the device is not: as soon as the two sides
        meet anew, their kernels take the new length by themselves. So that is to be finished, by another call.
        """
        name = resource_name(record.id)
        if not self._states.alive:  # as before DRBD is read at the start: nobody is to wait for that
            raise Conflict(text=f"Hard drive {record.id} can't be grown: DRBD's events can't be read on this node now.")
        self._require_at_rest(record, "grown")  # whoever tries it again must not keep others from the machine
        current_task().check()
        try:
            # To its end on each, whoever cancels it: a side whose growth goes on after the task has ended could be the
            # second that grows, and one that is made shorter again may be in use by then, for the kernels take a new
            # length by themselves when they meet.
            self._on_each(record.nodes, lambda node: self._legs(node).grow(record.id, new_size), heed=False)
        except NodeUnreachable as error:
            raise _unfinished(error) from error
        try:
            with current_task().shielded():
                state = self._wait(name, _both_good, CONNECT_WITHIN)
                minor = _replica(record).minor
                if self._device_size(minor) < new_size:
                    self._resize(record, state, new_size)
                return self._grown(record, minor, new_size)
        except McvirtError as error:
            raise _unfinished(error) from error

    def finish_growth(self, record: DiskRecord, was: int) -> None:
        """See DiskKind: where the kernels have grown the device by themselves, they take the new part for different.

        That is copied, unless more than the new part is known to differ, or something else was found. Conflict as long
        as the two sides are not connected and at rest.
        """
        state = self._require_at_rest(record, "finished")
        if not state.known_to_differ:
            return
        part = -(-(record.size - was) // _BITMAP_BLOCK) * _BITMAP_BLOCK
        # Whoever hears of it first marks the disk, with what the kernel says.
        verified = self._store.get(VerificationRecord, record.id)
        found = verified is not None and verified.failed and verified.out_of_sync != state.out_of_sync
        if found or state.out_of_sync > part:
            log.warning("hard drive %s was grown, and more of it than the new part is known to differ", record.id)
            return
        self._level(record)

    def _require_at_rest(self, record: DiskRecord, what: str) -> ResourceState:
        state = self._states.state(resource_name(record.id))
        if state is None or not state.both_good or state.checking or state.copying:
            raise Conflict(
                text=f"Hard drive {record.id} can't be {what} now: its two sides are not connected, up "
                f"to date and at rest: {describe(state)}"
            )
        return state

    def _grown(self, record: DiskRecord, minor: int, new_size: int) -> int:
        """How long the device is, once it is *new_size* at least."""
        deadline, pause = time.monotonic() + AGREE_WITHIN, threading.Event()
        while (size := self._device_size(minor)) < new_size:
            # The two kernels agree on it after the command has ended, and tell nobody when they have.
            if time.monotonic() >= deadline:
                raise Failed(
                    text=f"DRBD has not made hard drive {record.id} larger than {format_size(size)}, although the "
                    "volumes on both nodes are."
                )
            pause.wait(_AGAIN_AFTER)
        return size

    def _resize(self, record: DiskRecord, state: ResourceState, new_size: int) -> None:
        here = self._legs(self._node)
        # The kernel resizes only where one side is Primary.
        borrowed = "Primary" not in (state.role, state.peer_role)
        if borrowed:
            here.command(record.id, LegCommand.PRIMARY)
        try:
            here.command(record.id, LegCommand.RESIZE_CLEAN)
            self._grown(record, _replica(record).minor, new_size)
        finally:
            if borrowed:
                self._give_back(record)

    def _give_back(self, record: DiskRecord) -> None:
        try:
            self._roles.demote(record)
        except McvirtError as error:
            # Nothing is wrong with the growth; what is Primary for nobody is given up sooner or later.
            log.warning("hard drive %s is Primary still after it was grown: %s", record.id, error)

    def activate(self, record: DiskRecord) -> str:
        """Make this node the one that may write to the disk; returns the device's path."""
        self._roles.promote(record)
        return _device(record)

    def deactivate(self, record: DiskRecord) -> None:
        """This node may write to the disk no more."""
        self._roles.demote(record)

    def take_down(self, record: DiskRecord) -> None:
        """Have both kernels forget the disk; where one does not, the other knows it again."""

        try:
            self._on_each(
                self._members(record.nodes),
                lambda node: self._legs(node).command(record.id, LegCommand.DOWN),
                heed=False,
            )
        except McvirtError:
            self.bring_up(record)
            raise

    def bring_up(self, record: DiskRecord) -> None:
        """Have both kernels know the disk again, as far as they can be reached."""
        for node in self._members(record.nodes):
            try:
                self._legs(node).command(record.id, LegCommand.UP)
            except McvirtError as error:
                log.warning("the leg of hard drive %s on node %s stays down: %s", record.id, node, error)

    def delete_volume(self, record: DiskRecord) -> None:
        """Delete both legs."""
        self._drop(record.id, record.backend, record.nodes)

    def forget(self, record: DiskRecord) -> None:
        """Delete the legs that can be reached."""
        for node in self._members(record.nodes):
            try:
                self._legs(node).drop(record.id, record.backend)
            except McvirtError as error:
                log.warning("the leg of hard drive %s on node %s is left behind: %s", record.id, node, error)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _drop(self, disk: str, backend: str, nodes: Sequence[str]) -> None:
        self._on_each(self._members(nodes), lambda node: self._legs(node).drop(disk, backend), heed=False)

    def _members(self, nodes: Sequence[str]) -> Sequence[str]:
        """Those that are members still: what a node that was removed has left is out of everybody's reach."""
        members = self._store.all(NodeRecord)
        return [node for node in nodes if node in members]

    def _on_each(self, nodes: Sequence[str], act: Callable[[str], object], *, heed: bool = True) -> None:
        """Do *act* on all nodes at the same time, to its end on each unless the task is cancelled (and that heeded)."""
        task = current_task()
        futures = {node: self._pool.submit(act, node) for node in nodes}
        left = set(futures.values())
        while left:
            if heed:
                task.check()  # what goes on at the peer is ended when the leg is dropped
            _, left = wait(left, timeout=_LOOK_FOR_CANCEL if heed else None)
        errors = {node: error for node, future in futures.items() if (error := future.exception()) is not None}
        for node, error in errors.items():
            log.error("the leg on node %s: %s", node, error)
        # One that has waited in vain for the other is no reason if that has one.
        for error in sorted(errors.values(), key=lambda error: isinstance(error, NodeUnreachable | DeadlinePassed)):
            if heed:
                task.check()
            raise error

    def _wait(self, name: str, predicate: Callable[[ResourceState | None], bool], within: float) -> ResourceState:
        try:
            return self._states.wait(name, predicate, within, current_task().cancelled)
        except TaskCancelled:
            current_task().check()  # says who cancelled it
            return self._states.wait(name, predicate, within)


def _unfinished(error: McvirtError) -> UndoIncomplete:
    return UndoIncomplete(text=str(error), remains="the volumes are longer, and the disk is as soon as it can be.")


def _device(record: DiskRecord) -> str:
    return f"/dev/drbd{_replica(record).minor}"


def _replica(record: DiskRecord) -> Replica:
    if record.replica is None:
        raise Conflict(text=f"Hard drive {record.id} is not replicated.")
    return record.replica


def _connected(state: ResourceState | None) -> bool:
    return state is not None and state.connected and state.disk == state.peer_disk == "Inconsistent"


def _both_good(state: ResourceState | None) -> bool:
    return state is not None and state.both_good
