"""A migration that is to end, ends: whatever libvirt passes over, and whoever is gone for good."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from mcvirt.errors import DeadlinePassed, LibvirtFailed, LibvirtUnreachable, McvirtError, NodeUnreachable, TaskCancelled
from mcvirtd.hypervisor.moving import JobProgress, JobResult, Journey
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.migration import sending
from mcvirtd.migration.sending import Sending
from mcvirtd.migration.ticket import Ticket
from mcvirtd.tasks.task import Task, working_for

UUID = "6f0a2c1e-0000-4000-8000-000000000001"
WITHIN = 10.0


class Rig:
    """A hypervisor, a tunnel and another node, as the sending of web1 finds them. `end` lets libvirt's call fail."""

    def __init__(self) -> None:
        self.route: Any = None
        self.lost = threading.Event()
        self.asked_to_run = True
        self.begun = True
        self.ended = threading.Event()
        self.left_alone = False
        self.condition: Any = "running"
        self.has_job = False
        self.aborts_needed = 1
        self.aborts = 0
        self.cuts = 0
        self.cut_ends = False
        self.away = False
        self.members = {"n1", "n2"}
        self.asked = threading.Event()
        self.failures: list[McvirtError] = []
        self.looks = 0
        self.last_look = 0
        self.measured_at: list[int] = []
        self.limits: list[int] = []

    def end(self) -> None:
        self.ended.set()

    # the hypervisor

    def send(self, *_: Any) -> JobResult:
        self.left_alone = not self.ended.wait(WITHIN)
        raise LibvirtFailed(action="migrate web1", reason="it was ended.")

    def look(self, uuid: str) -> DomainState:
        if self.failures:
            raise self.failures.pop()
        return DomainState(uuid=uuid, name="web1", condition=self.condition, id=7)

    def job(self, _: str) -> JobProgress | None:
        self.measured_at.append(self.looks)
        return JobProgress(total=1, remaining=1) if self.has_job else None

    def set_max_downtime(self, _: str, milliseconds: int) -> None:
        self.limits.append(milliseconds)

    def abort_job(self, _: str) -> None:
        self.aborts += 1
        if self.aborts >= self.aborts_needed:
            self.end()

    # the tunnel

    def cut(self) -> None:
        self.cuts += 1
        if self.cut_ends:
            self.end()

    def release(self) -> None:
        self.end()

    # the other node

    def ask(self, node: str, *_: Any, **__: Any) -> msgspec.Raw:
        self.asked.set()
        raise NodeUnreachable(node=node, reason="it is said to be away.")

    def reachable(self, _: str) -> bool:
        self.looks += 1
        if self.looks == self.last_look:
            self.end()
        return not self.away

    def run(
        self, task: Task, deadline: int | None = None, broken: str = "", max_downtime: int | None = None
    ) -> McvirtError:
        ticket = Ticket(name="web1", uuid=UUID, source="n1", target="n2", online=True, copied=(), by="bob", begun=0)
        rig: Any = self
        made = Sending(
            ticket,
            hypervisor=rig,
            tunnel=rig,
            ask=self.ask,
            reachable=self.reachable,
            member=self.members.__contains__,
            deadline=deadline,
            broken=lambda: broken,
        )
        with working_for(task), pytest.raises(McvirtError) as caught:
            made.run(Journey(xml="<domain/>", max_downtime=max_downtime), 1)
        assert not self.left_alone, "nobody has ended it"
        return caught.value


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(sending, "_LOOK_EVERY", 0.01)
    made = Rig()
    yield made
    made.end()


@pytest.fixture
def task() -> Task:
    return Task("migration.migrate", "web1", "bob", "n1")


def test_cancelled_before_libvirt_has_a_job(rig: Rig, task: Task) -> None:
    """What it has no job for, libvirt does not abort, so it is asked until it does."""
    rig.aborts_needed = 5
    original = task.check
    first = iter([None])  # the step begins

    def check() -> None:
        if next(first, "later") is not None:
            task.cancel("bob")
        original()

    task.check = check  # type: ignore[method-assign]
    assert isinstance(rig.run(task), TaskCancelled)
    assert rig.aborts >= 5 and rig.cuts == 0


