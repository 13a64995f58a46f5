"""What keeps this node's sides of hard drives from giving way, or from having their earlier data back.

Looked at for all hard drives of a machine before anything is done to the first one, and for each again when it is
done. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mcvirt.errors import Conflict, NotFound
from mcvirt.types.drbd import DrbdInfo, ResourceState
from mcvirtd.drbd.reader import Reader, describe
from mcvirtd.drbd.split_sides import Kept, equal
from mcvirtd.drbd.verifying import known_state, named
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import DiskRecord, SplitUndoRecord
from mcvirtd.state.store import Store
from mcvirtd.storage.backends import aside_volume


class SplitChecks:
    """Those of *node*. *info* is what is known of both sides of a hard drive."""

    def __init__(
        self, *, store: Store, node: str, reader: Reader, asides: Kept, info: Callable[[DiskRecord], DrbdInfo | None]
    ) -> None:
        self._store = store
        self._node = node
        self._reader = reader
        self._asides = asides
        self._info = info

    # --- several together ---------------------------------------------------------------------------------------------

    def may_give_way(self, disks: Sequence[DiskRecord]) -> None:
        """Raise all that stands against setting what this node has of *disks* aside, and taking the other's data."""
        self._all(self.give_way, disks, copied=disks)

    def may_take_back(self, disks: Sequence[DiskRecord]) -> None:
        """Raise all that stands against going on with what was set aside of *disks* on this node."""
        self._all(self.take_back, disks)

    def may_set_aside(self, disks: Sequence[DiskRecord]) -> None:
        """Raise all that stands against copying what this node has of *disks*, for the other to take its own back."""
        self._all(self.set_aside, disks, copied=disks)

    def _all(
        self, check: Callable[[DiskRecord], object], disks: Sequence[DiskRecord], copied: Sequence[DiskRecord] = ()
    ) -> None:
        reasons = Reasons()
        for disk in disks:
            with reasons.gather():
                check(disk)
        with reasons.gather():
            self._asides.check_room(copied)
        reasons.raise_all()

    # --- one ----------------------------------------------------------------------------------------------------------

    def is_split(self, disk: DiskRecord) -> bool:
        """Whether either side refuses the other's data, as far as this node knows."""
        info = self._info(disk)
        return info is not None and info.split_brain

    def give_way(self, disk: DiskRecord) -> ResourceState:
        """This side as it is; Conflict if it can't take the other one's data."""
        state, info = known_state(self._reader, disk), self._info(disk)
        undo = self._store.get(SplitUndoRecord, disk.id)
        other = next((leg for leg in info.legs if leg.node != self._node), None) if info is not None else None
        why = ""
        if len(disk.nodes) < 2:
            why = no_other_side(disk)
        elif state.connected or not (state.split_brain or self.is_split(disk)):
            why = "it is not split."
        elif state.role == "Primary":
            why = (
                f"its machine runs on node '{self._node}', whose data would be discarded. Keep that node, or stop the "
                "machine first."
            )
        elif other is None or other.state is None or other.age is not None:
            node = next((node for node in disk.nodes if node != self._node), "")
            why = f"node '{node}' does not answer, and it has the data that is to be kept."
        elif undo is not None and undo.done:
            why = (
                f"data of an earlier split is kept on node '{undo.node}' since {undo.made:%Y-%m-%d %H:%M} UTC. "
                # By its ID: of the machine's other disks nothing is to be forgotten.
                + f"`mcvirt drbd split-brain forget {disk.id}` deletes it."
            )
        if why:
            raise Conflict(text=f"The split of {named(disk)} can't be resolved: {why}")
        return state

    def take_back(self, disk: DiskRecord) -> SplitUndoRecord:
        """What was set aside on this node; NotFound or Conflict if it can't be taken back."""
        undo = self._store.get(SplitUndoRecord, disk.id)
        if undo is None or undo.node != self._node:
            raise NotFound(kind="data that was set aside for hard drive", name=disk.id)
        if self._asides.length(disk) is None:
            raise Conflict(
                text=f"The earlier data of {named(disk)} can't be taken back: the volume that it was kept in on node "
                f"'{self._node}' is gone."
            )
        self.unused(disk)
        return undo

    def set_aside(self, disk: DiskRecord) -> None:
        """Conflict if what this node has can't be set aside for what the other one takes back."""
        self.not_wanted(disk, self._store.get(SplitUndoRecord, disk.id))
        self.unused(disk)

    def not_wanted(self, disk: DiskRecord, undo: SplitUndoRecord | None) -> None:
        """Conflict if the records want what is set aside on this node already."""
        if undo is not None and undo.node == self._node:
            raise Conflict(text=f"What was set aside of {named(disk)} on this node is still wanted.")

    def unused(self, disk: DiskRecord) -> None:
        """Conflict unless nobody uses the hard drive, and both its sides are equal and at rest."""
        check_same(disk, self._store.get(DiskRecord, disk.id))
        state, why = known_state(self._reader, disk), ""
        if len(disk.nodes) < 2:
            why = no_undo(disk, self._store.get(SplitUndoRecord, disk.id))
        elif "Primary" in (state.role, state.peer_role):
            why = "its machine runs. Stop it first."
        elif not equal(state):
            why = describe(state)
        if why:
            raise Conflict(text=f"The earlier data of {named(disk)} can't be taken back: {why}")


def no_other_side(disk: DiskRecord) -> str:
    """That *disk* has one side, so that no split of it is to be resolved, and what to do, in a sentence."""
    return f"it has one side only, on node '{disk.nodes[0]}': there is no other one to choose. {_another(disk)}"


def no_undo(disk: DiskRecord, undo: SplitUndoRecord | None) -> str:
    """The same where what was set aside is asked for, in a sentence."""
    one = f"it has one side only, on node '{disk.nodes[0]}', and data is taken back on both."
    if undo is not None and undo.mixed:
        return (
            f"{one} A part of it was taken back already; all of it is in volume {aside_volume(disk.volume)} on node "
            f"'{undo.node}': copy it from there before anything is deleted."
        )
    return f"{one} `mcvirt drbd split-brain forget {disk.id}` deletes what was set aside. {_another(disk)}"


def _another(disk: DiskRecord) -> str:
    """What gives the hard drive another side, in a sentence."""
    first = f" after `mcvirt hard-drive attach {disk.id} NAME`" if disk.vm is None else ""
    return f"`mcvirt move --destination-node NODE {disk.vm or 'NAME'}` can give it another side{first}."


def check_same(disk: DiskRecord, now: DiskRecord | None) -> None:
    """Conflict if the hard drive is no longer where it was."""
    if now is None or now.vm != disk.vm:
        raise Conflict(text=f"{named(disk)} was attached, detached or deleted meanwhile. Look, and try again.")
