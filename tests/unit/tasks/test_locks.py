from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mcvirt.errors import Busy, TaskCancelled
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import Task, working_for


class Holder:
    """A thread with a task of its own that holds objects until it is let go."""

    def __init__(self, locks: Locks, *objects: str, operation: str = "vm.create") -> None:
        self.task = Task(operation, "web1", "bob", "n1")
        self.holds, self.go_on = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self._locks, self._objects = locks, objects
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with working_for(self.task), self._locks.hold(*self._objects, within=10):
                self.holds.set()
                self.go_on.wait(10)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.go_on.set()
        self.thread.join(10)
        assert not self.thread.is_alive()


def in_task(work: Callable[[], Any]) -> Any:
    with working_for(Task("vm.delete", "web1", "ann", "n1")):
        return work()


def test_who_waits_too_long_is_told_for_whom() -> None:
    locks = Locks()
    holder = Holder(locks, "vm:web1")
    assert holder.holds.wait(10)

    def take() -> None:
        with locks.hold("vm:web1", within=0.05):
            pytest.fail("held twice")

    with pytest.raises(Busy) as caught:
        in_task(take)
    assert (caught.value.task, caught.value.operation) == (holder.task.id, "vm.create")
    assert "Virtual machine 'web1'" in str(caught.value)
    holder.end()
    assert holder.error is None
    assert locks.holder("vm:web1") is None


def test_different_objects_do_not_wait_for_each_other() -> None:
    locks = Locks()
    holder = Holder(locks, "vm:web1", "disk:a")
    assert holder.holds.wait(10)

    def take() -> None:
        with locks.hold("vm:web2", "disk:b", within=0):
            pass

    in_task(take)
    assert locks.holder("vm:web1") is holder.task
    holder.end()


def test_nothing_is_kept_of_a_set_that_could_not_be_had() -> None:
    locks = Locks()
    holder = Holder(locks, "vm:m")
    assert holder.holds.wait(10)

    def take() -> None:
        with locks.hold("vm:a", "vm:m", "vm:z", within=0.05):
            pytest.fail("held twice")

    with pytest.raises(Busy):
        in_task(take)
    assert locks.holder("vm:a") is None
    assert locks.holder("vm:z") is None
    holder.end()


@pytest.mark.parametrize("named", [("a", "b"), ("b", "a"), ("b", "a", "b")])
def test_objects_are_taken_in_one_order_whatever_order_they_are_named_in(named: tuple[str, ...]) -> None:
    locks = Locks()
    first = Holder(locks, "b")
    assert first.holds.wait(10)
    second = Holder(locks, *named)
    # It waits for b, and so must have a: in the other order, two that each have one would wait for ever.
    deadline, pause = time.monotonic() + 10, threading.Event()
    while locks.holder("a") is None and time.monotonic() < deadline:
        pause.wait(0.005)
    assert locks.holder("a") is second.task
    assert locks.holder("b") is first.task
    first.end()
    second.end()
    assert second.holds.is_set()


def test_a_failure_gives_everything_back() -> None:
    locks = Locks()

    def fail() -> None:
        with locks.hold("vm:web1", "disk:a"):
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        in_task(fail)
    assert locks.holder("vm:web1") is locks.holder("disk:a") is None


def test_the_next_one_goes_on_as_soon_as_it_is_free() -> None:
    locks = Locks()
    first = Holder(locks, "vm:web1")
    assert first.holds.wait(10)
    second = Holder(locks, "vm:web1")
    assert not second.holds.wait(0.05)
    begun = time.monotonic()
    first.end()
    assert second.holds.wait(10)
    assert time.monotonic() - begun < 2
    second.end()


def test_a_task_may_hold_an_object_several_times_over() -> None:
    locks = Locks()

    def nested() -> None:
        with locks.hold("vm:web1", "vm:web1"):
            with locks.hold("vm:web1", "disk:a", within=0):
                pass
            assert locks.holder("vm:web1") is not None
            assert locks.holder("disk:a") is None

    in_task(nested)
    assert locks.holder("vm:web1") is None


def test_cancelling_ends_the_waiting() -> None:
    locks = Locks()
    first = Holder(locks, "vm:web1")
    assert first.holds.wait(10)
    second = Holder(locks, "disk:a", "vm:web1")
    assert not second.holds.wait(0.05)
    second.task.cancel("ann")
    second.thread.join(5)
    assert isinstance(second.error, TaskCancelled)
    assert locks.holder("disk:a") is None
    first.end()
