"""A hard drive that one node attaches and another deletes at the same moment: each has locks of its own."""

from __future__ import annotations

from typing import Any

import pytest

from mcvirt.errors import CommandFailed, Conflict, DiskInUse, McvirtError, NotFound
from mcvirt.types.vm import DiskSpec
from mcvirtd.hypervisor.xml.live import live_domain
from mcvirtd.state.records import DiskRecord
from mcvirtd.storage.disks import Disks
from mcvirtd.storage.hard_drives import HardDriveService
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.transaction import Journal
from tests.unit.vm.world import MIB, World

BROKEN = CommandFailed(program="lvremove", status=5, output="no")


class Other:
    """The hard drives' service of a second node, on the store of the first one's."""

    def __init__(self, world: World) -> None:
        self.journal, locks = Journal(world.store), Locks()
        disks = Disks(store=world.store, journal=self.journal, locks=locks, nodes=world.node, node="n2", used_paths=set)
        self.drives = HardDriveService(
            store=world.store,
            journal=self.journal,
            locks=locks,
            disks=disks,
            attachments=world.attachments,
            node="n2",
        )


@pytest.fixture
def disk(world: World) -> str:
    assert world.create(disks=0) is None
    assert world.start() is None
    world.drives._attachments = world.changes
    return world.drives.create(DiskSpec(size=8 * MIB)).id


def attach(world: World, disk: str) -> McvirtError | None:
    return world.error_of(world.run(lambda: world.drives.attach(disk, "web1")))


def while_attaching(world: World, act: Any) -> None:
    """Do *act* once the guest has the disk, before that is stored."""
    original = world.domains.align

    def align(*args: Any) -> None:
        original(*args)
        world.domains.align = original  # type: ignore[method-assign]
        act()

    world.domains.align = align  # type: ignore[method-assign]


def test_disk_that_was_deleted_meanwhile_does_not_come_back(world: World, disk: str) -> None:
    while_attaching(world, lambda: Other(world).drives.delete(disk))
    error = attach(world, disk)
    assert isinstance(error, NotFound) and "deleted meanwhile" in str(error)
    assert world.store.all(DiskRecord) == {}
    assert not live_domain(world.definition()).disks
    world.assert_whole()


def test_disk_that_is_being_deleted_is_not_attached(world: World, disk: str) -> None:
    def delete() -> None:
        world.volumes.fail_next("delete", BROKEN)
        with pytest.raises(CommandFailed):
            Other(world).drives.delete(disk)

    while_attaching(world, delete)
    error = attach(world, disk)
    assert isinstance(error, Conflict) and "is being deleted" in str(error)
    assert [(each.vm, each.deleting) for each in world.drives.list()] == [(None, True)]
    world.assert_whole()


def test_disk_that_was_attached_meanwhile_is_not_deleted(world: World, disk: str) -> None:
    other = Other(world)
    original = other.journal.add

    def add(*args: Any) -> int:
        assert attach(world, disk) is None
        return original(*args)

    other.journal.add = add  # type: ignore[method-assign]
    with pytest.raises(DiskInUse, match="'web1'"):
        other.drives.delete(disk)
    (record,) = world.store.all(DiskRecord).values()
    assert (record.vm, record.deleting) == ("web1", False)
    world.assert_whole()


def test_disk_that_another_node_attached_meanwhile(world: World, disk: str) -> None:
    assert world.create("web2", disks=0) is None

    def attached() -> None:
        with world.store.change() as change:
            change.edit(DiskRecord, disk, vm="web2", slot=1)

    while_attaching(world, attached)
    assert isinstance(attach(world, disk), DiskInUse)
    assert world.store.all(DiskRecord)[disk].vm == "web2"
    assert not live_domain(world.definition()).disks


def test_deletion_that_failed_can_only_be_repeated_and_from_another_node(world: World, disk: str) -> None:
    world.volumes.fail_next("delete", BROKEN)
    with pytest.raises(CommandFailed):
        world.drives.delete(disk)
    original = world.domains.align

    def align(*args: Any) -> None:
        raise AssertionError("the machine was touched")

    world.domains.align = align  # type: ignore[method-assign]
    error = attach(world, disk)
    assert isinstance(error, Conflict) and f"mcvirt hard-drive delete {disk}" in str(error)
    world.domains.align = original  # type: ignore[method-assign]
    Other(world).drives.delete(disk)
    assert world.drives.list() == ()
    world.assert_whole()


def test_growth_that_a_crash_interrupted_is_not_finished_on_what_is_being_deleted(world: World, disk: str) -> None:
    with world.store.change() as change:
        change.edit(DiskRecord, disk, deleting=True)
    world.journal.run("disk.finish_grow", {"disk": disk, "size": 16 * MIB})
    record = world.store.all(DiskRecord)[disk]
    assert (record.size, world.volumes.size(record.volume)) == (8 * MIB, 8 * MIB)


def test_growth_during_which_a_deletion_begins(world: World, disk: str) -> None:
    original = world.disks.grow

    def grow(record: DiskRecord, size: int) -> int:
        with world.store.change() as change:
            change.edit(DiskRecord, disk, deleting=True)
        return original(record, size)

    world.disks.grow = grow  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="is being deleted"):
        world.journal.run("disk.finish_grow", {"disk": disk, "size": 16 * MIB})
    assert world.store.all(DiskRecord)[disk].size == 8 * MIB
