"""What two nodes tell each other of the legs of a replicated hard drive: its side on each of them. Sizes in bytes."""

from __future__ import annotations

from enum import Enum

import msgspec


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What stands against new legs on a node, a sentence each, and the minors and ports that are in use there."""

    faults: tuple[str, ...] = ()
    minors: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()


class LegSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A leg to be made of the hard drive *disk*, the same on both of *nodes*. *secret* is for their kernels alone."""

    disk: str
    backend: str
    size: int
    minor: int
    port: int
    secret: str
    nodes: tuple[str, str]

    def __repr__(self) -> str:
        return f"LegSpec({self.disk}, {self.size} bytes, minor {self.minor}, port {self.port}, {self.nodes})"


class LegCommand(str, Enum):
    """What can be done to a leg, in DRBD's words."""

    UP = "up"
    DOWN = "down"
    PRIMARY = "primary"
    PRIMARY_FORCED = "primary --force"
    SECONDARY = "secondary"
    NEW_CURRENT_UUID_CLEAN = "new-current-uuid --clear-bitmap"
    PAUSE_SYNC = "pause-sync"
    RESUME_SYNC = "resume-sync"
    RESIZE_CLEAN = "resize --assume-clean"
