"""What others delete while a change of a machine is at work."""

from __future__ import annotations

from mcvirt.errors import Conflict
from mcvirtd.state.records import NetworkRecord
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
