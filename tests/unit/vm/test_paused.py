"""A guest that libvirt has paused."""

from __future__ import annotations

from mcvirt.errors import VmAlreadyRunning, VmPaused
from tests.unit.vm.world import World


def test_starting_a_paused_guest_says_how_it_goes_on(world: World) -> None:
    assert world.create() is None
    world.hypervisor.start(world.record().uuid, paused=True)
    error = world.start()
    assert isinstance(error, VmPaused) and "virsh resume web1" in str(error)
    assert world.stop() is None
    assert world.start() is None
    assert isinstance(world.start(), VmAlreadyRunning)
