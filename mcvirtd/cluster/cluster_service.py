"""The cluster as a whole: the contract ClusterApi."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

from mcvirt.api.membership import ClusterApi
from mcvirt.errors import BadArgument, Conflict
from mcvirt.types.membership import ConflictInfo, ConnectStringInfo, JoinReport, LeaveReport, Promotion
from mcvirtd.cluster.joining import Joining
from mcvirtd.cluster.leaving import Leaving
from mcvirtd.cluster.membership import Membership
from mcvirtd.cluster.newcomer import Hypervisor, Newcomer
from mcvirtd.state import log as state_log
from mcvirtd.state.records import RECORDS, VmRecord


class UndefiningHypervisor(Hypervisor, Protocol):
    """What is done about the machines of a cluster that the node is no longer in."""

    def undefine(self, uuid: str) -> None:
        """Remove the definition; no error if there is none."""


class ClusterService(ClusterApi):
    """See the contract."""

    def __init__(
        self,
        *,
        membership: Membership,
        joining: Joining,
        leaving: Leaving,
        newcomer: Newcomer,
        hypervisor: UndefiningHypervisor,
    ) -> None:
        self._membership = membership
        self._joining = joining
        self._leaving = leaving
        self._newcomer = newcomer
        self._hypervisor = hypervisor

    def connect_string(self) -> ConnectStringInfo:
        if self._membership.beginning:
            # Whoever began to take this node in can't go on without its connect string.
            self._newcomer.forget_joining()
        text, kept = self._membership.connect_string()
        record = self._membership.record
        return ConnectStringInfo(
            text=text,
            node=record.name,
            address=record.address or "",
            expires=datetime.fromtimestamp(kept.expires, UTC),
        )

    def add_node(self, connect_string: str, dry_run: bool = False) -> JoinReport:
        return self._joining.add(connect_string, dry_run=dry_run)

    def leaving(self, node: str) -> LeaveReport:
        return self._leaving.report(node)

    def remove_node(self, node: str, force: bool = False) -> LeaveReport:
        return self._leaving.remove(node, force=force)

    def promote(self, leader_is_off: str | None = None) -> Promotion:
        replicator = self._membership.replicator
        leader = replicator.replica.leader
        if leader == self._membership.node and replicator.replica.is_leader:
            raise Conflict(text=f"Node '{leader}' leads the cluster already.")
        if leader_is_off is not None and leader_is_off != leader:
            raise BadArgument(what=f"leader '{leader_is_off}'", why=f"it is node '{leader}' that leads the cluster.")
        away = replicator.promote(confirmed=leader_is_off is not None)
        promised = replicator.log.promised()
        return Promotion(leader=promised.leader, epoch=promised.number, away=tuple(away))

    def conflicts(self, node: str | None = None) -> tuple[ConflictInfo, ...]:  # noqa: ARG002 - the router reads it
        return tuple(
            ConflictInfo(
                id=kept.id,
                time=datetime.fromtimestamp(kept.time, UTC),
                leader=kept.epoch.leader,
                epoch=kept.epoch.number,
                revision=kept.revision,
                what=_records_in(kept.data),
            )
            for kept in self._membership.replicator.log.conflicts()
        )

    def clear_conflicts(self, conflicts: tuple[int, ...], node: str | None = None) -> int:  # noqa: ARG002
        return self._membership.replicator.log.clear_conflicts(conflicts)

    def reset(self) -> None:
        membership = self._membership
        if membership.removed is None and membership.joining is None:
            raise Conflict(
                text=f"Node '{membership.node}' was not removed from its cluster. `mcvirt cluster remove-node --node "
                f"{membership.node}` on another node removes it."
            )
        domains = self._hypervisor.domains()
        mine = [vm for vm in membership.store.all(VmRecord).values() if vm.uuid in domains]
        running = sorted(vm.name for vm in mine if domains[vm.uuid].active)
        if running:
            raise Conflict(
                text=f"Virtual machines run on node '{membership.node}': {', '.join(running)}. Stop them first, with "
                "`mcvirt stop`; make sure that they do not run elsewhere by now."
            )
        for vm in mine:
            self._hypervisor.undefine(vm.uuid)
        membership.reset()


def _records_in(change: str) -> tuple[str, ...]:
    """The names of the records in a change: what was put, and what was deleted. Nothing of what they say."""
    content = state_log.content(change)
    found = []
    for kind, data in content.get("puts", ()):
        key = data.get(RECORDS[kind].__struct_fields__[0], "") if kind in RECORDS else ""
        found.append(f"{kind} {key}")
    found += [f"{kind} {key} (deleted)" for kind, key in content.get("deletes", ())]
    return tuple(found)
