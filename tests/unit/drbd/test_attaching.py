"""Sides of replicated hard drives that were given up, taken down or cut off, and are had in use again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from mcvirt.errors import (
    BadArgument,
    CommandFailed,
    Conflict,
    DeadlinePassed,
    Failed,
    McvirtError,
    NodeUnreachable,
    NotFound,
    ResyncGoesOn,
    VmNotFound,
)
from mcvirt.types.drbd import Attached
from mcvirtd.drbd import attaching
from mcvirtd.drbd.attaching import Attaching, failed_again
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.status import Event
from mcvirtd.state.records import DiskRecord, Replacement, ReplicaClaimRecord, VmRecord
from mcvirtd.tasks.task import Task, working_for
from tests.unit.drbd.test_disks import make
from tests.unit.drbd.world import Pair


class Errands:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []

    def run(self, node: str, operation: str, arguments: dict[str, Any], heard: Callable[..., None]) -> msgspec.Raw:
        del heard
        self.asked.append((node, operation, arguments))
        return msgspec.Raw(msgspec.json.encode(Attached(disk=arguments["disk"], nodes=(node,), copied=0)))


class Reader:
    """The states of a kernel, and the events that are put in *events*."""

    def __init__(self, pair: Pair) -> None:
        self._kernel = pair.kernels["n1"]
        self.events: list[Event] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    @contextmanager
    def follow(self, resource: str) -> Iterator[SimpleNamespace]:
        del resource
        yield SimpleNamespace(events=self.events)


class World:
    def __init__(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attaching, "LOOK_EVERY", 0.02)
        self.pair = pair
        with pair.store.change() as change:
            change.put(VmRecord(name="web1", id="vm-1", uuid="u", memory=1, cpu_count=1, nodes=("n1", "n2")))
        self.disk = make(pair, vm="web1", slot=1)
        self.name = resource_name(self.disk.id)
        self.kernels = pair.kernels
        self.reader, self.errands = Reader(pair), Errands()
        self.attaching = Attaching(
            store=pair.store,
            node="n1",
            legs=lambda node: pair.legs["n1"] if node == "n1" else pair.farther,  # type: ignore[return-value]
            reader=self.reader,  # type: ignore[arg-type]
            kernel=SimpleNamespace(progress=dict),
            locks=pair.locks,
            errands=self.errands,  # type: ignore[arg-type]
            meet_within=0.2,
        )

    def attach(self, node: str | None = None, slot: int | None = None) -> tuple[Attached, ...]:
        return self.attaching.of_machine("web1", node, slot)

    def ups(self) -> list[str]:
        return [node for node, kernel in self.kernels.items() if ("up", self.name) in kernel.calls]

    def forget_calls(self) -> None:
        for kernel in self.kernels.values():
            kernel.calls.clear()

    def spoil(self, node: str, **fields: object) -> None:
        with self.pair.wires.changed:
            self.kernels[node].put(self.name, **fields)
            self.pair.wires.settle()
        self.forget_calls()


@pytest.fixture
def world(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(pair, monkeypatch)


@pytest.mark.parametrize("node", ["n1", "n2"])
@pytest.mark.parametrize("fields", [{"disk": "Diskless"}, {"connection": "StandAlone"}])
def test_side_that_was_given_up_or_cut_off(world: World, node: str, fields: dict[str, str]) -> None:
    world.spoil(node, **fields)
    (done,) = world.attach()
    assert (done.disk, done.nodes) == (world.disk.id, (node,))
    assert world.ups() == [node]
    assert all(kernel.resources[world.name].both_good for kernel in world.kernels.values())


def test_both_sides_that_are_down_without_their_files(world: World) -> None:
    for kernel in world.kernels.values():
        kernel.down(world.name)
        kernel.remove_resource(world.name)
    world.forget_calls()
    (done,) = world.attach(slot=1)
    assert done.nodes == ("n1", "n2")
    assert all(world.name in kernel.files for kernel in world.kernels.values())
    assert world.kernels["n1"].resources[world.name].both_good


def test_one_side_alone_if_that_is_wanted(world: World) -> None:
    for node in ("n1", "n2"):
        world.spoil(node, connection="StandAlone")
    with pytest.raises(DeadlinePassed, match="goes on by itself"):
        world.attach("n1")
    assert world.ups() == ["n1"]
    (done,) = world.attach()
    assert done.nodes == ("n2",)


def test_the_only_side_there_is(world: World) -> None:
    with world.pair.store.change() as change:
        change.edit(DiskRecord, world.disk.id, nodes=("n1",))
    world.spoil("n1", disk="Diskless", connection="StandAlone")
    world.pair.wires.cut = True
    (done,) = world.attach()
    assert done.nodes == ("n1",)
    world.spoil("n1", connection="StandAlone")
    with pytest.raises(Conflict, match="no side of it is down"):
        world.attach()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda world: None, "no side of it is down, without its disk or cut off: on node 'n1' it is Secondary"),
        (lambda world: world.spoil("n2", connection="StandAlone", split_brain=True), "split brain"),
        (lambda world: world.spoil("n2", disk="Diskless") or deleting(world), "it is being deleted"),
        (lambda world: world.spoil("n2", disk="Diskless") or lacking(world), "node 'n2': Node 'n2' can't replicate"),
        (lambda world: world.spoil("n2", disk="Diskless") or moving(world), "being moved from node 'n2' to node 'n3'"),
    ],
)
def test_refused_and_nothing_touched(world: World, spoil: Callable[[World], None], words: str) -> None:
    spoil(world)
    world.forget_calls()
    with pytest.raises(Conflict, match=words):
        world.attach()
    assert world.ups() == []


def deleting(world: World) -> None:
    with world.pair.store.change() as change:
        change.edit(DiskRecord, world.disk.id, deleting=True)


def moving(world: World) -> None:
    with world.pair.store.change() as change:
        replacement = Replacement(source="n2", secret="s", by="ada")
        change.put(
            ReplicaClaimRecord(
                disk=world.disk.id,
                backend=world.disk.backend,
                minor=9,
                port=7799,
                nodes=("n1", "n3"),
                coordinator="n1",
                replacement=replacement,
            )
        )


def lacking(world: World) -> None:
    world.kernels["n2"].lacks = ["drbd-utils is not installed."]


def test_not_while_the_other_node_is_away(world: World) -> None:
    world.spoil("n1", disk="Diskless")
    world.pair.farther.away = True
    with pytest.raises(NodeUnreachable):
        world.attach()
    assert world.ups() == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("web9", None, None), VmNotFound),
        (("web1", "n3", None), BadArgument),
        (("web1", None, 2), NotFound),
    ],
)
def test_what_is_not_there(world: World, arguments: tuple[Any, ...], error: type[McvirtError]) -> None:
    with pytest.raises(error):
        world.attaching.of_machine(*arguments)


def test_storage_that_fails_still(world: World) -> None:
    world.spoil("n2", disk="Diskless")
    world.kernels["n2"].fail_next("up", lambda: None, done=True)
    world.kernels["n2"].fail_next("up", CommandFailed(program="drbdadm", status=20, output="(104) Error reading"))
    world.reader.events += [peer("Diskless"), peer("Negotiating"), peer("Inconsistent"), peer("Failed")]
    world.pair.wires.cut = True
    with pytest.raises(Failed, match="backend 'pool' still fails on that node"):
        world.attach()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CommandFailed(program="drbdadm", status=20, output="(104) Error reading"), "on node 'n2': .*Error reading"),
        (NotFound(kind="volume", name="x-drbd-raw", hint=""), "on node 'n2': .*x-drbd-raw"),
    ],
)
def test_who_can_not_is_named(world: World, error: McvirtError, words: str) -> None:
    world.spoil("n2", disk="Diskless")
    world.kernels["n2"].fail_next("up", error)
    with pytest.raises(Failed, match=words):
        world.attach()


def peer(disk: str) -> Event:
    return Event(verb="change", kind="peer-device", fields={"peer-disk": disk})


@pytest.mark.parametrize(
    ("words", "again"),
    [
        ([], False),
        (["Diskless"], False),
        (["Diskless", "Attaching", "Diskless"], False),
        (["Attaching", "Negotiating", "UpToDate"], False),
        (["Negotiating", "Inconsistent", "Failed", "Diskless"], True),
    ],
)
def test_a_disk_that_is_given_up_again(words: Sequence[str], again: bool) -> None:
    assert failed_again([peer(word) for word in words], "peer-device", "peer-disk") is again


def test_who_cancels_ends_the_waiting_only(world: World) -> None:
    world.spoil("n2", disk="Diskless")
    world.pair.wires.cut = True
    task = Task("drbd.attach", "web1", "root", "n1")
    world.kernels["n2"].fail_next("up", lambda: task.cancel("ada"), done=True)
    with working_for(task), pytest.raises(ResyncGoesOn, match="by ada"):
        world.attach()


def test_a_node_that_does_not_have_it_asks_one_that_does(world: World) -> None:
    with world.pair.store.change() as change:
        change.edit(DiskRecord, world.disk.id, nodes=("n2", "n3"))
    world.attach("n2")
    asked = {"disk": world.disk.id, "at": "n2", "node": "n2"}
    assert world.errands.asked == [("n2", "drbd.attach_disk", asked)]
    with pytest.raises(Conflict, match="has no leg on node 'n1'"):
        world.attaching.of_disk(world.disk.id, "n1", None)
