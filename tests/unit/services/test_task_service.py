from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcvirt.errors import Conflict, NotFound
from mcvirtd.tasks import engine
from mcvirtd.tasks.task import Task, current_task, step
from tests.unit.services.world import World


class Busy(World):
    """A world where each user has a task at work until `go_on` is set."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.go_on = threading.Event()
        self.user("bob")
        self.user("ann")
        self.user("super", superuser=True)
        self.ids = {name: self.begin(name).id for name in ("bob", "ann", "root")}

    def begin(self, user: str) -> Task:
        started = threading.Event()

        def work() -> bytes:
            with step("waiting"):
                started.set()
                current_task().cancelled.wait(10) if not self.go_on.is_set() else None
                current_task().check()
            return b'"done"'

        task = self.tasks.start("vm.create", "web1", user, work, lambda *_: None)
        assert started.wait(10)
        return task

    def seen_by(self, user: str, **more: bool) -> set[str]:
        return {row["user"] for row in self.call(user, "task.list", **more)}


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Busy]:
    made = Busy(tmp_path)
    yield made
    made.close()


def test_one_sees_ones_own_tasks_and_superusers_see_all(busy: Busy) -> None:
    assert busy.seen_by("bob") == {"bob"}
    assert busy.seen_by("ann") == {"ann"}
    assert busy.seen_by("super") == busy.seen_by("root") == {"bob", "ann", "root"}


def test_anothers_task_is_as_unknown_as_one_that_is_not(busy: Busy) -> None:
    for operation in ("task.follow", "task.cancel"):
        answers = []
        for task in (busy.ids["ann"], busy.ids["root"], "00000000"):
            with pytest.raises(NotFound) as caught:
                busy.call("bob", operation, task=task)
            answers.append(str(caught.value).replace(task, "ID"))
        assert len(set(answers)) == 1
    assert busy.seen_by("super", ended=False) == {"bob", "ann", "root"}


def test_ones_own_task_is_followed_and_cancelled(busy: Busy) -> None:
    task = busy.ids["bob"]
    news = busy.call("bob", "task.follow", task=task, wait=0)
    assert (news["info"]["state"], news["info"]["steps"][0]["name"]) == ("RUNNING", "waiting")
    busy.call("bob", "task.cancel", task=task)
    news = busy.call("bob", "task.follow", task=task, seen=news["info"]["version"], wait=10)
    assert news["info"]["state"] == "CANCELLED"
    assert "by bob" in news["info"]["error"]["text"]
    assert busy.seen_by("bob", ended=False) == set()
    with pytest.raises(Conflict, match="over already"):
        busy.call("bob", "task.cancel", task=task)


def test_a_superuser_cancels_the_task_of_anybody(busy: Busy) -> None:
    busy.call("super", "task.cancel", task=busy.ids["bob"])
    news = busy.call("super", "task.follow", task=busy.ids["bob"], seen=1, wait=10)
    assert "by super" in news["info"]["error"]["text"]


@pytest.mark.parametrize("wait", [1e9, float("inf"), 31.0])
def test_nobody_waits_longer_than_the_longest(busy: Busy, monkeypatch: pytest.MonkeyPatch, wait: float) -> None:
    asked: list[float] = []
    monkeypatch.setattr(busy.tasks, "news", lambda *given: asked.append(given[2]) if len(given) == 3 else _mine(busy))
    with busy.as_("bob"):
        busy.task_service.follow(busy.ids["bob"], 0, wait)
    assert asked == [engine.LONGEST_WAIT]


def _mine(busy: Busy) -> object:
    found = busy.tasks.find(busy.ids["bob"])
    assert found is not None
    return found.news(-1, 0)


@pytest.mark.parametrize("wait", [0.0, -1.0, float("nan"), float("-inf")])
def test_a_wait_that_is_none_returns_at_once(busy: Busy, wait: float) -> None:
    begun = time.monotonic()
    with busy.as_("bob"):
        busy.task_service.follow(busy.ids["bob"], 10**9, wait)
    assert time.monotonic() - begun < 5
