"""Removing a node that is gone for good, which takes with it what only its own records say of machines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mcvirt.errors import Refused
from mcvirt.types.vm import DiskDriver, PowerState, StorageType
from mcvirtd.cluster.leaving import Leaving
from mcvirtd.state.records import DiskRecord, NodeRecord, VmRecord
from mcvirtd.state.store import Store


class World:
    """Node n1, of which n2, with web1 and its disk, is removed; *found* is what was heard of its domain."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "state.db")
        self.found: dict[str, PowerState] = {}
        with self.store.change() as change:
            for name in ("n1", "n2", "n3"):
                change.put(NodeRecord(name=name, id=name))
            change.put(VmRecord(name="web1", id="vm-1", uuid="u-1", memory=1, cpu_count=1, nodes=("n2",), node="n2"))
        replica = SimpleNamespace(leader="n1")
        membership = SimpleNamespace(store=self.store, node="n1", replicator=SimpleNamespace(replica=replica))
        peers = SimpleNamespace(status=lambda node: SimpleNamespace(reachable=node == "n3", reason=""))
        self.leaving = Leaving(membership=cast(Any, membership), peers=cast(Any, peers), found_at=self._found)

    def _found(self, uuid: str) -> Mapping[str, PowerState]:
        assert uuid == "u-1"
        return self.found

    def with_disk(self, *nodes: str) -> None:
        disk = DiskRecord(
            id="hd-1",
            volume="v",
            backend="pool",
            size=1 << 20,
            driver=DiskDriver.VIRTIO,
            storage_type=StorageType.LOCAL,
            nodes=nodes,
            vm="web1",
            slot=1,
        )
        with self.store.change() as change:
            change.put(disk)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


@pytest.mark.parametrize("state", [PowerState.RUNNING, PowerState.PAUSED])
@pytest.mark.parametrize("where", ["n1", "n3"])
def test_a_machine_that_has_come_elsewhere_is_taken_over_first(world: World, state: PowerState, where: str) -> None:
    world.with_disk("n2", "n3")
    world.found = {where: state}
    with pytest.raises(Refused, match=f"runs on node '{where}'.*`mcvirt failover web1 --yes-node-is-off n2`"):
        world.leaving.remove("n2", force=True)
    assert world.store.get(NodeRecord, "n2") is not None


def test_one_that_has_ended_there_keeps_what_may_be_its_only_disk(world: World) -> None:
    world.found = {"n1": PowerState.STOPPED}
    world.with_disk("n2")
    with pytest.raises(Refused, match="has come to node 'n1'"):
        world.leaving.remove("n2", force=True)
    assert world.store.get(DiskRecord, "hd-1") is not None


def test_one_whose_disks_are_elsewhere_can_be_registered_afterwards(world: World) -> None:
    world.found = {"n1": PowerState.STOPPED}
    world.with_disk("n1", "n2")
    world.leaving.remove("n2", force=True)
    vm = world.store.get(VmRecord, "web1")
    assert vm is not None and vm.node is None


def test_what_is_nowhere_else_goes_with_the_node(world: World) -> None:
    world.with_disk("n2")
    world.leaving.remove("n2", force=True)
    assert (world.store.get(VmRecord, "web1"), world.store.get(DiskRecord, "hd-1")) == (None, None)
