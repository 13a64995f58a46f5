"""Hard drives as data: plans, making, adopting, deleting, and what a crash leaves of that."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt import names
from mcvirt.errors import (
    BackendUnavailable,
    BadArgument,
    Busy,
    CommandFailed,
    Conflict,
    DiskInUse,
    NoSpace,
    NotFound,
    SeveralReasons,
    StateNotWritable,
    TaskCancelled,
    UndoIncomplete,
    VolumeUnusable,
)
from mcvirt.types.storage import BackendSpec, BackendType, VolumeFormat
from mcvirt.types.task import TaskState
from mcvirt.types.vm import DiskDriver, DiskSpec, StorageType
from mcvirt.units import GIB, MIB, TIB
from mcvirtd.host.run import installed
from mcvirtd.state.records import BackendRecord, DiskRecord, Replica, ReplicaClaimRecord
from mcvirtd.storage import backends
from mcvirtd.storage.file_volumes import FileVolumes
from mcvirtd.tasks.task import Task, working_for
from tests.unit.storage.world import WITHIN, Standstill, World

ONE = DiskSpec(size=GIB)
BROKEN = CommandFailed(program="lvcreate", status=5, output="no")


def make(world: World, spec: DiskSpec = ONE, **fields: object) -> DiskRecord:
    (plan,) = world.disks.plan([spec], node="n1")
    with world.journal.transaction() as tx:
        record = msgspec.structs.replace(world.disks.create(tx, plan), **fields)
        with tx.commit() as change:
            change.put(record)
    return record


class TestPlan:
    def test_only_backend_is_chosen(self, world: World) -> None:
        world.lvm("pool")
        (plan,) = world.disks.plan([ONE], node="n1")
        assert plan.backend == "pool"
        assert plan.volume == f"mcvirt-{plan.id}"
        assert plan.driver is DiskDriver.VIRTIO
        assert plan.storage_type is StorageType.LOCAL
        assert plan.nodes == ("n1",)

    def test_changes_nothing(self, world: World) -> None:
        volumes = world.lvm("pool")
        revision = world.store.revision
        world.disks.plan([ONE, ONE], node="n1")
        assert volumes.names() == []
        assert world.store.revision == revision
        assert world.journal_rows() == []

    def test_none_there_says_how_to_make_one(self, world: World) -> None:
        with pytest.raises(BadArgument, match="mcvirt storage create"):
            world.disks.plan([ONE], node="n1")

    def test_several_are_named(self, world: World) -> None:
        world.lvm("pool", "vg0")
        world.lvm("fast", "vg1")
        with pytest.raises(BadArgument, match="fast, pool"):
            world.disks.plan([ONE], node="n1")
        (plan,) = world.disks.plan([DiskSpec(size=GIB, backend="fast")], node="n1")
        assert plan.backend == "fast"

    def test_backend_on_another_node_does_not_count(self, world: World) -> None:
        world.second_node()
        world.places["n2"].make("vg0")
        world.storage.create(BackendSpec(name="far", type=BackendType.LVM, location="vg0", nodes={"n2": ""}))
        world.lvm("near", "vg1", nodes={"n1": ""})
        (plan,) = world.disks.plan([ONE], node="n1")
        assert plan.backend == "near"
        with pytest.raises(BackendUnavailable, match="on n2 only"):
            world.disks.plan([DiskSpec(size=GIB, backend="far")], node="n1")

    def test_unknown_backend(self, world: World) -> None:
        with pytest.raises(NotFound, match="'nope'"):
            world.disks.plan([DiskSpec(size=GIB, backend="nope")], node="n1")

    def test_backend_by_its_id(self, world: World) -> None:
        world.lvm("pool")
        found = world.store.get(BackendRecord, "pool")
        assert found is not None
        (plan,) = world.disks.plan([DiskSpec(size=GIB, backend=found.id)], node="n1")
        assert plan.backend == "pool"

    @pytest.mark.parametrize("size", [-1, 0, 1, 512, MIB - 512, MIB + 1, 64 * TIB, 2**60])
    def test_bad_sizes(self, world: World, size: int) -> None:
        world.lvm("pool").capacity = 2**70
        with pytest.raises(BadArgument, match="size of the hard drive"):
            world.disks.plan([DiskSpec(size=size)], node="n1")

    @pytest.mark.parametrize("size", [MIB, MIB + 512, 64 * TIB - 512])
    def test_good_sizes(self, world: World, size: int) -> None:
        world.lvm("pool").capacity = 2**70
        assert world.disks.plan([DiskSpec(size=size)], node="n1")[0].size == size

    def test_space_is_for_all_disks_together(self, world: World) -> None:
        world.lvm("pool").capacity = 5 * GIB
        assert len(world.disks.plan([DiskSpec(size=2 * GIB)] * 2, node="n1")) == 2
        with pytest.raises(NoSpace, match=r"5 GiB free.*6 GiB is needed"):
            world.disks.plan([DiskSpec(size=2 * GIB)] * 3, node="n1")

    def test_drbd_is_refused(self, world: World) -> None:
        world.lvm("pool")
        with pytest.raises(Conflict, match="DRBD is not enabled"):
            world.disks.plan([DiskSpec(size=GIB, storage_type=StorageType.DRBD)], node="n1")

    def test_sd_is_refused(self, world: World) -> None:
        world.lvm("pool")
        with pytest.raises(BadArgument, match="SD cards"):
            world.disks.plan([DiskSpec(size=GIB, driver=DiskDriver.SD)], node="n1")

    def test_all_reasons_at_once(self, world: World) -> None:
        world.lvm("pool").capacity = GIB
        specs = [
            DiskSpec(size=7, driver=DiskDriver.SD),
            DiskSpec(size=8 * GIB),
            DiskSpec(size=GIB, storage_type=StorageType.DRBD),
            DiskSpec(size=GIB, backend="nope"),
        ]
        with pytest.raises(SeveralReasons) as raised:
            world.disks.plan(specs, node="n1")
        for words in ("at least 1 MiB", "SD cards", "8 GiB is needed", "DRBD is not", "'nope'"):
            assert words in str(raised.value)

    def test_disks_of_one_machine_are_of_one_kind(self, world: World, tmp_path: Path) -> None:
        world.lvm("pool")
        taken = make(world)
        (tmp_path / "files").mkdir(mode=0o711)
        spec = BackendSpec(name="files", type=BackendType.FILE, location=str(tmp_path / "files"))
        world.storage.create(spec)
        (plan,) = world.disks.plan([ONE], node="n1", taken=[taken])
        assert plan.backend == "pool"
        with pytest.raises(BadArgument, match="all be on backends of one type"):
            world.disks.plan([DiskSpec(size=GIB, backend="files")], node="n1", taken=[taken])
        with pytest.raises(BadArgument, match="all be on backends of one type"):
            world.disks.plan([DiskSpec(size=GIB, backend=name) for name in ("files", "pool")], node="n1")
        # Who names one decides for the others too.
        plans = world.disks.plan([ONE, DiskSpec(size=GIB, backend="files")], node="n1")
        assert [plan.backend for plan in plans] == ["files", "files"]

    def test_unavailable_backend_says_why(self, world: World) -> None:
        world.lvm("pool").faults = ["The volume group vg0 misses 1 of its devices."]
        with pytest.raises(BackendUnavailable, match="misses 1 of its devices"):
            world.disks.plan([ONE], node="n1")

    def test_other_storage_at_the_location_is_not_written_to(self, world: World) -> None:
        world.lvm("pool")
        world.here.make("vg0")  # what was mounted there is not mounted any more
        with pytest.raises(BackendUnavailable, match="does not carry the mark"):
            world.disks.plan([ONE], node="n1")


class TestCreate:
    def test_makes_the_volume(self, world: World) -> None:
        volumes = world.lvm("pool")
        record = make(world)
        assert volumes.names() == [record.volume]
        assert volumes.size(record.volume) == GIB
        assert record.vm is None
        assert world.journal_rows() == []
        assert world.disks.available(record) == ""

    def test_size_is_the_one_that_it_became(self, world: World) -> None:
        volumes = world.lvm("pool")
        original = volumes.create
        volumes.create = lambda name, size, **rest: original(name, 2 * GIB, **rest)  # type: ignore[method-assign]
        assert make(world).size == 2 * GIB

    @pytest.mark.parametrize("done", [False, True])
    def test_failure_leaves_nothing(self, world: World, done: bool) -> None:
        volumes = world.lvm("pool")
        volumes.fail_next("create", BROKEN, done=done)
        with pytest.raises(CommandFailed):
            make(world)
        assert volumes.names() == []
        assert world.journal_rows() == []
        assert world.store.all(DiskRecord) == {}

    def test_failure_after_it_leaves_nothing(self, world: World) -> None:
        volumes = world.lvm("pool")
        plans = world.disks.plan([ONE, ONE], node="n1")
        with pytest.raises(CommandFailed), world.journal.transaction() as tx:
            world.disks.create(tx, plans[0])
            volumes.fail_next("create", BROKEN)
            world.disks.create(tx, plans[1])
        assert volumes.names() == []
        assert world.journal_rows() == []

    def test_state_that_can_not_be_written_leaves_nothing(self, world: World) -> None:
        volumes = world.lvm("pool")
        (plan,) = world.disks.plan([ONE], node="n1")
        with pytest.raises(StateNotWritable), world.journal.transaction() as tx:
            record = world.disks.create(tx, plan)
            with tx.commit() as change:
                change.put(record)
                raise StateNotWritable(path="state.db", reason="The disk is full.")
        assert volumes.names() == []

    def test_cancelled_says_by_whom_and_leaves_nothing(self, world: World) -> None:
        volumes = world.lvm("pool")
        (plan,) = world.disks.plan([ONE], node="n1")
        task = Task("vm.create", "web1", "ann", "n1")
        original = volumes.create

        def cancelled_in_the_middle(name: str, size: int, **rest: object) -> int:
            task.cancel("bob")
            return original(name, size, **rest)  # type: ignore[arg-type]

        volumes.create = cancelled_in_the_middle  # type: ignore[method-assign]
        with working_for(task), pytest.raises(TaskCancelled, match="by bob"), world.journal.transaction() as tx:
            world.disks.create(tx, plan)
        assert volumes.names() == []
        assert world.journal_rows() == []

    def test_undo_that_fails_is_kept_and_tried_again(self, world: World) -> None:
        volumes = world.lvm("pool")
        volumes.fail_next("create", BROKEN, done=True)
        volumes.fail_next("delete", BROKEN)
        info = world.run(lambda: make(world))
        assert info.state is TaskState.STUCK
        assert info.error is not None
        assert info.error["name"] == UndoIncomplete.__name__
        assert len(volumes.names()) == 1
        (settled,) = world.tasks.settle()
        assert settled.state is TaskState.FAILED
        assert volumes.names() == []

    def test_undo_does_not_take_missing_storage_for_a_missing_volume(self, world: World) -> None:
        volumes = world.lvm("pool")
        volumes.fail_next("create", BROKEN, done=True)
        (plan,) = world.disks.plan([ONE], node="n1")
        with pytest.raises(UndoIncomplete), world.journal.transaction() as tx:
            volumes.faults = ["It is not mounted."]
            world.disks.create(tx, plan)
        assert world.journal_rows() == [("disk.delete_volume", "undo")]

    def test_backend_deleted_meanwhile(self, world: World) -> None:
        volumes = world.lvm("pool")
        (plan,) = world.disks.plan([ONE], node="n1")
        world.storage.delete("pool")
        with pytest.raises(NotFound, match="'pool'"), world.journal.transaction() as tx:
            world.disks.create(tx, plan)
        assert volumes.names() == []
        assert world.journal_rows() == []

    def test_backend_is_not_deleted_under_a_disk_that_is_being_made(self, world: World) -> None:
        volumes = world.lvm("pool")
        still = Standstill(volumes, "create", done=False)
        made = threading.Thread(target=lambda: world.run(lambda: make(world)))
        made.start()
        assert still.reached.wait(WITHIN)
        with pytest.raises(Conflict, match="being made"):
            world.storage.delete("pool")
        still.release()
        made.join(WITHIN)
        assert len(world.store.all(DiskRecord)) == 1

    def test_real_file(self, world: World, tmp_path: Path) -> None:
        place = tmp_path / "files"
        place.mkdir(mode=0o711)
        world.storage.create(BackendSpec(name="files", type=BackendType.FILE, location=str(place)))
        record = make(world)
        source = world.disks.source(record)
        assert (source.path, source.kind, source.format) == (str(place / record.volume), "file", "raw")
        assert Path(source.path).stat().st_size == GIB
        world.disks.grow(record, 2 * GIB)
        assert Path(source.path).stat().st_size == 2 * GIB
        world.disks.finish_delete(record.id)
        assert [path.name for path in place.iterdir() if not path.name.startswith(".mcvirt-")] == []
        assert world.store.all(DiskRecord) == {}


class TestPowerLoss:
    """The next process works with the journal as it was on disk when the power went."""

    @pytest.mark.parametrize("done", [False, True])
    def test_volume_that_was_never_committed_goes(self, world: World, done: bool) -> None:
        volumes = world.lvm("pool")
        still = Standstill(volumes, "create", done=done)
        dying = threading.Thread(target=lambda: world.run(lambda: make(world)))
        dying.start()
        assert still.reached.wait(WITHIN)
        assert len(volumes.names()) == done
        after = world.after_power_loss()
        (settled,) = after.tasks.settle()
        assert settled.state is TaskState.FAILED
        assert volumes.names() == []
        assert after.journal_rows() == []
        assert after.store.all(DiskRecord) == {}
        after.store.close()
        still.release()
        dying.join(WITHIN)

    @pytest.mark.parametrize("format", list(VolumeFormat))
    def test_real_files(self, world: World, tmp_path: Path, format: VolumeFormat) -> None:
        if format is VolumeFormat.QCOW2 and not installed("qemu-img"):
            pytest.skip("qemu-img is not installed")
        place = tmp_path / "files"
        place.mkdir(mode=0o711)
        world.storage.create(BackendSpec(name="files", type=BackendType.FILE, location=str(place), format=format))
        kept = make(world)
        still = Standstill(FileVolumes, "create", done=True)
        dying = threading.Thread(target=lambda: world.run(lambda: make(world)))
        dying.start()
        assert still.reached.wait(WITHIN)
        assert len([path for path in place.iterdir() if not path.name.startswith(".mcvirt-")]) == 2
        after = world.after_power_loss()
        after.tasks.settle()
        assert [path.name for path in place.iterdir() if not path.name.startswith(".mcvirt-")] == [kept.volume]
        assert after.disks.available(kept) == ""
        assert after.disks.source(kept).format == format.value
        after.store.close()
        still.release()
        dying.join(WITHIN)

    def test_committed_volume_stays(self, world: World) -> None:
        volumes = world.lvm("pool")
        record = make(world)
        # An entry that should have gone with the commit: data that a record owns must outlive even that.
        with working_for(Task("vm.create", "web1", "ann", "n1", task_id="cafe")):
            world.journal.add(1, "undo", "disk.delete_volume", {"backend": "pool", "volume": record.volume})
        after = world.after_power_loss()
        assert after.journal.settle("cafe") == []
        assert volumes.names() == [record.volume]
        assert after.journal_rows() == []
        after.store.close()

    @pytest.mark.parametrize("done", [False, True])
    def test_deletion_is_finished(self, world: World, done: bool) -> None:
        volumes = world.lvm("pool")
        record, other = make(world), make(world)
        still = Standstill(volumes, "delete", done=done)
        dying = threading.Thread(target=lambda: world.run(lambda: world.drives.delete(record.id)))
        dying.start()
        assert still.reached.wait(WITHIN)
        after = world.after_power_loss()
        still._restore()
        (settled,) = after.tasks.settle()
        assert settled.state is TaskState.DONE
        assert volumes.names() == [other.volume]
        assert list(after.store.all(DiskRecord)) == [other.id]
        after.store.close()
        still.release()
        dying.join(WITHIN)

    def test_deletion_that_has_touched_nothing_is_not_finished(self, world: World) -> None:
        volumes = world.lvm("pool")
        record = make(world)
        world.vm("web1")
        original = world.journal.add
        dead: list[World] = []

        def add(*args: Any) -> int:
            number = original(*args)
            dead.append(world.after_power_loss())
            return number

        world.journal.add = add  # type: ignore[method-assign]
        volumes.fail_next("delete", BROKEN)
        world.run(lambda: world.drives.delete(record.id))
        (after,) = dead
        assert after.journal_rows() == [("disk.finish_delete", "redo")]
        after.drives.attach(record.id, "web1")
        after.drives.detach(record.id)
        (settled,) = after.tasks.settle()
        assert settled.state is not TaskState.STUCK
        assert volumes.names() == [record.volume]
        assert after.store.get(DiskRecord, record.id) == record
        assert after.journal_rows() == []
        after.store.close()

    def test_deletion_is_finished_once_the_storage_is_there(self, world: World) -> None:
        volumes = world.lvm("pool")
        record = make(world)
        still = Standstill(volumes, "delete", done=False)
        dying = threading.Thread(target=lambda: world.run(lambda: world.drives.delete(record.id)))
        dying.start()
        assert still.reached.wait(WITHIN)
        after = world.after_power_loss()
        volumes.faults = ["It is not mounted."]
        (stuck,) = after.tasks.settle()
        assert stuck.state is TaskState.STUCK
        assert "not mounted" in stuck.remains
        assert [disk.deleting for disk in after.drives.list()] == [True]
        volumes.faults = []
        still._restore()
        (settled,) = after.tasks.settle()
        assert settled.state is TaskState.DONE
        assert volumes.names() == []
        assert after.store.all(DiskRecord) == {}
        after.store.close()
        still.release()
        dying.join(WITHIN)


class TestDelete:
    def test_failure_leaves_disk_and_record(self, world: World) -> None:
        volumes = world.lvm("pool")
        record = make(world)
        volumes.fail_next("delete", BROKEN)
        with pytest.raises(CommandFailed):
            world.disks.finish_delete(record.id)
        assert volumes.names() == [record.volume]
        marked = world.disks.find(record.id)
        assert marked == msgspec.structs.replace(record, deleting=True, deleter=marked.deleter)
        assert world.journal_rows() == []
        with pytest.raises(Conflict, match="is being deleted"):
            world.disks.check_grow(marked, 2 * GIB)

    def test_answer_lost_can_be_repeated(self, world: World) -> None:
        volumes = world.lvm("pool")
        record = make(world)
        volumes.fail_next("delete", BROKEN, done=True)
        with pytest.raises(CommandFailed):
            world.disks.finish_delete(record.id)
        assert "missing" in world.disks.available(record)
        world.disks.finish_delete(record.id)
        assert world.store.all(DiskRecord) == {}

    def test_attached_is_refused(self, world: World) -> None:
        world.lvm("pool")
        record = make(world, vm="web1", slot=1)
        with pytest.raises(DiskInUse, match="'web1'"):
            world.disks.finish_delete(record.id)

    def test_does_not_wait_for_who_is_attaching_it(self, world: World) -> None:
        world.lvm("pool")
        record = make(world)
        attaching, updating = (Task(name, "web1", "ann", "n1") for name in ("attach", "update"))
        with working_for(attaching), world.locks.hold(f"disk:{record.id}"):
            before = time.monotonic()
            with working_for(updating), pytest.raises(Busy, match="attach"):
                world.disks.finish_delete(record.id)
        assert time.monotonic() - before < 5

    def test_check_says_what_is_away(self, world: World) -> None:
        volumes = world.lvm("pool")
        record = make(world)
        world.disks.check_delete(record)
        volumes.faults = ["It is not mounted."]
        with pytest.raises(BackendUnavailable, match="not mounted"):
            world.disks.check_delete(record)


class TestGrow:
    def test_grows_the_volume(self, world: World) -> None:
        volumes = world.lvm("pool")
        record = make(world)
        world.disks.check_grow(record, 2 * GIB)
        assert world.disks.grow(record, 2 * GIB) == 2 * GIB
        assert volumes.size(record.volume) == 2 * GIB

    @pytest.mark.parametrize("size", [0, GIB, GIB - 512, GIB + 1, 64 * TIB])
    def test_bad_sizes(self, world: World, size: int) -> None:
        world.lvm("pool")
        record = make(world)
        with pytest.raises(BadArgument):
            world.disks.check_grow(record, size)

    def test_space_is_for_the_new_part_only(self, world: World) -> None:
        world.lvm("pool").capacity = 3 * GIB
        record = make(world)
        world.disks.check_grow(record, 3 * GIB)
        with pytest.raises(NoSpace):
            world.disks.check_grow(record, 3 * GIB + 512)


class TestAdopt:
    def test_becomes_a_hard_drive(self, world: World) -> None:
        world.lvm("pool").create("old-disk", 4 * MIB)
        record = world.disks.adopt("old-disk", "pool", DiskDriver.SATA)
        assert (record.volume, record.size, record.driver) == ("old-disk", 4 * MIB, DiskDriver.SATA)
        assert record.format is VolumeFormat.RAW
        assert record.nodes == ("n1",)
        assert world.store.all(DiskRecord) == {}

    def test_owned_is_refused(self, world: World) -> None:
        world.lvm("pool")
        record = make(world)
        with pytest.raises(Conflict, match=record.id):
            world.disks.adopt(record.volume, "pool")

    def test_used_by_a_domain_is_refused_by_whatever_name(self, world: World, tmp_path: Path) -> None:
        place = tmp_path / "files"
        place.mkdir(mode=0o711)
        (place / "old").write_bytes(bytes(MIB))
        (tmp_path / "link").symlink_to(place)
        world.storage.create(BackendSpec(name="files", type=BackendType.FILE, location=str(place)))
        world.disks.adopt("old", "files")
        world.used.add(str(tmp_path / "link" / "old"))
        with pytest.raises(Conflict, match="domain of libvirt"):
            world.disks.adopt("old", "files")

    def test_being_made_is_refused(self, world: World) -> None:
        volumes = world.lvm("pool")
        still = Standstill(volumes, "create", done=True)
        making = threading.Thread(target=lambda: world.run(lambda: make(world)))
        making.start()
        assert still.reached.wait(WITHIN)
        with pytest.raises(Conflict, match="being made"):
            world.disks.adopt(volumes.names()[0], "pool")
        still.release()
        making.join(WITHIN)

    @pytest.mark.parametrize("made", [True, False])
    @pytest.mark.parametrize("suffix", ["-drbd-raw", "-drbd-meta", "-drbd-aside"])
    def test_what_belongs_to_a_replicated_one_is_refused(self, world: World, suffix: str, made: bool) -> None:
        disk, numbers = names.new_id("hd"), {"minor": 1, "port": 7789}
        with world.store.change() as change:
            if made:
                replicated = DiskRecord(
                    id=disk,
                    volume=backends.volume_of(disk),
                    backend="pool",
                    size=4 * MIB,
                    driver=DiskDriver.VIRTIO,
                    storage_type=StorageType.DRBD,
                    nodes=("n1", "n2"),
                    replica=Replica(secret="s" * 32, **numbers),
                )
                change.put(replicated)
            else:
                claim = ReplicaClaimRecord(disk=disk, backend="pool", nodes=("n1", "n2"), coordinator="n2", **numbers)
                change.put(claim)
        world.lvm("pool").create(f"mcvirt-{disk}{suffix}", 4 * MIB)
        with pytest.raises(Conflict, match="already" if made else "being made"):
            world.disks.adopt(f"mcvirt-{disk}{suffix}", "pool")

    def test_unusable_is_refused(self, world: World) -> None:
        volumes = world.lvm("pool")
        volumes.create("old-disk", 4 * MIB)
        volumes.unusable["old-disk"] = "it is a vmdk image."
        with pytest.raises(VolumeUnusable, match="vmdk"):
            world.disks.adopt("old-disk", "pool")

    @pytest.mark.parametrize("name", ["", "../x", "a/b", "x" * 101, "-x"])
    def test_bad_names(self, world: World, name: str) -> None:
        world.lvm("pool")
        with pytest.raises(BadArgument):
            world.disks.adopt(name, "pool")


class TestAvailable:
    def test_sentences(self, world: World) -> None:
        volumes = world.lvm("pool")
        record = make(world)
        volumes.delete(record.volume)
        assert f"'{record.volume}' is missing" in world.disks.available(record)
        volumes.faults = ["It is not mounted."]
        assert "It is not mounted." in world.disks.available(record)
        gone = msgspec.structs.replace(record, backend="gone")
        assert "There is no storage backend called 'gone'" in world.disks.available(gone)
