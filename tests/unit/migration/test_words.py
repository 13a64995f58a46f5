"""What can be asked for, and how a domain is described to another node."""

from __future__ import annotations

import pytest

from mcvirt.errors import BadArgument
from mcvirt.types.migration import Migration
from mcvirtd.hypervisor.xml.travel import guests_user, moved, running
from mcvirtd.migration import sockets
from mcvirtd.migration.planning import check_words
from mcvirtd.migration.sockets import CHANNELS, path
from tests.unit.vm.world import World

LONGEST_PATH_OF_A_SOCKET = 107


@pytest.mark.parametrize(
    "wrong",
    [
        {"online": True, "wait_for_shutdown": True},
        {"online": True, "start_after": True},
        {"online": True, "deadline": 0},
        {"online": True, "bandwidth": -1},
        {"online": True, "bandwidth": 2**20 - 1},
        {"max_downtime": 100},
        {"bandwidth": 1},
        {"deadline": 1},
    ],
)
def test_what_does_not_go_together_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadArgument):
        check_words(Migration(node="n2", **wrong))  # type: ignore[arg-type]


def test_what_goes_together_is_taken() -> None:
    check_words(Migration(node="n2", online=True, copy_storage=True, max_downtime=1, bandwidth=2**20, deadline=1))
    check_words(Migration(node="n2", wait_for_shutdown=True, start_after=True))


def test_description_names_what_is_elsewhere_there(world: World) -> None:
    world.create(disks=2)
    text = world.definition()
    before = running(text)
    first, second = before.targets
    after = moved(text, {first: "/there/disk", f"{world.directory}/{world.record().uuid}.log": "/there/log"})
    assert running(after).targets == {"/there/disk": before.targets[first], second: before.targets[second]}
    assert "/there/log" in after and first not in after
    assert before.kind == "qemu" and before.machine_type == "q35"


def test_guests_user_is_what_libvirt_says() -> None:
    label = "<secmodel><model>dac</model><baselabel type='kvm'>{}</baselabel></secmodel>"
    model = f"<capabilities><host>{label}</host></capabilities>"
    assert guests_user(model.format("+64055:+994")) == (64055, 994)
    assert guests_user(model.format("+0:+0")) == (0, 0)
    assert guests_user("<capabilities><host/></capabilities>") == (0, 0)


def test_longest_name_makes_a_path_that_a_socket_takes() -> None:
    for channel in CHANNELS:
        assert len(str(sockets._own(channel, "a" * 64)).encode()) <= LONGEST_PATH_OF_A_SOCKET
        assert len(str(path(channel, "a" * 64)).encode()) <= LONGEST_PATH_OF_A_SOCKET
