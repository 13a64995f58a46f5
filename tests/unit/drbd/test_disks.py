"""Replicated hard drives: made on two nodes or on none, grown, deleted, and what dies or is cut in the middle."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from mcvirt.errors import (
    BadArgument,
    CommandFailed,
    Conflict,
    DeadlinePassed,
    McvirtError,
    NodeUnreachable,
    NotFound,
    ProgramMissing,
    SeveralReasons,
    TaskCancelled,
    UndoIncomplete,
)
from mcvirt.types.storage import BackendSpec, BackendType
from mcvirt.types.task import TaskState
from mcvirt.types.vm import DiskSpec, StorageType
from mcvirt.units import GIB, MIB
from mcvirtd.drbd.config import FIRST_PORT, resource_name
from mcvirtd.drbd.roles import Roles
from mcvirtd.host.run import missing
from mcvirtd.state.records import (
    DiskRecord,
    ReplicaClaimRecord,
    VerificationRecord,
)
from mcvirtd.tasks.task import Task, working_for
from tests.unit.drbd.world import Gate, Pair

ONE = DiskSpec(size=GIB, storage_type=StorageType.DRBD)
BROKEN = CommandFailed(program="drbdadm", status=10, output="no")


def make(pair: Pair, spec: DiskSpec = ONE, **fields: object) -> DiskRecord:
    (plan,) = pair.disks.plan([spec], node="n1")
    with pair.journal.transaction() as tx:
        record = msgspec.structs.replace(pair.disks.create(tx, plan), **fields)
        with tx.commit() as change:
            pair.disks.put(change, record)
    return record


class TestPlan:
    def test_two_nodes_are_enough_said(self, pair: Pair) -> None:
        (plan,) = pair.disks.plan([ONE], node="n1")
        assert plan.nodes == ("n1", "n2")
        assert plan.storage_type is StorageType.DRBD
        assert pair.orphans() == []

    def test_type_is_asked_for_where_both_are_possible(self, pair: Pair) -> None:
        with pytest.raises(BadArgument, match="Local, Drbd"):
            pair.disks.plan([DiskSpec(size=GIB)], node="n1")

    def test_type_of_the_other_disks_is_chosen(self, pair: Pair) -> None:
        taken = make(pair)
        (plan,) = pair.disks.plan([DiskSpec(size=GIB)], node="n1", taken=[taken])
        assert plan.storage_type is StorageType.DRBD

    def test_type_is_local_where_nothing_else_is_possible(self, pair: Pair) -> None:
        pair.here.make("vg1")
        pair.storage.create(BackendSpec(name="near", type=BackendType.LVM, location="vg1", nodes={"n1": ""}))
        (plan,) = pair.disks.plan([DiskSpec(size=GIB, backend="near")], node="n1")
        assert plan.storage_type is StorageType.LOCAL

    def test_backend_must_fit(self, pair: Pair) -> None:
        pair.here.make("vg1")
        pair.storage.create(BackendSpec(name="near", type=BackendType.LVM, location="vg1", nodes={"n1": ""}))
        with pytest.raises(BadArgument, match="two nodes at least"):
            pair.disks.plan([msgspec.structs.replace(ONE, backend="near")], node="n1")
        (plan,) = pair.disks.plan([ONE], node="n1")
        assert plan.backend == "pool"

    def test_nodes_must_be_named_where_there_are_three(self, pair: Pair) -> None:
        pair.third_node()
        with pytest.raises(BadArgument, match="--nodes"):
            pair.disks.plan([ONE], node="n1")
        (plan,) = pair.disks.plan([ONE], node="n1", nodes=("n2", "n1"))
        assert plan.nodes == ("n1", "n2")
        (plan,) = pair.disks.plan([msgspec.structs.replace(ONE, nodes=("n1", "n2"))], node="n1")
        assert plan.nodes == ("n1", "n2")

    @pytest.mark.parametrize(
        ("nodes", "words"),
        [
            (("n1",), "on two nodes"),
            (("n1", "n2", "n3"), "on two nodes"),
            (("n2", "n3"), "must be among them"),
            (("n1", "n1"), "on two nodes"),
        ],
    )
    def test_nodes_that_can_not_be(self, pair: Pair, nodes: tuple[str, ...], words: str) -> None:
        pair.third_node()
        with pytest.raises(BadArgument, match=words):
            pair.disks.plan([ONE], node="n1", nodes=nodes)

    def test_unknown_node(self, pair: Pair) -> None:
        with pytest.raises(NotFound, match="'n9'"):
            pair.disks.plan([ONE], node="n1", nodes=("n1", "n9"))

    def test_other_disks_of_the_machine_decide(self, pair: Pair) -> None:
        taken = make(pair)
        pair.third_node()
        (plan,) = pair.disks.plan([ONE], node="n1", taken=[taken])
        assert plan.nodes == ("n1", "n2")
        with pytest.raises(BadArgument, match="n1 and n2"):
            pair.disks.plan([msgspec.structs.replace(ONE, nodes=("n1", "n3"))], node="n1", taken=[taken])

    def test_nodes_are_for_replicated_ones(self, pair: Pair) -> None:
        with pytest.raises(BadArgument, match="Drbd"):
            pair.disks.plan([DiskSpec(size=GIB, storage_type=StorageType.LOCAL, nodes=("n1", "n2"))], node="n1")

    def test_all_that_is_wrong_on_both_nodes_is_said(self, pair: Pair) -> None:
        pair.volumes("n2").capacity = GIB
        pair.kernels["n1"].alive = False
        with pytest.raises(SeveralReasons) as raised:
            pair.disks.plan([ONE, DiskSpec(size=7, storage_type=StorageType.DRBD)], node="n1")
        for words in ("'n1' can't replicate: drbd-utils", "free on node 'n2'", "at least 1 MiB"):
            assert words in str(raised.value)

    def test_programs_that_were_removed_while_their_events_are_still_read(self, pair: Pair) -> None:
        pair.kernels["n2"].lacks = ["drbd-utils is not installed."]
        with pytest.raises(Conflict, match="'n2' can't replicate: drbd-utils"):
            pair.disks.plan([ONE], node="n1")

    def test_node_that_does_not_answer(self, pair: Pair) -> None:
        pair.farther.away = True
        with pytest.raises(Conflict, match="'n2' can't be reached"):
            pair.disks.plan([ONE], node="n1")


class TestCreate:
    def test_both_legs_are_there_and_equal(self, pair: Pair) -> None:
        record = make(pair)
        assert record.replica is not None
        assert (record.replica.minor, record.replica.port) == (1, FIRST_PORT)
        assert record.nodes == ("n1", "n2")
        base = record.volume
        for node in ("n1", "n2"):
            assert pair.volumes(node).names() == [f"{base}-drbd-meta", f"{base}-drbd-raw"]
            state = pair.kernels[node].state(resource_name(record.id))
            assert state is not None
            assert state.both_good
            assert state.role == "Secondary"
        assert pair.disks.source(record).path == "/dev/drbd1"
        assert pair.disks.available(record) == ""
        assert pair.orphans() == []
        assert pair.journal_rows() == []

    def test_when_it_was_made_is_on_record(self, pair: Pair) -> None:
        before = datetime.now(UTC)
        record = pair.store.get(DiskRecord, make(pair).id)
        assert record is not None and record.made is not None and before <= record.made <= datetime.now(UTC)

    def test_secret_is_the_same_on_both_and_shown_nowhere(self, pair: Pair) -> None:
        record = make(pair)
        assert record.replica is not None
        files = {node: pair.kernels[node].files[resource_name(record.id)] for node in ("n1", "n2")}
        assert {file.secret for file in files.values()} == {record.replica.secret}
        assert record.replica.secret not in repr(record)
        assert make(pair).replica != record.replica

    def test_numbers_are_taken_once(self, pair: Pair) -> None:
        assert [make(pair).replica.minor for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]

    def test_numbers_in_use_elsewhere_are_left_out(self, pair: Pair) -> None:
        (plan,) = pair.disks.plan([ONE], node="n1")
        busy = msgspec.structs.replace(plan, minors=frozenset({1, 2}), ports=frozenset({FIRST_PORT}))
        with pair.store.change() as change:
            change.put(
                ReplicaClaimRecord(
                    disk="other", backend="pool", minor=3, port=FIRST_PORT + 1, nodes=("n1", "n2"), coordinator="n2"
                )
            )
        with pair.journal.transaction() as tx:
            record = pair.disks.create(tx, busy)
            with tx.commit() as change:
                pair.disks.put(change, record)
        assert record.replica is not None
        assert (record.replica.minor, record.replica.port) == (4, FIRST_PORT + 2)

    @pytest.mark.parametrize("node", ["n1", "n2"])
    @pytest.mark.parametrize("done", [False, True])
    @pytest.mark.parametrize(
        "verb", ["write_resource", "create_metadata", "up", "new_current_uuid", "pause_sync", "resume_sync"]
    )
    def test_failure_of_each_step_on_either_node_leaves_nothing(
        self, pair: Pair, node: str, verb: str, done: bool
    ) -> None:
        if verb == "new_current_uuid" and node == "n2":
            pytest.skip("n1 does it for both")
        pair.kernels[node].fail_next(verb, BROKEN, done=done)
        with pytest.raises(CommandFailed):
            make(pair)
        assert pair.orphans() == []
        assert pair.journal_rows() == []

    @pytest.mark.parametrize("node", ["n1", "n2"])
    def test_a_side_that_hears_late_what_the_other_was_before_knows_in_the_end(self, pair: Pair, node: str) -> None:
        pair.wires.old_news = node
        name = resource_name(make(pair).id)
        for kernel in pair.kernels.values():
            assert kernel.resources[name].both_good
            assert kernel.resources[name].resync_suspended == "no"

    @pytest.mark.parametrize("node", ["n1", "n2"])
    @pytest.mark.parametrize("done", [False, True])
    @pytest.mark.parametrize("which", [1, 2])
    def test_failure_of_a_volume_leaves_nothing(self, pair: Pair, node: str, which: int, done: bool) -> None:
        volumes = pair.volumes(node)
        original, count = volumes.create, 0

        def create(*args: object, **kwargs: object) -> int:
            nonlocal count
            count += 1
            if count == which:
                if done:
                    original(*args, **kwargs)  # type: ignore[arg-type]
                raise BROKEN
            return original(*args, **kwargs)  # type: ignore[arg-type]

        volumes.create = create  # type: ignore[method-assign]
        with pytest.raises(CommandFailed):
            make(pair)
        assert pair.orphans() == []
        assert pair.journal_rows() == []

    @pytest.mark.parametrize("node", ["n1", "n2"])
    def test_port_that_is_taken_after_the_checks_leaves_nothing(self, pair: Pair, node: str) -> None:
        kernel = pair.kernels[node]
        kernel.fail_next("create_metadata", lambda: kernel.taken_ports.add(7789), done=True)
        with pytest.raises(Conflict, match=f"'{node}' has taken port 7789 of 10.0.0.{node[1]} meanwhile"):
            make(pair)
        assert "up" not in [verb for verb, _ in kernel.calls]
        assert pair.orphans() == []
        assert pair.journal_rows() == []

    def test_link_that_does_not_come_up(self, pair: Pair) -> None:
        pair.wires.cut = True
        with pytest.raises(DeadlinePassed):
            make(pair)
        assert pair.orphans() == []

    @pytest.mark.parametrize("done", [False, True])
    def test_peer_that_dies_is_cleared_when_it_is_back(self, pair: Pair, done: bool) -> None:
        pair.farther.lose["make"] = done
        info = pair.run(lambda: make(pair))
        assert info.state is TaskState.STUCK
        assert "n2" in info.remains
        assert [place for place in pair.orphans() if place.startswith("n1")] == []
        assert any(place.startswith("claim") for place in pair.orphans())
        pair.farther.away = False
        (settled,) = pair.tasks.settle()
        assert settled.state is TaskState.FAILED
        assert pair.orphans() == []
        assert pair.journal_rows() == []

    def test_number_is_not_used_again_before_the_peer_is_cleared(self, pair: Pair) -> None:
        pair.farther.lose["make"] = True
        pair.run(lambda: make(pair))
        pair.farther.away = False
        assert make(pair).replica.minor == 2  # type: ignore[union-attr]
        pair.tasks.settle()
        assert make(pair).replica.minor == 1  # type: ignore[union-attr]

    def test_cancelled_says_by_whom_and_leaves_nothing(self, pair: Pair) -> None:
        task = Task("vm.create", "web1", "ann", "n1")
        pair.farther.on["make"] = lambda: task.cancel("bob")
        with working_for(task), pytest.raises(TaskCancelled, match="by bob"):
            make(pair)
        assert pair.orphans() == []
        assert pair.journal_rows() == []

    def test_request_that_comes_after_its_undoing_makes_nothing(self, pair: Pair) -> None:
        gate = Gate()
        pair.farther.on["make"] = gate
        pair.kernels["n1"].fail_next("up", BROKEN)
        failed: list[BaseException] = []

        def work() -> None:
            with working_for(Task("hard_drive.create", "", "ann", "n1")):
                try:
                    make(pair)
                except McvirtError as error:
                    failed.append(error)

        maker = threading.Thread(target=work)
        maker.start()
        assert gate.reached.wait(20)
        (disk,) = pair.store.all(ReplicaClaimRecord)
        pair.legs["n2"].drop(disk, "pool")
        gate.go.set()
        maker.join(20)
        assert failed
        assert pair.orphans() == []

    def test_peer_makes_only_what_is_claimed(self, pair: Pair) -> None:
        from mcvirt.types.replica import LegSpec

        leg = LegSpec(
            disk="hd-AAAAAAAAAAAA", backend="pool", size=GIB, minor=1, port=7789, secret="s" * 40, nodes=("n1", "n2")
        )
        (plan,) = pair.disks.plan([ONE], node="n1")
        leg = msgspec.structs.replace(leg, disk=plan.id)
        with pytest.raises(Conflict, match="not to be made"):
            pair.legs["n2"].make(leg)
        with pytest.raises(BadArgument, match="hard drive ID"):
            pair.legs["n2"].make(msgspec.structs.replace(leg, disk="../../etc"))
        with pytest.raises(BadArgument, match="hard drive ID"):
            pair.legs["n2"].drop("../../etc", "pool")
        assert pair.orphans() == []


class TestCoordinatorDies:
    """The node where the task runs loses its power; the other one goes on."""

    @pytest.mark.parametrize("node", ["n1", "n2"])
    @pytest.mark.parametrize("done", [False, True])
    @pytest.mark.parametrize("verb", ["write_resource", "create_metadata", "up"])
    def test_next_start_leaves_nothing_on_either_node(self, pair: Pair, node: str, verb: str, done: bool) -> None:
        gate = Gate()
        pair.kernels[node].fail_next(verb, gate, done=done)
        dying = threading.Thread(target=lambda: pair.run(lambda: make(pair)))
        dying.start()
        assert gate.reached.wait(20)
        pair.farther.away = True  # nothing more comes from the process that has died
        after = pair.after_power_loss()
        pair.kernels["n1"].running = True
        if node == "n2":
            gate.go.set()  # it is at work there, and ends
        after.tasks.settle()
        assert after.orphans() == []
        assert after.journal_rows() == []
        after.store.close()
        gate.go.set()
        dying.join(20)

    def test_claim_of_a_node_that_is_gone_is_settled_by_the_other(self, pair: Pair) -> None:
        (plan,) = pair.disks.plan([ONE], node="n1")
        claimed = ReplicaClaimRecord(
            disk=plan.id, backend="pool", minor=1, port=7789, nodes=("n1", "gone"), coordinator="gone"
        )
        with pair.store.change() as change:
            change.put(claimed)
        pair.volumes("n1").create(f"{plan.volume}-drbd-raw", GIB)
        pair.replicated.settle_claims()
        assert pair.orphans() == []


class TestDelete:
    def test_nothing_is_left(self, pair: Pair) -> None:
        record = make(pair)
        with pair.store.change() as change:
            change.put(VerificationRecord(disk=record.id, failed=True))
        pair.drives.delete(record.id)
        assert pair.orphans() == []
        assert pair.store.all(DiskRecord) == {}
        assert pair.store.all(VerificationRecord) == {}

    def test_refused_while_the_other_node_is_away(self, pair: Pair) -> None:
        record = make(pair)
        pair.farther.away = True
        with pytest.raises(NodeUnreachable, match="--forget"):
            pair.drives.delete(record.id)
        assert pair.disks.available(record) == ""

    def test_forget_leaves_what_is_out_of_reach(self, pair: Pair) -> None:
        record = make(pair)
        with pytest.raises(Conflict, match="left out"):
            pair.drives.delete(record.id, forget=True)
        pair.farther.away = True
        pair.drives.delete(record.id, forget=True)
        assert pair.store.all(DiskRecord) == {}
        assert {place.partition(":")[0] for place in pair.orphans()} == {"n2"}

    def test_in_use(self, pair: Pair) -> None:
        record = make(pair)
        name = resource_name(record.id)
        pair.kernels["n2"].primary(name)
        pair.kernels["n2"].open.add(name)
        with pytest.raises(Conflict, match="in use on node 'n2'"):
            pair.drives.delete(record.id)

    def test_where_the_programs_went_what_they_set_up_is_not_taken_for_gone(self, pair: Pair) -> None:
        record = make(pair)
        pair.kernels["n2"].fail_next("down", missing("drbdsetup"))
        with pytest.raises(ProgramMissing):
            pair.drives.delete(record.id)
        assert pair.disks.find(record.id) == record
        assert resource_name(record.id) in pair.kernels["n2"].files

    @pytest.mark.parametrize("node", ["n1", "n2"])
    def test_what_fails_before_any_data_is_touched_is_undone(self, pair: Pair, node: str) -> None:
        record = make(pair)
        pair.kernels[node].fail_next("down", BROKEN)
        with pytest.raises(CommandFailed):
            pair.drives.delete(record.id)
        assert pair.disks.find(record.id) == record
        assert pair.disks.available(record) == ""
        assert [pair.kernels[name].resources[resource_name(record.id)].connected for name in ("n1", "n2")] == [True] * 2
        assert pair.journal_rows() == []
        pair.drives.delete(record.id)
        assert pair.orphans() == []

    def test_node_that_is_lost_before_any_data_is_touched(self, pair: Pair) -> None:
        record = make(pair)
        pair.farther.lose["command"] = False
        with pytest.raises(NodeUnreachable):
            pair.drives.delete(record.id)
        assert pair.disks.find(record.id) == record
        assert resource_name(record.id) in pair.kernels["n1"].resources

    def test_mark_of_a_deletion_that_began_earlier_stays(self, pair: Pair) -> None:
        record = make(pair)
        pair.volumes("n2").fail_next("delete", BROKEN)
        with pytest.raises(CommandFailed):
            pair.drives.delete(record.id)
        pair.kernels["n2"].fail_next("down", BROKEN)
        with pytest.raises(CommandFailed):
            pair.drives.delete(record.id)
        assert pair.disks.find(record.id).deleting
        assert "`mcvirt hard-drive delete" in pair.disks.available(pair.disks.find(record.id))
        with pytest.raises(Conflict, match="left out"):
            pair.drives.delete(record.id, forget=True)

    def test_mark_stays_if_another_node_deletes_it_meanwhile(self, pair: Pair) -> None:
        record = make(pair)

        def fail() -> None:
            with pair.store.change() as change:
                change.edit(DiskRecord, record.id, deleter="elsewhere")
            raise BROKEN

        pair.kernels["n1"].fail_next("down", fail)
        with pytest.raises(CommandFailed):
            pair.drives.delete(record.id)
        assert pair.disks.find(record.id).deleting

    @pytest.mark.parametrize("done", [False, True])
    def test_peer_that_dies_keeps_the_record_to_delete_it_again(self, pair: Pair, done: bool) -> None:
        record = make(pair)
        pair.farther.lose["drop"] = done
        with pytest.raises(NodeUnreachable):
            pair.drives.delete(record.id)
        assert record.id in pair.store.all(DiskRecord)
        pair.farther.away = False
        pair.drives.delete(record.id)
        assert pair.orphans() == []
        assert pair.store.all(DiskRecord) == {}

    @pytest.mark.parametrize("verb", ["down", "remove_resource"])
    @pytest.mark.parametrize("node", ["n1", "n2"])
    def test_power_loss_in_the_middle_is_finished(self, pair: Pair, node: str, verb: str) -> None:
        record = make(pair)
        gate = Gate()
        pair.kernels[node].fail_next(verb, gate, done=True)
        dying = threading.Thread(target=lambda: pair.run(lambda: pair.drives.delete(record.id)))
        dying.start()
        assert gate.reached.wait(20)
        after = pair.after_power_loss()
        if node == "n2":
            gate.go.set()
        (settled,) = after.tasks.settle()
        assert settled.state is TaskState.DONE
        assert after.orphans() == []
        assert after.store.all(DiskRecord) == {}
        after.store.close()
        gate.go.set()
        dying.join(20)


class TestGrow:
    @pytest.mark.parametrize("role", ["Secondary", "Primary"])
    def test_both_sides_grow(self, pair: Pair, role: str) -> None:
        record = make(pair)
        name = resource_name(record.id)
        if role == "Primary":
            pair.disks.activate(record)
        pair.disks.check_grow(record, 2 * GIB)
        assert pair.disks.grow(record, 2 * GIB) == 2 * GIB
        for node in ("n1", "n2"):
            assert pair.kernels[node].device_size(1) == 2 * GIB
            assert pair.volumes(node).size(f"{record.volume}-drbd-raw") == 2 * GIB
        here = pair.kernels["n1"].state(name)
        assert here is not None
        assert here.role == role

    def test_what_is_cancelled_when_it_has_begun_is_done_all_the_same(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else both could become longer after all, with nobody left to finish it."""
        record, task, over = make(pair), Task("vm.update", "web1", "bob", "n1"), []
        grow = pair.farther.grow

        def late(*args: Any, **more: Any) -> int:
            task.cancel("bob")
            threading.Event().wait(0.5)
            made: int = grow(*args, **more)
            over.append(made)
            return made

        monkeypatch.setattr(pair.farther, "grow", late)
        with working_for(task):
            assert pair.disks.grow(record, 2 * GIB) == 2 * GIB
        assert over == [2 * GIB]
        # Nor has it begun, where it was cancelled before.
        with working_for(task), pytest.raises(TaskCancelled):
            pair.disks.grow(record, 3 * GIB)
        assert pair.volumes("n1").size(f"{record.volume}-drbd-raw") == 2 * GIB

    def test_again_is_as_good_as_once(self, pair: Pair) -> None:
        record = make(pair)
        pair.disks.grow(record, 2 * GIB)
        assert pair.disks.grow(record, 2 * GIB) == 2 * GIB

    def test_space_on_one_side_only(self, pair: Pair) -> None:
        record = make(pair)
        pair.volumes("n2").capacity = GIB + 512 * MIB
        with pytest.raises(Conflict, match="free on node 'n2'"):
            pair.disks.check_grow(record, 2 * GIB)

    def test_refused_while_disconnected(self, pair: Pair) -> None:
        record = make(pair)
        pair.kernels["n1"].disconnect(resource_name(record.id))
        with pytest.raises(Conflict, match="not connected"):
            pair.disks.check_grow(record, 2 * GIB)

    def test_a_role_that_can_not_be_given_back_is_no_failure_of_the_growth(self, pair: Pair) -> None:
        record = make(pair)
        pair.kernels["n1"].fail_next("secondary", CommandFailed(program="drbdadm", status=7, output="made to fail"))
        assert pair.disks.grow(record, 2 * GIB) == 2 * GIB
        # It is given up by whoever does that with what is Primary for nobody.
        here = pair.kernels["n1"].state(resource_name(record.id))
        assert here is not None
        assert here.role == "Primary"

    @pytest.mark.parametrize("done", [False, True])
    def test_peer_that_dies_leaves_the_size(self, pair: Pair, done: bool) -> None:
        record = make(pair)
        pair.farther.lose["grow"] = done
        with pytest.raises(UndoIncomplete, match="as soon as it can be"):
            pair.disks.grow(record, 2 * GIB)
        assert pair.kernels["n1"].device_size(1) == GIB
        pair.farther.away = False
        assert pair.disks.grow(record, 2 * GIB) == 2 * GIB

    def test_kernels_that_grow_it_by_themselves_when_they_meet_again(self, pair: Pair) -> None:
        record = make(pair)

        def cut(cut: bool) -> None:
            with pair.wires.changed:
                pair.wires.cut = cut
                pair.wires.settle()

        def fails() -> None:
            cut(True)
            raise CommandFailed(program="drbdadm", status=10, output="(162) unknown connection")

        pair.kernels["n1"].fail_next("resize", fails)
        with pytest.raises(UndoIncomplete, match="unknown connection"):
            pair.disks.grow(record, 2 * GIB)
        with pytest.raises(Conflict, match="at rest"):
            pair.disks.grow(record, 2 * GIB)
        cut(False)
        assert pair.kernels["n1"].device_size(1) == 2 * GIB
        assert pair.disks.grow(record, 2 * GIB) == 2 * GIB
        assert pair.kernels["n1"].calls.count(("resize", resource_name(record.id))) == 1

    @pytest.mark.parametrize(
        ("differs", "marked", "levelled"),
        [
            (GIB, 0, True),
            (GIB, GIB, True),  # who saw it first has marked it
            (GIB, 4096, False),  # something else was found
            (GIB + 4096, GIB + 4096, False),  # some of it in the part that there was
            (0, 0, False),
        ],
    )
    def test_only_what_differs_in_the_new_part_is_made_equal_unasked(
        self, pair: Pair, differs: int, marked: int, levelled: bool
    ) -> None:
        record = msgspec.structs.replace(make(pair), size=2 * GIB)
        pair.kernels["n1"].put(resource_name(record.id), out_of_sync=differs)
        if marked:
            with pair.store.change() as change:
                change.put(VerificationRecord(disk=record.id, failed=True, out_of_sync=marked))
        pair.disks.finish_growth(record, GIB)
        assert pair.levelled == ([record] if levelled else [])

    @pytest.mark.parametrize("replication", ["SyncSource", "VerifyS", "Off"])
    def test_sides_that_are_not_at_rest_are_left_for_later(self, pair: Pair, replication: str) -> None:
        """And nothing is waited for: others want the machine."""
        record = make(pair)
        pair.kernels["n1"].put(resource_name(record.id), replication=replication, out_of_sync=4096)
        for act in (lambda: pair.disks.finish_growth(record, 4096), lambda: pair.disks.grow(record, 2 * GIB)):
            with pytest.raises(Conflict, match="at rest"):
                act()
        assert pair.levelled == [] and not pair.kernels["n1"].calls.count(("resize", resource_name(record.id)))


