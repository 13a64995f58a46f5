"""Another node's task, followed from here for the user who is worked for."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest

from mcvirt.errors import AnswerLost, Conflict, NodeUnreachable, TaskCancelled
from mcvirt.rpc.codec import Reply
from mcvirt.types.task import TaskInfo, TaskNews, TaskState
from mcvirtd.auth.caller import Caller, called_by
from mcvirtd.cluster.errands import Errands
from mcvirtd.cluster.peers import Peers
from mcvirtd.state.replication import noting_left_behind
from mcvirtd.tasks.task import Task, working_for

ALICE = Caller(user="alice", address="192.0.2.7")


class OtherNode:
    """Answers what is handed on to it, one reply after another; an exception is raised."""

    def __init__(self, *replies: Reply | Exception) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.users: set[str] = set()
        self.waited: list[float] = []
        self.returns = True

    def wait_for(self, node: str, within: float) -> bool:
        self.waited.append(within)
        return self.returns

    def call(self, node: str, object_id: str, operation: str, arguments: dict[str, Any]) -> msgspec.Raw:
        assert (node, object_id, operation) == ("n2", "peer", "forward")
        self.asked.append((arguments["operation"], arguments["arguments"]))
        self.users.add(arguments["user"])
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return msgspec.Raw(msgspec.json.encode(reply))


def news(state: TaskState, version: int, result: object = None, error: dict[str, Any] | None = None) -> Reply:
    info = TaskInfo(
        id="t1",
        operation="verification.verify_disk",
        target="hd",
        user="alice",
        node="n2",
        state=state,
        started=datetime(2030, 1, 1, tzinfo=UTC),
        version=version,
        error=error,
    )
    told = TaskNews(info=info, result=msgspec.Raw(msgspec.json.encode(result)))
    return Reply(ok=msgspec.Raw(msgspec.json.encode(told)))


def run(other: OtherNode, task: Task | None = None) -> tuple[object, list[int]]:
    heard: list[int] = []
    with working_for(task or Task("x", "", "alice", "n1")), called_by(ALICE):
        errands = Errands(cast(Peers, other))
        answer = errands.run("n2", "verification.verify_disk", {"disk": "hd"}, lambda info: heard.append(info.version))
    return msgspec.json.decode(answer), heard


def test_it_is_begun_and_followed_to_its_end_for_the_user() -> None:
    other = OtherNode(Reply(task="t1"), news(TaskState.RUNNING, 3), news(TaskState.DONE, 4, result={"a": 1}))
    assert run(other) == ({"a": 1}, [3, 4])
    assert [asked for asked, _ in other.asked] == ["verification.verify_disk", "task.follow", "task.follow"]
    assert other.asked[2][1]["seen"] == 3 and other.users == {"alice"}


def test_what_is_no_task_is_answered_at_once() -> None:
    assert run(OtherNode(Reply(ok=msgspec.Raw(b"7")))) == (7, [])


@pytest.mark.parametrize("task", [True, False])
def test_its_error_is_raised_here(task: bool) -> None:
    error = Conflict(text="It is being verified already.").to_wire()
    replies = [Reply(task="t1"), news(TaskState.FAILED, 2, error=error)] if task else [Reply(error=error)]
    with pytest.raises(Conflict, match="verified already"):
        run(OtherNode(*replies))


def test_cancelled_here_it_is_cancelled_there_once_and_waited_for() -> None:
    task = Task("x", "", "alice", "n1")
    task.cancel("alice")
    cancelled = TaskCancelled(by="").to_wire()
    other = OtherNode(
        Reply(task="t1"), Reply(), news(TaskState.RUNNING, 3), news(TaskState.CANCELLED, 4, error=cancelled)
    )
    with pytest.raises(TaskCancelled):
        run(other, task)
    follow = "task.follow"
    assert [asked for asked, _ in other.asked] == ["verification.verify_disk", "task.cancel", follow, follow]


AWAY = NodeUnreachable(node="n2", reason="it is off.")


def test_a_node_that_is_away_is_not_begun_with() -> None:
    other = OtherNode(AWAY)
    with pytest.raises(NodeUnreachable, match="it is off"):
        run(other)
    assert other.waited == []


def test_its_task_is_followed_on_when_a_node_is_back() -> None:
    other = OtherNode(Reply(task="t1"), AWAY, AWAY, news(TaskState.RUNNING, 3), AWAY, news(TaskState.DONE, 4, result=7))
    assert run(other) == (7, [3, 4])
    assert len(other.waited) == 3


def test_a_node_that_stays_away_is_given_up_and_what_may_go_on_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcvirtd.cluster.errands.RETURNS_WITHIN", 0.05)
    other = OtherNode(Reply(task="t1"), AWAY)
    other.returns = False
    with pytest.raises(AnswerLost, match=r"it is off\. Task t1 may go on there\. So it is not known"):
        run(other)


def test_a_node_that_answers_heartbeats_and_nothing_else_is_asked_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcvirtd.cluster.errands.RETURNS_WITHIN", 0.4)
    monkeypatch.setattr("mcvirtd.cluster.errands.ASK_AGAIN_AFTER", 0.1)
    other = OtherNode(Reply(task="t1"), *[AWAY] * 1000)
    with pytest.raises(AnswerLost):
        run(other)
    assert 2 < len(other.asked) < 10


def test_who_cancels_it_does_not_wait_for_a_node_that_is_away() -> None:
    task = Task("x", "", "alice", "n1")
    task.cancel("alice")
    other = OtherNode(Reply(task="t1"), AWAY)
    with pytest.raises(AnswerLost, match="may go on there"):
        run(other, task)
    assert other.waited == []


def test_a_cancellation_that_did_not_arrive_is_said_again() -> None:
    task = Task("x", "", "alice", "n1")

    class Returning(OtherNode):
        def wait_for(self, node: str, within: float) -> bool:
            task.cancel("alice")
            return super().wait_for(node, within)

    other = Returning(Reply(task="t1"), AWAY, Reply(), news(TaskState.CANCELLED, 4))
    with pytest.raises(TaskCancelled):
        run(other, task)
    assert [asked for asked, _ in other.asked[2:]] == ["task.cancel", "task.follow"]


def test_who_cancels_it_while_the_node_is_waited_for_is_heard_there(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("x", "", "alice", "n1")

    class Waited(OtherNode):
        def wait_for(self, node: str, within: float) -> bool:
            task.cancel("alice")
            super().wait_for(node, within)
            return False

    other = Waited(Reply(task="t1"), AWAY, Reply(), news(TaskState.CANCELLED, 4))
    with pytest.raises(TaskCancelled):
        run(other, task)
    assert [asked for asked, _ in other.asked[2:]] == ["task.cancel", "task.follow"]

    class Pausing(OtherNode):  # cancelled while it is not asked for a moment, since it answers heartbeats only
        def call(self, node: str, object_id: str, operation: str, arguments: dict[str, Any]) -> msgspec.Raw:
            if len(self.asked) == 2:
                threading.Timer(0.1, task.cancel, ("alice",)).start()
            return super().call(node, object_id, operation, arguments)

    monkeypatch.setattr("mcvirtd.cluster.errands.ASK_AGAIN_AFTER", 10.0)
    task = Task("x", "", "alice", "n1")
    other = Pausing(Reply(task="t1"), AWAY, AWAY, Reply(), AWAY)
    with pytest.raises(AnswerLost, match="may go on there"):
        run(other, task)
    assert [asked for asked, _ in other.asked[3:]] == ["task.cancel", "task.follow"]


def test_who_cancels_it_while_the_node_is_waited_for_does_not_wait_on_for_it() -> None:
    task = Task("x", "", "alice", "n1")

    class Waited(OtherNode):
        def wait_for(self, node: str, within: float) -> bool:
            task.cancel("alice")
            super().wait_for(node, within)
            return False

    other = Waited(Reply(task="t1"), AWAY, AWAY)
    with pytest.raises(AnswerLost, match="may go on there"):
        run(other, task)
    assert [asked for asked, _ in other.asked[2:]] == ["task.cancel"] and len(other.waited) == 1


def test_an_errand_on_this_node_goes_through_its_own_door_without_the_session() -> None:
    other, seen = OtherNode(), []
    replies = [Reply(task="t1"), news(TaskState.DONE, 2, result=7)]

    def door(label: str, caller: Caller, arguments: dict[str, Any]) -> Reply | None:
        seen.append((label, caller, arguments))
        return replies.pop(0)

    caller = Caller(user="alice", address="192.0.2.7", token="secret", session="s1", without=("n3",))
    errands = Errands(cast(Peers, other), node="n1", door=door)
    with working_for(Task("x", "", "alice", "n1")), called_by(caller):
        answer = errands.run("n1", "migration.migrate", {"name": "web1"}, lambda info: None)
    assert msgspec.json.decode(answer) == 7 and other.asked == []
    assert [label for label, _, _ in seen] == ["migration.migrate", "task.follow"]
    # It may go on for longer than the session; that the user exists is looked at all the same.
    for _, who, _ in seen:
        assert who == Caller(user="alice", address="192.0.2.7", via="n1", without=("n3",))


def test_what_the_user_goes_on_without_is_handed_on_and_comes_back() -> None:
    class Noting(OtherNode):
        def call(self, node: str, object_id: str, operation: str, arguments: dict[str, Any]) -> msgspec.Raw:
            assert arguments["without"] == ("n3",) and arguments["ignore_drbd"] is True
            return super().call(node, object_id, operation, arguments)

    done = msgspec.json.decode(news(TaskState.DONE, 2, result=7).ok, type=TaskNews)
    told = Reply(ok=msgspec.Raw(msgspec.json.encode(msgspec.structs.replace(done, away=("n3",)))))
    caller = Caller(user="alice", without=("n3",), ignore_drbd=True)
    with working_for(Task("x", "", "alice", "n1")), called_by(caller), noting_left_behind() as away:
        errands = Errands(cast(Peers, Noting(Reply(task="t1"), told)))
        errands.run("n2", "migration.migrate", {}, lambda info: None)
    assert away == {"n3"}
