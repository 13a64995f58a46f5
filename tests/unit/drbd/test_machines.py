"""Virtual machines with replicated hard drives: where they are Primary, and what a failure leaves of a creation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mcvirt.errors import (
    CommandFailed,
    LeaderUnreachable,
    LibvirtFailed,
    LibvirtUnreachable,
    McvirtError,
    UndoIncomplete,
    VmIncomplete,
    from_wire,
)
from mcvirt.types.task import TaskState
from mcvirt.types.vm import DiskSpec, StorageType, VmSpec
from mcvirtd.drbd.config import resource_name
from mcvirtd.hypervisor.simulated import SimulatedHypervisor
from mcvirtd.state.records import DiskRecord, NetworkRecord, VerificationRecord, VmRecord
from mcvirtd.state.store import Change
from mcvirtd.vm.design import disks_of
from tests.unit.drbd.kernels import Wires
from tests.unit.drbd.world import Gate, Pair
from tests.unit.storage.world import Places
from tests.unit.vm.world import MIB
from tests.unit.vm.world import World as Machines

DRBD = DiskSpec(size=8 * MIB, storage_type=StorageType.DRBD)
BROKEN = CommandFailed(program="drbdadm", status=10, output="no")
NO = LibvirtFailed(action="start a domain", reason="no.")


class Both(Machines, Pair):
    def __init__(
        self,
        directory: Path,
        places: dict[str, Places] | None = None,
        hypervisor: SimulatedHypervisor | None = None,
        wires: Wires | None = None,
    ) -> None:
        self.wires = wires or Wires()
        super().__init__(directory, places, hypervisor)

    def held(self) -> Sequence[str]:
        return self.replicated.held()

    def after_power_loss(self) -> Both:
        return Both(self.copy(), self.places, self.hypervisor, self.wires)

    def make(self, name: str = "web1", disks: int = 1) -> McvirtError | None:
        spec = VmSpec(name=name, memory=64 * MIB, cpu_count=1, disks=(DRBD,) * disks, networks=("lan",))
        return self.error_of(self.run(lambda: self.vms.create(spec)))

    def role(self, name: str = "web1", node: str = "n1") -> set[str]:
        """The roles of the machine's disks on a node."""
        kernel = self.kernels[node]
        return {kernel.resources[resource_name(disk.id)].role for disk in disks_of(self.store, name)}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path)
    with made.store.change() as change:
        change.put(NetworkRecord(name="lan", interface="br0"))
    made.release.watch()
    yield made
    made.farther.away = False
    made.tasks.close()
    made.store.close()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


class TestCreate:
    def test_may_run_on_both_nodes_and_runs_on_none(self, world: Both) -> None:
        assert world.make(disks=2) is None
        assert world.record().nodes == ("n1", "n2")
        assert world.role() == {"Secondary"}
        assert "/dev/drbd1" in world.definition()
        assert "/dev/drbd2" in world.definition()

    @pytest.mark.parametrize("node", ["n1", "n2"])
    @pytest.mark.parametrize("verb", ["write_resource", "create_metadata", "up"])
    def test_disk_that_fails_leaves_a_machine_to_repair_and_nothing_of_the_disk(
        self, world: Both, verb: str, node: str
    ) -> None:
        world.kernels[node].fail_next(verb, BROKEN, done=True)
        error = world.make()
        assert isinstance(error, VmIncomplete)
        assert world.record().unfinished
        assert world.record().node == "n1"
        assert world.record().nodes == ("n1", "n2")
        assert disks_of(world.store, "web1") == ()
        assert world.orphans() == []
        assert world.update(add_disks=(DRBD,)) is None
        assert world.update(add_networks=("lan",)) is None
        assert world.record().unfinished == ()
        assert len(disks_of(world.store, "web1")) == 1
        assert world.start() is None

    def test_second_disk_that_fails_leaves_the_first(self, world: Both) -> None:
        kernel = world.kernels["n2"]
        kernel.fail_next("up", lambda: kernel.fail_next("up", BROKEN), done=True)
        assert isinstance(world.make(disks=2), VmIncomplete)
        assert [disk.slot for disk in disks_of(world.store, "web1")] == [1]
        assert world.orphans() == []

    @pytest.mark.parametrize("done", [False, True])
    def test_peer_that_dies_leaves_the_machine_and_is_cleared_later(self, world: Both, done: bool) -> None:
        world.farther.lose["make"] = done
        spec = VmSpec(name="web1", memory=64 * MIB, cpu_count=1, disks=(DRBD,), networks=("lan",))
        info = world.run(lambda: world.vms.create(spec))
        assert info.state is TaskState.STUCK
        assert info.error is not None
        assert isinstance(from_wire(info.error), VmIncomplete)
        assert [place for place in world.orphans() if place.startswith("n1")] == []
        world.farther.away = False
        world.tasks.settle()
        assert world.orphans() == []
        assert world.update(add_disks=(DRBD,)) is None
        assert world.start() is None

    def test_power_loss_leaves_the_machine_and_no_disk(self, world: Both) -> None:
        gate = Gate()
        world.kernels["n1"].fail_next("up", gate, done=True)
        dying = threading.Thread(target=world.make)
        dying.start()
        assert gate.reached.wait(20)
        after = world.after_power_loss()
        after.tasks.settle()
        assert after.store.get(VmRecord, "web1") is not None
        assert after.orphans() == []
        assert after.store.all(DiskRecord) == {}
        assert after.update(add_disks=(DRBD,)) is None
        after.store.close()
        world.farther.away = True
        gate.go.set()
        dying.join(20)

    def test_machine_without_disks_runs_where_its_first_one_is(self, world: Both) -> None:
        assert world.create(disks=0) is None
        assert world.record().nodes == ("n1",)
        assert world.update(add_disks=(DRBD,)) is None
        assert world.record().nodes == ("n1", "n2")

    def test_local_disk_ties_the_machine(self, world: Both) -> None:
        world.make()
        assert world.update(add_disks=(DiskSpec(size=8 * MIB, storage_type=StorageType.LOCAL),)) is None
        assert world.record().nodes == ("n1",)

    def test_deleted_machine_leaves_nothing(self, world: Both) -> None:
        world.make(disks=2)
        assert world.delete() is None
        assert world.orphans() == []
        assert world.store.all(DiskRecord) == {}


