"""A side of replicated hard drives on another node instead of one: planned, made, copied, and what dies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt.errors import (
    BadArgument,
    CommandFailed,
    Conflict,
    McvirtError,
    NodeUnreachable,
    NotFound,
    ResyncGoesOn,
    TaskCancelled,
    UndoIncomplete,
)
from mcvirt.types.move import MovePlan
from mcvirt.types.task import TaskInfo, TaskState
from mcvirt.types.vm import DiskSpec, StorageType, VmSpec
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.former_legs import FormerLegs
from mcvirtd.drbd.replacing import Replacing
from mcvirtd.drbd.resources import replicas_on
from mcvirtd.drbd.roles import Roles
from mcvirtd.migration.side_plans import SidePlanner
from mcvirtd.migration.sides import Sides
from mcvirtd.state.records import (
    DiskRecord,
    FormerLegRecord,
    NetworkRecord,
    NodeRecord,
    ReplicaClaimRecord,
    SplitUndoRecord,
    VerificationRecord,
    VmRecord,
)
from mcvirtd.tasks.engine import CLOSING
from mcvirtd.tasks.task import Progress, Task
from tests.unit.drbd.test_machines import DRBD, Both, until
from tests.unit.vm.world import MIB

BROKEN = CommandFailed(program="drbdadm", status=10, output="no")


class Trio(Both):
    """web1's disks are on n1, where it is, and n2; there is n3."""

    NODES = ("n1", "n2", "n3")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.replacing = Replacing(
            store=self.store,
            journal=self.journal,
            node="n1",
            local=self.legs["n1"],
            legs=lambda name: self.far[name],  # type: ignore[arg-type, return-value]
            states=self.kernels["n1"],
            look_every=0.05,
            again_after=0.05,
        )
        self.sides = self.make_sides()
        self.former = {name: FormerLegs(self.store, name, self.legs[name].drop) for name in self.NODES}

    def make_sides(self, deleted_within: float = 0.1) -> Sides:
        def reachable(name: str) -> bool:
            return name == "n1" or not self.far[name].away

        self.planner = SidePlanner(
            self.ground,
            replicas=self.replicated,
            roles=self.roles,
            states=self.kernels["n1"],
            reachable=reachable,
        )
        return Sides(
            self.ground,
            planner=self.planner,
            replacing=self.replacing,
            reachable=reachable,
            deleted_within=deleted_within,
        )

    def after_power_loss(self) -> Trio:
        return Trio(self.copy(), self.places, self.hypervisor, self.wires)

    def move(self, destination: str = "n3", source: str | None = "n2", force: bool = False) -> TaskInfo:
        return self.run(lambda: self.sides.move("web1", destination, source, force))

    def plan(self, destination: str = "n3", source: str | None = "n2", force: bool = False) -> MovePlan:
        return self.sides.plan("web1", destination, source, force)

    def moved(self, **kwargs: Any) -> McvirtError | None:
        return self.error_of(self.move(**kwargs))

    @property
    def disk_records(self) -> list[DiskRecord]:
        return sorted(self.store.all(DiskRecord).values(), key=lambda disk: disk.slot or 0)

    @property
    def claims(self) -> list[ReplicaClaimRecord]:
        return list(self.store.all(ReplicaClaimRecord).values())

    def name(self) -> str:
        return resource_name(self.disk_records[0].id)

    def good_on(self, one: str, other: str) -> None:
        """All disks are on these two nodes, by records and kernels, and nothing is anywhere else."""
        assert self.claims == []
        for disk in self.disk_records:
            assert disk.nodes == (one, other)
            for node, kernel in self.kernels.items():
                state = kernel.resources.get(resource_name(disk.id))
                assert (state is not None and state.both_good) == (node in (one, other)), (node, state)
                assert (resource_name(disk.id) in kernel.files) == (node in (one, other)), node
                has = [name for name in self.volumes(node).names() if disk.id in name]
                assert len(has) == (2 if node in (one, other) else 0), (node, has)
        assert self.record().nodes == (one, other)

    def cut(self, cut: bool) -> None:
        with self.wires.changed:
            self.wires.cut = cut
            self.wires.settle()

    def settle_former(self) -> None:
        for former in self.former.values():
            former.settle()

    def until_copying(self, source: str | None = "n2", force: bool = False) -> Task:
        """Begin to move, and return in the middle of the copying."""
        self.wires.slow = True
        started = self.start_task(lambda: self.sides.move("web1", "n3", source, force))
        until(lambda: "SyncSource" in [state.replication for state in self.kernels["n1"].resources.values()])
        return started

    def start_task(self, work: Callable[[], object]) -> Task:
        return self.tasks.start("move.move", "web1", "bob", lambda: msgspec.json.encode(work()), lambda *_: None)

    def ended(self, task: Task) -> McvirtError | None:
        until(lambda: self.tasks.find(task.id) is None)
        return self.error_of(self.tasks.news(task.id).info)


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    made = Trio(tmp_path)
    with made.store.change() as change:
        change.put(NetworkRecord(name="lan", interface="br0"))
    spec = msgspec.structs.replace(DRBD, nodes=("n1", "n2"))
    wanted = VmSpec(
        name="web1", memory=64 * MIB, cpu_count=1, disks=(spec, spec), networks=("lan",), nodes=("n1", "n2")
    )
    assert made.error_of(made.run(lambda: made.vms.create(wanted))) is None
    made.good_on("n1", "n2")
    yield made
    for way in made.far.values():
        way.away = False
    made.wires.copy()
    made.tasks.close()
    made.store.close()


