"""Hard drives as objects of their own: made, attached, imported, deleted."""

from __future__ import annotations

import msgspec
import pytest

from mcvirt.errors import (
    BackendUnavailable,
    BadArgument,
    CommandFailed,
    Conflict,
    DiskInUse,
    NotFound,
    SeveralReasons,
    TooManyDisks,
    VmNotFound,
)
from mcvirt.types.vm import DiskDriver, DiskSpec, StorageType
from mcvirt.units import GIB, MIB
from mcvirtd.state.records import BackendRecord, DiskRecord
from mcvirtd.tasks.transaction import Transaction
from tests.unit.storage.world import World

ONE = DiskSpec(size=GIB)
BROKEN = CommandFailed(program="lvcreate", status=5, output="no")
NONE = f"hd-{'0' * 18}-{'1' * 22}"


def test_create_detached(world: World) -> None:
    volumes = world.lvm("pool")
    made = world.drives.create(ONE)
    assert (made.vm, made.slot, made.size, made.backend) == (None, None, GIB, "pool")
    assert made.backend_id == world.storage.list()[0].id
    assert world.drives.list() == (made,)
    assert volumes.names() == [made.volume]


def test_create_attached(world: World) -> None:
    world.lvm("pool")
    world.vm("web1")
    first, second = world.drives.create(ONE, vm="web1"), world.drives.create(ONE, vm="web1")
    assert [(made.vm, made.slot) for made in (first, second)] == [("web1", 1), ("web1", 2)]
    assert world.drives.list() == (first, second)


def test_create_says_all_reasons_and_makes_nothing(world: World) -> None:
    volumes = world.lvm("pool")
    world.vm("web1")
    world.attachments.refusal = TooManyDisks(name="web1", count=5, limit=4)
    with pytest.raises(SeveralReasons) as raised:
        world.drives.create(DiskSpec(size=5, backend="nope"), vm="web1")
    for words in ("4 is the most", "at least 1 MiB", "'nope'"):
        assert words in str(raised.value)
    with pytest.raises(VmNotFound, match="'web9'"):
        world.drives.create(ONE, vm="web9")
    assert volumes.names() == []


def test_attaching_that_fails_leaves_no_disk(world: World) -> None:
    volumes = world.lvm("pool")
    world.vm("web1")
    world.attachments.failure = BROKEN
    with pytest.raises(CommandFailed):
        world.drives.create(ONE, vm="web1")
    assert volumes.names() == []
    assert world.drives.list() == ()
    assert world.journal_rows() == []


def test_attach_and_detach(world: World) -> None:
    world.lvm("pool")
    world.vm("web1")
    world.vm("web2")
    made = world.drives.create(ONE)
    assert world.drives.attach(made.id, "web1").vm == "web1"
    with pytest.raises(DiskInUse, match="'web1'"):
        world.drives.attach(made.id, "web2")
    assert world.drives.detach(made.id) == made
    with pytest.raises(Conflict, match="not attached"):
        world.drives.detach(made.id)
    with pytest.raises(VmNotFound):
        world.drives.attach(made.id, "web9")


@pytest.mark.parametrize("name", ["", "x", "../../etc", NONE.replace("hd", "vm")])
def test_bad_ids(world: World, name: str) -> None:
    for operation in (world.drives.detach, world.drives.delete, lambda disk: world.drives.attach(disk, "web1")):
        with pytest.raises(BadArgument, match="hard drive ID"):
            operation(name)


def test_unknown(world: World) -> None:
    for operation in (world.drives.detach, world.drives.delete, lambda disk: world.drives.attach(disk, "web1")):
        with pytest.raises(NotFound, match=NONE):
            operation(NONE)


def test_import(world: World) -> None:
    volumes = world.lvm("pool")
    volumes.create("old", 4 * MIB)
    world.vm("web1")
    made = world.drives.import_volume("old", world.storage.list()[0].id, vm="web1", driver=DiskDriver.SCSI)
    assert (made.volume, made.vm, made.slot, made.driver) == ("old", "web1", 1, DiskDriver.SCSI)
    with pytest.raises(Conflict, match=made.id):
        world.drives.import_volume("old", "pool")


def test_import_that_can_not_be_attached_leaves_the_volume_alone(world: World) -> None:
    volumes = world.lvm("pool")
    volumes.create("old", 4 * MIB)
    world.vm("web1")
    world.attachments.failure = BROKEN
    with pytest.raises(CommandFailed):
        world.drives.import_volume("old", "pool", vm="web1")
    assert volumes.names() == ["old"]
    assert world.drives.list() == ()


