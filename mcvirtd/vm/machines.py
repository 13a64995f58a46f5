"""All that has to do with virtual machines on this node, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from mcvirt.types.drbd import DrbdInfo
from mcvirtd.auth.grants import drop_vm
from mcvirtd.cluster.live import Known
from mcvirtd.hypervisor.verbs import HypervisorVerbs
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.storage.disks import Disks
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.transaction import Journal
from mcvirtd.vm.change import Changes
from mcvirtd.vm.consoles import Consoles
from mcvirtd.vm.creation import Creation
from mcvirtd.vm.deletion import Deletion
from mcvirtd.vm.design import AcceleratorOfNode, Designer, Isos, disks_of
from mcvirtd.vm.domains import Domains
from mcvirtd.vm.elsewhere import Nodes
from mcvirtd.vm.failover import Failover
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.power import Power
from mcvirtd.vm.registration import Registration
from mcvirtd.vm.release import Release
from mcvirtd.vm.service import VmService
from mcvirtd.vm.view import View


class Machines:
    """*service* answers the contract VmApi; *changes* attaches and detaches hard drives for others.

    *live* is what is known of another node, *replica* of a replicated hard drive; *bridge_problem* says why machines
    can't be connected to an interface here, *bridges_at* why not on other nodes, *nodes* whether another node is there,
    and *held* which replicated hard drives this node is Primary for.
    """

    def __init__(
        self,
        *,
        node: str,
        store: Store,
        journal: Journal,
        locks: Locks,
        hypervisor: HypervisorVerbs,
        accelerator: AcceleratorOfNode,
        disks: Disks,
        isos: Isos,
        console_directory: str,
        live: Callable[[str], Known],
        replica: Callable[[DiskRecord], DrbdInfo | None],
        bridge_problem: Callable[[str], str],
        bridges_at: Callable[[Iterable[str], str], Mapping[str, list[str]]],
        nodes: Nodes,
        held: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        designs = Designer(store, disks, isos, accelerator, console_directory)
        self.domains = Domains(
            store=store, hypervisor=hypervisor, designs=designs, journal=journal, locks=locks, node=node
        )
        self.release = Release(
            store=store,
            journal=journal,
            locks=locks,
            hypervisor=hypervisor,
            disks=disks,
            node=node,
            held=held,
        )
        self.release.watch()
        ground = self.ground = Ground(
            node=node,
            store=store,
            journal=journal,
            locks=locks,
            hypervisor=hypervisor,
            domains=self.domains,
            designs=designs,
            disks=disks,
            release=self.release,
            bridge_problem=bridge_problem,
            bridges_at=bridges_at,
        )
        deletion = Deletion(ground, drop_vm)
        self.changes = Changes(ground)
        power = self.power = Power(ground)
        creation = Creation(ground, deletion.remove)
        self.consoles = Consoles(hypervisor.open_console)
        self.service = VmService(
            store=store,
            locks=locks,
            hypervisor=hypervisor,
            domains=self.domains,
            designs=designs,
            creation=creation,
            changes=self.changes,
            power=power,
            deletion=deletion,
            view=View(
                store=store,
                hypervisor=hypervisor,
                domains=self.domains,
                accelerator=accelerator,
                node=node,
                live=live,
                replica=replica,
            ),
            consoles=self.consoles,
            failover=Failover(ground, power, nodes),
            registration=Registration(ground, power, nodes, creation.register),
            node=node,
        )

    def bound(self, name: str) -> bool:
        """Whether no other node could go on with the machine, were this one gone."""
        ground = self.ground
        vm = ground.store.get(VmRecord, name)
        others = vm is not None and any(node != ground.node for node in vm.nodes)
        return not (others and all(ground.disks.movable(disk) for disk in disks_of(ground.store, name)))
