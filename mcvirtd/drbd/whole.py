"""All that has to do with DRBD as a whole, put together."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from mcvirtd.cluster.peers import Peers
from mcvirtd.cluster.presence import Presence
from mcvirtd.drbd.enabling import Enabling, on_each
from mcvirtd.drbd.fencing import Fenced
from mcvirtd.drbd.here import DrbdHere
from mcvirtd.drbd.service import DrbdService
from mcvirtd.drbd.view import ReplicaView
from mcvirtd.state.store import Store
from mcvirtd.tasks.transaction import Journal


class Drbd:
    """*service* answers the contract DrbdApi; *here* is this node, *view* what is known of both sides of a drive."""

    def __init__(
        self,
        *,
        node: str,
        store: Store,
        journal: Journal,
        presence: Presence,
        state_directory: Path,
        run_directory: Path,
    ) -> None:
        self.here = DrbdHere(
            store=store,
            node=node,
            state_directory=state_directory,
            run_directory=run_directory,
            prefix=Path(sys.prefix),
            other=OutdatedElsewhere(presence.peers),
            told=lambda states, at_once: presence.live.note_resources(states, at_once=at_once),
        )
        self.view = ReplicaView(store=store, node=node, here=self.here.reader.all, live=presence.live.of)
        enabling = Enabling(store=store, journal=journal, on=on_each(self.here, node, presence.peers.call))
        self.service = DrbdService(enabling=enabling, view=self.view)


class OutdatedElsewhere:
    """Has another node mark its leg as old."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def __call__(self, node: str, disk: str, within: float) -> Fenced:
        answer = self._peers.call(node, "peer", "drbd_outdate", {"disk": disk}, within)
        fenced: Fenced = msgspec.json.decode(answer, type=Fenced)
        return fenced
