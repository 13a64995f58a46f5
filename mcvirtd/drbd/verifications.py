"""What is recorded of verifications, and what follows from it for the machines."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from mcvirt.types.verification import Verification
from mcvirt.units import format_size
from mcvirtd.drbd.comparing import Outcome
from mcvirtd.state.records import DiskRecord, SplitUndoRecord, VerificationRecord, VerificationRun
from mcvirtd.state.store import Change, Store
from mcvirtd.tasks.task import current_task
from mcvirtd.tasks.transaction import Journal

RUNS_KEPT = 20
ACT = "drbd.note_verification"
_DIED = "mcvirtd was stopped while it went on."


class Verifications:
    """The records of this cluster, written to from *node*."""

    def __init__(
        self, store: Store, journal: Journal, node: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._journal = journal
        self._node = node
        self._clock = clock
        journal.register(ACT, self._note)

    def begin(self, disk: str, by: str) -> Unfinished:
        """A verification of *disk* begins: should mcvirtd die, that is what will be known of it."""
        run = VerificationRun(
            started=self._clock(), ended=self._clock(), by=by, node=self._node, result="interrupted", reason=_DIED
        )
        return Unfinished(self, disk, run, self._journal.add(0, "redo", ACT, _arguments(disk, run)))

    def end(self, unfinished: Unfinished, outcome: Outcome) -> VerificationRun:
        """Record how it ended. While the cluster can't take it in it is kept on this node, and is recorded later."""
        run = msgspec.structs.replace(
            unfinished.run,
            ended=self._clock(),
            result=outcome.result,
            out_of_sync=outcome.out_of_sync,
            reason=outcome.reason,
        )
        self._journal.amend(unfinished.entry, _arguments(unfinished.disk, run))
        with self._store.change() as change:
            _add(change, unfinished.disk, run)
            change.execute("DELETE FROM journal WHERE seq = ?", (unfinished.entry,))
        return run

    def forget(self, unfinished: Unfinished) -> None:
        """It was not begun after all."""
        self._journal.forget(unfinished.entry)

    def skip(self, disk: str, by: str, reason: str) -> VerificationRun:
        """Record that *disk* could not be verified when it was due."""
        now = self._clock()
        run = VerificationRun(started=now, ended=now, by=by, node=self._node, result="skipped", reason=reason)
        with self._store.change() as change:
            _add(change, disk, run)
        return run

    def mark(self, disk: str, out_of_sync: int) -> None:
        """The two sides of *disk* are known to differ in so many bytes; 0: they are equal again."""
        with self._store.change() as change:
            if change.get(DiskRecord, disk) is None:
                return
            record = change.get(VerificationRecord, disk) or VerificationRecord(disk=disk)
            marked = msgspec.structs.replace(record, failed=bool(out_of_sync), out_of_sync=out_of_sync)
            if marked != record:
                change.put(marked)

    def _note(self, disk: str, run: dict[str, Any]) -> None:
        ended = msgspec.convert(run, VerificationRun)
        with self._store.change() as change:
            _add(change, disk, ended)
        # The task has not done what it was to do because this is on record now: it has no result for who follows it,
        # and others of its hard drives may not have been begun.
        task = current_task()
        sentences = [task.verdict[0]] if task.verdict is not None else []
        task.conclude(" ".join((*sentences, _came_to(disk, ended))), done=False)


class Unfinished(msgspec.Struct, frozen=True):
    """A verification that goes on, and its entry in the journal."""

    verifications: Verifications
    disk: str
    run: VerificationRun
    entry: int


def _arguments(disk: str, run: VerificationRun) -> dict[str, Any]:
    return {"disk": disk, "run": msgspec.to_builtins(run)}


def _add(change: Change, disk: str, run: VerificationRun) -> None:
    if change.get(DiskRecord, disk) is None:
        return  # it was deleted meanwhile, and its record with it
    record = change.get(VerificationRecord, disk) or VerificationRecord(disk=disk)
    if run in record.runs:
        return
    fields: dict[str, Any] = {"runs": (*record.runs, run)[-RUNS_KEPT:]}
    if run.result in ("clean", "differences"):
        fields |= {"failed": run.result == "differences", "out_of_sync": run.out_of_sync}
    change.put(msgspec.structs.replace(record, **fields))


def _came_to(disk: str, run: VerificationRun) -> str:
    """What a run came to, in a sentence."""
    match run.result:
        case "clean":
            return f"The verification of hard drive {disk} passed, which is on record."
        case "differences":
            return f"The verification of hard drive {disk} found that {format_size(run.out_of_sync)} differ."
        case _:
            return f"The verification of hard drive {disk} was interrupted: {run.reason}"


def shown(disk: DiskRecord, run: VerificationRun) -> Verification:
    """A run as users see it."""
    return Verification(disk=disk.id, vm=disk.vm, slot=disk.slot, **msgspec.structs.asdict(run))


def difference(store: Store, disk: DiskRecord) -> str:
    """Why a hard drive is not to be relied on, in a sentence: its sides differ, or it is of two pasts. Else ""."""
    undo = store.get(SplitUndoRecord, disk.id)
    if undo is not None and undo.taking:
        finish = remedy(disk, "drbd split-brain resolve --undo NAME", "finishes it")
        return f"its earlier data was not taken back to the end. {finish}"
    record = store.get(VerificationRecord, disk.id)
    if record is None or not record.failed:
        return ""
    return differing(disk, record.out_of_sync)


def differing(disk: DiskRecord, out_of_sync: int) -> str:
    """That the two sides of *disk* differ in so many bytes, and what to do, in a sentence."""
    return (
        f"its two sides, on {' and '.join(disk.nodes)}, were found to differ in {format_size(out_of_sync)} when "
        f"they were verified. {remedy(disk, 'resync NAME --source-node NODE', 'copies what is good')}"
    )


def remedy(disk: DiskRecord, command: str, does: str) -> str:
    """That the *command* of mcvirt, with *disk*'s machine for NAME, *does* something, in a sentence.

    These commands are given for machines. So a hard drive that none has is attached to one first, and as it is not to
    be relied on, that takes the word of whoever does it.
    """
    if disk.vm is not None:
        return f"`mcvirt {command.replace('NAME', disk.vm)}` {does}."
    return (
        f"No virtual machine has it: `mcvirt --ignore-drbd hard-drive attach {disk.id} NAME` gives it to one, which is "
        f"to be stopped, and after that `mcvirt {command}` {does}."
    )
