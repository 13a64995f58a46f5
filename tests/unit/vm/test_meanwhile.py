"""What others delete or take while a change of a machine is at work."""

from __future__ import annotations

from mcvirt.errors import Conflict, VmRegistered
from mcvirtd.state.records import NetworkRecord, VmRecord
from tests.unit.vm.test_failover import on_shared_storage
from tests.unit.vm.world import World


def test_no_adapter_is_put_on_a_network_that_was_deleted_meanwhile(world: World) -> None:
    assert world.create(disks=0) is None
    original = world.hypervisor.define

    def define(xml: str) -> None:
        original(xml)
        with world.store.change() as change:
            change.delete(NetworkRecord, "dmz")

    world.hypervisor.define = define  # type: ignore[method-assign]
    error = world.update(add_networks=("dmz",))
    assert isinstance(error, Conflict) and "'dmz' was deleted meanwhile" in str(error)
    assert list(world.record().adapters.values()) == ["lan"]
    world.assert_whole()


def test_who_registers_second_has_nothing(world: World) -> None:
    on_shared_storage(world, owner=None)
    original = world.hypervisor.define

    def define(xml: str) -> None:
        original(xml)
        with world.store.change() as change:
            change.edit(VmRecord, "web1", node="n2")

    world.hypervisor.define = define  # type: ignore[method-assign]
    error = world.error_of(world.run(lambda: world.vms.register("web1")))
    assert isinstance(error, VmRegistered) and "'n2'" in str(error)
    assert world.record().node == "n2"
    assert world.record().uuid not in world.hypervisor.domains()
    assert world.journal_rows() == []
