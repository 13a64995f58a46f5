from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt.errors import (
    BadArgument,
    Busy,
    Conflict,
    InternalError,
    McvirtError,
    NotAuthenticated,
    NotPermitted,
    SessionRefused,
    from_wire,
)
from mcvirt.permissions import Access, Permission
from mcvirt.rpc.codec import Reply
from mcvirt.rpc.contract import Vm, VmOfDisk, remote
from mcvirt.types.task import TaskState
from mcvirtd.auth.caller import ROOT, Caller, current_caller
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import current_task
from tests.unit.services.world import ROOT as ROOT_CALLER
from tests.unit.services.world import World

SECRET = "correct-horse-battery"


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    size: int
    extras: tuple[str, ...] = ()


class ThingApi:
    """What the tests call."""

    object_id = "thing"

    @remote(needs=Access.ANYONE)
    def hello(self, name: str, password: str = "") -> str:
        """Anybody may."""
        raise NotImplementedError

    @remote(needs=Access.ANY_USER, reads=True)
    def look(self) -> str:
        """Who is logged in may."""
        raise NotImplementedError

    @remote(needs=Permission.MODIFY_VM, on=Vm("vm"))
    def change(self, vm: str, password: str = "", count: int = 1) -> str:
        """With MODIFY_VM."""
        raise NotImplementedError

    @remote(
        needs=Permission.CREATE_VM,
        also={"spec.extras": Permission.MODIFY_HARD_DRIVE, "deep": Permission.MANAGE_ISO},
    )
    def make(self, spec: Spec, deep: bool = False) -> str:
        """With conditions."""
        raise NotImplementedError

    @remote(needs=Permission.MODIFY_VM, on=VmOfDisk("disk"))
    def detach(self, disk: str) -> str:
        """Of the machine that has the disk."""
        raise NotImplementedError

    @remote(needs=Permission.MODIFY_VM, on=Vm("name"), task=True)
    def work(self, name: str) -> str:
        """Takes a while."""
        raise NotImplementedError


class Thing(ThingApi):
    def __init__(self) -> None:
        self.seen: list[tuple[str, Caller]] = []
        self.fails: BaseException | None = None
        self.tasks: list[tuple[str, str, str]] = []

    def _note(self, what: str) -> str:
        task = current_task()
        self.tasks.append((task.operation, task.target, task.user))
        self.seen.append((what, current_caller()))
        if self.fails is not None:
            raise self.fails
        return what

    def hello(self, name: str, password: str = "") -> str:
        return self._note(f"hello {name}")

    def look(self) -> str:
        return self._note("look")

    def change(self, vm: str, password: str = "", count: int = 1) -> str:
        return self._note(f"change {vm} {count}")

    def make(self, spec: Spec, deep: bool = False) -> str:
        return self._note(f"make {spec.name}")

    def detach(self, disk: str) -> str:
        return self._note(f"detach {disk}")

    def work(self, name: str) -> str:
        return self._note(f"work {name}")


class Scene(World):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.thing = Thing()
        self.publish(ThingApi, self.thing)
        self.user("bob", "MODIFY_VM", "CREATE_VM")
        self.user("eve")

    def entries(self) -> list[tuple[str, str, str, str]]:
        found = self.audit.entries(100, None, None)
        return [(entry.user, entry.operation, entry.target, entry.result) for entry in found]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


# --- who is it ------------------------------------------------------------------------------------------------------


def test_a_service_sees_who_called_it(scene: Scene) -> None:
    caller = scene.caller("bob")
    assert scene.call(caller, "thing.look") == "look"
    assert scene.thing.seen == [("look", caller)]
    assert current_caller().user == ""


def test_strangers_may_only_log_in(scene: Scene) -> None:
    stranger = Caller(address="192.0.2.99")
    assert scene.call(stranger, "thing.hello", name="x") == "hello x"
    for operation in ("thing.look", "thing.change", "thing.work"):
        with pytest.raises(NotAuthenticated, match="mcvirt login"):
            scene.call(stranger, operation)


def test_a_session_is_checked_at_every_call(scene: Scene) -> None:
    bob = scene.caller("bob")
    scene.call(bob, "thing.look")
    scene.sessions.revoke(bob.session)
    for operation in ("thing.look", "thing.hello", "thing.change"):
        with pytest.raises(SessionRefused):
            scene.call(bob, operation)
    assert len(scene.thing.seen) == 1


