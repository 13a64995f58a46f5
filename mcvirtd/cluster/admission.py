"""All that has to do with joining and leaving, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mcvirtd.auth.caller import Caller
from mcvirtd.auth.tokens import Sessions
from mcvirtd.cluster.cluster_service import ClusterService, UndefiningHypervisor
from mcvirtd.cluster.joining import Joining
from mcvirtd.cluster.keys import Keys
from mcvirtd.cluster.leaving import Leaving
from mcvirtd.cluster.membership import Membership
from mcvirtd.cluster.newcomer import Leaver, Newcomer
from mcvirtd.cluster.presence import Presence
from mcvirtd.state.replication import Replicator
from mcvirtd.state.store import Store
from mcvirtd.tasks.engine import Tasks
from mcvirtd.tasks.transaction import Journal


class Admission:
    """*service*, *newcomer* and *leaver* answer the contracts ClusterApi, JoinApi and MembershipApi.

    *warnings* is what others have to say of this node with `mcvirt info`.
    """

    def __init__(
        self,
        *,
        node: str,
        store: Store,
        journal: Journal,
        tasks: Tasks,
        sessions: Sessions,
        keys: Keys,
        presence: Presence,
        replicator: Replicator,
        hypervisor: UndefiningHypervisor,
        bridge_faults: Callable[[str], Sequence[str]],
        drbd_faults: Callable[[], Sequence[str]],
        warnings: Sequence[Callable[[], tuple[str, ...]]] = (),
    ) -> None:
        def at_work() -> list[str]:
            return [f"{task.operation} {task.target}".strip() for task in tasks.list(ended=False)]

        self.membership = Membership(
            node=node, store=store, keys=keys, replicator=replicator, sessions=sessions, changed=presence.take_identity
        )
        self.newcomer = Newcomer(
            membership=self.membership,
            hypervisor=hypervisor,
            at_work=at_work,
            bridge_faults=bridge_faults,
            drbd_faults=drbd_faults,
        )
        self.leaver = Leaver(membership=self.membership, hypervisor=hypervisor, at_work=at_work)
        self.service = ClusterService(
            membership=self.membership,
            joining=Joining(membership=self.membership, journal=journal, reach=presence.peers.wake),
            leaving=Leaving(
                membership=self.membership,
                peers=presence.peers,
                found_at=lambda uuid: presence.live.found_at(uuid, node),
            ),
            newcomer=self.newcomer,
            hypervisor=hypervisor,
        )
        self._port = 0
        self._members = presence.members
        presence.nodes.revision_of = replicator.revision_of
        presence.nodes.status = self.membership.status
        every = (self.membership.warnings, *warnings)
        presence.warnings = lambda: tuple(text for each in every for text in each())
        replicator.fault_of = presence.peers.fault
        presence.peers.stranger = self.membership.told_stranger

    def door(
        self, users: Callable[[dict[str, Any], str], Caller]
    ) -> Callable[[dict[str, Any], str, bytes | None], Caller]:
        """Who a connection belongs to: a member, who has a connect string's secret, or whom *users* knows."""

        def authenticate(data: dict[str, Any], address: str, certificate: bytes | None) -> Caller:
            if "peer" in data:
                return self._members.recognise(data["peer"], certificate, address)
            if "join" in data:
                return self.membership.admit(data["join"], address)
            return users(data, address)

        return authenticate

    def serving(self, port: int) -> None:
        """The node listens on *port* now."""
        self._port = port
        self.membership.note_own(port)

    def settle(self) -> None:
        """Draw conclusions from what has happened meanwhile; for a timer."""
        self.newcomer.settle()
        self.membership.settle_joining()
        if self._port:
            self.membership.note_own(self._port)