class TestDelete:
    @pytest.mark.parametrize("node", ["n1", "n2"])
    def test_what_fails_before_any_data_is_touched_changes_nothing(self, world: Both, node: str) -> None:
        world.make()
        (disk,) = disks_of(world.store, "web1")
        world.kernels[node].fail_next("down", BROKEN)
        assert isinstance(world.delete(), CommandFailed)
        assert disks_of(world.store, "web1") == (disk,)
        assert world.role() == world.role(node="n2") == {"Secondary"}
        assert world.start() is None
        assert world.role() == {"Primary"}

    def test_what_fails_later_is_shown_and_can_only_be_repeated(self, world: Both) -> None:
        world.make()
        world.volumes("n2").fail_next("delete", BROKEN)
        assert isinstance(world.delete(), CommandFailed)
        assert [(drive.vm, drive.deleting) for drive in world.drives.list()] == [("web1", True)]
        refused = world.start()
        assert refused is not None and "`mcvirt delete web1` finishes a deletion that has failed" in str(refused)
        assert world.delete() is None
        assert world.orphans() == []
        assert world.store.all(DiskRecord) == {}

    def test_what_the_cluster_does_not_take_in_changes_nothing(
        self, world: Both, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.make()
        (disk,) = disks_of(world.store, "web1")
        original = Change.edit

        def edit(change: Change, kind: type[DiskRecord], key: str, **fields: object) -> DiskRecord:
            if fields.get("deleting"):
                raise LeaderUnreachable(leader="n3")
            return original(change, kind, key, **fields)

        monkeypatch.setattr(Change, "edit", edit)
        assert isinstance(world.delete(), LeaderUnreachable)
        assert disks_of(world.store, "web1") == (disk,)
        assert world.start() is None


class TestRoles:
    def test_primary_while_it_runs(self, world: Both) -> None:
        world.make(disks=2)
        assert world.start() is None
        assert world.role() == {"Primary"}
        assert world.role(node="n2") == {"Secondary"}
        assert world.stop() is None
        assert world.role() == {"Secondary"}

    def test_guest_that_ends_by_itself(self, world: Both) -> None:
        world.make()
        world.start()
        world.hypervisor.destroy(world.record().uuid)
        until(lambda: world.role() == {"Secondary"})

    @pytest.mark.parametrize("verb", ["define", "start"])
    def test_start_that_fails(self, world: Both, verb: str) -> None:
        world.make()
        world.hypervisor.fail_next(verb, NO)
        assert isinstance(world.start(), LibvirtFailed)
        assert world.role() == {"Secondary"}
        assert world.journal_rows() == []

    def test_power_loss_while_it_is_started(self, world: Both) -> None:
        world.make()
        gate = Gate()
        world.kernels["n1"].fail_next("primary", gate, done=True)
        dying = threading.Thread(target=world.start)
        dying.start()
        assert gate.reached.wait(20)
        assert world.role() == {"Primary"}
        after = world.after_power_loss()
        after.tasks.settle()
        assert after.role() == {"Secondary"}
        after.store.close()
        gate.go.set()
        dying.join(20)

    def test_second_disk_that_can_not_be_made_ready(self, world: Both) -> None:
        world.make(disks=2)
        kernel = world.kernels["n1"]
        kernel.fail_next("primary", lambda: kernel.fail_next("primary", BROKEN), done=True)
        assert isinstance(world.start(), CommandFailed)
        assert world.role() == {"Secondary"}

    def test_machine_does_not_start_while_its_sides_differ(self, world: Both) -> None:
        world.make()
        (disk,) = disks_of(world.store, "web1")
        with world.store.change() as change:
            change.put(VerificationRecord(disk=disk.id, failed=True, out_of_sync=4096))
        error = world.start()
        assert error is not None
        assert "4 KiB" in str(error)
        assert world.role() == {"Secondary"}

    def test_running_guest_keeps_its_disks_when_the_daemon_starts(self, world: Both) -> None:
        world.make()
        world.start()
        after = world.after_power_loss()
        after.tasks.settle()
        after.release.settle()
        assert after.role() == {"Primary"}
        after.store.close()

    def test_nothing_is_given_up_while_libvirt_is_away(self, world: Both) -> None:
        world.make()
        world.start()
        world.hypervisor.connected = False
        world.release.settle()
        with pytest.raises(LibvirtUnreachable):
            world.release.of_machine("web1")
        world.hypervisor.connected = True
        assert world.role() == {"Primary"}

    def test_timer_finds_what_is_held_for_nobody(self, world: Both) -> None:
        world.make()
        (disk,) = disks_of(world.store, "web1")
        world.kernels["n1"].primary(resource_name(disk.id))
        world.release.settle()
        assert world.role() == {"Secondary"}


class TestAttached:
    def test_running_guest_gets_one_and_gives_it_back(self, world: Both) -> None:
        world.make()
        world.start()
        info = world.run(lambda: world.drives.create(DRBD))
        assert info.state is TaskState.DONE
        (disk,) = (disk for disk in world.store.all(DiskRecord).values() if disk.vm is None)
        world.changes.attach(disk.id, "web1")
        assert world.kernels["n1"].resources[resource_name(disk.id)].role == "Primary"
        world.changes.detach(disk.id)
        assert world.kernels["n1"].resources[resource_name(disk.id)].role == "Secondary"
        assert world.role() == {"Primary"}

    def test_attaching_that_fails_leaves_it_secondary(self, world: Both) -> None:
        world.make()
        world.start()
        world.run(lambda: world.drives.create(DRBD))
        (disk,) = (disk for disk in world.store.all(DiskRecord).values() if disk.vm is None)
        world.hypervisor.fail_next("define", NO)
        with pytest.raises(LibvirtFailed):
            world.changes.attach(disk.id, "web1")
        assert world.kernels["n1"].resources[resource_name(disk.id)].role == "Secondary"

    def test_one_whose_sides_differ_says_how_to_repair_it_and_that_works(self, world: Both) -> None:
        world.make()
        world.run(lambda: world.drives.create(DRBD))
        (disk,) = (disk for disk in world.store.all(DiskRecord).values() if disk.vm is None)
        with world.store.change() as change:
            change.put(VerificationRecord(disk=disk.id, failed=True, out_of_sync=8192))
        with pytest.raises(McvirtError) as refused:
            world.changes.attach(disk.id, "web1")
        assert f"`mcvirt resync {disk.id} --source-node NODE`" in str(refused.value)
        world.roles._heedless = lambda: True
        world.changes.attach(disk.id, "web1")
        world.roles._heedless = lambda: False
        assert {each.id for each in disks_of(world.store, "web1")} > {disk.id}
        assert world.role() == {"Secondary"}
        assert "`mcvirt resync web1 --source-node NODE`" in str(world.start())

    def test_added_to_a_running_guest(self, world: Both) -> None:
        world.make()
        world.start()
        assert world.update(add_disks=(DRBD,)) is None
        assert world.role() == {"Primary"}
        world.hypervisor.fail_next("define", NO)
        assert world.update(add_disks=(DRBD,)) is not None
        assert world.orphans() == []

    @pytest.mark.parametrize("runs", [False, True])
    def test_grown(self, world: Both, runs: bool) -> None:
        world.make()
        if runs:
            world.start()
        assert world.update(grow_disk=1, grow_by=8 * MIB) is None
        (disk,) = disks_of(world.store, "web1")
        assert disk.size == 16 * MIB
        assert world.role() == ({"Primary"} if runs else {"Secondary"})

    def test_grown_where_the_link_is_cut_is_finished_when_it_is_back(self, world: Both) -> None:
        world.make()

        def cut(cut: bool) -> None:
            with world.wires.changed:
                world.wires.cut = cut
                world.wires.settle()

        def fails() -> None:
            cut(True)
            raise CommandFailed(program="drbdadm", status=10, output="(162) unknown connection")

        world.kernels["n1"].fail_next("resize", fails)
        assert isinstance(world.update(grow_disk=1, grow_by=8 * MIB), UndoIncomplete)
        world.tasks.settle()
        assert world.journal_rows() == [("disk.finish_grow", "redo")]
        cut(False)
        world.tasks.settle()
        (disk,) = disks_of(world.store, "web1")
        assert disk.size == 16 * MIB
        assert world.journal_rows() == [] and len(world.levelled) == 1

    def test_what_has_been_grown_further_elsewhere_stays_as_long(self, world: Both) -> None:
        world.make()
        (disk,) = disks_of(world.store, "web1")

        def elsewhere() -> None:
            with world.store.change() as change:
                change.edit(DiskRecord, disk.id, size=24 * MIB)

        world.farther.on["grow"] = elsewhere
        assert world.update(grow_disk=1, grow_by=8 * MIB) is None
        assert disks_of(world.store, "web1")[0].size == 24 * MIB

    def test_deleted_from_a_running_guest(self, world: Both) -> None:
        world.make(disks=2)
        world.start()
        assert world.update(delete_disk=2) is None
        assert len(world.store.all(DiskRecord)) == 1
        assert world.orphans() == []


class TestRegistration:
    def test_unregistered_and_registered_again(self, world: Both) -> None:
        world.make()
        assert world.error_of(world.run(lambda: world.vms.unregister("web1"))) is None
        assert world.role() == {"Secondary"}
        assert world.error_of(world.run(lambda: world.vms.register("web1"))) is None
        assert world.role() == {"Secondary"}


class TestFailover:
    def _elsewhere(self, world: Both) -> None:
        world.make()
        (disk,) = disks_of(world.store, "web1")
        with world.store.change() as change:
            change.edit(VmRecord, "web1", node="n2")
        world.hypervisor.undefine(world.record().uuid)
        world.kernels["n2"].primary(resource_name(disk.id))

    def _failover(self, world: Both) -> McvirtError | None:
        return world.error_of(world.run(lambda: world.vms.failover("web1", "n2", True)))

    def test_survivor_goes_on(self, world: Both) -> None:
        self._elsewhere(world)
        world.farther.away = True
        world.kernels["n2"].running = False
        world.kernels["n1"].connect(resource_name(disks_of(world.store, "web1")[0].id))
        assert self._failover(world) is None
        assert world.record().node == "n1"
        assert world.role() == {"Primary"}

    def test_the_kernel_misses_the_other_node_later_than_mcvirtd_does(self, world: Both) -> None:
        self._elsewhere(world)
        world.farther.away = True
        name = resource_name(disks_of(world.store, "web1")[0].id)

        def miss() -> None:
            world.kernels["n2"].running = False
            world.kernels["n1"].connect(name)

        timer = threading.Timer(0.2, miss)
        timer.start()
        assert self._failover(world) is None
        timer.join()
        assert world.record().node == "n1"

    def test_not_while_the_other_kernel_says_that_it_is_used_there(self, world: Both) -> None:
        self._elsewhere(world)
        world.farther.away = True  # mcvirtd is gone there, but DRBD goes on
        assert "'n2' uses it" in str(self._failover(world))
        assert world.record().node == "n2"

    def test_not_with_old_data(self, world: Both) -> None:
        self._elsewhere(world)
        world.farther.away = True
        world.kernels["n2"].running = False
        name = resource_name(disks_of(world.store, "web1")[0].id)
        world.kernels["n1"].connect(name)
        world.kernels["n1"].put(name, disk="Outdated")
        assert "Outdated" in str(self._failover(world))
        assert world.record().node == "n2"
