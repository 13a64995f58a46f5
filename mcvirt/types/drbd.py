"""What is known of a replicated hard drive's DRBD resource, as it crosses the wire."""

from __future__ import annotations

from datetime import datetime

import msgspec

CHECKING = ("VerifyS", "VerifyT")
COPYING = ("SyncSource", "SyncTarget", "PausedSyncS", "PausedSyncT")
"""What `ResourceState.replication` is while blocks are compared, and while they are copied."""


class ResourceState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One DRBD resource as one node sees it, in the kernel's words. Sizes are in bytes.

    *done* is how many percent of a verification or a resync are behind it (None: none is going on), *open* whether a
    program has the device open (None: not known). *split_brain*: the kernel refused the other side's data since they
    were connected last. *suspended*: what writes to the device waits. *resync_suspended* says who has copying wait,
    "user" of this side or "peer" or both, or "no". *read* is the kernel's counter of bytes that this
    side's disk has read, by anybody; it begins anew every 2 TiB, and only who asks for one side is told.
    """

    name: str
    minor: int | None = None
    role: str = "Unknown"
    peer_role: str = "Unknown"
    connection: str = "StandAlone"
    replication: str = "Off"
    disk: str = "Diskless"
    peer_disk: str = "DUnknown"
    size: int = 0
    out_of_sync: int = 0
    done: float | None = None
    seconds_left: int | None = None
    open: bool | None = None
    suspended: bool = False
    resync_suspended: str = "no"
    split_brain: bool = False
    read: int | None = None

    @property
    def connected(self) -> bool:
        """Whether the two sides have taken each other as they are, and write to both."""
        return self.connection == "Connected" and self.replication != "Off"

    @property
    def copying(self) -> bool:
        """Whether blocks are being copied from one side to the other, or wait for that."""
        return self.replication in COPYING

    @property
    def catches_up(self) -> bool:
        """Whether this side is getting what it has missed from the other one, or just about to."""
        return self.connected and self.peer_disk == "UpToDate" and self.disk in ("Outdated", "Inconsistent")

    @property
    def checking(self) -> bool:
        """Whether a verification is going on."""
        return self.replication in CHECKING

    @property
    def both_good(self) -> bool:
        """Whether both sides have all data, as far as DRBD knows; blocks a verification found may still differ."""
        return self.connected and self.disk == "UpToDate" and self.peer_disk == "UpToDate"

    @property
    def known_to_differ(self) -> bool:
        """Whether a comparison found blocks that differ, which nothing has copied since, on two good sides at rest."""
        return self.both_good and self.replication == "Established" and self.out_of_sync > 0


class DrbdLeg(msgspec.Struct, frozen=True, kw_only=True):
    """One node's side of a replicated hard drive. *state* is None where the kernel there has no such resource.

    *known* is false while nothing was heard of that node; *age*: it is silent, and this is so many seconds old.
    """

    node: str
    known: bool = True
    age: int | None = None
    state: ResourceState | None = None


class DrbdInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A replicated hard drive. *failed*: its last verification found differences, and its machine can't be started.

    *moving* says, in a sentence, that one side is being replaced by one on another node, which *legs* has then, too.
    """

    disk: str
    vm: str | None
    slot: int | None
    resource: str
    minor: int
    port: int
    legs: tuple[DrbdLeg, ...]
    failed: bool = False
    out_of_sync: int = 0
    verified: datetime | None = None
    verification: str = ""
    moving: str = ""

    @property
    def split_brain(self) -> bool:
        """Whether either side refuses the other's data."""
        return any(leg.state is not None and leg.state.split_brain for leg in self.legs)

    def warnings(self) -> list[str]:
        """What is wrong with it, a sentence each."""
        name = f"Hard drive {self.slot or self.disk}"
        found = []
        if self.moving:
            found.append(f"{name}: {self.moving}")
        if self.failed:
            found.append(f"{name} has not passed its last verification: its two sides differ.")
        if self.split_brain:
            found.append(
                f"{name}: its two sides have split, and each has data that the other has not. Nothing was discarded; "
                "`mcvirt drbd split-brain show` tells more."
            )
        for leg in self.legs:
            if leg.state is None and leg.known and leg.age is None:
                found.append(
                    f"{name}: node '{leg.node}' does not have its DRBD resource {self.resource} up.{self._attach()}"
                )
            elif leg.state is not None and leg.state.disk not in ("UpToDate", "Attaching", "Negotiating"):
                remedy = self._attach() if leg.state.disk == "Diskless" else ""
                found.append(f"{name}: its data on node '{leg.node}' is {leg.state.disk}.{remedy}")
        if not self.split_brain and not any(leg.state is not None and leg.state.connected for leg in self.legs):
            cut = any(leg.state is not None and leg.state.connection == "StandAlone" for leg in self.legs)
            found.append(f"{name}: its two sides are not connected." + (self._attach() if cut else ""))
        return found

    def _attach(self) -> str:
        return f" `mcvirt drbd attach {self.vm}` has it in use again, once its storage works." if self.vm else ""


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """The hard drive's sides on *nodes* are in use again, after *copied* bytes were made equal."""

    disk: str
    nodes: tuple[str, ...]
    copied: int


class DrbdEnabled(msgspec.Struct, frozen=True, kw_only=True):
    """What enabling DRBD has done. *kept_aside* maps node to where the file that was there before is now.

    *warnings* maps node to what works there, and could be better.
    """

    nodes: tuple[str, ...]
    kept_aside: dict[str, str] = {}
    warnings: dict[str, tuple[str, ...]] = {}
