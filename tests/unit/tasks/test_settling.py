"""When what is left is settled: what keeps it waiting, and what does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from mcvirt.errors import Conflict
from mcvirt.types.task import TaskState
from mcvirtd.tasks import settling
from mcvirtd.tasks.settling import Settling
from mcvirtd.tasks.task import Task, working_for
from tests.unit.tasks.workshop import Workshop

SOON = 10.0


class Trail:
    def __init__(self) -> None:
        self.ended: list[str] = []

    def record(self, caller: object, operation: str, target: str, error: object, reference: str) -> None:
        self.ended.append(reference)


class World:
    """A process that finds what the last one left: *leave* writes it down. *hangs* are acts that do not end."""

    def __init__(self, directory: Path) -> None:
        self.shop = Workshop(directory, set())
        self.trail = Trail()
        self.caught_up = self.libvirt = True
        self.done: list[str] = []
        self.changed = threading.Condition()
        self.go_on = threading.Event()
        self.hanging = threading.Event()
        self.shop.journal.register("work", self._do)
        self.shop.journal.register("kernel", self._do, alone=True)
        self.settling = Settling(
            tasks=self.shop.tasks,
            audit=cast(Any, self.trail),
            caught_up=lambda: self.caught_up,
            libvirt_answers=lambda: self.libvirt,
        )

    def _do(self, name: str) -> None:
        if name == "hangs":
            self.hanging.set()
            assert self.go_on.wait(SOON)
        if name == "fails":
            raise Conflict(text="It can't be done yet.")
        with self.changed:
            self.done.append(name)
            self.changed.notify_all()

    def leave(self, name: str, act: str = "work") -> str:
        task = Task("thing.make", name, "bob", "n1")
        with working_for(task):
            self.shop.journal.add(0, "undo", act, {"name": name})
        return task.id

    def wait_done(self, holds: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, SOON), self.done


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(settling, "WAIT", SOON)
    made = World(tmp_path)
    yield made
    made.go_on.set()
    for thread in made.settling._threads.values():
        thread.join(SOON)
    made.shop.close()


@pytest.fixture
def hasty(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """One whose settling does not wait long for what hangs."""
    monkeypatch.setattr(settling, "WAIT", 0.2)
    return world


def test_what_hangs_keeps_nothing_else_waiting(hasty: World) -> None:
    world = hasty
    task = world.leave("hangs")
    world.leave("one")
    world.settling.settle_stuck()
    assert world.hanging.wait(SOON)
    world.wait_done(lambda: world.done == ["one"])
    migration = world.leave("migration")
    world.settling.settle_of({migration})
    world.wait_done(lambda: world.done == ["one", "migration"])
    world.leave("two")
    world.settling.settle_stuck()
    world.wait_done(lambda: world.done == ["one", "migration", "two"])
    assert task in world.shop.journal.due()
    world.go_on.set()
    world.wait_done(lambda: "hangs" in world.done)


def test_nothing_is_settled_twice_at_once(hasty: World) -> None:
    world = hasty
    task = world.leave("hangs")
    world.settling.settle_stuck()
    assert world.hanging.wait(SOON)
    assert world.shop.tasks.settle([task]) == []
    world.settling.settle_of({task})
    world.go_on.set()
    world.wait_done(lambda: "hangs" in world.done)
    world.settling._threads[task].join(SOON)
    world.settling.settle_stuck()
    assert world.done == ["hangs"] and world.shop.journal.due() == {}


@pytest.mark.parametrize("away", ["leader", "libvirt"])
def test_what_needs_only_the_kernel_waits_for_nobody(world: World, away: str) -> None:
    world.caught_up, world.libvirt = away != "leader", away != "libvirt"
    other = world.leave("needs more")
    world.leave("alone", "kernel")
    world.settling.settle_stuck()
    assert world.done == ["alone"] and list(world.shop.journal.due()) == [other]
    world.leave("again", "kernel")
    if away == "leader":
        world.settling.settle()
    world.settling.settle_stuck()
    assert world.done == ["alone", "again"]
    world.caught_up = world.libvirt = True
    world.settling.settle_stuck()
    assert world.done == ["alone", "again", "needs more"] and world.shop.journal.due() == {}


def test_what_could_not_be_done_is_tried_again_though_no_task_is_stuck_for_it(world: World) -> None:
    world.settling.settle()
    world.leave("left by a task that ended well")
    assert [task for task in world.shop.tasks.list(ended=False) if task.state is TaskState.STUCK] == []
    world.settling.settle_stuck()
    assert world.done == ["left by a task that ended well"]


def test_what_somebody_works_for_is_left_to_them(world: World) -> None:
    world.settling.settle()
    task = Task("thing.make", "web1", "bob", "n1")
    with working_for(task), world.shop.journal.transaction() as tx:
        tx.undo("work", name="mine")
        tx.undo("kernel", name="mine, too")
        world.settling.settle_stuck()
        assert world.done == []
        tx.keep()
