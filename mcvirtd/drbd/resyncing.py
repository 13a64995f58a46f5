"""Making the two sides of a hard drive equal again: from this node, which has the good data, to the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from mcvirt.errors import Conflict, DeadlinePassed, Failed, ResyncGoesOn, TaskCancelled
from mcvirt.types.drbd import COPYING, ResourceState
from mcvirt.types.verification import Resynced
from mcvirtd.drbd.comparing import Kernel as Comparing
from mcvirtd.drbd.reader import Followed, Reader, describe
from mcvirtd.drbd.status import Event
from mcvirtd.drbd.verifications import Verifications
from mcvirtd.drbd.verifying import known_state, named
from mcvirtd.state.records import DiskRecord
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import Progress, current_task, step
from mcvirtd.tasks.transaction import Journal

RECONNECT = "drbd.reconnect"
LOOK_EVERY = 1.0
# The two sides find each other within seconds; the copying itself may take as long as it goes on.
BEGIN_WITHIN = 90.0
STALLED_AFTER = 600.0


class Kernel(Comparing, Protocol):
    """What is asked of DRBD on this node."""

    def connect(self, name: str, *, discard_my_data: bool = False) -> None:
        """Begin to look for the other side."""

    def disconnect(self, name: str, *, force: bool = False) -> None:
        """End the connection, and look for the other side no more."""

    def new_current_uuid(self, name: str, *, clear_bitmap: bool = False) -> None:
        """Begin another generation of the data."""

    def invalidate_remote(self, name: str) -> None:
        """Have all data of the other side copied from this one."""


class Copied(msgspec.Struct, frozen=True):
    """The copying has ended, with *left* bytes that differ."""

    left: int


def copied(events: Sequence[Event]) -> Copied | None:
    """Whether *events*, from before its beginning, tell of a resync to its end. A lost connection only delays it."""
    begun = False
    for event in events:
        replication = event.fields.get("replication") if event.kind == "peer-device" else None
        begun = begun or replication in COPYING
        if begun and replication == "Established":
            return Copied(int(event.fields.get("out-of-sync") or 0) * 1024)
    return None


def source_of(disk: DiskRecord, state: ResourceState, node: str) -> str:
    """The node with the good data, where there can be no doubt: the one where the machine runs. Else Conflict."""
    other = next((name for name in disk.nodes if name != node), "")
    roles = {node: state.role, other: state.peer_role}
    writers = [name for name, role in roles.items() if role == "Primary"]
    if len(writers) == 1:
        return writers[0]
    running = "runs on both nodes" if writers else "does not run"
    raise Conflict(
        text=f"Which side of {named(disk)} is good can't be known from here: its machine {running}. "
        f"Say it with --source-node: {' or '.join(disk.nodes)}."
    )


def check_source(disk: DiskRecord, state: ResourceState, full: bool, failed: bool) -> None:
    """Raise Conflict, with the reason, if nothing is to be copied from this node to the other now."""
    why = ""
    if state.checking:
        why = "it is being verified; wait for that, or cancel it."
    elif state.copying:
        why = f"its blocks are being copied already ({state.done or 0:.0f}% are done)."
    elif not state.connected:
        why = f"its two sides are not connected: {describe(state)}"
    elif state.disk != "UpToDate":
        why = f"the data of this side is {state.disk}, and so no good source."
    elif state.peer_role == "Primary":
        why = (
            "its machine runs on the other node, on the data that would be overwritten. Move or stop it first, or name"
            " that node as the source."
        )
    elif not full and not failed and not state.out_of_sync:
        why = "no block of it is known to differ. `mcvirt verify` compares all; --full copies all."
    if why:
        raise Conflict(text=f"{named(disk)} can't be resynchronised: {why}")


class Resync:
    """Copies from this node. *clock* is for what takes too long."""

    def __init__(
        self,
        *,
        kernel: Kernel,
        reader: Reader,
        verifications: Verifications,
        journal: Journal,
        locks: Locks,
        clock: Callable[[], float] = time.monotonic,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self._kernel = kernel
        self._reader = reader
        self._verifications = verifications
        self._journal = journal
        self._locks = locks
        self._clock = clock
        self._look_every = look_every
        journal.register(RECONNECT, self._reconnect, alone=True)

    def run(self, disk: DiskRecord, source: str, *, full: bool, failed: bool) -> Resynced:
        """Copy what differs, or everything, and return when both sides are equal; the mark of *disk* is gone then."""
        check_source(disk, known_state(self._reader, disk), full, failed)
        with self._locks.hold(f"disk:{disk.id}"):
            state = known_state(self._reader, disk)
            check_source(disk, state, full, failed)
            # What was found to differ and is not known to the kernel any more can be anywhere.
            full = full or not state.out_of_sync
            total = state.size if full else state.out_of_sync
            with self._reader.follow(state.name) as followed:
                begun = self._clock()
                self._begin(state, full)
                with step(f"Copying hard drive {disk.id} from {source}", total=total, unit="B") as progress:
                    left = self._wait(state, followed, progress, total, begun)
            if left:
                raise Failed(text=f"{named(disk)} was copied, and yet {left} bytes of it differ. Verify it again.")
            self._verifications.mark(disk.id, 0)
        return Resynced(disk=disk.id, source=source, copied=total)

    def _begin(self, state: ResourceState, full: bool) -> None:
        current_task().check()
        if full:
            self._kernel.invalidate_remote(state.name)
            return
        # Blocks that a verification has found are copied when the two sides meet again and one of them is ahead. A
        # Primary that is left alone is; of two Secondaries the kernel has to be told which.
        with self._journal.transaction() as tx:
            tx.undo(RECONNECT, resource=state.name)
            self._kernel.disconnect(state.name)
            if state.role != "Primary":
                self._kernel.new_current_uuid(state.name)
            self._kernel.connect(state.name)
            tx.keep()

    def _reconnect(self, resource: str) -> None:
        # When mcvirtd starts, what the kernel has is read only after this was tried; it is tried again then.
        self._reader.require_alive()
        state = self._reader.state(resource)
        if state is not None and state.connection == "StandAlone" and not state.split_brain:
            self._kernel.connect(resource)

    def _wait(self, state: ResourceState, followed: Followed, progress: Progress, total: int, since: float) -> int:
        task, moved, behind = current_task(), since, -1
        while True:
            with suppress(DeadlinePassed):
                # Only to report in between: what ends the waiting is an event.
                followed.wait(lambda events: copied(events) is not None, self._look_every)
            over = copied(followed.events)
            if over is not None:
                return over.left
            if task.cancelled.is_set():
                raise ResyncGoesOn(by=f" by {task.cancelled_by}" if task.cancelled_by else "")
            now = self._reader.state(state.name)
            known = self._kernel.progress().get(state.minor or 0)
            left = known.out_of_sync if known is not None else total
            if now is not None and now.copying and left != behind:
                moved, behind = self._clock(), left
                with suppress(TaskCancelled):  # heard above
                    progress.at(max(0, total - left))
            begun = any(event.fields.get("replication") in COPYING for event in followed.events)
            within = STALLED_AFTER if begun else BEGIN_WITHIN
            if self._clock() - moved > within:
                raise DeadlinePassed(
                    what=f"The resync of DRBD resource {state.name}",
                    seconds=f"{within:.0f}",
                    why=f"{describe(now)} It goes on by itself as soon as it can.",
                )
