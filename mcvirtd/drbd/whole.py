"""All that has to do with DRBD as a whole, put together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mcvirt.errors import McvirtError
from mcvirt.types.vm import StorageType
from mcvirtd.auth.caller import current_caller
from mcvirtd.cluster.errands import Errands
from mcvirtd.cluster.peers import Peers
from mcvirtd.cluster.presence import Presence
from mcvirtd.drbd import windows
from mcvirtd.drbd.asides import Asides
from mcvirtd.drbd.attaching import Attaching
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.disks import ReplicatedDisks
from mcvirtd.drbd.enabling import Enabling, on_each
from mcvirtd.drbd.fencing import Fenced
from mcvirtd.drbd.former_legs import FormerLegs
from mcvirtd.drbd.here import DrbdHere
from mcvirtd.drbd.last_words import LastWords
from mcvirtd.drbd.local_legs import LocalLegs
from mcvirtd.drbd.peer_legs import DrbdPeerService, legs_by_node
from mcvirtd.drbd.readdressing import Readdressing
from mcvirtd.drbd.rejoining import Rejoining
from mcvirtd.drbd.replacing import Replacing
from mcvirtd.drbd.returns import Returns
from mcvirtd.drbd.roles import Roles
from mcvirtd.drbd.service import DrbdService
from mcvirtd.drbd.soundness import Soundness
from mcvirtd.drbd.split_brain import SplitBrain
from mcvirtd.drbd.split_sides import SplitPeer
from mcvirtd.drbd.view import ReplicaView
from mcvirtd.drbd.windows import Windows
from mcvirtd.host import drbd as host_drbd
from mcvirtd.hypervisor.moving import MovingVerbs
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.storage.backends import Nodes
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.transaction import Journal


class Drbd:
    """*service* answers the contract DrbdApi; *here* is this node, *view* what is known of both sides of a drive.

    *windows* are the times in which both sides of one may be Primary, and *rejoining* is for what came of that.
    *disks* makes and deletes replicated hard drives, *legs* are their sides on each node, *peer_service* answers
    for those on this one, and *roles* says who may write.
    *replacing* gives them sides on other nodes.
    *readdressing* has them follow the nodes' addresses, and *returns* hears of what they wait for.
    *soundness* sees to it that both sides are equal, *split_brain* to those that have gone different ways; what another
    node asks of this one for that, *split_peer* answers.
    """

    def __init__(
        self,
        *,
        node: str,
        store: Store,
        journal: Journal,
        locks: Locks,
        presence: Presence,
        state_directory: Path,
        run_directory: Path,
        rate: int,
        backends: Nodes,
        hypervisor: MovingVerbs,
    ) -> None:
        self._store = store
        self._hypervisor = hypervisor
        self.windows = Windows(state_directory / "drbd" / windows.DIRECTORY, host_drbd)
        self.here = DrbdHere(
            store=store,
            node=node,
            state_directory=state_directory,
            run_directory=run_directory,
            rate=rate,
            prefix=Path(sys.prefix),
            other=OutdatedElsewhere(presence.peers),
            told=lambda states, at_once: presence.live.note_resources(states, at_once=at_once),
            in_use=self._in_use,
        )
        self.view = ReplicaView(store=store, node=node, here=self.here.reader.state, live=presence.live.of)
        enabling = Enabling(store=store, journal=journal, on=on_each(self.here, node, presence.peers.call))
        local = LocalLegs(store=store, node=node, nodes=backends, verbs=host_drbd, states=self.here.reader)
        self.peer_service = DrbdPeerService(local)
        self.legs = legs_by_node(local, node, presence.peers.call)
        attaching = Attaching(
            store=store,
            node=node,
            legs=self.legs,
            reader=self.here.reader,
            kernel=host_drbd,
            locks=locks,
            errands=Errands(presence.peers),
        )
        self.service = DrbdService(enabling=enabling, view=self.view, attaching=attaching)
        self.roles = Roles(
            store=store,
            node=node,
            legs=local,
            states=self.here.reader,
            reachable=lambda name: presence.peers.status(name).reachable,
            heedless=lambda: current_caller().ignore_drbd,
            ahead=LastWords(
                node=node, reader=self.here.reader, said=presence.live.drbd, heard=presence.live.heard
            ).ahead,
        )
        self.soundness = Soundness(
            store=store,
            journal=journal,
            locks=locks,
            node=node,
            reader=self.here.reader,
            errands=Errands(presence.peers),
            legs=self.legs,
        )
        self.disks = ReplicatedDisks(
            store=store,
            journal=journal,
            node=node,
            legs=self.legs,
            states=self.here.reader,
            roles=self.roles,
            used_paths=hypervisor.list_block_paths,
            level=self.soundness.level,
        )

        self.replacing = Replacing(
            store=store, journal=journal, node=node, local=local, legs=self.legs, states=self.here.reader
        )
        self._former = FormerLegs(store, node, local.drop)
        self.readdressing = Readdressing(store=store, node=node, readdress=local.readdress, moving=self.windows.is_open)
        self.returns = Returns(store=store, reader=self.here.reader)
        presence.peers.returned = self.returns.back

        asides = Asides(store, node)
        reader = self.here.reader
        self.split_brain = SplitBrain(
            store=store,
            journal=journal,
            locks=locks,
            node=node,
            kernel=host_drbd,
            reader=reader,
            asides=asides,
            info=self.view.info,
            errands=Errands(presence.peers),
            ask=lambda other, operation, arguments, within: presence.peers.call(
                other, SplitPeer.object_id, operation, arguments, within
            ),
        )
        self.split_peer = SplitPeer(
            store=store, node=node, kernel=host_drbd, reader=reader, asides=asides, checks=self.split_brain.checks
        )
        self.rejoining = Rejoining(
            node=node, kernel=host_drbd, states=reader, discarding=self.split_brain.discarding
        )

    def held(self) -> Sequence[str]:
        """The hard drives that this node is Primary for, and not because their guest is just coming or going."""
        return [disk for disk in self.disks.held() if not self.windows.is_open(resource_name(disk))]

    def catches_up(self, vm: str) -> bool:
        """Whether a hard drive of the machine just gets what it has missed here, and is as good as the other after."""
        replicated = [disk for disk in self._store.all(DiskRecord).values() if disk.vm == vm and disk.replica]
        states = [self.here.reader.state(resource_name(disk.id)) for disk in replicated]
        return any(state is not None and state.catches_up for state in states)

    def _in_use(self, disk: DiskRecord) -> bool:
        if not self.windows.is_open(resource_name(disk.id)):
            return True
        vm = self._store.get(VmRecord, disk.vm) if disk.vm else None
        try:
            state = self._hypervisor.look(vm.uuid) if vm is not None else None
        except McvirtError:
            return True
        return state is not None and state.running

    def storage_types(self) -> tuple[StorageType, ...]:
        """How hard drives can be kept now."""
        return (StorageType.LOCAL, StorageType.DRBD) if self.here.enabled else (StorageType.LOCAL,)

    def settle(self) -> None:
        """Bring up what is down, move what has moved, undo what a node that is gone was making, delete old sides.

        And tell sides that are old so. For a timer, and when *returns* hears of something.
        """
        self.here.fence_again()
        self.here.settle()
        self.readdressing.follow()
        self.disks.settle_claims()
        self._former.settle()

    def start(self) -> None:
        """Do what the cluster's record of DRBD says."""
        self.soundness.start()
        self.here.start()

    def stop(self) -> None:
        """Look no more; the resources stay as they are."""
        self.here.stop()
        self.soundness.stop()


class OutdatedElsewhere:
    """Has another node mark its leg as old."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def __call__(self, node: str, disk: str, within: float, *, again: bool = False) -> Fenced:
        asked = {"disk": disk} | ({"again": True} if again else {})
        answer = self._peers.call(node, "peer", "drbd_outdate", asked, within)
        fenced: Fenced = msgspec.json.decode(answer, type=Fenced)
        return fenced
