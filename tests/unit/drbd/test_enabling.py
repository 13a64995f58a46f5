"""Enabling DRBD over several nodes, and what is shown of hard drives that are replicated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from mcvirt.errors import DrbdNotReady, FileFailed, McvirtError, NodeUnreachable
from mcvirt.types.cluster import NodeInfo
from mcvirt.types.drbd import DrbdInfo, ResourceState
from mcvirt.types.peer import DrbdOutlook
from mcvirtd.cluster.live import Known
from mcvirtd.drbd.enabling import Enabling, on_each
from mcvirtd.drbd.view import ReplicaView
from mcvirtd.state.records import DiskRecord, DrbdRecord, NodeRecord, VerificationRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.task import Task, working_for
from mcvirtd.tasks.transaction import Journal
from tests.unit.drbd.test_here import DISK, NAME, World

GOOD = ResourceState(
    name=NAME,
    minor=4,
    role="Primary",
    peer_role="Secondary",
    connection="Connected",
    replication="Established",
    disk="UpToDate",
    peer_disk="UpToDate",
)


def in_task() -> AbstractContextManager[object]:
    return working_for(Task("drbd.enable", "", "root", "n1"))


class Node:
    def __init__(self) -> None:
        self.said = DrbdOutlook()
        self.fails: McvirtError | None = None
        self.aside = ""
        self.prepared = False

    def outlook(self) -> DrbdOutlook:
        if self.fails is not None and isinstance(self.fails, NodeUnreachable):
            raise self.fails
        return self.said

    def prepare(self) -> str:
        self.prepared = True
        if self.fails is not None:
            raise self.fails
        return self.aside

    def unprepare(self) -> None:
        self.prepared = False


class Cluster:
    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "state.db")
        self.nodes = {"n1": Node(), "n2": Node(), "n3": Node()}
        with self.store.change() as change:
            for name in self.nodes:
                change.put(NodeRecord(name=name, id=name))
        self.enabling = Enabling(store=self.store, journal=Journal(self.store), on=self.nodes.__getitem__)

    def enabled(self) -> bool:
        record = self.store.get(DrbdRecord, "drbd")
        return record is not None and record.enabled

    def prepared(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.prepared]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.store.close()


def test_all_nodes_are_made_ready_and_then_it_is_so(cluster: Cluster) -> None:
    cluster.nodes["n2"].aside = "/etc/drbd.d/x"
    cluster.nodes["n3"].said = DrbdOutlook(warnings=("LVM looks.",))
    with in_task():
        done = cluster.enabling.enable()
    assert (done.nodes, done.kept_aside, done.warnings) == (
        ("n1", "n2", "n3"),
        {"n2": "/etc/drbd.d/x"},
        {"n3": ("LVM looks.",)},
    )
    assert cluster.enabled()
    assert cluster.prepared() == ["n1", "n2", "n3"]


def test_everything_that_is_missing_on_any_node_is_said_at_once_and_nothing_is_changed(cluster: Cluster) -> None:
    cluster.nodes["n1"].said = DrbdOutlook(faults=("no utils.", "no module."))
    cluster.nodes["n3"].fails = NodeUnreachable(node="n3", reason="off.")
    with in_task(), pytest.raises(DrbdNotReady) as refused:
        cluster.enabling.enable()
    text = str(refused.value)
    assert "Node 'n1': no utils. Node 'n1': no module." in text
    assert "Node 'n3': it can't be asked: Node 'n3' can't be reached: off." in text
    assert not cluster.enabled()
    assert cluster.prepared() == []


def test_a_node_that_fails_leaves_no_node_prepared(cluster: Cluster) -> None:
    cluster.nodes["n2"].fails = FileFailed(action="write", path="/etc/drbd.d/x", reason="Read-only file system.")
    with in_task(), pytest.raises(FileFailed):
        cluster.enabling.enable()
    assert cluster.prepared() == []
    assert not cluster.enabled()


def test_enabling_again_repairs_and_undoes_nothing(cluster: Cluster) -> None:
    with in_task():
        cluster.enabling.enable()
    cluster.nodes["n2"].fails = FileFailed(action="write", path="x", reason="no.")
    with in_task(), pytest.raises(FileFailed):
        cluster.enabling.enable()
    assert cluster.prepared() == ["n1", "n2", "n3"]
    cluster.nodes["n2"].fails = None
    revision = cluster.store.revision
    with in_task():
        cluster.enabling.enable()
    assert cluster.store.revision == revision


def test_other_nodes_are_asked_over_the_wire(cluster: Cluster) -> None:
    asked: list[Any] = []

    def call(node: str, contract: str, operation: str, arguments: dict[str, Any], within: float) -> bytes:
        asked.append((node, contract, operation, arguments))
        return {"drbd_outlook": b'{"faults":["x"]}', "drbd_prepare": b'"/aside"', "drbd_unprepare": b"null"}[operation]

    on = on_each(cluster.nodes["n1"], "n1", call)  # type: ignore[arg-type]
    assert on("n1") is cluster.nodes["n1"]
    assert on("n2").outlook().faults == ("x",)
    assert on("n2").prepare() == "/aside"
    on("n2").unprepare()
    assert [each[2] for each in asked] == ["drbd_outlook", "drbd_prepare", "drbd_unprepare"]


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.here.stop()
    made.store.close()


def view(world: World, here: dict[str, ResourceState], there: Known) -> DrbdInfo:
    made = ReplicaView(store=world.store, node="n1", here=here.get, live=lambda node: there)
    (info,) = made.all()
    return info


def known(state: ResourceState | None, **fields: Any) -> Known:
    return Known(resources={} if state is None else {NAME: state}, silent=False, **fields)


def test_both_sides_are_shown_and_nothing_is_wrong(world: World) -> None:
    info = view(world, {NAME: GOOD}, known(GOOD))
    assert (info.disk, info.resource, info.minor, info.port) == (DISK, NAME, 4, 7792)
    assert [leg.node for leg in info.legs] == ["n1", "n2"]
    assert info.warnings() == []


def test_what_is_wrong_is_said(world: World) -> None:
    split = msgspec.structs.replace(
        GOOD, connection="StandAlone", replication="Off", split_brain=True, out_of_sync=8192
    )
    with world.store.change() as change:
        change.put(VerificationRecord(disk=DISK, failed=True, out_of_sync=4096))
    info = view(world, {NAME: split}, known(msgspec.structs.replace(split, disk="Inconsistent")))
    text = " ".join(info.warnings())
    assert "not passed its last verification" in text
    assert "have split" in text and "Nothing was discarded" in text
    assert "its data on node 'n2' is Inconsistent" in text
    assert info.out_of_sync == 8192
    cut = msgspec.structs.replace(GOOD, connection="Connecting", replication="Off")
    assert "not connected" in " ".join(view(world, {NAME: cut}, known(cut)).warnings())


def test_a_side_that_is_down_is_told_from_one_of_which_nothing_is_known(world: World) -> None:
    node = cast(NodeInfo, object())  # something is known of it
    assert "node 'n2' does not have its DRBD resource" in " ".join(
        view(world, {NAME: GOOD}, known(None, info=node)).warnings()
    )
    assert view(world, {NAME: GOOD}, known(None)).legs[1].known is False
    late = view(world, {NAME: GOOD}, known(GOOD, age=7))
    assert late.legs[1].age == 7


def test_drives_that_are_not_replicated_are_not_there(world: World) -> None:
    disk = world.store.get(DiskRecord, DISK)
    assert disk is not None
    made = ReplicaView(store=world.store, node="n1", here={}.get, live=lambda node: Known())
    assert made.info(msgspec.structs.replace(disk, replica=None)) is None
    assert made.of(msgspec.structs.replace(disk, replica=None)) == ()
