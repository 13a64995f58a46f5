"""What others delete or take while a change of a machine is at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mcvirt.errors import CommandFailed, Conflict, LeaderUnreachable, LibvirtUnreachable, McvirtError, VmRegistered
from mcvirt.types.arrival import Whereabouts
from mcvirtd.state.records import DiskRecord, NetworkRecord, VmRecord
from mcvirtd.state.store import Change
from tests.unit.vm.test_failover import on_shared_storage
from tests.unit.vm.world import MIB, World

BROKEN = CommandFailed(program="lvremove", status=5, output="no")


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


# --- one node deletes what another registers --------------------------------------------------------------------------


def at_the_first_disk(world: World, act: Callable[[], object], *, fails: McvirtError | None = None) -> None:
    """Once the deletion has begun with the disks: *act*, and then the deletion of the first one *fails*."""
    original = world.disks.begin_delete

    def begin(disk: DiskRecord) -> None:
        world.disks.begin_delete = original  # type: ignore[method-assign]
        act()
        if fails is not None:
            raise fails
        original(disk)

    world.disks.begin_delete = begin  # type: ignore[method-assign]


def register(world: World) -> McvirtError | None:
    return world.error_of(world.run(lambda: world.vms.register("web1")))


def test_what_is_being_deleted_is_registered_on_no_node(world: World) -> None:
    on_shared_storage(world, owner=None)

    def other() -> None:  # another node, which has none of this one's locks
        with pytest.raises(Conflict, match="is being deleted"):
            world.vms._registration.carry_out("web1")

    at_the_first_disk(world, other)
    assert world.delete() is None
    assert world.records() == {} and world.hypervisor.domains() == {}


def test_who_has_looked_before_it_was_marked_has_nothing_either(world: World) -> None:
    on_shared_storage(world, owner=None)
    original = world.hypervisor.define

    def define(xml: str) -> None:
        original(xml)
        with world.store.change() as change:
            change.edit(VmRecord, "web1", deleter="a-task-of-n2's")

    world.hypervisor.define = define  # type: ignore[method-assign]
    error = register(world)
    assert isinstance(error, Conflict) and "is being deleted" in str(error)
    assert world.record().node is None and world.hypervisor.domains() == {}


def test_what_was_registered_elsewhere_meanwhile_is_not_deleted(world: World) -> None:
    on_shared_storage(world, owner=None)
    original = world.journal.add

    def add(*args: Any) -> int:
        with world.store.change() as change:
            change.edit(VmRecord, "web1", node="n2")
        return original(*args)

    world.journal.add = add  # type: ignore[method-assign]
    error = world.delete()
    assert isinstance(error, Conflict) and "was registered on node 'n2' meanwhile" in str(error)
    assert world.record().deleter == "" and len(world.store.all(DiskRecord)) == 1
    assert len(world.volumes.names()) == 1 and world.journal_rows() == []


@pytest.mark.parametrize("owner", [None, "n1"])
def test_a_deletion_that_fails_leaves_a_machine_that_can_be_used(world: World, owner: str | None) -> None:
    on_shared_storage(world, owner=owner)
    world.volumes.fail_next("delete", BROKEN)
    assert isinstance(world.delete(), CommandFailed)
    assert world.record().deleter == "" and world.journal_rows() == []
    if owner is None:
        assert register(world) is None
    assert world.delete() is None
    assert world.records() == {}


def test_a_mark_that_can_not_be_taken_off_is_taken_off_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on_shared_storage(world, owner=None)
    original = Change.edit

    def edit(change: Change, kind: type[VmRecord], key: str, **fields: object) -> VmRecord:
        if fields == {"deleter": ""}:
            raise LeaderUnreachable(leader="n2")
        return original(change, kind, key, **fields)

    world.volumes.fail_next("delete", BROKEN)
    monkeypatch.setattr(Change, "edit", edit)
    assert isinstance(world.delete(), CommandFailed)
    assert world.record().deleter
    assert "is being deleted" in " ".join(world.vms.info("web1").warnings)
    assert "is being deleted" in str(register(world))
    assert "is being deleted" in str(world.update(memory=96 * MIB))
    assert len(world.store.all(DiskRecord)) == 1
    monkeypatch.undo()
    world.tasks.settle()
    assert world.record().deleter == "" and world.journal_rows() == []
    assert register(world) is None


def test_two_nodes_that_delete_the_same(world: World) -> None:
    on_shared_storage(world, owner=None)

    def other() -> None:
        with world.store.change() as change:
            change.edit(VmRecord, "web1", deleter="a-task-of-n2's")

    at_the_first_disk(world, other)
    error = world.delete()
    assert isinstance(error, Conflict) and "by another task" in str(error)
    assert world.record().deleter == "a-task-of-n2's"
    assert world.delete() is None  # as where n2 was lost with it
    assert world.records() == {}


@pytest.mark.parametrize("owner", [None, "n1"])
@pytest.mark.parametrize("used", [False, True])
def test_a_deletion_that_a_power_loss_interrupts(world: World, owner: str | None, used: bool) -> None:
    on_shared_storage(world, owner=owner)
    left: list[World] = []
    at_the_first_disk(world, lambda: left.append(world.reborn()), fails=Conflict(text="The power is gone."))
    world.delete()
    (after,) = left
    assert after.record().deleter and [act for act, *_ in after.journal_rows()] != []
    if used:
        with after.store.change() as change:
            change.edit(VmRecord, "web1", locked=True)
    after.tasks.settle()
    if used:
        assert after.record().deleter == "" and len(after.store.all(DiskRecord)) == 1
    else:
        assert after.records() == {} and after.volumes.names() == []
    assert after.journal_rows() == []
    after.tasks.close()
    after.store.close()


def test_a_machine_that_starts_is_not_deleted_any_more(world: World) -> None:
    assert world.create() is None
    with world.store.change() as change:
        change.edit(VmRecord, "web1", deleter="a-task-that-died")
    assert world.start() is None
    assert world.record().deleter == ""


# --- where it runs ----------------------------------------------------------------------------------------------------


def test_what_runs_elsewhere_is_registered_only_there(world: World) -> None:
    on_shared_storage(world, owner=None)
    world.reach.has = {"n2": Whereabouts(active=True, running=True), "n3": Whereabouts(defined=True)}
    error = register(world)
    assert isinstance(error, Conflict) and "runs on node 'n2', and can be registered only there" in str(error)
    assert world.record().node is None and world.hypervisor.domains() == {}


def test_who_can_not_say_whether_it_runs_there_stands_against_it(world: World) -> None:
    on_shared_storage(world, owner=None)
    world.reach.has = {"n2": LibvirtUnreachable(node="n2", uri="its socket", reason="no.")}
    error = register(world)
    assert isinstance(error, Conflict) and "Node 'n2' answers, and can't say" in str(error)


def test_who_was_quicker_is_noticed_before_anything_is_defined(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on_shared_storage(world, owner=None)
    defined: list[str] = []
    monkeypatch.setattr(world.hypervisor, "define", defined.append)

    def meanwhile(uuid: str) -> dict[str, Whereabouts]:
        del uuid
        with world.store.change() as change:
            change.edit(VmRecord, "web1", node="n2")
        return {}

    monkeypatch.setattr(world.reach, "whereabouts", meanwhile)
    error = register(world)
    assert isinstance(error, VmRegistered) and "'n2'" in str(error)
    assert defined == []
