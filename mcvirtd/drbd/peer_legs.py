"""The legs on other nodes, asked for through the peers; and what this node answers when it is asked for its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from mcvirt.api.drbd_peer import DrbdPeerApi
from mcvirt.errors import BadArgument
from mcvirt.types.drbd import ResourceState
from mcvirt.types.replica import LegCommand, LegSpec, Outlook
from mcvirt.units import MIB
from mcvirtd.drbd.local_legs import Legs
from mcvirtd.storage.volumes import Progress

LOOK_WITHIN = 30.0
ACT_WITHIN = 180.0
SLOWEST_WIPE = 10 * MIB
"""Bytes a second. A thick volume is wiped before anybody may read it, which takes as long as the disk wants."""
_FOR_OTHERS = (LegCommand.UP, LegCommand.DOWN, LegCommand.PAUSE_SYNC, LegCommand.RESUME_SYNC)

Call = Callable[[str, str, str, dict[str, Any], float], msgspec.Raw]
"""`Peers.call`: node, object, operation, arguments, and the seconds within which the answer is wanted."""


class PeerLegs:
    """Those on *node*. Once a node does not answer its heartbeats, who waits for it is told NodeUnreachable."""

    def __init__(self, call: Call, node: str) -> None:
        self._call = call
        self._node = node

    def outlook(self, needed: Mapping[str, int]) -> Outlook:
        """See Legs."""
        return msgspec.json.decode(self._ask("outlook", LOOK_WITHIN, needed=dict(needed)), type=Outlook)

    def make(self, leg: LegSpec, *, progress: Progress | None = None, cancel: threading.Event | None = None) -> int:
        """See Legs; there is no progress, and what is cancelled goes on there until it is dropped."""
        del progress, cancel
        plain = msgspec.to_builtins(leg)
        return msgspec.json.decode(self._ask("make_leg", _within(leg.size), leg=plain), type=int)

    def drop(self, disk: str, backend: str) -> None:
        """See Legs."""
        self._ask("drop_leg", ACT_WITHIN, disk=disk, backend=backend)

    def grow(self, disk: str, size: int) -> int:
        """See Legs."""
        return msgspec.json.decode(self._ask("grow_leg", _within(size), disk=disk, size=size), type=int)

    def command(self, disk: str, command: LegCommand) -> None:
        """See Legs."""
        self._ask("leg_command", ACT_WITHIN, disk=disk, command=command.value)

    def state(self, disk: str) -> ResourceState | None:
        """See Legs."""
        return msgspec.json.decode(self._ask("leg_state", LOOK_WITHIN, disk=disk), type=ResourceState | None)

    def _ask(self, operation: str, within: float, **arguments: Any) -> msgspec.Raw:
        return self._call(self._node, DrbdPeerApi.object_id, operation, arguments, within)


def _within(size: int) -> float:
    return ACT_WITHIN + size / SLOWEST_WIPE


class DrbdPeerService(DrbdPeerApi):
    """What other nodes ask of the legs here."""

    def __init__(self, legs: Legs) -> None:
        self._legs = legs

    def outlook(self, needed: dict[str, int]) -> Outlook:
        """What stands against new legs on this node."""
        return self._legs.outlook(needed)

    def make_leg(self, leg: LegSpec) -> int:
        """Make the leg here and connect it."""
        return self._legs.make(leg)

    def drop_leg(self, disk: str, backend: str) -> None:
        """Delete the leg with all its data."""
        self._legs.drop(disk, backend)

    def grow_leg(self, disk: str, size: int) -> int:
        """Make the leg's volumes longer."""
        return self._legs.grow(disk, size)

    def leg_command(self, disk: str, command: LegCommand) -> None:
        """Have DRBD bring the leg up or down, or copying wait or go on.

        Who is Primary, and whose data is good, each node says of its own.
        """
        if command not in _FOR_OTHERS:
            raise BadArgument(what="command", why=f"'{command.value}' is not done for another node.")
        self._legs.command(disk, command)

    def leg_state(self, disk: str) -> ResourceState | None:
        """The leg as this node's kernel sees it."""
        return self._legs.state(disk)


def legs_by_node(local: Legs, node: str, call: Call) -> Callable[[str], Legs]:
    """The legs on *node*, this one, and through its peers on any other."""

    def on(name: str) -> Legs:
        return local if name == node else PeerLegs(call, name)

    return on
