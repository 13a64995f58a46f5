"""Giving replicated hard drives a side on another node, instead of one that they have, or have lost.

This is done on the node whose side stays, and on which the guest may run. A claim in the records says how far it is,
for all members. *Made*: the new side is there, and connected with nobody; what fails until then is undone as if
nothing had been. *Copying*: the two sides that the hard drive is to have are connected, by a port and a secret of their
own, and the kernels copy. From here on a death only delays it: each node goes by the claim, and this one takes it
up again. Cancelled, or failed, it goes back to the side that it had. *Stored*: in one change the records have the new
side, and the old one is its own node's to delete.
"""

from __future__ import annotations

import logging
import secrets
import string
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Literal

import msgspec

from mcvirt.errors import (
    ChangeUnknown,
    Conflict,
    DeadlinePassed,
    McvirtError,
    NodeUnreachable,
    ResyncGoesOn,
    TaskCancelled,
    Unreachable,
)
from mcvirt.types.drbd import ResourceState
from mcvirt.types.replica import LegCommand, LegSpec
from mcvirtd.drbd.claims import claim_replacement
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.former_legs import former_leg
from mcvirtd.drbd.local_legs import Legs, LocalLegs, States
from mcvirtd.drbd.resources import replacement_of
from mcvirtd.state.records import (
    DiskRecord,
    NodeRecord,
    Replacement,
    Replica,
    ReplicaClaimRecord,
    VerificationRecord,
)
from mcvirtd.state.store import Change, Store
from mcvirtd.tasks.engine import CLOSING
from mcvirtd.tasks.task import current_task, step
from mcvirtd.tasks.transaction import Journal

log = logging.getLogger(__name__)

UNDO, GOES_ON = "drbd.undo_replacement", "drbd.replacement_goes_on"
LOOK_EVERY = 1.0
AGAIN_AFTER = 5.0
_LOOK_FOR_CANCEL = 0.1
_AT_ONCE = 8
_ALPHABET = string.ascii_letters + string.digits
_SECRET_LENGTH = 40