def against(plan: MovePlan) -> str:
    assert not plan.ok
    return " ".join(check.text for check in plan.checks if not check.ok)


class TestMove:
    def test_disks_are_on_the_other_nodes_afterwards(self, trio: Trio) -> None:
        before = trio.disk_records
        info = trio.move()
        assert info.state is TaskState.DONE, info
        trio.settle_former()
        trio.good_on("n1", "n3")
        for old, new in zip(before, trio.disk_records, strict=True):
            assert old.replica is not None and new.replica is not None
            assert new.replica.minor == old.replica.minor
            assert new.replica.port != old.replica.port
            assert new.replica.secret != old.replica.secret
        assert trio.store.all(FormerLegRecord) == {}

    def test_machine_that_runs_goes_on(self, trio: Trio) -> None:
        assert trio.start() is None
        assert trio.moved() is None
        trio.settle_former()
        trio.good_on("n1", "n3")
        assert trio.role() == {"Primary"}
        # The one that was left alone began another generation by itself.
        assert ("new_current_uuid", trio.name()) not in trio.kernels["n1"].calls[-10:]

    def test_it_is_over_when_the_old_side_is_deleted(self, trio: Trio) -> None:
        trio.sides = trio.make_sides(deleted_within=60)
        task = trio.start_task(lambda: trio.sides.move("web1", "n3", "n2"))
        until(lambda: trio.store.all(FormerLegRecord))
        assert trio.tasks.find(task.id) is not None
        trio.settle_former()
        assert trio.ended(task) is None
        assert msgspec.json.decode(trio.tasks.news(task.id).result)["left"] is False

    def test_one_caller_at_a_time_deletes_old_sides(self, trio: Trio) -> None:
        trio.far["n2"].away = True
        assert trio.moved(force=True) is None
        with trio.former["n2"]._lock:
            trio.settle_former()
            assert trio.store.all(FormerLegRecord) != {}
        trio.settle_former()
        assert trio.store.all(FormerLegRecord) == {}

    def test_there_and_back_again(self, trio: Trio) -> None:
        for destination, source in (("n3", "n2"), ("n2", "n3"), ("n3", None)):
            assert trio.moved(destination=destination, source=source) is None
            trio.settle_former()
            trio.good_on("n1", destination)

    def test_port_of_a_side_that_is_not_deleted_yet_is_nobody_elses(self, trio: Trio) -> None:
        trio.far["n2"].away = True
        old = {disk.replica.port for disk in trio.disk_records if disk.replica is not None}
        assert trio.moved(force=True) is None
        trio.far["n2"].away = False
        assert "still has what it had" in against(trio.plan("n2", "n3"))
        assert trio.update(add_disks=(DRBD,)) is None
        new = trio.disk_records[-1]
        assert new.nodes == ("n1", "n3") and new.replica is not None and new.replica.port not in old
        trio.settle_former()
        trio.good_on("n1", "n3")
        assert trio.moved(destination="n2", source="n3") is None

    def test_node_that_is_gone_is_replaced_by_force(self, trio: Trio) -> None:
        assert trio.start() is None
        trio.far["n2"].away = True
        trio.kernels["n2"].running = False
        with trio.wires.changed:
            trio.wires.settle()
        assert "--force" in against(trio.plan())
        assert "--force" in str(trio.moved())
        assert trio.moved(force=True) is None
        assert all(disk.nodes == ("n1", "n3") for disk in trio.disk_records)
        assert {record.node for record in trio.store.all(FormerLegRecord).values()} == {"n2"}
        # It is back.
        trio.kernels["n2"].running = True
        trio.far["n2"].away = False
        trio.settle_former()
        trio.good_on("n1", "n3")

    def test_side_of_a_node_that_was_removed_is_made_anew(self, trio: Trio) -> None:
        with trio.store.change() as change:
            change.delete(NodeRecord, "n2")
            for disk in trio.disk_records:
                change.edit(DiskRecord, disk.id, nodes=("n1",))
            change.edit(VmRecord, "web1", nodes=("n1",))
        trio.kernels["n2"].running = False
        assert trio.moved(source="n2") is None
        assert all(disk.nodes == ("n1", "n3") for disk in trio.disk_records)
        assert trio.record().nodes == ("n1", "n3")
        assert trio.store.all(FormerLegRecord) == {}

    def test_failed_verification_is_of_the_past(self, trio: Trio) -> None:
        disk = trio.disk_records[0].id
        task = trio.until_copying()
        with trio.store.change() as change:
            change.put(VerificationRecord(disk=disk, failed=True, out_of_sync=512))
        trio.wires.copy()
        assert trio.ended(task) is None
        record = trio.store.get(VerificationRecord, disk)
        assert record is not None and not record.failed