def test_a_session_that_has_expired_is_refused(scene: Scene) -> None:
    bob = scene.caller("bob")
    scene.now += 13 * 3600
    with pytest.raises(SessionRefused):
        scene.call(bob, "thing.look")


def test_a_deleted_user_is_refused_although_the_session_is_there(scene: Scene) -> None:
    from mcvirtd.state.records import UserRecord

    bob = scene.caller("bob")
    with scene.store.change() as change:
        change.delete(UserRecord, "bob")
    with pytest.raises(SessionRefused):
        scene.call(bob, "thing.look")


def test_who_is_not_known_is_refused_before_the_arguments_are_looked_at(scene: Scene) -> None:
    with pytest.raises(NotAuthenticated):
        scene.call(Caller(), "thing.change", nonsense=1)


def test_strangers_leave_nothing_in_the_audit_trail(scene: Scene) -> None:
    for _ in range(3):
        scene.reply(Caller(address="192.0.2.99"), "thing.change", vm="web1")
        scene.reply(Caller(user="bob", token="x" * 43, address="192.0.2.99"), "thing.change", vm="web1")
    assert scene.entries() == []


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({}, "missing required field 'vm'"),
        ({"vm": 5}, "vm: expected 'str', got 'int'"),
        ({"vm": None}, "vm: expected 'str', got 'null'"),
        ({"vm": "web1", "count": "5"}, "count: expected 'int', got 'str'"),
        ({"vm": "web1", "count": True}, "count: expected 'int', got 'bool'"),
        ({"vm": "web1", "count": 1.5}, "count: expected 'int', got 'float'"),
        ({"vm": "web1", "sudo": True}, "unknown field 'sudo'"),
        ({"vm": ["web1"]}, "vm: expected 'str', got 'array'"),
    ],
)
def test_wrong_arguments_are_named(scene: Scene, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(BadArgument) as caught:
        scene.call("bob", "thing.change", **kwargs)
    assert caught.value.what == "thing.change"
    assert said in caught.value.why
    assert scene.thing.seen == []


def test_a_wrong_field_is_named_with_its_place(scene: Scene) -> None:
    with pytest.raises(BadArgument, match=r"spec\.extras"):
        scene.call("bob", "thing.make", spec={"name": "x", "size": 1, "extras": [1]})


def test_arguments_may_come_by_position(scene: Scene) -> None:
    assert scene.call("bob", "thing.change", "web1", "", 7) == "change web1 7"
    with pytest.raises(BadArgument, match="takes 3 arguments, not 4"):
        scene.call("bob", "thing.change", "web1", "", 7, 8)
    with pytest.raises(BadArgument, match="vm is given twice"):
        scene.call("bob", "thing.change", "web1", vm="web2")


@pytest.mark.parametrize(("args", "kwargs"), [("web1", {}), (None, {}), ([], ["vm"]), ([], None), (5, 5)])
def test_what_are_no_arguments_at_all_is_refused(scene: Scene, args: Any, kwargs: Any) -> None:
    reply = scene.guard.call(scene._published["thing.change"], scene.caller("bob"), args, kwargs)
    assert reply.error is not None
    assert reply.error["name"] == "BadArgument"


# --- who may --------------------------------------------------------------------------------------------------------


def test_refusal_says_which_permission_is_missing_and_where(scene: Scene) -> None:
    with pytest.raises(NotPermitted) as caught:
        scene.call("eve", "thing.change", vm="web1")
    assert str(caught.value) == "User 'eve' does not have the permission MODIFY_VM on virtual machine 'web1'."
    assert scene.thing.seen == []
    assert scene.entries() == [("eve", "thing.change", "web1", "NotPermitted")]


def test_a_permission_for_one_machine_counts_for_that_one(scene: Scene) -> None:
    scene.user("owner", on={"web1": ("MODIFY_VM",)})
    assert scene.call("owner", "thing.change", vm="web1")
    assert scene.call("owner", "thing.detach", disk="hd-used")
    for operation, arguments in (("change", {"vm": "web2"}), ("detach", {"disk": "hd-free"}), ("change", {"vm": ""})):
        with pytest.raises(NotPermitted):
            scene.call("owner", f"thing.{operation}", **arguments)


def test_a_group_without_machine_scope_gives_nothing_global_for_one_machine(scene: Scene) -> None:
    scene.user("owner")
    scene.group("odd", "MANAGE_USERS", "MODIFY_VM", on={"web1": ("owner",)})
    assert scene.rights.of("owner", "web1") == {Permission.MODIFY_VM}
    assert scene.rights.of("owner") == frozenset()


def test_further_permissions_are_needed_only_for_what_is_given(scene: Scene) -> None:
    plain = {"name": "x", "size": 1}
    assert scene.call("bob", "thing.make", spec=plain) == "make x"
    assert scene.call("bob", "thing.make", spec={**plain, "extras": []}, deep=False) == "make x"
    with pytest.raises(NotPermitted, match="MODIFY_HARD_DRIVE"):
        scene.call("bob", "thing.make", spec={**plain, "extras": ["a"]})
    with pytest.raises(NotPermitted, match="MANAGE_ISO"):
        scene.call("bob", "thing.make", spec=plain, deep=True)


def test_rights_change_with_the_next_call(scene: Scene) -> None:
    bob = scene.caller("bob")
    scene.call(bob, "thing.change", vm="web1")
    scene.user("bob")
    with pytest.raises(NotPermitted):
        scene.call(bob, "thing.change", vm="web1")


# --- running --------------------------------------------------------------------------------------------------------


def test_what_another_node_answered_is_passed_on_and_nothing_runs_here(scene: Scene) -> None:
    scene.router.answer = msgspec.json.encode(Reply(ok=msgspec.Raw(b'"from there"')))
    assert scene.call("bob", "thing.change", vm="web1") == "from there"
    assert scene.router.asked == [("thing.change", {"vm": "web1", "password": "", "count": 1}, "bob")]
    assert scene.thing.seen == []


def test_nothing_is_forwarded_for_who_may_not(scene: Scene) -> None:
    with pytest.raises(NotPermitted):
        scene.call("eve", "thing.change", vm="web1")
    assert scene.router.asked == []


def test_an_error_of_ours_goes_out_as_it_is_and_into_the_trail(scene: Scene) -> None:
    scene.thing.fails = Conflict(text="It can't be.")
    with pytest.raises(Conflict, match=r"It can't be\."):
        scene.call("bob", "thing.change", vm="web1")
    assert scene.entries() == [("bob", "thing.change", "web1", "Conflict")]


def test_an_error_with_odd_fields_still_goes_out(scene: Scene) -> None:
    scene.thing.fails = Conflict(text="odd", path=Path("/x"), many={object()})
    reply = scene.reply(scene.caller("bob"), "thing.change", vm="web1")
    assert msgspec.json.decode(msgspec.json.encode(reply))["error"]["fields"]["path"] == "/x"
    with pytest.raises(Conflict):
        scene.call("bob", "thing.work", name="web1")


def test_a_defect_is_hidden_and_the_log_has_it_under_its_reference(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.thing.fails = ValueError("the inside of things")
    calls: list[tuple[str, dict[str, str]]] = [("change", {"vm": "web1"}), ("look", {}), ("work", {"name": "web1"})]
    for operation, arguments in calls:
        caplog.clear()
        with pytest.raises(InternalError) as caught:
            scene.call("bob", f"thing.{operation}", **arguments)
        assert "inside of things" not in str(caught.value)
        assert caught.value.node == "n1"
        assert any(caught.value.reference in record.getMessage() for record in caplog.records)
        assert any("inside of things" in (record.exc_text or "") for record in caplog.records)


def test_an_answer_that_is_none_is_a_defect_too(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene._published["thing.look"], "method", object)
    with pytest.raises(InternalError):
        scene.call("bob", "thing.look")


def test_long_work_becomes_a_task_of_the_caller(scene: Scene) -> None:
    bob = scene.caller("bob")
    reply = scene.reply(bob, "thing.work", name="web1")
    assert reply.task is not None
    news = scene.tasks.news(reply.task, 0, 10)
    assert news.info.state is TaskState.DONE
    assert (news.info.operation, news.info.target, news.info.user) == ("thing.work", "web1", "bob")
    assert bytes(news.result) == b'"work web1"'
    assert scene.thing.seen == [("work web1", bob)]
    # Whoever has seen the end finds it in the trail.
    assert scene.entries() == [("bob", "thing.work", "web1", "ok")]
    assert scene.audit.entries(1, None, None)[0].reference == reply.task


def test_tasks_that_end_at_once_are_all_in_the_trail(scene: Scene) -> None:
    bob = scene.caller("bob")
    started = [scene.reply(bob, "thing.work", name=f"vm-{number}").task for number in range(50)]
    for task in started:
        assert task is not None
        scene.tasks.news(task, 0, 10)
    assert sorted(entry.reference for entry in scene.audit.entries(100, None, None)) == sorted(map(str, started))


def test_a_short_operation_has_a_name_for_who_must_wait_for_it(scene: Scene) -> None:
    locks, inside, go_on = Locks(), threading.Event(), threading.Event()

    def hold(vm: str, password: str = "", count: int = 1) -> str:
        with locks.hold(f"vm:{vm}"):
            inside.set()
            go_on.wait(10)
        return "done"

    scene._published["thing.change"].method = hold
    bob = scene.caller("bob")
    holder = threading.Thread(target=scene.reply, args=(bob, "thing.change"), kwargs={"vm": "web1"})
    holder.start()
    assert inside.wait(10)
    with pytest.raises(Busy) as caught, locks.hold("vm:web1", within=0):
        pass
    go_on.set()
    holder.join(10)
    assert caught.value.operation == "thing.change"


def test_two_short_operations_of_one_thread_are_not_the_same_task(scene: Scene) -> None:
    seen = []

    def note(vm: str, password: str = "", count: int = 1) -> None:
        seen.append(current_task().id)

    scene._published["thing.change"].method = note
    for _ in range(2):
        scene.call("bob", "thing.change", vm="web1")
    assert len(set(seen)) == 2


# --- the audit trail ------------------------------------------------------------------------------------------------


def test_reading_leaves_no_line_and_changing_leaves_one(scene: Scene) -> None:
    scene.call("bob", "thing.look")
    assert scene.entries() == []
    scene.call("bob", "thing.change", vm="web1")
    scene.call(ROOT_CALLER, "thing.make", spec={"name": "db7", "size": 1})
    assert scene.entries() == [("bob", "thing.change", "web1", "ok"), (ROOT, "thing.make", "db7", "ok")]
    entry = scene.audit.entries(2, None, None)[0]
    assert (entry.address, entry.node) == ("192.0.2.7", "n1")
    assert entry.reference


@pytest.mark.parametrize("outcome", [None, Conflict(text="no"), ValueError("no")])
def test_no_secret_gets_into_the_trail_or_the_log(
    scene: Scene, caplog: pytest.LogCaptureFixture, outcome: BaseException | None
) -> None:
    caplog.set_level(logging.DEBUG)
    scene.thing.fails = outcome
    scene.reply(scene.caller("bob"), "thing.change", vm="web1", password=SECRET)
    scene.reply(scene.caller("eve"), "thing.change", vm="web1", password=SECRET)
    scene.reply(Caller(), "thing.hello", name="web1", password=SECRET)
    scene.reply(scene.caller("bob"), "thing.change", vm=1, password=SECRET)
    scene.reply(scene.caller("bob"), "thing.change", "web1", SECRET)
    logged = "\n".join(record.getMessage() + str(record.exc_text) for record in caplog.records)
    stored = msgspec.json.encode(scene.audit.entries(100, None, None)).decode()
    assert "thing.change" in logged
    assert "thing.change" in stored
    assert SECRET not in logged
    assert SECRET not in stored
    assert all(caller.token not in logged for _, caller in scene.thing.seen if caller.token)


@pytest.mark.parametrize("name", ["web1\nroot from 127.0.0.1: all is well", "a\x1b[2Jb", "x" * 100_000, "\ud800"])
def test_a_name_can_not_write_lines_of_its_own(scene: Scene, caplog: pytest.LogCaptureFixture, name: str) -> None:
    caplog.set_level(logging.DEBUG)
    scene.reply(scene.caller("bob"), "thing.change", vm=name)
    scene.reply(scene.caller("eve"), "thing.change", vm=name)
    assert len(scene.entries()) == 2
    for text in [record.getMessage() for record in caplog.records] + [target for _, _, target, _ in scene.entries()]:
        assert text.isprintable()
        assert len(text) < 500


def test_a_trail_that_can_not_be_written_fails_no_call(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.store.execute("DROP TABLE audit")
    assert scene.call("bob", "thing.change", vm="web1") == "change web1 1"
    assert "the audit trail can't be written" in caplog.text


def test_the_trail_forgets_what_is_old(scene: Scene) -> None:
    scene.call("bob", "thing.change", vm="web1")
    scene.store.execute("UPDATE audit SET time = 1")
    scene.call("bob", "thing.change", vm="web2")
    scene.audit.prune()
    assert [target for _, _, target, _ in scene.entries()] == ["web2"]


def test_all_errors_of_the_guard_can_be_read_by_a_client(scene: Scene) -> None:
    for caller in (Caller(), scene.caller("eve")):
        reply = scene.reply(caller, "thing.change", vm="web1")
        assert reply.error is not None
        assert isinstance(from_wire(reply.error), McvirtError)


# --- other nodes ------------------------------------------------------------------------------------------------------


class PeersOnlyApi:
    """What members call."""

    object_id = "inner"

    @remote(needs=Access.PEER, reads=True)
    def beat(self) -> str:
        """Members only."""
        raise NotImplementedError


class Inner(PeersOnlyApi):
    def beat(self) -> str:
        return current_caller().peer


class Membership:
    def __init__(self) -> None:
        self.members = {"n2": "key of n2"}

    def check_version(self, name: str) -> None:
        pass

    def is_member(self, caller: Caller) -> bool:
        return self.members.get(caller.peer) == caller.key


@pytest.fixture
def membership(scene: Scene) -> Membership:
    made = Membership()
    scene.guard._members = made
    scene.publish(PeersOnlyApi, Inner())
    return made


PEER = Caller(peer="n2", key="key of n2", address="192.0.2.2")


def test_a_member_is_checked_at_every_call(scene: Scene, membership: Membership) -> None:
    assert scene.call(PEER, "inner.beat") == "n2"
    with pytest.raises(NotAuthenticated):
        scene.call(Caller(peer="n2", key="another key"), "inner.beat")
    membership.members.clear()
    with pytest.raises(NotAuthenticated):
        scene.call(PEER, "inner.beat")


def test_what_is_for_members_is_for_nobody_else_and_they_do_nothing_else(scene: Scene, membership: Membership) -> None:
    for caller in (ROOT_CALLER, scene.caller("bob"), Caller(), Caller(user="bob", via="n2"), Caller(joiner=True)):
        with pytest.raises(NotAuthenticated):
            scene.call(caller, "inner.beat")
    for operation in ("thing.look", "thing.change", "thing.hello", "thing.work"):
        with pytest.raises(NotAuthenticated):
            scene.call(PEER, operation)
    assert scene.thing.seen == []


def test_a_user_whom_a_member_vouches_for_has_the_rights_that_are_known_here(scene: Scene) -> None:
    assert scene.call(Caller(user="bob", via="n2", address="192.0.2.7"), "thing.change", vm="web1") == "change web1 1"
    with pytest.raises(NotPermitted):
        scene.call(Caller(user="eve", via="n2"), "thing.change", vm="web1")
    with pytest.raises(NotAuthenticated):
        scene.call(Caller(user="unknown", via="n2"), "thing.look")
    assert scene.call(Caller(user="root", root=True, via="n2"), "thing.change", vm="web1") == "change web1 1"
    assert scene.audit.entries(100, "bob", None)[-1].address == "192.0.2.7 through n2"


def test_what_was_handed_on_is_written_down_here_too(scene: Scene) -> None:
    bob = scene.caller("bob")
    scene.router.answer = msgspec.json.encode(Reply(task="ab12@n2"))
    assert scene.reply(bob, "thing.work", name="web1").task == "ab12@n2"
    entry = scene.audit.entries(1, None, None)[0]
    assert (entry.result, entry.reference, entry.detail) == ("ok", "ab12@n2", "handed on as task ab12@n2")
    scene.router.answer = msgspec.json.encode(Reply(error=Conflict(text="No.").to_wire()))
    with pytest.raises(Conflict):
        scene.call(bob, "thing.change", vm="web1")
    assert scene.audit.entries(1, None, None)[0].result == "Conflict"


def test_the_answer_names_the_nodes_without_which_a_change_was_made(scene: Scene, monkeypatch: Any) -> None:
    from mcvirtd.state import replication

    def note(what: str) -> str:
        noted = replication._left_behind.get()
        assert noted is not None
        noted.update(("n3", "n2"))
        return what

    monkeypatch.setattr(scene.thing, "_note", note)
    bob = scene.caller("bob")
    assert scene.reply(bob, "thing.change", vm="web1").away == ("n2", "n3")
    task = scene.reply(bob, "thing.work", name="web1").task
    assert task is not None
    news = scene.tasks.news(task, 2**31, 5)
    assert (news.info.state, news.away) == (TaskState.DONE, ("n2", "n3"))
