from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from mcvirt.errors import (
    Conflict,
    InternalError,
    McvirtError,
    NodeUnreachable,
    NotFound,
    StateNotWritable,
    TaskCancelled,
    UndoIncomplete,
)
from mcvirt.types.task import TaskNews, TaskState
from mcvirtd.tasks.task import Task, current_task, step
from tests.unit.tasks.workshop import Workshop


def end_of(shop: Workshop, task: Task | str) -> TaskNews:
    task_id = task if isinstance(task, str) else task.id
    news = shop.tasks.news(task_id, wait=10)
    while news.info.finished is None:
        news = shop.tasks.news(task_id, news.info.version, 10)
    return news


def fails_with(error: BaseException) -> Callable[[], bytes]:
    def work() -> bytes:
        raise error

    return work


def test_the_result_is_kept_with_the_steps(shop: Workshop) -> None:
    def work() -> bytes:
        with step("one"):
            pass
        with step("two", total=100, unit="B") as progress:
            progress.at(40)
        return b'{"x":1}'

    news = end_of(shop, shop.start(work))
    assert (news.info.state, bytes(news.result), news.info.error) == (TaskState.DONE, b'{"x":1}', None)
    assert [(each.name, each.done, each.total, each.finished) for each in news.info.steps] == [
        ("one", 0, None, True),
        ("two", 100, 100, True),
    ]
    assert (news.info.user, news.info.node, news.info.target) == ("bob", "n1", "web1")


def test_an_error_is_kept_and_the_step_that_it_came_in_is_not_finished(shop: Workshop) -> None:
    def work() -> bytes:
        with step("one", total=100) as progress:
            progress.at(40)
            raise Conflict(text="It can't be.")

    told: list[McvirtError | None] = []
    news = end_of(shop, shop.start(work, lambda task, error: told.append(error)))
    assert news.info.state is TaskState.FAILED
    assert news.info.error is not None
    assert news.info.error["text"] == "It can't be."
    assert [(each.done, each.finished) for each in news.info.steps] == [(40, False)]
    assert [type(error) for error in told] == [Conflict]


@pytest.mark.parametrize("defect", [ValueError("the inside"), SystemExit(1), KeyboardInterrupt()])
def test_a_defect_is_hidden_and_the_log_has_it(
    shop: Workshop, caplog: pytest.LogCaptureFixture, defect: BaseException
) -> None:
    told: list[McvirtError | None] = []
    task = shop.start(fails_with(defect), lambda task, error: told.append(error))
    news = end_of(shop, task)
    assert news.info.state is TaskState.FAILED
    assert news.info.error is not None
    assert news.info.error["name"] == "InternalError"
    assert news.info.error["fields"]["reference"] == task.id
    assert "the inside" not in str(news.info.error)
    assert task.id in caplog.text
    assert type(defect).__name__ in caplog.text
    assert [type(error) for error in told] == [InternalError]


def test_an_error_that_json_has_no_form_for_ends_the_task_all_the_same(shop: Workshop) -> None:
    news = end_of(shop, shop.start(fails_with(Conflict(text="odd", thing=object(), path={1: {2}}))))
    assert news.info.error is not None
    assert news.info.error["fields"]["text"] == "odd"


def test_the_end_is_stored_and_audited_before_it_is_told(shop: Workshop) -> None:
    events: list[str] = []
    save, hold = shop.tasks._save, threading.Event()

    def slow(news: TaskNews) -> None:
        assert hold.wait(10)
        save(news)
        events.append("stored")

    shop.tasks._save = slow  # type: ignore[method-assign]
    task = shop.start(lambda: b"1", lambda task, error: events.append("audited"))
    assert shop.tasks.news(task.id, 0, 0.1).info.state is TaskState.RUNNING
    hold.set()
    end_of(shop, task)
    assert events == ["audited", "stored"]


def test_what_follows_a_task_can_fail_and_changes_nothing(shop: Workshop) -> None:
    def fail(task: Task, error: McvirtError | None) -> None:
        raise ValueError("a defect")

    assert end_of(shop, shop.start(lambda: b"1", fail)).info.state is TaskState.DONE


def test_work_runs_as_its_task(shop: Workshop) -> None:
    seen: list[Task] = []

    def work() -> bytes:
        seen.append(current_task())
        return b"1"

    task = shop.start(work)
    end_of(shop, task)
    assert seen == [task]


# --- following ----------------------------------------------------------------------------------------------------


