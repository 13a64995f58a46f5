from __future__ import annotations

import io
from datetime import UTC, datetime

import msgspec
import pytest

from mcvirt.errors import Conflict, DeadlinePassed, Failed, NoSpace, TaskCancelled
from mcvirt.types.task import StepInfo, TaskInfo, TaskNews, TaskState
from mcvirt_client.cli.output import Output, cells
from mcvirt_client.cli.progress import Bars, bar, choose_on_interrupt, describe
from mcvirt_client.tasks import Detached, Follower
from tests.unit.cli.fake import Client

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def news(version: int, state: TaskState = TaskState.RUNNING, result: bytes = b"null", **more) -> TaskNews:
    info = TaskInfo(
        id="tsk-1",
        operation="vm.start",
        target="web1",
        user="u",
        node="n",
        state=state,
        started=NOW,
        version=version,
        **more,
    )
    return TaskNews(info=info, result=msgspec.Raw(result))


class Tasks:
    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked: list[tuple[int, float]] = []
        self.cancelled: list[str] = []

    def follow(self, task, seen, wait):
        self.asked.append((seen, wait))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def cancel(self, task):
        self.cancelled.append(task)


def follower(*answers) -> tuple[Follower, Tasks]:
    tasks = Tasks(*answers)
    return Follower(lambda: tasks), tasks  # type: ignore[arg-type, return-value]


def test_the_result_comes_with_the_last_news_and_each_is_shown():
    following, tasks = follower(news(1), news(4), news(5, TaskState.DONE, b'"x"'))
    seen = []
    following.progress = lambda info: seen.append(info.version)
    assert bytes(following.follow("tsk-1")) == b'"x"'
    assert seen == [1, 4, 5]
    assert [version for version, _ in tasks.asked] == [-1, 1, 4]


def test_errors_of_tasks_are_their_classes():
    error = NoSpace(backend="ssd", free="1 GiB", node="n1", needed="2 GiB").to_wire()
    with pytest.raises(NoSpace):
        follower(news(1, TaskState.FAILED, error=error))[0].follow("tsk-1")
    with pytest.raises(TaskCancelled):
        follower(news(1, TaskState.CANCELLED))[0].follow("tsk-1")
    with pytest.raises(Failed, match=r"STUCK.*volume x"):
        follower(news(1, TaskState.STUCK, remains="volume x"))[0].follow("tsk-1")


def test_who_does_not_wait_gets_the_task():
    following, tasks = follower()
    following.wait = False
    with pytest.raises(Detached) as caught:
        following("tsk-1", None)  # type: ignore[arg-type]
    assert caught.value.ref.task == "tsk-1"
    assert tasks.asked == []


def test_a_deadline_leaves_the_task_at_work():
    following, tasks = follower(news(1), news(2))
    following.timeout = 0.0
    with pytest.raises(DeadlinePassed, match="mcvirt task watch tsk-1"):
        following.follow("tsk-1")
    assert tasks.asked == [(-1, 0.0)]


def test_an_interrupt_may_cancel_and_is_followed_to_the_end():
    following, tasks = follower(KeyboardInterrupt(), news(2, TaskState.CANCELLED))
    following.interrupted = tasks.cancel
    with pytest.raises(TaskCancelled):
        following.follow("tsk-1")
    assert tasks.cancelled == ["tsk-1"]
    with pytest.raises(KeyboardInterrupt):
        follower(KeyboardInterrupt())[0].follow("tsk-1")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "cancelled", "detached"),
    [("c\n", True, False), ("d\n", False, True), ("w\n", False, False), ("\n", False, True), ("", False, True)],
)
def test_ctrl_c_asks_at_a_terminal(monkeypatch, answer, cancelled, detached):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    client = Client()
    out = Output(stderr=Terminal())
    if detached:
        with pytest.raises(Detached) as caught:
            choose_on_interrupt(client, "tsk-1", out)  # type: ignore[arg-type]
        assert not caught.value.asked
    else:
        choose_on_interrupt(client, "tsk-1", out)  # type: ignore[arg-type]
    assert bool(client.calls) == cancelled


def test_a_task_that_ended_meanwhile_needs_no_cancelling(monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal("c\n"))
    client = Client(tasks__cancel=Conflict(text="Over already."))
    choose_on_interrupt(client, "tsk-1", Output(stderr=Terminal()))  # type: ignore[arg-type]
    assert client.calls == [("tasks.cancel", ("tsk-1",), {})]


def test_ctrl_c_detaches_where_nobody_can_be_asked(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("c\n"))
    client = Client()
    with pytest.raises(Detached):
        choose_on_interrupt(client, "tsk-1", Output(stderr=io.StringIO()))  # type: ignore[arg-type]
    assert client.calls == []


def steps(*finished: bool) -> tuple[StepInfo, ...]:
    return tuple(StepInfo(name=f"Step {n}", finished=done) for n, done in enumerate(finished))


def test_without_a_terminal_there_is_no_progress():
    err = io.StringIO()
    show = Bars(Output(stderr=err))
    show(news(1, steps=steps(False)).info)
    show(news(2, steps=steps(True, False)).info)
    show(news(3, steps=steps(True, True)).info)
    show(news(4, TaskState.DONE, steps=steps(True, True)).info)
    show.amount("Sending", 10, 10)
    assert err.getvalue() == ""


def test_on_a_terminal_the_bar_fits_and_is_gone_at_the_end(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    err = Terminal()
    show = Bars(Output(stderr=err))
    step = StepInfo(name="Creating \x1b[31mdisk", done=2**30, total=2**32, unit="B")
    show(news(1, steps=(step,)).info)
    line = err.getvalue()
    assert cells(line) <= 29
    assert "\x1b" not in line
    show(news(2, TaskState.DONE, steps=(step,)).info)
    assert err.getvalue() == line + "\r\x1b[K"


def test_bars():
    assert bar(0, 10) == "[....................]   0%"
    assert bar(5, 10) == "[##########..........]  50%"
    assert bar(20, 10).endswith("100%")
    assert describe(StepInfo(name="Sync", done=3, total=4, unit="disks")) == f"Sync {bar(3, 4)} 3 of 4 disks"
    assert describe(StepInfo(name="Wait")) == "Wait ..."
    assert describe(StepInfo(name="Wait", waits="node2 is off.")) == "Wait ... (waits: node2 is off.)"
