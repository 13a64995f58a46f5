"""What stands against an operation on a machine: it is refused, and nothing is changed by that."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from mcvirt.errors import (
    BadArgument,
    Conflict,
    McvirtError,
    NotFound,
    SeveralReasons,
    TooManyDisks,
    UnsuitableNode,
    VmAlreadyRunning,
    VmLocked,
    VmNotRegistered,
    VmProtected,
    VmRegistered,
    VmRunning,
    VmStopped,
)
from mcvirt.types.vm import DiskSpec, VmSpec
from mcvirtd.state.records import DiskRecord, GroupRecord, UserRecord, VmRecord
from tests.unit.vm.world import MIB, World

FOUR = DiskSpec(size=4 * MIB)
MAC = "00:16:3e:00:00:09"


def act(world: World, work: Callable[[], object]) -> McvirtError | None:
    return world.error_of(world.run(work))


def edit(world: World, **fields: object) -> None:
    with world.store.change() as change:
        change.edit(VmRecord, "web1", **fields)


LOCKED: dict[str, Callable[[World], McvirtError | None]] = {
    "start": lambda world: world.start(),
    "update": lambda world: world.update(memory=32 * MIB),
    "delete": lambda world: world.delete(),
    "unregister": lambda world: act(world, lambda: world.vms.unregister("web1")),
    "detach": lambda world: act(world, lambda: world.changes.detach(next(iter(world.store.all(DiskRecord))))),
    "attach": lambda world: act(world, lambda: world.changes.check_attach("web1")),
}


@pytest.mark.parametrize("name", LOCKED)
def test_a_locked_machine_is_left_as_it_is(world: World, name: str) -> None:
    assert world.create() is None
    edit(world, locked=True)
    before = world.records()
    assert isinstance(LOCKED[name](world), VmLocked)
    assert world.records() == before
    world.assert_whole()


def test_a_locked_machine_is_not_reset_and_can_be_stopped(world: World) -> None:
    assert world.create() is None and world.start() is None
    edit(world, locked=True)
    assert isinstance(act(world, lambda: world.vms.reset("web1")), VmLocked)
    assert act(world, lambda: world.vms.shutdown("web1")) is None or world.stop() is None


def test_setting_the_present_lock_is_refused(world: World) -> None:
    assert world.create() is None
    with pytest.raises(Conflict, match="unlocked already"):
        world.vms.set_lock("web1", False)
    world.vms.set_lock("web1", True)
    with pytest.raises(Conflict, match="locked already"):
        world.vms.set_lock("web1", True)


def test_four_disks_are_the_most(world: World) -> None:
    assert isinstance(world.create(disks=5), TooManyDisks)
    assert world.volumes.names() == [] and world.store.all(VmRecord) == {}
    assert world.create(disks=3) is None
    assert isinstance(world.update(add_disks=(FOUR, FOUR)), TooManyDisks)
    assert world.update(add_disks=(FOUR,)) is None
    assert isinstance(world.update(add_disks=(FOUR,)), TooManyDisks)
    assert isinstance(act(world, lambda: world.changes.check_attach("web1")), TooManyDisks)
    world.assert_whole()


def test_protection_is_taken_off_by_the_name_reversed_alone(world: World) -> None:
    assert world.create() is None
    assert isinstance(world.update(disable_delete_protection="1bew"), Conflict)
    assert world.update(enable_delete_protection=True) is None
    assert isinstance(world.update(enable_delete_protection=True), Conflict)
    assert isinstance(world.delete(), VmProtected)
    assert isinstance(world.update(disable_delete_protection="web1"), BadArgument)
    assert world.record().delete_protection
    assert world.update(disable_delete_protection="1bew") is None
    assert world.delete() is None


def test_a_name_that_libvirt_has_for_another_domain_is_not_taken(world: World) -> None:
    assert world.create() is None
    somebodys = world.definition()
    assert world.delete() is None
    world.hypervisor.define(somebodys)
    error = world.create()
    assert isinstance(error, Conflict) and "virsh domrename" in str(error)
    assert world.store.all(VmRecord) == {} and world.volumes.names() == []


def test_rights_on_a_machine_end_with_it(world: World) -> None:
    assert world.create() is None
    with world.store.change() as change:
        change.put(UserRecord(name="bob", password_hash="x", vm_permissions={"web1": ("MODIFY_VM",)}))
        change.put(GroupRecord(name="owner", id="gp-1", permissions=(), vm_users={"web1": ("bob",)}))
    assert world.delete(keep_config=True) is None
    assert world.store.all(GroupRecord)["owner"].vm_users == {"web1": ("bob",)}  # the machine is still there
    assert world.delete() is None
    assert world.store.all(UserRecord)["bob"].vm_permissions == {}
    assert world.store.all(GroupRecord)["owner"].vm_users == {}


@pytest.mark.parametrize(("field", "now"), [("memory", 64 * MIB), ("cpu_count", 1)])
def test_what_was_changed_meanwhile_is_not_overwritten(world: World, field: str, now: int) -> None:
    assert world.create() is None
    error = world.update(**{field: 2 * now, f"old_{field}": now + MIB})
    assert isinstance(error, Conflict) and "meanwhile" in str(error)
    assert getattr(world.record(), field) == now
    assert world.update(**{field: 2 * now, f"old_{field}": now}) is None
    assert getattr(world.record(), field) == 2 * now


def test_states_that_do_not_fit(world: World) -> None:
    assert world.create() is None
    assert isinstance(world.stop(), VmStopped)
    for work in (world.vms.reset, world.vms.shutdown, world.vms.console_open):
        assert isinstance(act(world, lambda work=work: work("web1")), VmStopped)
    assert isinstance(act(world, lambda: world.vms.register("web1")), VmRegistered)
    assert world.start() is None
    assert isinstance(world.start(), VmAlreadyRunning)
    assert isinstance(world.delete(), VmRunning)
    assert isinstance(act(world, lambda: world.vms.unregister("web1")), VmRunning)
    assert world.stop() is None
    assert act(world, lambda: world.vms.unregister("web1")) is None
    assert isinstance(world.start(), VmNotRegistered)
    edit(world, nodes=("n9",))
    assert isinstance(act(world, lambda: world.vms.register("web1")), UnsuitableNode)
    world.assert_whole()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"delete_disk": 3}, NotFound),
        ({"grow_disk": 3, "grow_by": 512}, NotFound),
        ({"grow_disk": 1}, BadArgument),
        ({"grow_disk": 1, "grow_by": 0}, BadArgument),
        ({"grow_disk": 1, "grow_by": -512}, BadArgument),
        ({"grow_disk": 1, "grow_by": 511}, BadArgument),
        ({"remove_networks": (MAC,)}, NotFound),
        ({"change_networks": {MAC: "dmz"}}, NotFound),
        ({"add_networks": ("nope",)}, NotFound),
        ({"iso": "nope"}, NotFound),
        ({"memory": 0}, BadArgument),
        ({"memory": -(2**40)}, BadArgument),
        ({"memory": 2**62}, BadArgument),
        ({"cpu_count": 0}, BadArgument),
        ({"cpu_count": 2**31}, BadArgument),
    ],
)
def test_changes_that_can_not_be(world: World, change: dict[str, object], error: type[McvirtError]) -> None:
    assert world.create() is None
    before = world.records()
    assert isinstance(world.update(**change), error)
    assert world.records() == before


@pytest.mark.parametrize("name", ["", "ab", "-abc", "abc-", "a_b", "a b", "a/b", "ä-ö-ü", "x" * 65, "web1\n"])
def test_names_against_the_rules(world: World, name: str) -> None:
    error = act(world, lambda: world.vms.create(VmSpec(name=name, memory=64 * MIB, cpu_count=1)))
    assert isinstance(error, BadArgument)
    assert world.store.all(VmRecord) == {}


def test_every_node_that_is_to_run_it_must_have_what_it_stands_on(world: World) -> None:
    world.second_node()
    asked: list[tuple[tuple[str, ...], str]] = []

    def bridges_at(nodes: Iterable[str], interface: str) -> dict[str, list[str]]:
        asked.append((tuple(nodes), interface))
        return {"n2": [f"There is no bridge {interface}."]}

    world.creation._bridges_at = bridges_at
    disks = (DiskSpec(size=8 * MIB), DiskSpec(size=8 * MIB))
    spec = VmSpec(name="web9", memory=64 * MIB, cpu_count=1, disks=disks, networks=("lan",), nodes=("n2", "n1"))
    error = act(world, lambda: world.vms.create(spec))
    assert isinstance(error, SeveralReasons)
    assert "Node 'n2' could not run it: disk 1 would be on 'n1' only; Node 'n2' could not run it: disk 2" in str(error)
    assert "Network 'lan' can't be used on node 'n2': There is no bridge br0" in str(error)
    assert asked == [(("n2",), "br0")]
    world.assert_whole()