def test_what_libvirt_does_not_abort_loses_its_connections(
    rig: Rig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_ENDS_WITHIN", 0.05)
    rig.aborts_needed, rig.cut_ends = 10**6, True
    assert isinstance(rig.run(task, deadline=0), DeadlinePassed)
    # The thread that sends may take a moment to end, and libvirt is pressed for as long as it does.
    assert rig.cuts >= 1 and rig.aborts >= rig.cuts


def test_a_libvirt_that_does_not_answer_keeps_nothing_from_being_ended(rig: Rig, task: Task) -> None:
    rig.failures = [LibvirtUnreachable(node="n1", uri="test:", reason="it is away.")]
    assert isinstance(rig.run(task, deadline=0), DeadlinePassed)
    assert rig.aborts >= 1


def test_a_guest_that_stands_still_is_not_aborted(rig: Rig, task: Task) -> None:
    """In the last moment only the other node knows, and libvirt is left alone until that has been asked."""
    rig.condition = "paused"
    rig.away = True
    rig.lost.set()
    rig_ended = threading.Timer(0.3, rig.end)
    rig_ended.start()
    assert isinstance(rig.run(task), NodeUnreachable)
    rig_ended.join()
    assert rig.asked.is_set() and rig.aborts == 0


def test_a_guest_that_nobody_has_let_run_there_goes_on_here(rig: Rig, task: Task) -> None:
    """Although it stands still, and the other node can't be asked."""
    rig.condition = "paused"
    rig.asked_to_run = False
    rig.aborts_needed = 10**6
    rig.release = lambda: None  # type: ignore[method-assign]
    rig.lost.set()
    ends = threading.Timer(0.1, rig.end)
    ends.start()
    assert "libvirt on node 'n2' broke" in str(rig.run(task))
    ends.join()
    assert rig.aborts > 1 and not rig.asked.is_set()


def test_node_that_is_removed_in_the_last_moment_has_nothing(rig: Rig, task: Task) -> None:
    rig.condition = "paused"
    rig.away = True
    rig.lost.set()

    def remove() -> None:
        if rig.asked.wait(WITHIN):
            rig.members.discard("n2")

    remover = threading.Thread(target=remove)
    remover.start()
    assert isinstance(rig.run(task), NodeUnreachable)
    remover.join(WITHIN)
    assert rig.aborts == 0


def test_disks_that_must_not_go_there_any_more_end_it(rig: Rig, task: Task) -> None:
    rig.aborts_needed = 2
    assert str(rig.run(task, broken="the two sides have lost each other.")) == "The two sides have lost each other."
    assert rig.aborts >= 2


def test_libvirt_measures_now_and_then(rig: Rig, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_MEASURE_EVERY", 3600.0)
    rig.has_job, rig.last_look = True, 30
    assert isinstance(rig.run(task), LibvirtFailed)
    assert rig.looks >= 30 and rig.measured_at == [1]


def test_nothing_is_measured_before_something_is_sent(
    rig: Rig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_MEASURE_EVERY", 0.0)
    rig.has_job, rig.begun, rig.last_look = True, False, 10
    assert isinstance(rig.run(task, max_downtime=80), LibvirtFailed)
    assert rig.looks >= 10 and not rig.measured_at and not rig.limits


def test_the_downtime_is_limited_once_there_is_a_job(rig: Rig, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_MEASURE_EVERY", 3600.0)
    rig.last_look = 30

    def job(_: str) -> JobProgress | None:
        rig.measured_at.append(rig.looks)
        return JobProgress(total=1, remaining=1) if rig.looks >= 5 else None

    rig.job = job  # type: ignore[method-assign]
    assert isinstance(rig.run(task, max_downtime=80), LibvirtFailed)
    assert rig.limits == [80] and rig.measured_at == [1, 2, 3, 4, 5]


def test_without_a_limit_the_downtime_grows_only_as_long_as_the_guest_is_not_through(
    rig: Rig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_MEASURE_EVERY", 0.0)
    rig.last_look = 20

    def job(_: str) -> JobProgress | None:
        rig.measured_at.append(rig.looks)
        return JobProgress(total=1, remaining=1, round_=rig.looks // 5)

    rig.job = job  # type: ignore[method-assign]
    assert isinstance(rig.run(task), LibvirtFailed)
    assert rig.limits == [100, 200, 300]
