"""What both nodes say of replicated hard drives, answered from memory."""

from __future__ import annotations

from collections.abc import Callable

from mcvirt.types.drbd import DrbdInfo, DrbdLeg, ResourceState
from mcvirtd.cluster.live import Known
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.resources import being_replaced, replacement_of
from mcvirtd.state.records import DiskRecord, VerificationRecord
from mcvirtd.state.store import Store


class ReplicaView:
    """*here* gives a resource of *node*, which is this one, and *live* what is known of another."""

    def __init__(
        self,
        *,
        store: Store,
        node: str,
        here: Callable[[str], ResourceState | None],
        live: Callable[[str], Known],
    ) -> None:
        self._store = store
        self._node = node
        self._here = here
        self._live = live

    def of(self, disk: DiskRecord) -> tuple[DrbdLeg, ...]:
        """The two sides of a hard drive, and a new one that is being made; none of one that is not replicated."""
        if disk.replica is None:
            return ()
        claim, name = replacement_of(self._store, disk.id), resource_name(disk.id)
        nodes = disk.nodes if claim is None else dict.fromkeys((*disk.nodes, *claim.nodes))
        return tuple(self._leg(node, name) for node in nodes)

    def _leg(self, node: str, name: str) -> DrbdLeg:
        if node == self._node:
            return DrbdLeg(node=node, state=self._here(name))
        known = self._live(node)
        return DrbdLeg(
            node=node,
            known=known.info is not None or bool(known.resources),
            age=known.age,
            state=known.resources.get(name),
        )

    def info(self, disk: DiskRecord) -> DrbdInfo | None:
        """All that is known of a hard drive; None of one that is not replicated."""
        if disk.replica is None:
            return None
        verification = self._store.get(VerificationRecord, disk.id)
        last = verification.runs[-1] if verification is not None and verification.runs else None
        legs = self.of(disk)
        return DrbdInfo(
            disk=disk.id,
            vm=disk.vm,
            slot=disk.slot,
            resource=resource_name(disk.id),
            minor=disk.replica.minor,
            port=disk.replica.port,
            legs=legs,
            failed=verification is not None and verification.failed,
            out_of_sync=max((leg.state.out_of_sync for leg in legs if leg.state is not None), default=0),
            verified=last.ended if last is not None else None,
            verification=last.result if last is not None else "",
            moving=being_replaced(self._store, disk),
        )

    def all(self) -> tuple[DrbdInfo, ...]:
        """All replicated hard drives, by machine and number."""
        found = [info for disk in self._store.all(DiskRecord).values() if (info := self.info(disk)) is not None]
        return tuple(sorted(found, key=lambda info: (info.vm or "", info.slot or 0, info.disk)))