class TestRefused:
    @pytest.mark.parametrize(
        ("destination", "source", "words"),
        [
            ("n3", "n1", "mcvirt migrate web1 --node n2"),
            ("n1", "n2", "has the disks already"),
            ("n2", "n2", "has the disks already"),
            ("n2", "n3", "are on n1 and n2"),
        ],
    )
    def test_nodes_that_can_not_be(self, trio: Trio, destination: str, source: str, words: str) -> None:
        assert words in against(trio.plan(destination, source))
        assert isinstance(trio.moved(destination=destination, source=source), McvirtError)
        trio.good_on("n1", "n2")

    def test_unknown_node(self, trio: Trio) -> None:
        with pytest.raises(NotFound, match="'n9'"):
            trio.plan("n9")
        with pytest.raises(BadArgument):
            trio.plan("n3", "../x")

    def test_all_that_is_wrong_is_said_at_once(self, trio: Trio) -> None:
        trio.volumes("n3").capacity = 4096
        with trio.store.change() as change:
            change.edit(VmRecord, "web1", locked=True)
            change.put(VerificationRecord(disk=trio.disk_records[0].id, failed=True, out_of_sync=512))
            change.put(
                SplitUndoRecord(
                    disk=trio.disk_records[1].id,
                    node="n2",
                    kept="n1",
                    made=datetime.now(UTC),
                    by="bob",
                )
            )
        error = trio.moved()
        assert error is not None
        for words in ("is locked", "free on node 'n3'", "were found to differ", "data of a split is kept"):
            assert words in str(error), words
        trio.good_on("n1", "n2")

    def test_minor_that_something_else_has(self, trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mcvirtd.drbd.local_legs.minors_in_use", lambda: [1])
        assert "minor 1" in against(trio.plan())

    def test_destination_that_does_not_answer(self, trio: Trio) -> None:
        trio.far["n3"].away = True
        assert "'n3' can't be reached" in against(trio.plan())

    def test_no_replicated_disk(self, trio: Trio) -> None:
        trio.vm("web2")
        with pytest.raises(Conflict, match="nothing to move"):
            trio.sides.plan("web2", "n3")

    def test_what_would_disturb_it_meanwhile(self, trio: Trio) -> None:
        assert trio.start() is None
        task = trio.until_copying()
        disk = trio.disk_records[0]
        assert trio.error_of(trio.run(lambda: trio.sides.move("web1", "n3"))) is not None
        for error in (
            trio.update(add_disks=(DiskSpec(size=2**20, storage_type=StorageType.DRBD),)),
            trio.update(grow_disk=1, grow_by=2**20),
            trio.update(delete_disk=1),
        ):
            assert error is not None and "being moved" in str(error)
        assert "being moved" in trio.roles.unequal(disk)
        assert trio.stop() is None
        assert "being moved" in str(trio.delete())
        # The old side is not used by accident, and says why.
        old = Roles(
            store=trio.store, node="n2", legs=trio.legs["n2"], states=trio.kernels["n2"], reachable=lambda _: False
        )
        assert "as old as the beginning" in old.problem(disk)
        assert trio.kernels["n2"].resources[trio.name()].disk == "Outdated"
        assert trio.start() is None
        trio.wires.copy()
        assert trio.ended(task) is None
        trio.settle_former()
        trio.good_on("n1", "n3")
        assert trio.role() == {"Primary"}


class TestFailure:
    @pytest.mark.parametrize("verb", ["write_resource", "create_metadata", "up"])
    @pytest.mark.parametrize("done", [False, True])
    def test_new_side_that_can_not_be_made_leaves_nothing(self, trio: Trio, verb: str, done: bool) -> None:
        trio.kernels["n3"].fail_next(verb, BROKEN, done=done)
        assert isinstance(trio.moved(), CommandFailed)
        trio.good_on("n1", "n2")
        assert not [call for call in trio.kernels["n1"].calls if call[0] == "disconnect"]
        assert trio.moved() is None

    def test_new_node_that_is_lost_while_it_is_made_is_cleared_when_it_is_back(self, trio: Trio) -> None:
        trio.far["n3"].lose["make"] = True
        error = trio.moved()
        assert isinstance(error, UndoIncomplete)
        trio.far["n3"].away = False
        trio.tasks.settle()
        trio.good_on("n1", "n2")

    @pytest.mark.parametrize("verb", ["disconnect", "write_resource", "adjust"])
    def test_change_over_that_fails_goes_back(self, trio: Trio, verb: str) -> None:
        assert trio.start() is None
        if verb == "disconnect":
            trio.kernels["n1"].fail_next("disconnect by force", BROKEN)
        trio.kernels["n1"].fail_next(verb, BROKEN)
        assert isinstance(trio.moved(), CommandFailed)
        trio.good_on("n1", "n2")

    def test_disconnecting_is_forced_if_need_be(self, trio: Trio) -> None:
        trio.kernels["n1"].fail_next("disconnect", BROKEN)
        assert trio.moved() is None
        trio.settle_former()
        trio.good_on("n1", "n3")

    def test_cancelled_while_it_copies_it_goes_back(self, trio: Trio) -> None:
        task = trio.until_copying()
        trio.tasks.cancel(task.id, "bob")
        assert isinstance(trio.ended(task), TaskCancelled)
        trio.good_on("n1", "n2")

    def test_cancelled_while_the_new_node_is_away_the_rest_is_done_later(self, trio: Trio) -> None:
        task = trio.until_copying()
        trio.far["n3"].away = True
        trio.tasks.cancel(task.id, "bob")
        assert trio.ended(task) is not None
        assert trio.sides.left() == {}
        trio.far["n3"].away = False
        trio.tasks.settle()
        trio.good_on("n1", "n2")

    def test_a_link_that_is_cut_is_waited_for_and_said(self, trio: Trio) -> None:
        task = trio.until_copying()
        trio.cut(True)
        until(lambda: "DRBD has no connection with node 'n3'" in task.info().steps[-1].waits)
        trio.cut(False)
        until(lambda: not task.info().steps[-1].waits)
        trio.wires.copy()
        assert trio.ended(task) is None

    def test_new_node_that_is_removed_meanwhile(self, trio: Trio) -> None:
        task = trio.until_copying()
        with trio.store.change() as change:
            change.delete(NodeRecord, "n3")
        assert "removed from the cluster" in str(trio.ended(task))
        assert trio.claims == []
        assert all(kernel.resources[trio.name()].both_good for kernel in (trio.kernels["n1"], trio.kernels["n2"]))

    def test_machine_that_was_given_to_another_node_meanwhile(self, trio: Trio) -> None:
        task = trio.until_copying()
        with trio.store.change() as change:
            change.edit(VmRecord, "web1", node="n2")
        trio.wires.copy()
        assert "given to node 'n2'" in str(trio.ended(task))
        assert trio.claims == [] and all(disk.nodes == ("n1", "n2") for disk in trio.disk_records)

    def test_cluster_that_takes_no_changes_is_waited_for(self, trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
        tries: list[int] = []
        tried = NodeUnreachable(node="n2", reason="it leads.")
        store_new_sides = trio.replacing._store_new_sides

        def fails(*args: Any) -> None:
            tries.append(1)
            if len(tries) < 3:
                raise tried
            store_new_sides(*args)

        monkeypatch.setattr(trio.replacing, "_store_new_sides", fails)
        told: list[str] = []
        monkeypatch.setattr(Progress, "waits", lambda _, why: told.append(why))
        assert trio.moved() is None
        trio.settle_former()
        trio.good_on("n1", "n3")
        assert len(tries) == 3
        assert [why for why in told if why] == [f"all is there, but this can't be stored yet. {tried}"] * 2

    def test_data_that_the_records_speak_of_is_never_deleted(self, trio: Trio) -> None:
        disk = trio.disk_records[0].id
        with trio.store.change() as change:
            change.put(FormerLegRecord(name=f"{disk}@n2", disk=disk, node="n2", backend="pool", port=1))
        trio.settle_former()
        trio.good_on("n1", "n2")


class TestDeath:
    def test_before_the_change_over_leaves_nothing(self, trio: Trio) -> None:
        dead: list[Trio] = []
        trio.far["n3"].on["make"] = lambda: dead.append(trio.after_power_loss())
        trio.moved()
        after = dead[0]
        try:
            after.wires.slow = False
            after.tasks.settle()
            assert after.claims == []
            assert all(disk.nodes == ("n1", "n2") for disk in after.disk_records)
        finally:
            after.store.close()

    def test_while_it_copies_only_delays_it(self, trio: Trio) -> None:
        task = trio.until_copying()
        after = trio.after_power_loss()
        try:
            (info,) = [info for info in after.tasks.settle() if info.id == task.id]
            assert "goes on in a task of its own" in str(after.error_of(info))
            assert after.sides.left() == {"web1": "root"}
            # What the nodes bring up by themselves is what is being copied.
            assert after.disk_records[0].id in {disk.id for disk in replicas_on(after.store, "n3").values()}
            (name,) = [name for name in replicas_on(after.store, "n3") if name == after.name()]
            assert replicas_on(after.store, "n1")[name].nodes == ("n1", "n3")
            assert replicas_on(after.store, "n2")[name].nodes == ("n1", "n2")
            again = after.start_task(lambda: after.sides.go_on("web1"))
            after.wires.copy()
            assert after.ended(again) is None
            after.settle_former()
            after.good_on("n1", "n3")
        finally:
            after.tasks.close()
            after.store.close()
            with suppress(Conflict):  # it sees the copying end, too
                trio.tasks.cancel(task.id, CLOSING)
            trio.ended(task)

    def test_of_mcvirtd_in_good_order_delays_it_too(self, trio: Trio) -> None:
        task = trio.until_copying()
        trio.tasks.cancel(task.id, CLOSING)
        error = trio.ended(task)
        assert isinstance(error, ResyncGoesOn) and not isinstance(error, UndoIncomplete)
        assert trio.tasks.news(task.id).info.state is TaskState.CANCELLED
        assert all(claim.replacement is not None and claim.replacement.copying for claim in trio.claims)

    def test_before_the_old_side_is_disconnected(self, trio: Trio) -> None:
        trio.wires.slow = True
        gate, reached = threading.Event(), threading.Event()

        def held() -> None:
            reached.set()
            gate.wait(20)

        trio.kernels["n1"].fail_next("disconnect", held)
        task = trio.start_task(lambda: trio.sides.move("web1", "n3", "n2"))
        assert reached.wait(20)
        after = trio.after_power_loss()
        try:
            after.tasks.settle()
            again = after.start_task(lambda: after.sides.go_on("web1"))
            until(lambda: "SyncSource" in [state.replication for state in after.kernels["n1"].resources.values()])
            after.wires.copy()
            assert after.ended(again) is None
            after.settle_former()
            after.good_on("n1", "n3")
        finally:
            after.tasks.close()
            after.store.close()
            gate.set()
            with suppress(Conflict):  # it sees the copying end, too
                trio.tasks.cancel(task.id, CLOSING)
            trio.ended(task)

    def test_for_good_of_the_node_that_stays_lets_the_old_side_go_on_only_by_somebodys_word(self, trio: Trio) -> None:
        assert trio.start() is None
        task = trio.until_copying()
        disk, heedless = trio.disk_records[0], [False]
        there = Roles(
            store=trio.store,
            node="n2",
            legs=trio.legs["n2"],
            states=trio.kernels["n2"],
            reachable=lambda _: False,
            heedless=lambda: heedless[0],
        )
        with pytest.raises(Conflict):
            there.promote(disk)
        heedless[0] = True
        assert there.problem(disk) == ""
        there.promote(disk)
        assert trio.kernels["n2"].resources[trio.name()].role == "Primary"
        trio.wires.copy()
        assert trio.ended(task) is None

    def test_for_good_of_the_node_that_stays_has_the_new_one_clear_up(self, trio: Trio) -> None:
        task = trio.until_copying()
        with trio.store.change() as change:
            change.delete(NodeRecord, "n1")
        settling = trio.replicated
        settling._node = "n3"
        settling.settle_claims()
        settling._node = "n1"
        assert trio.claims == []
        assert [name for name in trio.volumes("n3").names() if "-hd-" in name or "hd-" in name] == []
        with trio.store.change() as change:
            change.put(NodeRecord(name="n1", id="n1", address="10.0.0.1"))
        assert "given up" in str(trio.ended(task))
