"""One verification of one resource, from the command to what came of it. Nothing is recorded here.

What it says is what the kernel's events said, all of which are seen from before the command on: so one that is over in
a moment is seen as well as one that is cut off. It has passed only if the kernel said that it ended, with both disks
good all the time, and has read as much as there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from mcvirt.errors import CommandFailed, DeadlinePassed, McvirtError, TaskCancelled
from mcvirt.types.drbd import CHECKING, ResourceState
from mcvirt.types.verification import Result
from mcvirtd.drbd.reader import Followed, Reader
from mcvirtd.drbd.status import GAP, READ_WRAPS, Event, Progress
from mcvirtd.tasks.task import Task

LOOK_EVERY = 1.0
# Long before a disk can have read so much that its counter begins anew.
ASK_EVERY = 30.0
BEGIN_WITHIN = 60.0
STOP_WITHIN = 60.0
KNOWN_WITHIN = 60.0
BEGUN_WITHIN = 5.0
# A slow verification reads at least something in that time, however little it may; a disk that hangs does not.
STALLED_AFTER = 600.0


class Kernel(Protocol):
    """What is asked of DRBD on this node."""

    def verify(self, name: str) -> None:
        """Begin to compare both sides, from the first block to the last."""

    def stop_verify(self, name: str) -> None:
        """End the comparison that was begun here."""

    def progress(self) -> Mapping[int, Progress]:
        """How far what goes on is, by minor."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended; bytes *out_of_sync*. *reason* says why it was interrupted."""

    result: Result
    out_of_sync: int = 0
    reason: str = ""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What the events say of the end: *whole* if the kernel says that it ended by itself, with both disks good."""

    whole: bool
    out_of_sync: int = 0
    reason: str = ""


def ending(events: Sequence[Event]) -> Ending | None:
    """How the verification that *events* tell of from before its beginning ended; None while it has not."""
    begun, differ, bad = False, 0, ""
    for event in events:
        fields = event.fields
        if event.verb == GAP:
            # One that still goes on is the same one: what is cut off does not go on by itself.
            differ = int(fields.get("out-of-sync") or 0) * 1024
            if fields.get("replication") not in CHECKING:
                reason = "DRBD's events could not be read for a moment, and it was over after that."
                return Ending(whole=False, out_of_sync=differ, reason=reason)
            begun = True
        elif event.kind == "peer-device" and event.verb != "destroy":
            differ = int(fields.get("out-of-sync") or differ // 1024) * 1024
            replication = fields.get("replication")
            begun = begun or replication in CHECKING
            if begun and fields.get("peer-disk", "UpToDate") != "UpToDate" and replication != "Off":
                bad = f"the disk of the other side became {fields['peer-disk']}."
            if begun and replication is not None and replication not in CHECKING:
                lost = f"the connection to the other side was lost ({replication})."
                whole = replication == "Established" and not bad
                return Ending(whole=whole, out_of_sync=differ, reason="" if whole else bad or lost)
        elif event.kind == "device" and fields.get("disk", "UpToDate") != "UpToDate":
            bad = f"the disk of this side became {fields['disk']}."
        elif event.kind == "connection" and fields.get("connection", "Connected") != "Connected":
            # How many blocks differ comes with an event of its own, which a resource that is cut off may not have.
            lost = f"the connection to the other side was lost ({fields['connection']})."
            return Ending(whole=False, out_of_sync=differ, reason=lost)
        elif event.verb == "destroy":
            return Ending(whole=False, out_of_sync=differ, reason="the resource was taken down.")
    return None


class Read:
    """How much a side's disk has read, added up from looks at its counter: at least *total* bytes.

    A counter that went back (the resource was taken down in between) begins from nothing.
    """

    def __init__(self) -> None:
        self.total = 0
        self._last: int | None = None

    def saw(self, counter: int | None) -> None:
        """The counter stands there now; None: it is not known."""
        if counter is None:
            return
        moved = 0 if self._last is None else (counter - self._last) % READ_WRAPS
        # No disk reads that much between two looks: the counter went back, for the disk was attached anew.
        self.total = 0 if moved > READ_WRAPS // 2 else self.total + moved
        self._last = counter


class Comparison:
    """Verifies resources of this node."""

    def __init__(
        self,
        kernel: Kernel,
        reader: Reader,
        *,
        clock: Callable[[], float] = time.monotonic,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self._kernel = kernel
        self._reader = reader
        self._clock = clock
        self._look_every = look_every

    def run(
        self, state: ResourceState, task: Task, report: Callable[[int], None], read_there: Callable[[], int | None]
    ) -> Outcome:
        """Verify the resource that is *state* now to an end, and *report* the bytes that are behind it.

        *read_there* asks the other side what its disk has read; None: it can't be known now.

        What keeps it from being begun is raised. If *task* is cancelled, it is stopped; the outcome says so.
        """
        with self._reader.follow(state.name) as followed:
            # From here on no change of who uses it is missed.
            state = self._reader.state(state.name) or state
            here, there = Read(), Read()
            here.saw(self._read(state))
            there.saw(read_there())
            self._begin(state.name, followed, task)
            try:
                ended = self._wait(state, followed, task, report, here=here, ask_there=lambda: there.saw(read_there()))
            except TaskCancelled:
                return self._stopped(state, followed, "it was cancelled.")
            except DeadlinePassed as passed:
                return self._stopped(state, followed, str(passed.fields["why"]))
        if not ended.whole:
            return Outcome(result="interrupted", out_of_sync=ended.out_of_sync, reason=ended.reason)
        if ended.out_of_sync:
            return Outcome(result="differences", out_of_sync=ended.out_of_sync)
        here.saw(self._read(state))
        if _was_primary("resource", state.role, followed.events) or _missed(followed.events):
            there.saw(self._until_known(read_there, task))
        if (read := self._surely_read(state, followed.events, here, there)) < state.size:
            # Somebody has moved its end with drbdsetup; the kernel tells only its log.
            why = (
                "it was ended from outside before the whole disk was read, the kernel's counters could not be read, or "
                f"both sides were Primary meanwhile ({read} of {state.size} bytes are known to have been read)."
            )
            return Outcome(result="interrupted", reason=why)
        report(state.size)
        return Outcome(result="clean")

    @staticmethod
    def _surely_read(before: ResourceState, events: Sequence[Event], here: Read, there: Read) -> int:
        """What the verification itself has read: what a guest reads counts as well, but only on its own side."""
        if _missed(events):
            return min(here.total, there.total)  # who used it may have been missed
        if not _was_primary("resource", before.role, events):
            return here.total
        return 0 if _was_primary("connection", before.peer_role, events) else there.total

    def _wait(
        self,
        state: ResourceState,
        followed: Followed,
        task: Task,
        report: Callable[[int], None],
        *,
        here: Read,
        ask_there: Callable[[], None],
    ) -> Ending:
        moved, behind = self._clock(), here.total
        asked = moved
        while True:
            with suppress(DeadlinePassed):
                # Only to report in between: what ends the waiting is an event.
                followed.wait(lambda events: ending(events) is not None, self._look_every, task.cancelled)
            events = followed.events
            over = ending(events)
            if over is not None:
                return over
            now = self._kernel.progress().get(state.minor or 0)
            begun = _has_begun(events)
            here.saw(None if now is None else now.read)
            if self._clock() - asked >= ASK_EVERY:
                ask_there()
                asked = self._clock()
            # A guest that reads is no sign that the verification goes on.
            position = here.total if now is None or now.left is None else state.size - now.left
            if position != behind:
                moved, behind = self._clock(), position
            if now is not None and now.done is not None:
                report(int(state.size * min(now.done, 100.0) / 100))
            within = STALLED_AFTER if begun else BEGIN_WITHIN
            if self._clock() - moved > within:
                what = "has not gone on" if begun else "has not begun"
                raise DeadlinePassed(what="the verification", seconds=within, why=f"it {what} for {within:.0f} s.")

    def _begin(self, name: str, followed: Followed, task: Task) -> None:
        try:
            self._kernel.verify(name)
        except CommandFailed:
            # Who waits for it may have lost patience, and the kernel may have begun, or begin, all the same.
            with suppress(DeadlinePassed):
                followed.wait(_has_begun, BEGUN_WITHIN, task.cancelled)
            if not _has_begun(followed.events):
                raise

    def _stopped(self, state: ResourceState, followed: Followed, reason: str) -> Outcome:
        refused: McvirtError | None = None
        try:
            self._kernel.stop_verify(state.name)
        except McvirtError as error:
            refused = error  # which the kernel may have done all the same
        try:
            followed.wait(lambda events: ending(events) is not None, STOP_WITHIN if refused is None else BEGUN_WITHIN)
        except McvirtError as late:
            reason = f"{reason} It could not be stopped: {refused or late}"
        ended = ending(followed.events)
        return Outcome(result="interrupted", out_of_sync=ended.out_of_sync if ended else 0, reason=reason)

    def _until_known(self, read_there: Callable[[], int | None], task: Task) -> int | None:
        """What the other side has read: its mcvirtd may just be restarted, and its counter stands still meanwhile."""
        until = self._clock() + KNOWN_WITHIN
        while (read := read_there()) is None and self._clock() < until and not task.cancelled.wait(self._look_every):
            pass
        return read

    def _read(self, state: ResourceState) -> int | None:
        now = self._kernel.progress().get(state.minor or 0)
        return None if now is None else now.read


def _has_begun(events: Sequence[Event]) -> bool:
    return any(event.fields.get("replication") in CHECKING for event in events)


def _missed(events: Sequence[Event]) -> bool:
    return any(event.verb == GAP for event in events)


def _was_primary(kind: str, before: str, events: Sequence[Event]) -> bool:
    """Whether this side ("resource") or the other one ("connection") was Primary at any time."""
    return "Primary" in (before, *(event.fields.get("role") for event in events if event.kind == kind))
