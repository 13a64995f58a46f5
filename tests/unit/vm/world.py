"""A node's virtual machines, whole, on a simulated hypervisor and simulated storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mcvirt.errors import McvirtError, NotFound, from_wire
from mcvirt.types.arrival import Whereabouts
from mcvirt.types.task import TaskInfo
from mcvirt.types.vm import DiskSpec, VmChange, VmSpec
from mcvirtd.auth.grants import drop_vm
from mcvirtd.cluster.live import Known
from mcvirtd.hypervisor.simulated import SimulatedHypervisor
from mcvirtd.hypervisor.xml.live import live_domain
from mcvirtd.state.records import DiskRecord, NetworkRecord, VmRecord
from mcvirtd.vm.change import Changes
from mcvirtd.vm.consoles import Consoles
from mcvirtd.vm.creation import Creation
from mcvirtd.vm.deletion import Deletion
from mcvirtd.vm.design import AcceleratorOfNode, Designer
from mcvirtd.vm.domains import Domains
from mcvirtd.vm.failover import Failover
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.power import Power
from mcvirtd.vm.registration import Registration
from mcvirtd.vm.release import Release
from mcvirtd.vm.service import VmService
from mcvirtd.vm.view import View
from tests.unit.storage import world as storage

MIB = 1024 * 1024


class Isos:
    """The images whose names are in *names*."""

    def __init__(self) -> None:
        self.names = {"a.iso", "b.iso"}

    def path(self, name: str) -> str:
        if name not in self.names:
            raise NotFound(kind="ISO image", name=name)
        return f"/isos/{name}"


class Reach:
    """Who reaches which node, and who leads."""

    def __init__(self) -> None:
        self.witnesses: dict[str, str] = {}
        self.leaderless: McvirtError | None = None
        self.has: dict[str, Whereabouts | McvirtError] = {}

    def witness(self, node: str) -> str:
        return self.witnesses.get(node, "")

    def whereabouts(self, uuid: str) -> Mapping[str, Whereabouts | McvirtError]:
        return self.has

    def require_leader(self) -> None:
        if self.leaderless is not None:
            raise self.leaderless


class World(storage.World):
    """A process of mcvirtd's with one storage backend ("pool", volume group vg0) and the networks lan and dmz."""

    def __init__(
        self,
        directory: Path,
        places: dict[str, storage.Places] | None = None,
        hypervisor: SimulatedHypervisor | None = None,
    ) -> None:
        super().__init__(directory, places)
        self.hypervisor = hypervisor or SimulatedHypervisor("n1")
        self.isos = Isos()
        self.bridges = {"br0", "br1"}
        accelerator = AcceleratorOfNode(lambda: ("tcg", "simulated"))
        self.designs = Designer(self.store, self.disks, self.isos, accelerator, str(directory))
        self.domains = Domains(
            store=self.store,
            hypervisor=self.hypervisor,
            designs=self.designs,
            journal=self.journal,
            locks=self.locks,
            node="n1",
        )
        self.release = Release(
            store=self.store,
            journal=self.journal,
            locks=self.locks,
            hypervisor=self.hypervisor,
            disks=self.disks,
            node="n1",
            held=self.held,
        )
        ground = self.ground = Ground(
            node="n1",
            store=self.store,
            journal=self.journal,
            locks=self.locks,
            hypervisor=self.hypervisor,
            domains=self.domains,
            designs=self.designs,
            disks=self.disks,
            release=self.release,
            bridge_problem=lambda name: "" if name in self.bridges else f"There is no bridge {name}.",
        )
        deletion = Deletion(ground, drop_vm)
        self.changes = Changes(ground)
        power = Power(ground)
        self.creation = Creation(ground, deletion.remove)
        self.reach = Reach()
        self.vms = VmService(
            store=self.store,
            locks=self.locks,
            hypervisor=self.hypervisor,
            domains=self.domains,
            designs=self.designs,
            creation=self.creation,
            changes=self.changes,
            power=power,
            deletion=deletion,
            view=View(
                store=self.store,
                hypervisor=self.hypervisor,
                domains=self.domains,
                accelerator=accelerator,
                node="n1",
                live=lambda _: Known(),
            ),
            consoles=Consoles(self.hypervisor.open_console),
            failover=Failover(ground, power, self.reach),
            registration=Registration(ground, power, self.reach, self.creation.register),
            node="n1",
        )

    def held(self) -> Sequence[str]:
        """The replicated hard drives that this node is Primary for."""
        return ()

    def furnish(self) -> World:
        self.volumes = self.lvm()
        with self.store.change() as change:
            for name, bridge in (("lan", "br0"), ("dmz", "br1")):
                change.put(NetworkRecord(name=name, interface=bridge))
        return self

    # --- acts, as tasks; each returns the error, or None -----------------------------------------------------------

    def error_of(self, info: TaskInfo) -> McvirtError | None:
        return None if info.error is None else from_wire(info.error)

    def create(self, name: str = "web1", disks: int = 1, networks: tuple[str, ...] = ("lan",)) -> McvirtError | None:
        spec = VmSpec(
            name=name,
            memory=64 * MIB,
            cpu_count=1,
            disks=tuple(DiskSpec(size=8 * MIB) for _ in range(disks)),
            networks=networks,
        )
        return self.error_of(self.run(lambda: self.vms.create(spec)))

    def update(self, name: str = "web1", **fields: object) -> McvirtError | None:
        change = VmChange(**fields)  # type: ignore[arg-type]
        return self.error_of(self.run(lambda: self.vms.update(name, change)))

    def start(self, name: str = "web1", iso: str | None = None) -> McvirtError | None:
        return self.error_of(self.run(lambda: self.vms.start(name, iso)))

    def stop(self, name: str = "web1") -> McvirtError | None:
        return self.error_of(self.run(lambda: self.vms.stop(name)))

    def delete(self, name: str = "web1", **how: bool) -> McvirtError | None:
        return self.error_of(self.run(lambda: self.vms.delete(name, **how)))

    # --- what is there ----------------------------------------------------------------------------------------------

    def record(self, name: str = "web1") -> VmRecord:
        found = self.store.get(VmRecord, name)
        assert found is not None
        return found

    def records(self) -> dict[str, object]:
        return {**self.store.all(VmRecord), **self.store.all(DiskRecord)}

    def definition(self, name: str = "web1") -> str:
        return self.hypervisor.description(self.record(name).uuid)

    def assert_whole(self) -> None:
        """Records, volumes and domains agree, and nothing is due."""
        disks = self.store.all(DiskRecord).values()
        assert sorted(disk.volume for disk in disks) == sorted(self.volumes.names())
        machines = self.store.all(VmRecord)
        assert {state.name for state in self.hypervisor.domains().values()} == {
            name for name, vm in machines.items() if vm.node
        }
        for name, vm in machines.items():
            slots = [disk.slot for disk in disks if disk.vm == name]
            assert len(set(slots)) == len(slots)
            if vm.node:
                live = live_domain(self.definition(name))
                assert len(live.disks) == len(slots) and set(live.adapters) == set(vm.adapters)
                assert live.memory == vm.memory
        assert all(disk.vm is None or disk.vm in machines for disk in disks)
        assert self.journal_rows() == []

    def reborn(self) -> World:
        """The next process after a power loss; what it holds in memory is gone, the hypervisor and storage are not."""
        dead = self.after_power_loss()
        dead.tasks.close()
        dead.store.close()
        new = World(dead.directory, self.places, self.hypervisor)
        new.volumes = self.volumes
        return new
