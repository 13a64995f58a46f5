"""Split brains: shown, resolved by whoever says which side is kept, and taken back.

Nothing here discards anything by itself. The side that gives way is copied beside first, and where data is taken back
the side that loses then is, too: so each of the two can be had again until somebody forgets one.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mcvirt import names
from mcvirt.api.split_brain import SplitBrainApi
from mcvirt.errors import BadArgument, Conflict, McvirtError, NotFound
from mcvirt.types.drbd import DrbdInfo
from mcvirt.types.split_brain import SplitInfo, SplitSide, SplitUndo
from mcvirtd.auth.caller import current_caller
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.discarding import Discarding
from mcvirtd.drbd.reader import Reader, describe
from mcvirtd.drbd.split_checks import SplitChecks, check_same, no_other_side, no_undo
from mcvirtd.drbd.split_sides import Ask, Kept, Kernel, equal, written
from mcvirtd.drbd.verification_service import Errands
from mcvirtd.drbd.verifying import known_state, named, replicated
from mcvirtd.host import content
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import DiskRecord, SplitUndoRecord, VmRecord
from mcvirtd.state.store import Change, Store
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import step
from mcvirtd.tasks.transaction import Journal

log = logging.getLogger(__name__)

DROP, DROP_THERE, NOTE_DONE, DEMOTE = "split.drop_aside", "split.drop_aside_there", "split.note_done", "split.demote"
STAY, DROP_EARLIER = "split.stay", "split.drop_earlier_there"
ASIDE_WITHIN = 180.0
WRITTEN_WITHIN = 5.0
CHECKED_WITHIN = 60.0


class SplitBrain(SplitBrainApi):
    """See the contract. *info* is what is known of both sides of a hard drive.

    *discarding* and *checks* are for others, too.
    """

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        locks: Locks,
        node: str,
        kernel: Kernel,
        reader: Reader,
        asides: Kept,
        info: Callable[[DiskRecord], DrbdInfo | None],
        errands: Errands,
        ask: Ask,
    ) -> None:
        self._store = store
        self._journal = journal
        self._locks = locks
        self._node = node
        self._kernel = kernel
        self._reader = reader
        self._asides = asides
        self._info = info
        self._errands = errands
        self._ask = ask
        self.checks = SplitChecks(store=store, node=node, reader=reader, asides=asides, info=info)
        self.discarding = Discarding(journal=journal, kernel=kernel, reader=reader, ask=ask)
        journal.register(DROP, self._drop_aside)
        journal.register(DROP_THERE, self._drop_there)
        journal.register(NOTE_DONE, self._note_done)
        journal.register(DEMOTE, self._demote, alone=True)
        journal.register(STAY, self._stay)
        journal.register(DROP_EARLIER, self._drop_earlier)

    # --- showing ------------------------------------------------------------------------------------------------------

    def show(self, name: str | None = None) -> tuple[SplitInfo, ...]:
        """The hard drives that are split, or whose earlier data is kept."""
        disks = self._of(name) if name is not None else self._disks()
        return tuple(info for disk in disks if (info := self._shown(disk)) is not None)

    def _shown(self, disk: DiskRecord) -> SplitInfo | None:
        info, undo = self._info(disk), self._store.get(SplitUndoRecord, disk.id)
        if info is None or not (info.split_brain or undo):
            return None
        sides = tuple(
            SplitSide(
                node=leg.node,
                connection=leg.state.connection if leg.state is not None else "Unknown",
                written=self._written(disk, leg.node) if leg.age is None and info.split_brain else None,
                primary=leg.state is not None and leg.state.role == "Primary",
                age=leg.age,
            )
            for leg in info.legs
        )
        kept = SplitUndo(node=undo.node, kept=undo.kept, made=undo.made, by=undo.by) if undo is not None else None
        return SplitInfo(disk=disk.id, vm=disk.vm, slot=disk.slot, split=info.split_brain, sides=sides, undo=kept)

    def _written(self, disk: DiskRecord, node: str) -> int | None:
        """What a side has written alone, which no event tells."""
        if node == self._node:
            return written(self._kernel, disk)
        try:
            return msgspec.json.decode(self._ask(node, "written", {"disk": disk.id}, WRITTEN_WITHIN), type=int | None)
        except McvirtError:
            return None

    # --- for all disks of a machine, or one by its ID -----------------------------------------------------------------

    def resolve(self, name: str, keep: str, disk: int | None = None) -> tuple[SplitInfo, ...]:
        """Go on with the data of the node *keep*."""
        disks = self._of(name, disk)
        split = [each for each in disks if len(each.nodes) > 1 and self.checks.is_split(each)]
        if not split:
            alone = [f" {named(each)}: {no_other_side(each)}" for each in disks if len(each.nodes) < 2]
            which = "Hard drive {} is not" if self._is_id(name) else "No hard drive of virtual machine '{}' is"
            raise Conflict(text=f"{which.format(name)} split.{''.join(alone)}")
        for each in split:
            if keep not in each.nodes:
                why = f"{named(each)} is on {' and '.join(each.nodes)}."
                raise BadArgument(what=f"node '{names.printable(keep)}'", why=why)
        losing = [(each, next(node for node in each.nodes if node != keep)) for each in split]
        # A machine of which one disk has other data than the rest is worse than one that is split.
        self._check([("may_give_way", node, each) for each, node in losing])
        for each, node in losing:
            self._have("give_way", each, node)
        return self.show(name)

    def undo(self, name: str, disk: int | None = None) -> tuple[SplitInfo, ...]:
        """Go on with the data that was set aside."""
        found = self._with_undo(name, disk)
        # Given again after it has failed half-way, it is not to swap back what it has finished.
        begun = {record.wanted for _, record in found if record.wanted}
        found = [(each, record) for each, record in found if record.wanted or record.took not in begun]
        reasons = Reasons()
        for each, record in found:
            if len(each.nodes) < 2:
                why = no_undo(each, record)
                reasons.add(Conflict(text=f"The earlier data of {named(each)} can't be taken back: {why}"))
        reasons.raise_all()
        asked = [("may_take_back", record.node, each) for each, record in found]
        copied = [(each, record.node) for each, record in found if not record.mixed]
        asked += [("may_set_aside", node, each) for each, loser in copied for node in each.nodes if node != loser]
        self._check(asked)
        self._want(found)
        for each, record in found:
            self._have("take_back", each, record.node)
        return self.show(name)

    def _want(self, found: Sequence[tuple[DiskRecord, SplitUndoRecord]]) -> None:
        """It is known, also after a failure, which are to be taken back together."""
        undo = secrets.token_hex(4)
        with self._store.change() as change:
            for each, record in found:
                if change.get(SplitUndoRecord, each.id) != record:
                    raise Conflict(text=f"What was set aside of {named(each)} has changed meanwhile. Try again.")
                if not record.wanted:
                    change.edit(SplitUndoRecord, each.id, wanted=undo)

    def forget(self, name: str, disk: int | None = None) -> tuple[SplitInfo, ...]:
        """Delete the data that was set aside."""
        for each, record in self._with_undo(name, disk):
            if record.node in each.nodes:
                self._have("drop", each, record.node)
            else:
                self._forget_gone(each, record)
        return self.show(name)

    def _forget_gone(self, disk: DiskRecord, undo: SplitUndoRecord) -> None:
        """What was set aside went with its node, which was removed."""
        if undo.mixed:
            raise Conflict(
                text=f"{named(disk)} is of two pasts: it was being taken back, and the rest was on node '{undo.node}', "
                "which was removed. It can be deleted, or used all the same with --ignore-drbd."
            )
        with self._store.change() as change:
            if change.get(SplitUndoRecord, disk.id) != undo:
                raise Conflict(text=f"What was set aside of {named(disk)} has changed meanwhile. Try again.")
            change.delete(SplitUndoRecord, disk.id)

    def _check(self, asked: Sequence[tuple[str, str, DiskRecord]]) -> None:
        """Raise all that the nodes have against it, *asked* as operation, node and hard drive; nothing is changed."""
        together: dict[tuple[str, str], list[DiskRecord]] = {}
        for operation, node, disk in asked:
            together.setdefault((operation, node), []).append(disk)
        reasons = Reasons()
        for (operation, node), disks in together.items():
            with reasons.gather():
                if node == self._node:
                    getattr(self.checks, operation)(disks)
                else:
                    self._ask(node, operation, {"disks": [disk.id for disk in disks]}, CHECKED_WITHIN)
        reasons.raise_all()

    def _have(self, operation: str, disk: DiskRecord, node: str) -> None:
        if node == self._node:
            getattr(self, operation)(disk.id, node)
            return
        with step(f"Hard drive {disk.id} on node {node}"):
            arguments = {"disk": disk.id, "node": node}
            self._errands.run(node, f"split_brain.{operation}", arguments, lambda info: None)  # noqa: ARG005

    # --- one disk, on the node that gives way -------------------------------------------------------------------------

    def give_way(self, disk: str, node: str) -> None:
        """Set the data of this node aside, and take that of the other."""
        record = self._disk(disk, node)
        with self._locks.hold(f"disk:{disk}"):
            state = self.checks.give_way(record)
            other = self._other(record)
            with self._journal.transaction() as tx:
                tx.undo(DROP, disk=disk)
                self._make_aside(record)
                by = current_caller().user or "root"
                kept = SplitUndoRecord(disk=disk, node=self._node, kept=other, made=datetime.now(UTC), by=by)
                with tx.commit() as change:
                    before = change.get(SplitUndoRecord, disk)
                    if before is not None and before.node != self._node:
                        # That side was to give way, and did not. No record has its copy any more.
                        self._journal.add_to(change, "redo", DROP_EARLIER, {"disk": disk, "node": before.node})
                    change.put(kept)
            due = self._journal.add(0, "redo", NOTE_DONE, {"disk": disk})
            self.discarding.run(record, state, other)
            with self._store.change() as change:
                change.edit(SplitUndoRecord, disk, done=True)
                change.execute("DELETE FROM journal WHERE seq = ?", (due,))
            if before is not None and before.node != self._node:
                self._try_drop_earlier(disk, before.node)

    # --- taking back --------------------------------------------------------------------------------------------------

    def take_back(self, disk: str, node: str) -> None:
        """Go on with the data that was set aside on this node."""
        record = self._disk(disk, node)
        with self._unused(record):
            undo = self.checks.take_back(record)
            other = self._other(record)
            if not undo.mixed:
                with self._journal.transaction() as tx:
                    tx.undo(STAY, disk=disk)
                    tx.undo(DROP_THERE, disk=disk, node=other)
                    tx.leave_due_if_unknown()
                    # From here on the machine is started on no node: the copying may take as long as it likes.
                    with self._store.change() as change:
                        change.edit(SplitUndoRecord, disk, taking=True)
                    self._have("set_aside", record, other)
                    self.checks.unused(record)
                    with tx.commit() as change:
                        check_same(record, change.get(DiskRecord, disk))
                        change.edit(SplitUndoRecord, disk, mixed=True)
            self.checks.unused(record)
            self._write_back(record)
            by = current_caller().user or "root"
            made, took = datetime.now(UTC), undo.wanted
            now = SplitUndoRecord(disk=disk, node=other, kept=self._node, made=made, by=by, done=True, took=took)
            self._give_up(record, lambda change: change.put(now))

    def set_aside(self, disk: str, node: str) -> None:
        """Keep a copy of what this node has of a hard drive that nobody uses."""
        record = self._disk(disk, node)
        with self._unused(record):
            with self._store.change() as change:  # in its turn, so that what the other node has stored is seen
                undo = change.get(SplitUndoRecord, disk)
            self.checks.not_wanted(record, undo)
            if undo is None or not undo.taking or undo.mixed:
                raise Conflict(text=f"The earlier data of {named(record)} is not about to be taken back.")
            self.checks.unused(record)
            self._make_aside(record)

    @contextmanager
    def _unused(self, disk: DiskRecord) -> Iterator[None]:
        """Nobody starts its machine on this node meanwhile, or changes the hard drive."""
        machine = [f"vm:{disk.vm}"] if disk.vm is not None else []
        with self._locks.hold(f"disk:{disk.id}", *machine):
            check_same(disk, self._store.get(DiskRecord, disk.id))
            yield

    def _make_aside(self, disk: DiskRecord) -> None:
        name = f"Setting aside what node {self._node} has of hard drive {disk.id}"
        with step(name, total=disk.size, unit="B") as progress:
            self._asides.make(disk, lambda done, total: progress.at(done))  # noqa: ARG005

    def _write_back(self, disk: DiskRecord) -> None:
        """Through DRBD, so that the other side gets it at the same time."""
        name, minor = resource_name(disk.id), disk.replica.minor if disk.replica is not None else 0
        with self._journal.transaction() as tx:
            tx.undo(DEMOTE, resource=name)
            self._kernel.primary(name)
            with step(f"Taking back hard drive {disk.id}", total=disk.size, unit="B") as progress:
                content.restore(
                    self._asides.path(disk),
                    Path(f"/dev/drbd{minor}"),
                    length=self._asides.length(disk),  # it may have been grown since
                    progress=lambda done, total: progress.at(done),  # noqa: ARG005
                )
            self._kernel.secondary(name)
            tx.keep()

    def drop(self, disk: str, node: str) -> None:
        """Delete the data that was set aside on this node."""
        record = self._disk(disk, node)
        with self._locks.hold(f"disk:{disk}"):
            undo = self._store.get(SplitUndoRecord, disk)
            if undo is None or undo.node != self._node:
                raise NotFound(kind="data that was set aside for hard drive", name=disk)
            if undo.taking:
                raise Conflict(text=f"{named(record)} is being taken back, and not all of it is there yet: undo first.")
            if not undo.done:
                self._check_at_rest(record)
            with step(f"Deleting what was set aside of hard drive {disk}"):
                self._give_up(record, lambda change: change.delete(SplitUndoRecord, disk))

    def _give_up(self, disk: DiskRecord, recorded: Callable[[Change], object]) -> None:
        """Delete the copy, as soon as the record says that there is none here: never is one promised that is gone."""
        with self._journal.transaction() as tx:
            tx.undo(DROP, disk=disk.id)
            tx.leave_due_if_unknown()
            with self._store.change() as change:
                recorded(change)
            self._asides.drop(disk)
            tx.keep()

    def _check_at_rest(self, disk: DiskRecord) -> None:
        """Nothing of this side is being discarded, and nothing is about to be."""
        state = known_state(self._reader, disk)
        if state.connection != "StandAlone" and not equal(state):
            raise Conflict(text=f"What was set aside of {named(disk)} can't be deleted yet: {describe(state)}")

    # --- after a failure or a crash -----------------------------------------------------------------------------------

    def _drop_aside(self, disk: str) -> None:
        # Settled later, it must not delete what somebody is just setting aside.
        with self._locks.hold(f"disk:{disk}"):
            record, undo = self._store.get(DiskRecord, disk), self._store.get(SplitUndoRecord, disk)
            if record is not None and (undo is None or undo.node != self._node):
                self._asides.drop(record)

    def _drop_there(self, disk: str, node: str) -> None:
        with self._locks.hold(f"disk:{disk}"):
            record, undo = self._store.get(DiskRecord, disk), self._store.get(SplitUndoRecord, disk)
            if record is not None and undo is not None and not undo.mixed and undo.node != node:
                self._ask(node, "drop_aside", {"disk": disk}, ASIDE_WITHIN)

    def _drop_earlier(self, disk: str, node: str) -> None:
        """The copy of the side that is kept after all; until it is known to be, that may be all that is good of it."""
        record, undo = self._store.get(DiskRecord, disk), self._store.get(SplitUndoRecord, disk)
        if record is None or node not in record.nodes or (undo is not None and undo.node == node):
            return
        if undo is not None and not undo.done:
            raise Conflict(
                text=f"What node '{node}' has set aside of {named(record)} is kept until its split is resolved."
            )
        self._ask(node, "drop_aside", {"disk": disk}, ASIDE_WITHIN)

    def _try_drop_earlier(self, disk: str, node: str) -> None:
        try:
            self._drop_earlier(disk, node)
            self._journal.withdraw(DROP_EARLIER, disk=disk, node=node)
        except McvirtError as error:
            log.warning("what node %s has set aside of hard drive %s is deleted later: %s", node, disk, error)

    def _stay(self, disk: str) -> None:
        """Nothing is taken back after all, unless some of it is."""
        with self._locks.hold(f"disk:{disk}"), self._store.change() as change:
            undo = change.get(SplitUndoRecord, disk)
            if undo is not None and undo.node == self._node and undo.taking and not undo.mixed:
                change.edit(SplitUndoRecord, disk, taking=False)

    def _note_done(self, disk: str) -> None:
        record, undo = self._store.get(DiskRecord, disk), self._store.get(SplitUndoRecord, disk)
        if record is None or undo is None or undo.done or self.checks.is_split(record):
            return
        if not equal(self._reader.state(resource_name(disk))):
            raise Conflict(text=f"{named(record)} is still being copied.")
        with self._store.change() as change:
            change.edit(SplitUndoRecord, disk, done=True)

    def _demote(self, resource: str) -> None:
        state = self._kernel.state(resource)
        if state is not None and state.role == "Primary" and not state.open:
            self._kernel.secondary(resource)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _other(self, disk: DiskRecord) -> str:
        return next((node for node in disk.nodes if node != self._node), "")

    def _is_id(self, name: str) -> bool:
        """Whether *name*, which is one of the two, is a hard drive's ID, and no virtual machine's name."""
        return self._store.get(VmRecord, name) is None

    def _disks(self) -> Sequence[DiskRecord]:
        disks = [disk for disk in self._store.all(DiskRecord).values() if disk.replica is not None]
        return sorted(disks, key=lambda disk: (disk.vm or "", disk.slot or 0, disk.id))

    def _of(self, name: str, slot: int | None = None) -> list[DiskRecord]:
        found = [disk for disk in replicated(self._store, name) if slot in (None, disk.slot)]
        if slot is not None and not found:
            raise NotFound(kind="replicated disk", name=str(slot), hint=f" `mcvirt info {name}` shows all.")
        return found

    def _with_undo(self, name: str, slot: int | None) -> list[tuple[DiskRecord, SplitUndoRecord]]:
        disks = self._of(name, slot)
        found = [(disk, undo) for disk in disks if (undo := self._store.get(SplitUndoRecord, disk.id)) is not None]
        if not found:
            which = "hard drive {}" if self._is_id(name) else "the hard drives of virtual machine '{}'"
            raise Conflict(text=f"Nothing was set aside of {which.format(name)}.")
        return found

    def _disk(self, disk: str, node: str) -> DiskRecord:
        record = self._store.get(DiskRecord, names.object_id(disk, "hd", "hard drive"))
        if record is None or record.replica is None:
            raise NotFound(kind="replicated hard drive", name=disk, hint=" `mcvirt drbd list` shows all of them.")
        if self._node != node or node not in record.nodes:
            raise BadArgument(what=f"node '{names.printable(node)}'", why=f"{named(record)} is not on it.")
        return record
