"""Storage backends: what is refused, marks, nodes, and what a failure or a crash leaves."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from mcvirt.errors import (
    AlreadyExists,
    BadArgument,
    CommandFailed,
    Conflict,
    InUse,
    NotFound,
    SeveralReasons,
)
from mcvirt.types.storage import BackendInfo, BackendSpec, BackendType, VolumeFormat
from mcvirt.types.vm import DiskDriver, StorageType
from mcvirt.units import GIB
from mcvirtd.state.records import BackendRecord, DiskRecord, NodeRecord, VmRecord
from mcvirtd.storage.file_volumes import FileVolumes
from mcvirtd.storage.looking import Looking
from mcvirtd.storage.service import StorageService
from tests.unit.storage.world import WITHIN, Standstill, World

BROKEN = CommandFailed(program="vgchange", status=5, output="no")


def lvm(name: str = "pool", location: str | None = "vg0", **fields: object) -> BackendSpec:
    return msgspec.structs.replace(BackendSpec(name=name, type=BackendType.LVM, location=location), **fields)


def file(location: Path | str, name: str = "files", **fields: object) -> BackendSpec:
    return msgspec.structs.replace(BackendSpec(name=name, type=BackendType.FILE, location=str(location)), **fields)


def disk(backend: str, vm: str | None = None, nodes: tuple[str, ...] = ("n1",)) -> DiskRecord:
    return DiskRecord(
        id=f"hd-{'0' * 18}-{'1' * 22}",
        volume="v",
        backend=backend,
        size=GIB,
        driver=DiskDriver.VIRTIO,
        storage_type=StorageType.LOCAL,
        nodes=nodes,
        vm=vm,
        slot=None if vm is None else 1,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir(mode=0o711)
    return made


class TestCreate:
    def test_marks_the_location_and_is_listed(self, world: World) -> None:
        volumes = world.here.make("vg0")
        made = world.storage.create(lvm())
        assert volumes.marked_with() == {made.id}
        assert (made.free, made.total, made.problem) == (volumes.free(), volumes.total(), "")
        assert made.nodes == {"n1": ""}
        assert world.storage.list() == (made,)
        assert world.journal_rows() == []

    def test_all_nodes_unless_named(self, world: World) -> None:
        world.second_node()
        here, there = world.here.make("vg0"), world.places["n2"].make("vg0")
        made = world.storage.create(lvm())
        assert set(made.nodes) == {"n1", "n2"}
        assert here.marked_with() == there.marked_with() == {made.id}

    def test_location_of_each_node(self, world: World) -> None:
        world.second_node()
        world.here.make("vg0")
        there = world.places["n2"].make("vg9")
        made = world.storage.create(lvm(nodes={"n1": "", "n2": "vg9"}))
        assert made.nodes == {"n1": "", "n2": "vg9"}
        assert there.marked_with() == {made.id}

    def test_real_directory(self, world: World, place: Path) -> None:
        made = world.storage.create(file(f"{place}//./"))
        assert made.location == str(place)
        assert made.free is not None
        assert FileVolumes(str(place)).marked_with() == {made.id}

    @pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "default", "x" * 65, "a/b", "ä"])
    def test_bad_names(self, world: World, name: str) -> None:
        world.here.make("vg0")
        with pytest.raises(BadArgument, match="name"):
            world.storage.create(lvm(name))

    def test_name_that_exists(self, world: World) -> None:
        world.lvm("pool")
        world.here.make("vg1")
        with pytest.raises(AlreadyExists, match="'pool'"):
            world.storage.create(lvm("pool", "vg1"))

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            (lvm(location="/srv/x"), "volume group"),
            (lvm(location="a b"), "volume group"),
            (lvm(location=None), "name a volume group"),
            (file("vg0"), "absolute path"),
            (file("/srv/../etc"), "without '..'"),
            (lvm(format=VolumeFormat.QCOW2), "only backends of type File"),
            (lvm(thin_pool="a/b"), "volume name"),
            (lvm(thin_pool="thin", shared=True), "can't be shared"),
            (lvm(nodes={"n9": ""}), "no node called 'n9'"),
        ],
    )
    def test_contradictions(self, world: World, spec: BackendSpec, words: str) -> None:
        world.here.make("vg0")
        with pytest.raises((BadArgument, NotFound), match=words):
            world.storage.create(spec)
        assert world.storage.list() == ()

    def test_thin_pool_of_a_directory(self, world: World, place: Path) -> None:
        with pytest.raises(BadArgument, match="only backends of type Lvm"):
            world.storage.create(file(place, thin_pool="thin"))

    def test_missing_location(self, world: World, tmp_path: Path) -> None:
        with pytest.raises(BadArgument, match="no volume group 'vg0'"):
            world.storage.create(lvm())
        with pytest.raises(BadArgument, match="does not exist"):
            world.storage.create(file(tmp_path / "nope"))
        assert not (tmp_path / "nope").exists()

    def test_all_reasons_at_once(self, world: World) -> None:
        with pytest.raises(SeveralReasons) as raised:
            world.storage.create(lvm("-", "vg0", thin_pool="a/b", nodes={"n9": "", "n1": ""}))
        for words in ("storage backend name '-'", "volume name 'a/b'", "'n9'", "no volume group 'vg0'"):
            assert words in str(raised.value)

    def test_location_of_another_backend(self, world: World, place: Path, tmp_path: Path) -> None:
        world.lvm("pool")
        with pytest.raises(BadArgument, match="the location of storage backend 'pool' already"):
            world.storage.create(lvm("other"))
        world.storage.create(file(place))
        with pytest.raises(BadArgument, match="the location of storage backend 'files' already"):
            world.storage.create(file(place, "other"))

    def test_links_are_refused(self, world: World, place: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(place)
        with pytest.raises(BadArgument, match=f"Name the directory itself, {place}"):
            world.storage.create(file(tmp_path / "link"))
        (place / "in").mkdir()
        with pytest.raises(BadArgument, match=f"Name the directory itself, {place}/in"):
            world.storage.create(file(tmp_path / "link" / "in"))

    def test_location_marked_by_a_stranger(self, world: World, place: Path) -> None:
        stranger = f"sb-{'a' * 16}-{'b' * 24}"
        FileVolumes(str(place)).mark(stranger)
        with pytest.raises(BadArgument, match=f"rm {place}/.mcvirt-{stranger}"):
            world.storage.create(file(place))
        world.here.make("vg0").mark(stranger)
        with pytest.raises(BadArgument, match=f"vgchange --deltag mcvirt.{stranger} vg0"):
            world.storage.create(lvm())

    def test_mcvirtds_own_directory(self, world: World, tmp_path: Path) -> None:
        inside = world.state / "inside"
        inside.mkdir()
        for location in (world.state, inside, tmp_path):
            with pytest.raises(BadArgument, match="inside each other"):
                world.storage.create(file(location))
        with pytest.raises(BadArgument, match="root directory"):
            world.storage.create(file("/"))

    def test_directory_that_others_may_change(self, world: World, tmp_path: Path, place: Path) -> None:
        place.chmod(0o777)
        with pytest.raises(BadArgument, match=f"chmod go-w {place}"):
            world.storage.create(file(place))
        loose = tmp_path / "loose"
        loose.mkdir()
        loose.chmod(0o777)
        (loose / "in").mkdir(mode=0o700)
        with pytest.raises(BadArgument, match=f"chmod go-w {loose}`"):
            world.storage.create(file(loose / "in"))

    @pytest.mark.parametrize("done", [False, True])
    def test_failure_leaves_nothing(self, world: World, done: bool) -> None:
        world.second_node()
        here, there = world.here.make("vg0"), world.places["n2"].make("vg0")
        there.fail_next("mark", BROKEN, done=done)
        with pytest.raises(CommandFailed):
            world.storage.create(lvm())
        assert here.marked_with() == there.marked_with() == frozenset()
        assert world.storage.list() == ()
        assert world.journal_rows() == []

    def test_two_at_the_same_place_at_the_same_time(self, world: World) -> None:
        volumes = world.here.make("vg0")
        still = Standstill(volumes, "mark", done=False)
        first = threading.Thread(target=lambda: world.run(lambda: world.storage.create(lvm("one"))))
        first.start()
        assert still.reached.wait(WITHIN)
        still._restore()
        made = world.storage.create(lvm("two"))
        still.release()
        first.join(WITHIN)
        assert [info.name for info in world.storage.list()] == ["two"]
        assert volumes.marked_with() == {made.id}

    @pytest.mark.parametrize("done", [False, True])
    def test_power_loss_leaves_nothing(self, world: World, done: bool) -> None:
        volumes = world.here.make("vg0")
        still = Standstill(volumes, "mark", done=done)
        dying = threading.Thread(target=lambda: world.run(lambda: world.storage.create(lvm())))
        dying.start()
        assert still.reached.wait(WITHIN)
        after = world.after_power_loss()
        after.tasks.settle()
        assert volumes.marked_with() == frozenset()
        assert after.storage.list() == ()
        assert after.journal_rows() == []
        after.store.close()
        still.release()
        dying.join(WITHIN)

    def test_shared_is_marked_once_and_seen_by_all(self, world: World) -> None:
        world.second_node()
        world.places["n2"].simulated["san"] = volumes = world.here.make("san")
        made = world.storage.create(lvm(location="san", shared=True))
        assert [call for call in volumes.calls if call[0] == "mark"] == [("mark", made.id)]

    def test_shared_that_is_not(self, world: World) -> None:
        world.second_node()
        here = world.here.make("san")
        world.places["n2"].make("san")
        with pytest.raises(Conflict, match="not the storage that the other nodes have"):
            world.storage.create(lvm(location="san", shared=True))
        assert here.marked_with() == frozenset()
        assert world.storage.list() == ()

    def test_node_that_is_away(self, world: World) -> None:
        world.second_node()
        world.here.make("vg0")
        world.away.add("n2")
        with pytest.raises(BadArgument, match="n2 is away"):
            world.storage.create(lvm())


class TestList:
    def test_problem_instead_of_failing(self, world: World) -> None:
        world.lvm("good", "vg1")
        world.lvm("pool").fail_next("free", BROKEN)
        world.lvm("sick", "vg2").faults = ["It is not mounted."]
        found = {info.name: info for info in world.storage.list()}
        assert found["good"].problem == ""
        assert "vgchange failed" in found["pool"].problem
        assert (found["sick"].problem, found["sick"].free) == ("It is not mounted.", None)

    def test_backend_of_another_node_has_no_problem_here(self, world: World) -> None:
        world.second_node()
        world.places["n2"].make("vg0")
        made = world.storage.create(lvm(nodes={"n2": ""}))
        assert (made.free, made.problem) == (None, "")
        assert world.storage.list() == (made,)

    def test_storage_that_never_answers_holds_up_nobody(self, world: World) -> None:
        looking: Looking[BackendInfo] = Looking(within=0.05)
        service = StorageService.__new__(StorageService)
        service.__dict__.update(world.storage.__dict__, _looking=looking)
        world.lvm("good", "vg1")
        dead = world.lvm("dead", "vg0")
        before = threading.active_count()
        still = Standstill(dead, "check", done=False)
        for _ in range(3):
            found = {info.name: info for info in service.list()}
            assert "does not answer" in found["dead"].problem
            assert found["good"].free is not None
        assert threading.active_count() == before + 1
        still.release()


class TestDelete:
    def test_takes_the_mark_off(self, world: World) -> None:
        volumes = world.lvm("pool")
        world.storage.delete("pool")
        assert volumes.marked_with() == frozenset()
        assert world.storage.list() == ()
        world.lvm("pool")

    def test_data_stays(self, world: World, place: Path) -> None:
        world.storage.create(file(place))
        (place / "mine").write_bytes(b"x")
        world.storage.delete("files")
        assert [path.name for path in place.iterdir()] == ["mine"]

    def test_unknown(self, world: World) -> None:
        with pytest.raises(NotFound, match="'nope'"):
            world.storage.delete("nope")

    def test_used_says_by_what(self, world: World) -> None:
        volumes = world.lvm("pool")
        used = disk("pool", vm="web1")
        world.put(used)
        with pytest.raises(InUse, match=f"{used.id} of 'web1'"):
            world.storage.delete("pool")
        assert len(volumes.marked_with()) == 1

    @pytest.mark.parametrize("done", [False, True])
    def test_failure_leaves_it_whole(self, world: World, done: bool) -> None:
        volumes = world.lvm("pool")
        volumes.fail_next("unmark", BROKEN, done=done)
        with pytest.raises(CommandFailed):
            world.storage.delete("pool")
        (info,) = world.storage.list()
        assert volumes.marked_with() == {info.id}
        assert info.problem == ""
        assert world.journal_rows() == []

    @pytest.mark.parametrize("done", [False, True])
    def test_power_loss_leaves_it_whole(self, world: World, done: bool) -> None:
        volumes = world.lvm("pool")
        still = Standstill(volumes, "unmark", done=done)
        dying = threading.Thread(target=lambda: world.run(lambda: world.storage.delete("pool")))
        dying.start()
        assert still.reached.wait(WITHIN)
        after = world.after_power_loss()
        after.tasks.settle()
        (info,) = after.storage.list()
        assert volumes.marked_with() == {info.id}
        assert info.problem == ""
        after.store.close()
        still.release()
        dying.join(WITHIN)

    def test_location_that_is_gone_does_not_keep_it(self, world: World, place: Path) -> None:
        world.storage.create(file(place))
        (place / next(iter(place.iterdir())).name).unlink()
        place.rmdir()
        world.storage.delete("files")
        assert world.storage.list() == ()


class TestNodes:
    def test_add_and_remove(self, world: World) -> None:
        world.lvm("pool")
        world.second_node()
        there = world.places["n2"].make("vg9")
        made = world.storage.add_nodes("pool", {"n2": "vg9"})
        assert made.nodes == {"n1": "", "n2": "vg9"}
        assert there.marked_with() == {made.id}
        made = world.storage.remove_nodes("pool", ("n2",))
        assert made.nodes == {"n1": ""}
        assert there.marked_with() == frozenset()

    def test_add_refusals(self, world: World) -> None:
        world.lvm("pool")
        world.second_node()
        with pytest.raises(SeveralReasons) as raised:
            world.storage.add_nodes("pool", {"n1": "", "n2": "", "n9": ""})
        for words in ("on node 'n1' already", "no volume group 'vg0'", "'n9'"):
            assert words in str(raised.value)
        with pytest.raises(BadArgument, match="at least one"):
            world.storage.add_nodes("pool", {})
        with pytest.raises(NotFound):
            world.storage.add_nodes("nope", {"n2": ""})

    def test_add_storage_that_another_node_has(self, world: World) -> None:
        volumes = world.lvm("pool")
        world.second_node()
        world.places["n2"].simulated["vg0"] = volumes
        with pytest.raises(Conflict, match="another of its nodes has as well"):
            world.storage.add_nodes("pool", {"n2": ""})

    def test_add_to_shared(self, world: World) -> None:
        volumes = world.lvm("pool", "san", shared=True)
        world.put(disk("pool"))
        world.second_node()
        world.places["n2"].make("san")
        with pytest.raises(Conflict, match="not the storage that the other nodes have"):
            world.storage.add_nodes("pool", {"n2": ""})
        world.places["n2"].simulated["san"] = volumes
        world.storage.add_nodes("pool", {"n2": ""})
        assert [each.nodes for each in world.store.all(DiskRecord).values()] == [("n1", "n2")]
        world.storage.remove_nodes("pool", ("n1",))
        assert len(volumes.marked_with()) == 1
        assert [each.nodes for each in world.store.all(DiskRecord).values()] == [("n2",)]

    def test_remove_refusals(self, world: World) -> None:
        world.second_node()
        world.places["n2"].make("vg0")
        world.lvm("pool", nodes={"n1": "", "n2": ""})
        world.put(disk("pool", nodes=("n2",)))
        with pytest.raises(SeveralReasons, match="mcvirt storage delete"):
            world.storage.remove_nodes("pool", ("n1", "n2"))
        with pytest.raises(Conflict, match="is not on node 'n9'"):
            world.storage.remove_nodes("pool", ("n9",))
        with pytest.raises(InUse, match="hd-"):
            world.storage.remove_nodes("pool", ("n2",))
        assert set(world.storage.remove_nodes("pool", ("n1",)).nodes) == {"n2"}

    def test_remove_node_of_shared_where_a_machine_runs(self, world: World) -> None:
        world.second_node()
        world.places["n2"].simulated["san"] = world.here.make("san")
        world.storage.create(lvm(location="san", shared=True))
        world.vm("web1", node="n2", nodes=("n1", "n2"))
        world.put(disk("pool", vm="web1", nodes=("n1", "n2")))
        with pytest.raises(InUse, match="'web1'"):
            world.storage.remove_nodes("pool", ("n2",))
        world.storage.remove_nodes("pool", ("n1",))
        assert world.store.all(VmRecord)["web1"].nodes == ("n2",), "it can run there no more"

    def test_remove_of_all_nodes_that_a_machine_may_run_on(self, world: World) -> None:
        world.second_node()
        world.put(NodeRecord(name="n3", id="n3"))
        world.places["n3"] = world.places["n2"]
        world.places["n2"].simulated["san"] = world.here.make("san")
        world.storage.create(lvm(location="san", shared=True))
        world.vm("web1", node=None, nodes=("n1", "n2"))
        world.put(disk("pool", vm="web1", nodes=("n1", "n2", "n3")))
        with pytest.raises(InUse, match="'web1'"):
            world.storage.remove_nodes("pool", ("n1", "n2"))
        assert world.store.all(VmRecord)["web1"].nodes == ("n1", "n2")

    def test_failure_leaves_it_as_it_was(self, world: World) -> None:
        world.lvm("pool")
        world.second_node()
        there = world.places["n2"].make("vg0")
        there.fail_next("mark", BROKEN, done=True)
        with pytest.raises(CommandFailed):
            world.storage.add_nodes("pool", {"n2": ""})
        assert there.marked_with() == frozenset()
        assert set(world.storage.list()[0].nodes) == {"n1"}
        world.storage.add_nodes("pool", {"n2": ""})
        there.fail_next("unmark", BROKEN, done=True)
        with pytest.raises(CommandFailed):
            world.storage.remove_nodes("pool", ("n2",))
        assert len(there.marked_with()) == 1
        record = world.store.get(BackendRecord, "pool")
        assert record is not None
        assert set(record.nodes) == {"n1", "n2"}