def test_volume_is_imported_once_only(world: World) -> None:
    volumes = world.lvm("pool")
    volumes.create("old", 4 * MIB)
    world.vm("web1")
    attach_new = world.attachments.attach_new

    def overtaken(tx: Transaction, disk: DiskRecord, name: str) -> DiskRecord:
        world.drives.import_volume("old", "pool")
        return attach_new(tx, disk, name)

    world.attachments.attach_new = overtaken  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="is hard drive hd-"):
        world.drives.import_volume("old", "pool", vm="web1")
    assert [disk.vm for disk in world.drives.list()] == [None]
    assert volumes.names() == ["old"]


def test_import_refusals(world: World) -> None:
    volumes = world.lvm("pool")
    with pytest.raises(NotFound, match="'nope'"):
        world.drives.import_volume("old", "nope")
    with pytest.raises(NotFound, match="'old'"):
        world.drives.import_volume("old", "pool")
    volumes.create("old", 4 * MIB)
    with pytest.raises(VmNotFound):
        world.drives.import_volume("old", "pool", vm="web9")
    with pytest.raises(BadArgument, match="SD"):
        world.drives.import_volume("old", "pool", driver=DiskDriver.SD)
    world.used.add(volumes.path("old"))
    with pytest.raises(Conflict, match="domain of libvirt"):
        world.drives.import_volume("old", "pool")
    assert world.drives.list() == ()


def test_imported_disk_of_another_kind_does_not_fit(world: World) -> None:
    world.lvm("pool").create("old", 4 * MIB)
    world.lvm("san", "vg1", shared=True)
    world.vm("web1")
    world.drives.create(DiskSpec(size=GIB, backend="san"), vm="web1")
    with pytest.raises(BadArgument, match="all be on backends of one type"):
        world.drives.import_volume("old", "pool", vm="web1")


def test_delete(world: World) -> None:
    volumes = world.lvm("pool")
    made, other = world.drives.create(ONE), world.drives.create(ONE)
    world.drives.delete(made.id)
    assert world.drives.list() == (other,)
    assert volumes.names() == [other.volume]


def test_delete_refusals(world: World) -> None:
    volumes = world.lvm("pool")
    world.vm("web1")
    made, loose = world.drives.create(ONE, vm="web1"), world.drives.create(ONE)
    with pytest.raises(DiskInUse, match="'web1'"):
        world.drives.delete(made.id)
    world.used.add(volumes.path(loose.volume))
    with pytest.raises(Conflict, match="domain of libvirt"):
        world.drives.delete(loose.id)
    assert sorted(volumes.names()) == sorted([made.volume, loose.volume])


def test_disk_on_storage_that_is_gone_for_good_is_forgotten(world: World) -> None:
    volumes = world.lvm("pool")
    made = world.drives.create(ONE)
    with pytest.raises(Conflict, match="is there"):
        world.drives.delete(made.id, forget=True)
    backend = world.store.get(BackendRecord, "pool")
    assert backend is not None
    volumes.unmark(backend.id)  # something else is mounted there now
    with pytest.raises(BackendUnavailable, match="--forget"):
        world.drives.delete(made.id)
    assert world.drives.list() == (made,)
    world.drives.delete(made.id, forget=True)
    assert world.drives.list() == ()
    assert volumes.names() == [made.volume]  # whatever is there is not touched
    world.storage.delete("pool")
    assert world.journal_rows() == []


def test_attached_disk_is_not_forgotten(world: World) -> None:
    volumes = world.lvm("pool")
    world.vm("web1")
    made = world.drives.create(ONE, vm="web1")
    backend = world.store.get(BackendRecord, "pool")
    assert backend is not None
    volumes.unmark(backend.id)
    with pytest.raises(DiskInUse, match="'web1'"):
        world.drives.delete(made.id, forget=True)
    assert world.drives.list() == (made,)


def test_deleting_that_fails_keeps_the_disk(world: World) -> None:
    volumes = world.lvm("pool")
    made = world.drives.create(ONE)
    volumes.fail_next("delete", BROKEN)
    with pytest.raises(CommandFailed):
        world.drives.delete(made.id)
    assert list(world.store.all(DiskRecord)) == [made.id]
    assert volumes.names() == [made.volume]
    assert world.journal_rows() == []


def test_disk_that_was_attached_meanwhile_is_not_forgotten(world: World) -> None:
    world.lvm("pool").faults = ["It is not mounted."]
    world.vm("web1")
    made = DiskRecord(
        id=NONE,
        volume="v",
        backend="pool",
        size=GIB,
        driver=DiskDriver.VIRTIO,
        storage_type=StorageType.LOCAL,
        nodes=("n1",),
    )
    world.put(msgspec.structs.replace(made, vm="web1", slot=1))

    def forget(record: DiskRecord) -> None:
        raise AssertionError("its volume was given up")

    world.disks._local.forget = forget  # type: ignore[method-assign]
    with pytest.raises(DiskInUse, match="'web1'"):
        world.disks.forget(made)
    (left,) = world.drives.list()
    assert (left.vm, left.deleting) == ("web1", False)