class Replacing:
    """Of hard drives whose side on this node stays."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        node: str,
        local: LocalLegs,
        legs: Callable[[str], Legs],
        states: States,
        look_every: float = LOOK_EVERY,
        again_after: float = AGAIN_AFTER,
    ) -> None:
        self._store = store
        self._journal = journal
        self._node = node
        self._local = local
        self._legs = legs
        self._states = states
        self._look_every = look_every
        self._again_after = again_after
        journal.register(UNDO, self._undo)
        journal.register(GOES_ON, self._goes_on)

    # --- what there is ------------------------------------------------------------------------------------------------

    def left(self) -> Sequence[ReplicaClaimRecord]:
        """What this node has begun to copy, and nobody is undoing."""
        undone = {disk for _, arguments in self._journal.due_of(UNDO) for disk in arguments["disks"]}
        return [
            claim
            for claim in self._store.all(ReplicaClaimRecord).values()
            if claim.coordinator == self._node
            and claim.replacement is not None
            and claim.replacement.copying
            and claim.disk not in undone
        ]

    # --- making -------------------------------------------------------------------------------------------------------

    def make(self, disks: Sequence[DiskRecord], source: str, new: str, *, ports: Set[int], by: str) -> None:
        """Make the new sides on *new*, and begin to copy to them instead of to *source* ("": there is none).

        All or nothing; afterwards `finish` must follow.
        """
        with self._journal.transaction() as tx:
            with step("Reserving ports"):
                tx.undo(UNDO, disks=[disk.id for disk in disks])
                with self._store.change() as change:
                    claims = [
                        claim_replacement(
                            self._store,
                            change,
                            disk,
                            stays=self._node,
                            new=new,
                            replacement=Replacement(source=source, secret=_secret(), by=by),
                            ports=ports,
                        )
                        for disk in disks
                    ]
            with step(f"Making {_many(disks)} on {new}"):
                self._make_all(disks, claims, new)
            # From here on the data on *source* gets old. All disks together: so it is that of one moment.
            with step(f"Connecting with {new}, and not with {source or 'nobody'} any more"), tx.commit() as change:
                for claim in claims:
                    now = change.get(ReplicaClaimRecord, claim.disk)
                    if now != claim or claim.replacement is None:
                        raise _given_up(claim.disk)
                    change.edit(ReplicaClaimRecord, claim.disk, replacement=_in_phase(claim.replacement, "copying"))

    def _make_all(self, disks: Sequence[DiskRecord], claims: Sequence[ReplicaClaimRecord], new: str) -> None:
        task = current_task()
        pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="new-leg")
        try:
            futures = [
                pool.submit(self._legs(new).make, _spec(disk, claim))
                for disk, claim in zip(disks, claims, strict=True)
            ]
            left = set(futures)
            while left:
                task.check()  # what goes on there is ended when the leg is dropped
                _, left = wait(left, timeout=_LOOK_FOR_CANCEL)
        finally:
            pool.shutdown(wait=False)
        for future in futures:
            future.result()

    # --- copying ------------------------------------------------------------------------------------------------------

    def finish(self, disks: Sequence[str], also: Callable[[Change, Sequence[DiskRecord], str], None]) -> None:
        """Have all data of *disks* copied to their new sides, and store those in the records.

        *also* adds to the change that does so, given the disks as they were and the node of the new sides; it may
        refuse.

        Cancelled, or where it can't be done, the hard drives have the sides that they had before, of which the old one
        is copied to again. When mcvirtd is stopped it goes on, and `left` says so to the next process.
        """
        task = current_task()
        due = self._journal.add(0, "redo", GOES_ON, {"disks": list(disks)})
        try:
            with task.shielded():
                for disk in disks:
                    self._local.reconnect(disk)
            self._copy(disks, also)
        except McvirtError as error:
            self._journal.forget(due)
            if isinstance(error, TaskCancelled) and task.cancelled_by == CLOSING:
                raise ResyncGoesOn(by=f" by {CLOSING}") from None
            with task.shielded(), self._journal.transaction() as tx:
                tx.undo(UNDO, disks=list(disks))
                raise
        self._journal.forget(due)

    @staticmethod
    def _goes_on(disks: list[str]) -> None:
        """After a death: another task has taken it up."""
        which = f"hard drive {disks[0]}" if len(disks) == 1 else f"{len(disks)} hard drives"
        current_task().conclude(f"The moving of {which} goes on in a task of its own.", done=False)

    def _copy(self, disks: Sequence[str], also: Callable[[Change, Sequence[DiskRecord], str], None]) -> None:
        records = [record for disk in disks if (record := self._store.get(DiskRecord, disk)) is not None]
        total, new = sum(record.size for record in records), self._new(disks)
        with step(f"Copying {_many(records)} to {new}", total=total, unit="B") as progress:
            told = ""
            while not self._stored(disks, new):
                self._check(disks, new)
                behind = [record for record in records if not self._equal(record, new)]
                progress.at(total - sum(self._left(record) for record in behind))
                if behind:
                    progress.waits(self._stalled(behind, new))
                    with suppress(DeadlinePassed):
                        self._states.wait(resource_name(behind[0].id), _at_rest, self._look_every)
                        # The other node may need a moment to see it, too.
                        current_task().cancelled.wait(_LOOK_FOR_CANCEL)
                    continue
                try:
                    with current_task().shielded():
                        self._store_new_sides(disks, new, also)
                except (Unreachable, ChangeUnknown) as error:
                    # Both sides are equal, and stay so: it is stored as soon as the cluster takes changes.
                    if str(error) != told:
                        told = str(error)
                        log.warning("that hard drives are on %s now can't be stored yet: %s", new, error)
                    progress.waits(f"all is there, but this can't be stored yet. {error}")
                    current_task().cancelled.wait(self._again_after)

    def _new(self, disks: Sequence[str]) -> str:
        for disk in disks:
            claim = self._store.get(ReplicaClaimRecord, disk)
            if claim is not None and claim.replacement is not None:
                return next(node for node in claim.nodes if node != self._node)
        raise _given_up(", ".join(disks))

    def _stored(self, disks: Sequence[str], new: str) -> bool:
        records = [self._store.get(DiskRecord, disk) for disk in disks]
        claims = [self._store.get(ReplicaClaimRecord, disk) for disk in disks]
        return not any(claims) and all(record is not None and new in record.nodes for record in records)

    def _check(self, disks: Sequence[str], new: str) -> None:
        for disk in disks:
            if replacement_of(self._store, disk) is None:
                raise _given_up(disk)
        if self._store.get(NodeRecord, new) is None:
            raise Conflict(text=f"Node '{new}' was removed from the cluster meanwhile.")

    def _equal(self, disk: DiskRecord, new: str) -> bool:
        """Whether both kernels say that the new side has everything. What is said here alone may be of the old one."""
        state = self._states.state(resource_name(disk.id))
        if state is None:
            try:
                self._local.command(disk.id, LegCommand.UP)
            except McvirtError as error:
                log.warning("hard drive %s is down, and can't be brought up: %s", disk.id, error)
            return False
        if not _at_rest(state):
            return False
        try:
            return _at_rest(self._legs(new).state(disk.id))
        except NodeUnreachable:
            return False

    def _stalled(self, behind: Sequence[DiskRecord], new: str) -> str:
        """Why nothing of these is copied just now, in a sentence; '' if something is."""
        states = [(disk, self._states.state(resource_name(disk.id))) for disk in behind]
        if any(state is not None and state.connected for _, state in states):
            return ""
        disk, state = states[0]
        if state is None:
            return f"hard drive {disk.id} is down on node '{self._node}'."
        return f"DRBD has no connection with node '{new}' (hard drive {disk.id} is {state.connection})."

    def _left(self, disk: DiskRecord) -> int:
        state = self._states.state(resource_name(disk.id))
        return state.out_of_sync if state is not None and state.copying else disk.size

    def _store_new_sides(
        self, disks: Sequence[str], new: str, also: Callable[[Change, Sequence[DiskRecord], str], None]
    ) -> None:
        with self._store.change() as change:
            before = []
            for disk in disks:
                claim, record = change.get(ReplicaClaimRecord, disk), change.get(DiskRecord, disk)
                if record is None or claim is None or claim.replacement is None or not claim.replacement.copying:
                    raise _given_up(disk)
                replica = Replica(minor=claim.minor, port=claim.port, secret=claim.replacement.secret)
                change.edit(DiskRecord, disk, nodes=claim.nodes, replica=replica)
                change.delete(ReplicaClaimRecord, disk)
                source = claim.replacement.source
                if source and change.get(NodeRecord, source) is not None:
                    change.put(former_leg(record, source))
                verified = change.get(VerificationRecord, disk)
                if verified is not None and verified.failed:  # of sides that it has not any more
                    change.edit(VerificationRecord, disk, failed=False, out_of_sync=0)
                before.append(record)
            also(change, before, new)

    # --- undoing ------------------------------------------------------------------------------------------------------

    def _undo(self, disks: list[str]) -> None:
        found: list[ReplicaClaimRecord] = []
        with self._store.change() as change:
            for disk in disks:
                claim = change.get(ReplicaClaimRecord, disk)
                if claim is None or claim.replacement is None:
                    continue
                if claim.replacement.copying:
                    back = _in_phase(claim.replacement, "undoing")
                    claim = change.edit(ReplicaClaimRecord, disk, replacement=back)
                found.append(claim)
        for claim in found:
            if claim.replacement is not None and claim.replacement.phase == "undoing":
                self._local.reconnect(claim.disk)
        for claim in found:
            new = next(node for node in claim.nodes if node != claim.coordinator)
            if self._store.get(NodeRecord, new) is not None:
                self._legs(new).drop(claim.disk, claim.backend)
        if found:
            with self._store.change() as change:
                for claim in found:
                    change.delete(ReplicaClaimRecord, claim.disk)


def _in_phase(replacement: Replacement, phase: Literal["copying", "undoing"]) -> Replacement:
    return msgspec.structs.replace(replacement, phase=phase)


def _given_up(disk: str) -> Conflict:
    return Conflict(text=f"The moving of hard drive {disk} was given up meanwhile.")


def _secret() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))


def _spec(disk: DiskRecord, claim: ReplicaClaimRecord) -> LegSpec:
    assert claim.replacement is not None
    one, other = claim.nodes
    return LegSpec(
        disk=disk.id,
        backend=disk.backend,
        size=disk.size,
        minor=claim.minor,
        port=claim.port,
        secret=claim.replacement.secret,
        nodes=(one, other),
    )


def _at_rest(state: ResourceState | None) -> bool:
    return state is not None and state.both_good and not state.copying and not state.checking


def _many(disks: Sequence[DiskRecord]) -> str:
    return f"hard drive {disks[0].id}" if len(disks) == 1 else f"{len(disks)} hard drives"