def test_followers_hear_of_each_change_and_versions_only_grow(shop: Workshop) -> None:
    go_on = threading.Event()

    def work() -> bytes:
        with step("waiting"):
            assert go_on.wait(10)
        return b"1"

    task = shop.start(work)
    news = shop.tasks.news(task.id, 0, 10)
    assert [each.name for each in news.info.steps] == ["waiting"]
    begun = time.monotonic()
    threading.Timer(0.1, go_on.set).start()
    later = shop.tasks.news(task.id, news.info.version, 10)
    assert later.info.version > news.info.version
    assert time.monotonic() - begun < 5
    end = end_of(shop, task)
    again = shop.tasks.news(task.id, end.info.version, 10)
    assert again.info == end.info
    assert time.monotonic() - begun < 5


def test_whether_a_task_has_failed_is_known_once_it_is_over(shop: Workshop) -> None:
    go_on, works = threading.Event(), threading.Event()

    def wait() -> bytes:
        works.set()
        assert go_on.wait(10)
        raise Conflict(text="It is in use.")

    task = shop.start(wait)
    assert works.wait(10) and shop.tasks.failed(task.id) is None
    go_on.set()
    end_of(shop, task)
    assert shop.tasks.failed(task.id) is True
    good = shop.start(lambda: b"1")
    end_of(shop, good)
    assert shop.tasks.failed(good.id) is False


def test_a_task_that_is_none_is_not_found(shop: Workshop) -> None:
    for ask in (shop.tasks.news, lambda name: shop.tasks.cancel(name, "bob")):
        with pytest.raises(NotFound, match="no task called 'nope'"):
            ask("nope")


def test_tasks_are_listed_with_those_that_are_over_or_without(shop: Workshop) -> None:
    go_on, works = threading.Event(), threading.Event()

    def wait() -> bytes:
        works.set()
        assert go_on.wait(10)
        return b"1"

    over = [shop.start(lambda: b"1") for _ in range(3)]
    for task in over:
        end_of(shop, task)
    running = shop.start(wait)
    assert works.wait(10)
    assert [info.id for info in shop.tasks.list()] == [*(task.id for task in over), running.id]
    assert [info.id for info in shop.tasks.list(ended=False)] == [running.id]
    go_on.set()
    end_of(shop, running)
    assert shop.tasks.list(ended=False) == []


# --- cancelling ---------------------------------------------------------------------------------------------------


def test_cancelling_unwinds_and_is_told_as_such(shop: Workshop) -> None:
    at_work = threading.Event()

    def work() -> bytes:
        with shop.journal.transaction() as tx:
            tx.undo("remove", name="a")
            shop.make("a")
            with step("copying", total=100) as progress:
                at_work.set()
                current_task().cancelled.wait(10)
                progress.at(1)
            tx.keep()
        return b"1"

    task = shop.start(work)
    assert at_work.wait(10)
    shop.tasks.cancel(task.id, "ann")
    news = end_of(shop, task)
    assert news.info.state is TaskState.CANCELLED
    assert news.info.error is not None
    assert news.info.error["text"] == "The task was cancelled by ann; what it had begun was undone."
    assert shop.things == set()
    with pytest.raises(Conflict, match=r"over already \(CANCELLED\)"):
        shop.tasks.cancel(task.id, "ann")


def test_a_shielded_part_does_not_hear_it(shop: Workshop) -> None:
    task = Task("op", "x", "bob", "n1")
    task.cancel("ann")
    with task.shielded(), task.shielded():
        task.check()
    with pytest.raises(TaskCancelled):
        task.check()
    with pytest.raises(TaskCancelled), task.step("next"):
        pytest.fail("began a step")


# --- what remains -------------------------------------------------------------------------------------------------


def leaves_something(shop: Workshop) -> Callable[[], bytes]:
    def work() -> bytes:
        with shop.journal.transaction() as tx:
            tx.undo("remove", name="a")
            shop.make("a")
            raise Conflict(text="The first reason.")

    return work


def test_what_could_not_be_undone_is_stuck_and_settled_later(shop: Workshop) -> None:
    shop.stuck = {"a"}
    task = shop.start(leaves_something(shop))
    info = end_of(shop, task).info
    assert (info.state, info.remains) == (TaskState.STUCK, "remove: a is stuck.")
    assert info.error is not None
    assert info.error["name"] == UndoIncomplete.__name__
    assert [each.id for each in shop.tasks.list(ended=False)] == [task.id]
    (info,) = shop.tasks.settle()
    assert (info.state, info.remains) == (TaskState.STUCK, "remove: a is stuck.")
    shop.stuck = set()
    (info,) = shop.tasks.settle()
    assert (info.state, info.remains) == (TaskState.FAILED, "")
    assert info.error is not None
    assert "The first reason." in info.error["text"]
    assert "undone since" in info.error["text"]
    assert (shop.things, shop.due(), shop.tasks.settle()) == (set(), [], [])
    assert shop.tasks.news(task.id).info == info


