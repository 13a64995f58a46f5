"""Taking a node out of the cluster, from the side of a member that stays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from mcvirt.api.membership import MembershipApi
from mcvirt.errors import Conflict, McvirtError, NodeUnreachable, NotFound, Refused, SeveralReasons
from mcvirt.rpc.proxy import make_client
from mcvirt.types.membership import LeaveReport
from mcvirt.types.vm import PowerState
from mcvirtd.auth.grants import drop_vm
from mcvirtd.cluster.joining import no_tasks
from mcvirtd.cluster.membership import Membership
from mcvirtd.cluster.peers import Peers
from mcvirtd.drbd.former_legs import forget_node
from mcvirtd.state.records import BackendRecord, DiskRecord, DrainRecord, NodeRecord, ReplicaClaimRecord, VmRecord
from mcvirtd.state.store import Change
from mcvirtd.tasks.task import step

log = logging.getLogger(__name__)


class Leaving:
    """See the module. *found_at* says which members have the domain of that UUID, by what was heard last."""

    def __init__(
        self, *, membership: Membership, peers: Peers, found_at: Callable[[str], Mapping[str, PowerState]]
    ) -> None:
        self._membership = membership
        self._store = membership.store
        self._peers = peers
        self._found_at = found_at

    def report(self, node: str) -> LeaveReport:
        """What stands against it, or would be lost."""
        if self._store.get(NodeRecord, node) is None:
            raise NotFound(kind="node", name=node, hint=" `mcvirt info` shows all of them.")
        machines = self._store.all(VmRecord).values()
        everything = self._store.all(DiskRecord).values()
        disks = [disk for disk in everything if set(disk.nodes) == {node}]
        claims = self._store.all(ReplicaClaimRecord)
        coming = {disk for disk, claim in claims.items() if node in claim.nodes}
        legs = [disk for disk in everything if disk.replica is not None and node in disk.nodes and disk not in disks]
        legs += [disk for disk in everything if disk.id in coming and node not in disk.nodes]
        backends = [each.name for each in self._store.all(BackendRecord).values() if set(each.nodes) == {node}]
        bound = [vm.name for vm in machines if vm.node == node or set(vm.nodes) == {node}]
        return LeaveReport(
            node=node,
            reachable=node == self._membership.node or self._peers.status(node).reachable,
            leader=self._membership.replicator.replica.leader == node,
            machines=tuple(sorted(bound)),
            disks=tuple(sorted(disk.id for disk in disks)),
            legs=tuple(sorted(disk.id for disk in legs)),
            backends=tuple(sorted(backends)),
            lost=tuple(sorted({disk.vm for disk in disks if disk.vm is not None})),
        )

    def remove(self, node: str, *, force: bool) -> LeaveReport:
        """See the contract."""
        report = self.report(node)
        self._check(report, force=force)
        if force:
            log.warning("node %s is removed for good: %s", node, report)
            with step("Removing the node"), self._store.change() as change:
                self._forget(change, node)
            return report
        connection = self._peers.dial(node)
        try:
            leaver = make_client(MembershipApi, connection, no_tasks)
            with step("Preparing the node"):
                leaver.part()
            if report.leader:
                with step("Taking over from the node"):
                    self._membership.replicator.promote(confirmed=False, planned=True)
            with step("Removing the node"), self._store.change() as change:
                self._check(self.report(node), force=False)
                self._forget(change, node)
            with step("Making the node a cluster of its own"):
                try:
                    leaver.parted()
                except McvirtError as error:
                    # It hears from the others that it is no member, and does the same then.
                    log.warning("node %s was removed, and did not answer: %s", node, error)
        finally:
            connection.close()
        return report

    def _check(self, report: LeaveReport, *, force: bool) -> None:
        node = report.node
        if node == self._membership.node:
            raise Conflict(text=f"Node '{node}' can't remove itself. Do it on another node.")
        if force:
            if report.reachable:
                raise Conflict(text=f"Node '{node}' answers, so it can be removed without force, and cleanly.")
            self._check_arrived(report)
            return
        reasons: list[Refused] = []
        for what, names, hint in (
            ("virtual machines", report.machines, "Migrate, move or delete them first"),
            ("hard drives that are there only", report.disks, "Move or delete them first"),
            (
                "one side of replicated hard drives",
                report.legs,
                f"`mcvirt move --source-node {node} --destination-node NODE VM` moves those of a machine; or delete "
                "them",
            ),
            ("storage backends that are there only", report.backends, "Delete them first"),
        ):
            if names:
                reasons.append(Conflict(text=f"Node '{node}' has {what}: {', '.join(names)}. {hint}"))
        if reasons:
            raise SeveralReasons.of(reasons)
        if not report.reachable:
            raise NodeUnreachable(
                node=node,
                reason=f"{self._peers.status(node).reason} If it is gone for good, `mcvirt cluster remove-node --node "
                f"{node} --force` removes it all the same.",
            )

    def _check_arrived(self, report: LeaveReport) -> None:
        """Machines of the node may have come to another one, in a migration of whose end it could tell nobody.

        With the node goes what is known of those, and the records of disks that it had alone.
        """
        reasons: list[Refused] = []
        for vm in self._store.all(VmRecord).values():
            if vm.node != report.node:
                continue
            for where, state in sorted(self._found_at(vm.uuid).items()):
                if where != report.node and (state is not PowerState.STOPPED or vm.name in report.lost):
                    what = "has come to" if state is PowerState.STOPPED else "runs on"
                    reasons.append(
                        Conflict(
                            text=f"Virtual machine '{vm.name}' of node '{report.node}' {what} node '{where}', in a "
                            "migration that was not settled. Take it over there first: `mcvirt failover "
                            f"{vm.name} --yes-node-is-off {report.node}`."
                        )
                    )
        if reasons:
            raise SeveralReasons.of(reasons)

    def _forget(self, change: Change, node: str) -> None:
        """The configuration without *node*, and without what was there only."""
        gone = _forget_disks(change, node)
        for backend in list(change.all(BackendRecord).values()):
            if node in backend.nodes:
                left = {name: place for name, place in backend.nodes.items() if name != node}
                if left:
                    change.edit(BackendRecord, backend.name, nodes=left)
                else:
                    change.delete(BackendRecord, backend.name)
        for vm in list(change.all(VmRecord).values()):
            if vm.name in gone:
                change.delete(VmRecord, vm.name)
                drop_vm(change, vm.name)
            elif node in vm.nodes or vm.node == node:
                nodes = tuple(name for name in vm.nodes if name != node)
                change.edit(VmRecord, vm.name, nodes=nodes, node=None if vm.node == node else vm.node)
        forget_node(change, node)
        change.delete(DrainRecord, node)
        change.delete(NodeRecord, node)


def _forget_disks(change: Change, node: str) -> Sequence[str]:
    """Take *node* from all disks; returns the virtual machines that have lost one."""
    lost: set[str] = set()
    disks = list(change.all(DiskRecord).values())
    for disk in disks:
        if set(disk.nodes) == {node} and disk.vm is not None:
            lost.add(disk.vm)
    for disk in disks:
        left = tuple(name for name in disk.nodes if name != node)
        if not left:
            change.delete(DiskRecord, disk.id)
        elif disk.vm in lost:
            # What is left of a machine that has lost a disk is kept, attached to none.
            change.edit(DiskRecord, disk.id, nodes=left, vm=None, slot=None)
        elif left != disk.nodes:
            change.edit(DiskRecord, disk.id, nodes=left)
    return sorted(lost)
