"""Who may write: Primary is the node on which a disk's machine runs or is being started, and nobody else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from mcvirt.errors import Conflict, DeadlinePassed, DrbdDeviceOpen
from mcvirt.types.drbd import ResourceState
from mcvirt.types.replica import LegCommand
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.local_legs import Legs, States
from mcvirtd.drbd.reader import describe
from mcvirtd.drbd.resources import as_connected, being_replaced, replacement_of
from mcvirtd.drbd.verifications import difference, differing
from mcvirtd.state.records import DiskRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.task import current_task, step

log = logging.getLogger(__name__)

ALIVE_WITHIN = 10.0
"""How long reading the kernel's events may take to begin, as when a machine is started with its node."""
READY_WITHIN = 30.0
AWAY_WITHIN = 2.0
"""How long a leg may take to find the other one all the same, where nothing says that it is there."""
COME_WITHIN = 10.0
"""How long a leg that is being brought up may take to have its data, and to hear whether it is the newest."""
GONE_WITHIN = 20.0
"""How long the kernel may take to notice that a node is gone; its mcvirtd is missed some seconds earlier."""
CLOSE_WITHIN = 30.0
_AGAIN_AFTER = 0.2


class Roles:
    """Promotes and demotes this node's legs. *reachable* says whether another node's mcvirtd answers.

    *heedless* says that the operator who is being worked for wants a disk used whatever is known against it; *ahead*,
    in a sentence, that the other side of a disk, whose node is gone, may have what this one has not.
    """

    def __init__(
        self,
        *,
        store: Store,
        node: str,
        legs: Legs,
        states: States,
        reachable: Callable[[str], bool],
        heedless: Callable[[], bool] = lambda: False,
        ahead: Callable[[DiskRecord], str] = lambda record: "",  # noqa: ARG005
    ) -> None:
        self._store = store
        self._node = node
        self._legs = legs
        self._states = states
        self._reachable = reachable
        self._heedless = heedless
        self._ahead = ahead

    # --- checks: they change nothing ----------------------------------------------------------------------------------

    def problem(self, record: DiskRecord) -> str:
        """Why no guest of this node can use the disk now, in a sentence; '' if one can."""
        if self._node not in record.nodes:
            return f"it is on the nodes {' and '.join(record.nodes)} only."
        if not self._states.wait_alive(ALIVE_WITHIN):
            return "DRBD's events can't be read on this node; the log of mcvirtd says why."
        if self._heedless():
            return ""
        record = as_connected(self._store, record, self._node)
        if unreliable := difference(self._store, record) or self._left_behind(record):
            return unreliable
        state = self._come(record)
        if state is not None and state.connected and state.peer_role == "Primary" and not self._needs_peer(record):
            state = self._left(record)
        # One that is down is brought up when it is needed; only then the kernel can say more.
        return "" if state is None else self._against(record, state)

    def takes_over(self, record: DiskRecord) -> str:
        """Why this node can't go on with the disk where the one that used it is gone, in a sentence; '' if it can."""
        problem = self.problem(record)
        return problem or ("" if self._heedless() else self._ahead(as_connected(self._store, record, self._node)))

    def _left_behind(self, record: DiskRecord) -> str:
        """That another side is being made instead of this one, which gets nothing any more; '' if it is not so."""
        claim = replacement_of(self._store, record.id)
        if claim is None or claim.replacement is None or self._node in claim.nodes:
            return ""
        if claim.replacement.phase == "making":
            return ""
        return (
            f"{being_replaced(self._store, record)} Its data on this node is as old as the beginning of that. If node "
            f"'{claim.coordinator}', which has the newest, is gone for good, --ignore-drbd goes on with it."
        )

    def _come(self, record: DiskRecord) -> ResourceState | None:
        """The leg; one that is just being brought up, as when its node was switched on, once it knows what it has."""
        name = resource_name(record.id)
        state = self._states.state(name)
        if state is None or not _comes(state) or (state.disk == "Consistent" and not self._needs_peer(record)):
            return state
        with suppress(DeadlinePassed):
            self._states.wait(name, lambda now: now is None or not _comes(now), COME_WITHIN)
        return self._states.state(name)

    def _left(self, record: DiskRecord) -> ResourceState | None:
        """The leg, once the kernel has noticed as well that the other node, which used the disk, is gone; if it is."""
        name = resource_name(record.id)
        with suppress(DeadlinePassed), step(f"Waiting for DRBD to miss node {self._other(record)}"):
            self._states.wait(name, lambda now: now is None or not now.connected, GONE_WITHIN)
        return self._states.state(name)

    def _against(self, record: DiskRecord, state: ResourceState) -> str:
        if state.split_brain:
            return (
                "its two sides have been written to independently of each other (a split brain). "
                "`mcvirt drbd split-brain show` shows what is known, and resolves it."
            )
        if state.catches_up:
            return (
                f"it is getting what it has missed from node '{self._other(record)}', and can be used here after that. "
                "`mcvirt drbd list` shows how far it is."
            )
        if state.disk in ("Consistent", "Outdated"):
            other = self._other(record)
            why = "may have" if state.disk == "Consistent" else "has"
            return (
                f"its data on this node is {state.disk}: node '{other}', which is not connected, {why} newer data. "
                "Have that node come back; where it never does, --ignore-drbd goes on with what is here."
            )
        if state.disk != "UpToDate":
            return f"its data on this node is {state.disk}, and not up to date."
        if state.peer_role == "Primary" and state.role != "Primary":
            return f"node '{self._other(record)}' uses it."
        if state.known_to_differ:
            # The kernel knows at once; the cluster may not have taken it in yet, or can't now.
            return differing(record, state.out_of_sync)
        return ""

    def check_both(self, record: DiskRecord) -> None:
        """Raise Conflict unless both sides are connected, equal and at rest."""
        if problem := self.unequal(record):
            raise Conflict(text=f"Hard drive {record.id} can't be changed: {problem}")

    def unequal(self, record: DiskRecord) -> str:
        """Why its two sides are not connected, equal and at rest, in a sentence; '' if they are."""
        state = self._states.state(resource_name(record.id))
        if problem := self.problem(record) or being_replaced(self._store, record):
            return problem
        if state is None or not state.both_good:
            return f"its two sides are not connected and up to date: {describe(state)}"
        if state.checking or state.copying:
            return "its two sides are being compared or made equal. Wait until that is over."
        return ""

    def not_ready(self, record: DiskRecord) -> str:
        """Why this side can't take over a guest that has the disk on the other node, in a sentence; '' if it can."""
        if self._node not in record.nodes:
            return f"it is on the nodes {' and '.join(record.nodes)} only."
        if not self._states.wait_alive(ALIVE_WITHIN):
            return "DRBD's events can't be read on this node; the log of mcvirtd says why."
        state = self._states.state(resource_name(record.id))
        if state is None or not state.both_good or state.checking or state.copying:
            return f"its two sides are not connected, up to date and at rest: {describe(state)}"
        return ""

    # --- acts ---------------------------------------------------------------------------------------------------------

    def promote(self, record: DiskRecord) -> None:
        """Make this node Primary for the disk, once its leg is there and knows what the other side has."""
        name = resource_name(record.id)
        state = self._states.state(name)
        if state is not None and state.role == "Primary":
            return
        record = as_connected(self._store, record, self._node)
        if state is None:
            self._legs.command(record.id, LegCommand.UP)
        state = self._settled(record, name)
        if not self._heedless() and (problem := self._against(record, state)):
            raise Conflict(text=f"Hard drive {record.id} can't be used: {problem}")
        # The kernel, too, knows that this side is old, or can't know that it is not: to go on is somebody's word.
        forced = self._heedless() and state.disk in ("Outdated", "Consistent")
        self._legs.command(record.id, LegCommand.PRIMARY_FORCED if forced else LegCommand.PRIMARY)
        self._states.wait(name, lambda now: now is not None and now.role == "Primary", READY_WITHIN)

    def _settled(self, record: DiskRecord, name: str) -> ResourceState:
        """The leg once it is connected; or without that, if the other node is away."""
        within = READY_WITHIN if self._needs_peer(record) and not self._heedless() else AWAY_WITHIN
        try:
            return self._states.wait(name, _settled, within)
        except DeadlinePassed:
            state = self._states.state(name)
            if state is None or not _attached(state):
                raise
            if self._needs_peer(record) and not self._heedless():
                raise Conflict(
                    text=f"Hard drive {record.id} can't be used: node '{self._other(record)}' answers, but not through "
                    f"DRBD, so which side has the newest data is not known. {describe(state)}"
                ) from None
            return state

    def _needs_peer(self, record: DiskRecord) -> bool:
        other = self._other(record)
        return bool(other) and self._reachable(other)

    def _other(self, record: DiskRecord) -> str:
        return next((name for name in record.nodes if name != self._node), "")

    def demote(self, record: DiskRecord) -> None:
        """Make this node Secondary for the disk, as soon as nobody has its device open."""
        name = resource_name(record.id)
        state = self._states.state(name)
        if state is None or state.role != "Primary":
            return
        deadline = time.monotonic() + CLOSE_WITHIN
        pause = threading.Event()
        with current_task().shielded():
            while True:
                try:
                    self._legs.command(record.id, LegCommand.SECONDARY)
                    break
                except DrbdDeviceOpen:
                    # The kernel tells nobody of the last close, and udev looks into a device after each writer.
                    if time.monotonic() >= deadline:
                        raise
                    pause.wait(_AGAIN_AFTER)
            self._states.wait(name, lambda now: now is None or now.role != "Primary", READY_WITHIN)


def _comes(state: ResourceState) -> bool:
    return state.disk in ("Diskless", "Attaching", "Negotiating", "Consistent")


def _attached(state: ResourceState) -> bool:
    return state.disk not in ("Diskless", "Attaching", "Negotiating")


def _settled(state: ResourceState | None) -> bool:
    return state is not None and _attached(state) and (state.connected or state.split_brain)