class TestRoles:
    def test_primary_only_while_it_is_active(self, pair: Pair) -> None:
        record = make(pair)
        name = resource_name(record.id)
        assert pair.disks.activate(record) == "/dev/drbd1"
        assert pair.kernels["n1"].resources[name].role == "Primary"
        pair.disks.activate(record)
        pair.disks.deactivate(record)
        assert pair.kernels["n1"].resources[name].role == "Secondary"
        pair.disks.deactivate(record)

    def test_device_that_is_closed_late(self, pair: Pair) -> None:
        record = make(pair)
        name = resource_name(record.id)
        pair.disks.activate(record)
        pair.kernels["n1"].open.add(name)
        threading.Timer(0.3, lambda: pair.kernels["n1"].open.discard(name)).start()
        pair.disks.deactivate(record)
        assert pair.kernels["n1"].resources[name].role == "Secondary"

    def test_leg_that_was_taken_down_is_brought_up(self, pair: Pair) -> None:
        record = make(pair)
        name = resource_name(record.id)
        pair.kernels["n1"].down(name)
        assert pair.disks.available(record) == ""
        pair.disks.activate(record)
        assert pair.kernels["n1"].resources[name].role == "Primary"

    @pytest.mark.parametrize("disk", ["Diskless", "Attaching", "Consistent"])
    def test_leg_that_is_just_being_brought_up_is_waited_for(self, pair: Pair, disk: str) -> None:
        record = make(pair)
        name = resource_name(record.id)
        kernel = pair.kernels["n1"]

        def put(disk: str) -> None:
            with kernel.wires.changed:
                kernel.put(name, disk=disk)
                kernel.wires.changed.notify_all()

        put(disk)
        assert f"its data on this node is {disk}" in pair.disks.available(record), "it has not come"
        timer = threading.Timer(0.2, put, ["UpToDate"])
        timer.start()
        assert pair.disks.available(record) == ""
        timer.join()

    def test_file_that_was_removed_by_hand_is_written_again(self, pair: Pair) -> None:
        record = make(pair)
        name = resource_name(record.id)
        pair.kernels["n1"].down(name)
        pair.kernels["n1"].remove_resource(name)
        pair.disks.activate(record)
        assert pair.kernels["n1"].resources[name].role == "Primary"
        assert name in pair.kernels["n1"].files

    def test_starts_alone_only_if_the_other_node_is_away(self, pair: Pair) -> None:
        record = make(pair)
        pair.wires.cut = True
        pair.kernels["n1"].connect(resource_name(record.id))
        with pytest.raises(Conflict, match="answers, but not through DRBD"):
            pair.disks.activate(record)
        pair.farther.away = True
        pair.disks.activate(record)

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda pair, name: pair.kernels["n1"].put(name, disk="Outdated"), "what it has missed from node 'n2'"),
            (lambda pair, name: pair.kernels["n1"].put(name, disk="Inconsistent", peer_disk="Outdated"), "is Inconsis"),
            (lambda pair, name: pair.kernels["n1"].put(name, split_brain=True), "split brain"),
            (lambda pair, name: pair.kernels["n2"].primary(name), "'n2' uses it"),
            (lambda pair, _: setattr(pair.kernels["n1"], "alive", False), "can't be read"),
        ],
    )
    def test_what_can_not_be_used_says_why(self, pair: Pair, spoil: Callable[[Pair, str], None], words: str) -> None:
        record = make(pair)
        spoil(pair, resource_name(record.id))
        assert words in pair.disks.available(record)

    def test_what_a_dead_node_may_have_written_alone_is_given_up_only_by_somebodys_word(self, pair: Pair) -> None:
        record, heedless = make(pair), [False]
        roles = Roles(
            store=pair.store,
            node="n1",
            legs=pair.legs["n1"],
            states=pair.kernels["n1"],
            reachable=lambda _: False,
            heedless=lambda: heedless[0],
            ahead=lambda disk: f"{disk.id} may lack something.",
        )
        assert roles.problem(record) == ""
        assert roles.takes_over(record) == f"{record.id} may lack something."
        heedless[0] = True
        assert roles.takes_over(record) == ""

    def test_failed_verification_blocks(self, pair: Pair) -> None:
        record = make(pair)
        with pair.store.change() as change:
            change.put(VerificationRecord(disk=record.id, failed=True, out_of_sync=8192))
        assert "8 KiB" in pair.disks.available(record)

    def test_what_the_kernel_found_blocks_before_the_cluster_has_stored_it(self, pair: Pair) -> None:
        record = make(pair)
        name = resource_name(record.id)
        pair.kernels["n1"].put(name, out_of_sync=8192)
        assert pair.store.get(VerificationRecord, record.id) is None
        assert "8 KiB" in pair.disks.available(record)
        with pytest.raises(Conflict, match="resync"):
            pair.disks.activate(record)
        assert pair.kernels["n1"].resources[name].role == "Secondary"

    def test_what_is_copied_just_now_is_not_what_a_verification_found(self, pair: Pair) -> None:
        record = make(pair)
        pair.kernels["n1"].put(
            resource_name(record.id), out_of_sync=8192, replication="SyncSource", peer_disk="Inconsistent"
        )
        assert pair.disks.available(record) == ""

    def test_another_node_has_no_leg(self, pair: Pair) -> None:
        record = msgspec.structs.replace(make(pair), nodes=("n2", "n3"))
        assert "n2 and n3 only" in pair.disks.available(record)


def test_backend_is_not_deleted_under_a_claim(pair: Pair) -> None:
    with pair.store.change() as change:
        change.put(
            ReplicaClaimRecord(disk="hd-x", backend="pool", minor=1, port=7789, nodes=("n1", "n2"), coordinator="n2")
        )
    with pytest.raises(Conflict, match="being made"):
        pair.storage.delete("pool")
