"""Emptying a node: who goes where, what is told beforehand, and what is remembered whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mcvirt.errors import BadArgument, Conflict, Failed, McvirtError, NodeUnreachable, TaskCancelled, VmLocked
from mcvirt.types.cluster import NodeInfo
from mcvirt.types.drain import Drain
from mcvirt.types.migration import Migration, MigrationCheck, MigrationPlan, Waiting
from mcvirt.types.task import TaskInfo
from mcvirt.types.vm import DiskDriver, PowerState, StorageType, VmRow
from mcvirtd.migration.draining import Draining
from mcvirtd.state.records import DiskRecord, DrainRecord, NodeRecord, VmRecord
from mcvirtd.tasks.task import Task, working_for
from tests.unit.vm.world import World

GIB = 1024**3
NODES = ("n1", "n2", "n3")


class Cluster:
    """Three nodes, n1 being this one; it moves machines by changing their records."""

    def __init__(self, world: World) -> None:
        self.store = world.store
        self.states: dict[str, PowerState] = {}
        self.free = dict.fromkeys(NODES, 8 * GIB)
        self.silent: set[str] = set()
        self.against: dict[tuple[str, str], str] = {}
        self.fails: dict[str, McvirtError] = {}
        self.meanwhile: Callable[[str], None] = lambda name: None
        self.asked: list[tuple[str, str, str, str, bool]] = []
        for name in NODES:
            self.put(NodeRecord(name=name, id=name))
        self.draining = Draining(
            world.ground,
            self,  # type: ignore[arg-type]
            rows=lambda: [
                VmRow(name=name, state=state, node=None, memory=0, cpu_count=1, disk_size=0)
                for name, state in self.states.items()
            ],
            nodes=lambda: [self.info(name) for name in NODES],
        )

    def put(self, record: Any) -> None:
        with self.store.change() as change:
            change.put(record)

    def info(self, name: str) -> NodeInfo:
        return NodeInfo(
            name=name,
            id=name,
            address=None,
            status="Unreachable" if name in self.silent else "Connected",
            version="",
            revision=0,
            cpu_count=1,
            cpu_percent=None,
            memory=16 * GIB,
            memory_used=16 * GIB - self.free[name],
            accelerator="",
            accelerator_reason="",
            libvirt="",
            vms_running=0,
            vms=0,
        )

    def vm(self, name: str, state: PowerState = PowerState.STOPPED, **fields: Any) -> None:
        values = {"node": "n1", "nodes": NODES, "memory": GIB, **fields}
        self.put(VmRecord(name=name, id=name, uuid=f"uuid-{name}", cpu_count=1, **values))
        self.states[name] = state

    def disk(self, vm: str) -> None:
        where = {"backend": "pool", "nodes": ("n1",), "driver": DiskDriver.VIRTIO, "storage_type": StorageType.LOCAL}
        self.put(DiskRecord(id=f"hd-{vm}", volume="v", size=1, vm=vm, slot=1, **where))  # type: ignore[arg-type]

    def run(
        self,
        node: str,
        operation: str,
        arguments: dict[str, Any],
        heard: Callable[[TaskInfo], None],
    ) -> msgspec.Raw:
        name, how = arguments["name"], msgspec.convert(arguments["how"], Migration)
        if operation == "migration.plan":
            text = self.against.get((name, how.node), "")
            plan = MigrationPlan(
                name=name,
                source=node,
                target=how.node,
                online=how.online,
                checks=(MigrationCheck(name="x", ok=not text, text=text),),
                steps=(),
                size=7,
            )
            return msgspec.Raw(msgspec.json.encode(plan))
        assert operation == "migration.migrate"
        self.asked.append((name, node, how.node, "online" if how.online else "off", how.copy_storage))
        self.meanwhile(name)
        if name in self.fails:
            raise self.fails[name]
        self.move(name, how.node)
        return msgspec.Raw(b"null")

    def move(self, name: str, node: str) -> None:
        with self.store.change() as change:
            change.edit(VmRecord, name, node=node)

    def remembered(self) -> set[str] | None:
        record = self.store.get(DrainRecord, "n1")
        return None if record is None else {each.name for each in record.machines}

    def targets(self, **fields: Any) -> dict[str, str]:
        return {move.name: move.target for move in self.draining.plan("n1", Drain(**fields)).moves}

    def reasons(self, **fields: Any) -> dict[str, str]:
        return {each.name: each.reason for each in self.draining.plan("n1", Drain(**fields)).staying}


@pytest.fixture
def cluster(world: World) -> Cluster:
    return Cluster(world)


def test_running_ones_go_online_where_there_is_room_for_all_of_them(cluster: Cluster) -> None:
    cluster.free = {"n1": 0, "n2": 5 * GIB, "n3": 4 * GIB}
    cluster.vm("small", PowerState.RUNNING, memory=2 * GIB)
    cluster.vm("large", PowerState.RUNNING, memory=4 * GIB)
    cluster.vm("medium", PowerState.RUNNING, memory=3 * GIB)
    cluster.vm("off", memory=100 * GIB)
    cluster.vm("elsewhere", PowerState.RUNNING, node="n2")
    plan = cluster.draining.plan("n1", Drain())
    assert [(move.name, move.target, move.online) for move in plan.moves] == [
        ("large", "n2", True),
        ("medium", "n3", True),
        ("off", "n2", False),
    ]
    assert plan.moves[0].size == 7
    assert [each.name for each in plan.staying] == ["small"]
    assert "node 'n2' would have 1 GiB left" in plan.staying[0].reason and "'n3' would" in plan.staying[0].reason


def test_other_nodes_are_tried_and_what_each_has_against_it_is_told(cluster: Cluster) -> None:
    cluster.vm("a")
    cluster.vm("b")
    cluster.vm("c", nodes=("n1",))
    cluster.vm("d", nodes=("n1", "n3"))
    cluster.against = {("a", "n2"): "No bridge on n2.", ("b", "n2"): "It is locked.", ("b", "n3"): "It is locked."}
    assert cluster.targets() == {"a": "n3", "d": "n3"}
    assert cluster.reasons() == {"b": "It is locked.", "c": "No other node may have it: the nodes that may are n1."}
    cluster.silent.add("n3")
    assert cluster.reasons()["d"] == "Node 'n3' does not answer."
    cluster.put(DrainRecord(node="n2"))
    assert cluster.targets() == {} and "Node 'n2' was emptied itself." in cluster.reasons()["a"]


def test_disks_of_one_node_go_along_only_when_that_is_wanted(cluster: Cluster) -> None:
    cluster.vm("a", PowerState.RUNNING, nodes=("n1",))
    cluster.disk("a")
    assert "--copy-storage" in cluster.reasons()["a"]
    assert cluster.targets(copy_storage=True) == {"a": "n2"}
    cluster.draining.drain("n1", Drain(copy_storage=True))
    assert cluster.asked == [("a", "n1", "n2", "online", True)]
    cluster.draining.drain("n1", Drain(back=True))  # as it has gone
    assert cluster.asked[1:] == [("a", "n2", "n1", "online", True)]


def test_what_waits_or_is_not_known_stays(cluster: Cluster) -> None:
    cluster.vm("a", PowerState.RUNNING, waiting=Waiting(node="n2"))
    cluster.vm("b", PowerState.UNKNOWN)
    reasons = cluster.reasons()
    assert "waits for its guest" in reasons["a"] and "not known whether it runs" in reasons["b"]


def test_nothing_is_done_while_one_of_them_can_not_go(cluster: Cluster) -> None:
    cluster.vm("a")
    cluster.vm("b", nodes=("n1",))
    with pytest.raises(Conflict, match=r"nothing was changed\. b: .*--as-far-as-possible"):
        cluster.draining.drain("n1", Drain())
    assert cluster.asked == [] and cluster.remembered() is None
    with pytest.raises(Failed, match=r"1 of 2 .* left node 'n1'\. b: ") as failed:
        cluster.draining.drain("n1", Drain(partly=True))
    assert list(failed.value.left) == ["b"] and cluster.remembered() == {"a"}
    with pytest.raises(Conflict):
        cluster.draining.drain("n1", Drain(partly=True))  # there is nothing that could go


def test_one_that_fails_stops_no_other_and_is_not_remembered(cluster: Cluster) -> None:
    for name in "abc":
        cluster.vm(name)
    cluster.fails["b"] = VmLocked(name="b")
    with pytest.raises(Failed, match=r"2 of 3 .* b: .*locked.*`mcvirt node drain n1` goes on\."):
        cluster.draining.drain("n1", Drain(at_once=2))
    assert cluster.remembered() == {"a", "c"}
    del cluster.fails["b"]
    report = cluster.draining.drain("n1", Drain())
    assert [move.name for move in report.moved] == ["b"] and report.remembered == ("a", "b", "c")
    assert "a, b, c" in cluster.draining.warnings()[0]


def test_one_of_which_nothing_is_known_is_remembered(cluster: Cluster) -> None:
    cluster.vm("a")
    cluster.fails["a"] = NodeUnreachable(node="n2", reason="x")
    with pytest.raises(Failed):
        cluster.draining.drain("n1", Drain())
    assert cluster.remembered() == {"a"}
    cluster.move("a", "n2")  # it went, after all
    cluster.fails = {}
    cluster.draining.drain("n1", Drain(back=True))
    assert cluster.remembered() is None and cluster.store.all(VmRecord)["a"].node == "n1"


def test_it_is_remembered_before_it_goes(cluster: Cluster) -> None:
    cluster.vm("a")
    seen = []
    cluster.meanwhile = lambda name: seen.append((name, cluster.remembered()))
    cluster.draining.drain("n1", Drain())
    assert seen == [("a", {"a"})]


def test_just_what_was_moved_comes_back(cluster: Cluster) -> None:
    for name in "abcd":
        cluster.vm(name)
    cluster.draining.drain("n1", Drain())
    cluster.vm("other", node="n2")
    cluster.move("a", "n3")
    cluster.move("b", "n1")
    cluster.vm("c", node="n2", memory=5)  # changed, and the same machine
    cluster.states["c"] = PowerState.RUNNING
    with cluster.store.change() as change:
        change.put(msgspec.structs.replace(cluster.store.all(VmRecord)["d"], uuid="another"))
    plan = cluster.draining.plan("n1", Drain(back=True))
    assert {(move.name, move.source, move.online) for move in plan.moves} == {("a", "n3", False), ("c", "n2", True)}
    assert set(plan.gone) == {"b", "d"}
    cluster.fails["c"] = VmLocked(name="c")
    with pytest.raises(Failed, match=r"1 of 2 .* came back to node 'n1'\. c: .*--return` goes on"):
        cluster.draining.drain("n1", Drain(back=True))
    assert cluster.remembered() == {"c"}
    cluster.fails = {}
    assert cluster.draining.drain("n1", Drain(back=True)).remembered == ()
    assert cluster.remembered() is None
    with pytest.raises(Conflict, match="not emptied"):
        cluster.draining.drain("n1", Drain(back=True))


def test_cancelled_it_says_what_was_moved_and_begins_no_other(cluster: Cluster) -> None:
    for name in "abc":
        cluster.vm(name)
    task = Task("drain.drain", "n1", "bob", "n1")
    cluster.fails["b"] = TaskCancelled(by=" by bob")
    cluster.meanwhile = lambda name: task.cancel("bob") if name == "b" else None
    with working_for(task), pytest.raises(TaskCancelled, match="cancelled by bob, after a had been moved;"):
        cluster.draining.drain("n1", Drain())
    assert [asked[0] for asked in cluster.asked] == ["a", "b"]
    assert cluster.remembered() == {"a"}


def test_after_a_death_it_is_said_what_is_left(cluster: Cluster) -> None:
    cluster.vm("a")
    cluster.vm("b")
    task = Task("drain.drain", "n1", "bob", "n1")
    with working_for(task):
        cluster.draining._tell(back=False)
    assert task.verdict is not None and not task.verdict[1]
    assert task.verdict[0] == "Left to be moved: a, b. `mcvirt node drain n1` goes on."


def test_two_that_are_emptied_at_the_same_time_do_not_choose_each_other(cluster: Cluster) -> None:
    cluster.vm("a")
    seen = []
    plan = cluster.draining._planner.plan
    cluster.draining._planner.plan = lambda how: (seen.append(cluster.remembered()), plan(how))[1]  # type: ignore[method-assign]
    cluster.draining.drain("n1", Drain())
    assert seen == [set()]


@pytest.mark.parametrize("fails", ["refused", "failed", "cancelled"])
def test_node_of_which_nothing_was_moved_is_as_before(cluster: Cluster, fails: str) -> None:
    cluster.vm("a", nodes=("n1",) if fails == "refused" else NODES)
    cluster.fails["a"] = VmLocked(name="a")
    task = Task("drain.drain", "n1", "bob", "n1")
    if fails == "cancelled":
        cluster.fails["a"] = TaskCancelled(by="")
        cluster.meanwhile = lambda name: task.cancel("bob")
    with working_for(task), pytest.raises(McvirtError):
        cluster.draining.drain("n1", Drain())
    assert cluster.remembered() is None and cluster.draining.warnings() == ()


def test_node_without_machines_counts_as_emptied(cluster: Cluster) -> None:
    assert cluster.draining.drain("n1", Drain()).moved == ()
    assert cluster.remembered() == set()
    cluster.draining.drain("n1", Drain(back=True))
    assert cluster.remembered() is None


def test_what_has_come_meanwhile_is_told(cluster: Cluster) -> None:
    cluster.vm("a")
    cluster.meanwhile = lambda name: cluster.vm("new")
    with pytest.raises(Failed, match=r"1 of 2 .* new: it has come here meanwhile"):
        cluster.draining.drain("n1", Drain())
    assert cluster.remembered() == {"a"}


def test_bad_words(cluster: Cluster) -> None:
    for bad in (Drain(at_once=0), Drain(at_once=9), Drain(bandwidth=0), Drain(bandwidth=2**20 - 1), Drain(deadline=-1)):
        with pytest.raises(BadArgument):
            cluster.draining.plan("n1", bad)
        with pytest.raises(BadArgument):
            cluster.draining.drain("n1", bad)