def test_work_that_catches_the_error_is_stuck_all_the_same(shop: Workshop) -> None:
    shop.stuck = {"a"}

    def work() -> bytes:
        try:
            leaves_something(shop)()
        except UndoIncomplete:
            raise Conflict(text="Something else.") from None
        return b"1"

    info = end_of(shop, shop.start(work)).info
    assert (info.state, info.remains) == (TaskState.STUCK, "remove")


def test_settling_leaves_alone_what_is_at_work(shop: Workshop) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def work() -> bytes:
        with shop.journal.transaction() as tx:
            tx.undo("remove", name="a")
            shop.make("a")
            at_work.set()
            assert go_on.wait(10)
            tx.keep()
        return b"1"

    task = shop.start(work)
    assert at_work.wait(10)
    assert shop.tasks.settle() == []
    go_on.set()
    assert end_of(shop, task).info.state is TaskState.DONE
    assert shop.things == {"a"}


def test_settling_leaves_alone_short_operations_that_are_at_work(shop: Workshop) -> None:
    with shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        shop.make("a")
        assert shop.tasks.settle() == []
        tx.keep()
    assert shop.things == {"a"}


def test_what_a_short_operation_left_is_settled_or_shown(shop: Workshop) -> None:
    shop.stuck = {"a"}
    with pytest.raises(UndoIncomplete):
        leaves_something(shop)()
    (info,) = shop.tasks.settle()
    assert (info.state, info.remains) == (TaskState.STUCK, "remove: a is stuck.")
    assert [each.id for each in shop.tasks.list(ended=False)] == [info.id]
    shop.stuck = set()
    (info,) = shop.tasks.settle()
    assert info.state is TaskState.FAILED
    assert (shop.things, shop.due()) == (set(), [])


# --- a disk that is full ------------------------------------------------------------------------------------------


def full(*_: object) -> None:
    raise StateNotWritable(path="x", reason="full.")


def test_a_task_that_can_not_be_written_down_is_not_begun(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shop.store, "execute", full)
        with pytest.raises(StateNotWritable):
            shop.start(lambda: pytest.fail("began"))
    assert shop.tasks.list() == []


def test_an_end_that_can_not_be_stored_is_known_until_it_can(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[McvirtError | None] = []
    with monkeypatch.context() as patch:
        patch.setattr(shop.tasks, "_save", full)
        task = shop.start(lambda: b'"done"', lambda task, error: told.append(error))
        assert end_of(shop, task).info.state is TaskState.DONE
    assert told == [None]
    assert shop.tasks.list(ended=False) == []
    with pytest.raises(Conflict, match="over already"):
        shop.tasks.cancel(task.id, "bob")
    assert shop.tasks.settle() == []
    assert shop.tasks.find(task.id) is None
    assert bytes(shop.tasks.news(task.id).result) == b'"done"'


# --- keeping and closing ------------------------------------------------------------------------------------------


def test_old_tasks_are_forgotten_but_not_those_that_are_stuck(shop: Workshop) -> None:
    shop.stuck = {"a"}
    stuck, done, new = shop.start(leaves_something(shop)), shop.start(lambda: b"1"), shop.start(lambda: b"1")
    for task in (stuck, done, new):
        end_of(shop, task)
    shop.store.execute("UPDATE task SET started = 1 WHERE id <> ?", (new.id,))
    shop.tasks.prune()
    assert {info.id for info in shop.tasks.list()} == {stuck.id, new.id}
    shop.stuck = set()


def test_closing_cancels_what_is_at_work_and_begins_nothing_new(shop: Workshop) -> None:
    at_work = threading.Event()

    def work() -> bytes:
        with shop.journal.transaction() as tx:
            tx.undo("remove", name="a")
            shop.make("a")
            at_work.set()
            current_task().cancelled.wait(10)
            current_task().check()
            tx.keep()
        return b"1"

    task = shop.start(work)
    assert at_work.wait(10)
    shop.tasks.close(10)
    info = shop.tasks.news(task.id).info
    assert info.state is TaskState.CANCELLED
    assert "the end of mcvirtd" in str(info.error)
    assert (shop.things, shop.due()) == (set(), [])
    with pytest.raises(NodeUnreachable, match="stopping"):
        shop.start(lambda: b"1")


def test_closing_does_not_wait_for_ever(shop: Workshop) -> None:
    deaf = threading.Event()
    task = shop.start(lambda: b"1" if deaf.wait(20) else b"2")
    begun = time.monotonic()
    shop.tasks.close(0.1)
    assert time.monotonic() - begun < 5
    deaf.set()
    end_of(shop, task)
