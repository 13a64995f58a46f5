from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt.errors import (
    BadArgument,
    Conflict,
    LoginFailed,
    LoginSlowedDown,
    McvirtError,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    SessionRefused,
    StateNotWritable,
)
from mcvirtd.auth.caller import Caller
from mcvirtd.auth.passwords import Passwords
from mcvirtd.auth.session_store import StoreSessions
from mcvirtd.auth.tokens import Sessions
from mcvirtd.state.records import UserRecord
from mcvirtd.state.store import Store
from tests.unit.services.world import ADDRESS, ROOT_TOKEN, World

STRANGER = Caller(address=ADDRESS)


# --- logging in ---------------------------------------------------------------------------------------------------


def test_a_login_gives_a_token_that_the_door_takes(world: World) -> None:
    world.user("bob", password="the password")
    result = world.call(STRANGER, "auth.login", user="bob", password="the password")
    caller = world.login.authenticate({"token": result["token"]}, "198.51.100.1")
    assert (caller.user, caller.root, caller.address) == ("bob", False, "198.51.100.1")
    assert world.call(caller, "auth.whoami") == {
        "user": "bob",
        "superuser": False,
        "permissions": [],
        "node": "n1",
    }


@pytest.mark.parametrize(("user", "password"), [("bob", "wrong"), ("bob", ""), ("ghost", "x"), ("root", "x"), ("", "")])
def test_wrong_name_and_wrong_password_are_one_answer(world: World, user: str, password: str) -> None:
    world.user("bob", password="the password")
    with pytest.raises(LoginFailed) as caught:
        world.call(STRANGER, "auth.login", user=user, password=password)
    assert str(caught.value) == "The user name or the password is wrong."
    assert world.sessions.listing(now=world.now) == []


def test_names_that_nobody_has_are_compared_like_others(tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Watched(Passwords):
        def verify(self, stored: str | None, password: str) -> bool:
            seen.append(stored)
            return super().verify(stored, password)

    world = World(tmp_path, passwords=Watched())
    with pytest.raises(LoginFailed):
        world.login.log_in("ghost", "x", ADDRESS)
    assert seen == [None]
    world.close()


def test_real_passwords_work_and_old_hashes_are_renewed(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    world = World(tmp_path, passwords=Passwords())
    weak = Argon2id(salt=b"s" * 16, length=32, iterations=1, lanes=1, memory_cost=8192)
    world.user("bob")
    with world.store.change() as change:
        change.edit(UserRecord, "bob", password_hash=weak.derive_phc_encoded(b"the password"))
    world.login.log_in("bob", "the password", ADDRESS)
    record = world.store.get(UserRecord, "bob")
    assert record is not None
    assert "m=19456,t=3,p=1" in record.password_hash
    before = record.password_hash
    world.login.log_in("bob", "the password", ADDRESS)
    record = world.store.get(UserRecord, "bob")
    assert record is not None
    assert record.password_hash == before
    with pytest.raises(LoginFailed):
        world.login.log_in("bob", "the passwore", ADDRESS)
    world.close()


def test_failed_logins_are_slowed_down_and_the_trail_has_the_failures_only(world: World) -> None:
    world.user("bob", password="the password")
    outcomes = []
    for _ in range(8):
        with pytest.raises(NotAuthenticated) as caught:
            world.call(STRANGER, "auth.login", user="bob", password="guess")
        outcomes.append(type(caught.value))
    assert outcomes[0] is LoginFailed
    assert outcomes[-1] is LoginSlowedDown
    with pytest.raises(LoginSlowedDown):
        world.call(STRANGER, "auth.login", user="bob", password="the password")
    trail = world.audit.entries(100, None, None)
    assert [entry.result for entry in trail] == ["LoginFailed"] * outcomes.count(LoginFailed)
    assert {(entry.user, entry.target, entry.address) for entry in trail} == {("(nobody)", "bob", ADDRESS)}
    world.monotonic += 3600
    assert world.call(STRANGER, "auth.login", user="bob", password="the password")["user"] == "bob"


def test_a_login_that_the_disk_can_not_take_is_no_login(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.user("bob", password="the password")

    def full(*_: Any) -> None:
        raise StateNotWritable(path="x", reason="full.")

    monkeypatch.setattr(world.store, "execute", full)
    with pytest.raises(StateNotWritable):
        world.login.log_in("bob", "the password", ADDRESS)
    assert world.sessions.listing(now=world.now) == []


@pytest.mark.parametrize("deleted", [True, False])
def test_a_login_that_overlaps_the_end_of_the_password_gives_no_session(world: World, deleted: bool) -> None:
    """The password is verified; then the user is deleted, or gets another password; then the session is made."""
    world.user("bob", password="the password")
    issue = world.sessions.issue

    def meanwhile(user: str, **more: Any) -> Any:
        if deleted:
            world.call("root", "user.delete", name="bob")
        else:
            world.call("root", "user.change_password", user="bob", new_password="another password")
        return issue(user, **more)

    world.sessions.issue = meanwhile  # type: ignore[method-assign]
    with pytest.raises(LoginFailed):
        world.login.log_in("bob", "the password", ADDRESS)
    assert world.sessions.listing(now=world.now) == []


# --- the door -----------------------------------------------------------------------------------------------------


def test_who_says_nothing_is_nobody(world: World) -> None:
    assert world.login.authenticate({}, ADDRESS) == Caller(address=ADDRESS)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_roots_token_makes_root_on_the_node_itself(world: World, address: str) -> None:
    caller = world.login.authenticate({"token": ROOT_TOKEN}, address)
    assert (caller.user, caller.root, caller.session, caller.token) == ("root", True, "", "")
    assert len(world.call(caller, "auth.whoami")["permissions"]) > 30


def test_what_is_to_be_passed_over_is_said_at_the_door(world: World) -> None:
    said = {"token": ROOT_TOKEN, "without": ["n2", "n3"], "ignore_drbd": True}
    caller = world.login.authenticate(said, "127.0.0.1")
    assert (caller.without, caller.ignore_drbd) == (("n2", "n3"), True)


@pytest.mark.parametrize(
    "wish", [{"without": "n2"}, {"without": [1]}, {"without": ["a b"]}, {"ignore_drbd": 1}, {"without": ["n"] * 65}]
)
def test_what_is_to_be_passed_over_is_checked_at_the_door(world: World, wish: dict[str, object]) -> None:
    with pytest.raises(BadArgument):
        world.login.authenticate({"token": ROOT_TOKEN, **wish}, "127.0.0.1")


@pytest.mark.parametrize(
    ("wish", "permission"),
    [({"without": ("n2",)}, "CAN_IGNORE_CLUSTER"), ({"ignore_drbd": True}, "CAN_IGNORE_DRBD")],
)
def test_passing_over_needs_its_permission_and_is_in_the_audit_trail(
    world: World, wish: dict[str, Any], permission: str
) -> None:
    plain = msgspec.structs.replace(world.caller(world.user("plain", "MANAGE_GROUPS")), **wish)
    with pytest.raises(NotPermitted, match=permission):
        world.call(plain, "group.create", name="g1")
    assert world.call(plain, "group.list") == []  # what only reads passes nothing over
    may = msgspec.structs.replace(world.caller(world.user("may", "MANAGE_GROUPS", permission)), **wish)
    world.call(may, "group.create", name="g2")
    assert ("without n2" if "without" in wish else "ignoring DRBD") in world.audit.entries(1, None, None)[0].detail


@pytest.mark.parametrize("address", ["192.0.2.1", "::ffff:192.0.2.1", "fe80::1%lo", "", "localhost", "1270.0.0.1"])
def test_roots_token_is_worth_nothing_from_elsewhere(world: World, address: str) -> None:
    with pytest.raises(NotAuthenticated, match="on the node itself"):
        world.login.authenticate({"token": ROOT_TOKEN}, address)


def test_an_address_of_the_daemons_own_is_the_node_itself(world: World) -> None:
    from mcvirtd.auth.login import Login

    login = Login(
        store=world.store,
        sessions=world.sessions,
        passwords=world.passwords,
        throttle=world.throttle,
        root_token=ROOT_TOKEN,
        clock=world.clock,
        own_addresses=["192.0.2.1"],
    )
    assert login.authenticate({"token": ROOT_TOKEN}, "192.0.2.1").root
    with pytest.raises(NotAuthenticated):
        login.authenticate({"token": ROOT_TOKEN}, "192.0.2.2")


@pytest.mark.parametrize("token", ["", "x", "x" * 43, ROOT_TOKEN[:-1], ROOT_TOKEN + "x", "ä" * 43, "\ud800" * 43])
def test_forged_tokens_are_refused(world: World, token: str) -> None:
    with pytest.raises(SessionRefused):
        world.login.authenticate({"token": token}, "127.0.0.1")


@pytest.mark.parametrize(
    "data", [{"token": None}, {"token": 5}, {"token": ["x"]}, {"user": "root"}, {"token": ROOT_TOKEN, "root": True}]
)
def test_odd_credentials_are_refused(world: World, data: dict[str, Any]) -> None:
    with pytest.raises(BadArgument, match="credentials"):
        world.login.authenticate(data, "127.0.0.1")


def test_the_token_of_a_deleted_user_opens_nothing(world: World) -> None:
    world.user("bob")
    token = world.caller("bob").token
    with world.store.change() as change:
        change.delete(UserRecord, "bob")
    with pytest.raises(SessionRefused):
        world.login.authenticate({"token": token}, ADDRESS)


# --- sessions -----------------------------------------------------------------------------------------------------


def test_logging_out_ends_this_session_and_no_other(world: World) -> None:
    world.user("bob")
    first, second = world.caller("bob"), world.caller("bob")
    world.call(first, "auth.logout")
    with pytest.raises(SessionRefused):
        world.call(first, "auth.whoami")
    world.call(second, "auth.whoami")
    with pytest.raises(Conflict, match="no session"):
        world.call("root", "auth.logout")


def test_one_sees_ones_own_sessions_and_which_is_this(world: World) -> None:
    world.user("bob")
    world.user("ann", "MANAGE_USERS")
    bob, _, ann = world.caller("bob"), world.caller("bob"), world.caller("ann")
    mine = world.call(bob, "auth.sessions")
    assert [row["user"] for row in mine] == ["bob", "bob"]
    assert [row["id"] for row in mine if row["current"]] == [bob.session]
    assert bob.token not in str(mine)
    assert len(world.call(ann, "auth.sessions", every=True)) == 3
    assert {row["user"] for row in world.call(ann, "auth.sessions", user="bob")} == {"bob"}
    for asked in ({"every": True}, {"user": "ann"}, {"user": "bob"}):
        with pytest.raises(NotPermitted):
            world.call(bob, "auth.sessions", **asked)
    with pytest.raises(NotFound):
        world.call(ann, "auth.sessions", user="ghost")


def test_another_ones_session_is_as_unknown_as_one_that_is_not(world: World) -> None:
    world.user("bob")
    world.user("ann")
    bob, ann = world.caller("bob"), world.caller("ann")
    answers = []
    for session in (ann.session, "0" * 12):
        with pytest.raises(NotFound) as caught:
            world.call(bob, "auth.revoke", session=session)
        answers.append(str(caught.value).replace(session, "ID"))
    assert answers[0] == answers[1]
    world.call(ann, "auth.whoami")


def test_revoking(world: World) -> None:
    world.user("bob")
    world.user("boss", "MANAGE_USERS")
    one, two, three, boss = (world.caller(name) for name in ("bob", "bob", "bob", "boss"))
    assert world.call(one, "auth.revoke", session=two.session) == 1
    assert world.call(boss, "auth.revoke", session=three.session) == 1
    with pytest.raises(NotFound):
        world.call(boss, "auth.revoke", session=one.session, user="boss")
    world.caller("bob")
    assert world.call(boss, "auth.revoke", user="bob") == 2
    assert world.call(boss, "auth.revoke") == 1
    for caller in (one, two, three, boss):
        with pytest.raises(SessionRefused):
            world.call(caller, "auth.whoami")


def test_sessions_survive_a_restart_and_their_tokens_are_not_in_the_file(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.user("bob")
    bob, gone = world.caller("bob"), world.caller("bob")
    world.sessions.revoke(gone.session)
    world.close()
    again = World(tmp_path)
    assert again.call(bob, "auth.whoami")["user"] == "bob"
    with pytest.raises(SessionRefused):
        again.call(gone, "auth.whoami")
    again.close()
    for file in tmp_path.iterdir():
        assert bob.token.encode() not in file.read_bytes()


def test_a_session_that_can_not_be_read_is_over_and_the_others_are_not(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    _, kept = Sessions(StoreSessions(store)).issue("bob", address=ADDRESS, now=1.0)
    for session_id, data in (("a", b"{"), ("b", b"{}"), ("c", "text"), ("d", 5)):
        store.execute("INSERT INTO session VALUES (?, ?)", (session_id, data))
    assert list(StoreSessions(store).load_all()) == [kept]
    StoreSessions(store).delete("nothing")
    StoreSessions(store).delete(kept.id)
    assert list(StoreSessions(store).load_all()) == []
    store.close()


def test_revoking_reaches_all_connections_of_a_session(world: World) -> None:
    world.user("bob")
    bob = world.caller("bob")
    begun = threading.Barrier(5)
    refused: list[str] = []

    def ask() -> None:
        begun.wait(10)
        try:
            while True:
                world.call(bob, "auth.whoami")
        except McvirtError as error:
            refused.append(type(error).__name__)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait(10)
    world.sessions.revoke(bob.session)
    for thread in threads:
        thread.join(10)
    assert refused == ["SessionRefused"] * 4


# --- the audit trail ----------------------------------------------------------------------------------------------


def test_the_trail_is_for_superusers_and_can_be_narrowed(world: World) -> None:
    world.user("super", superuser=True)
    world.user("bob", *("MANAGE_USERS", "MANAGE_GROUPS"))
    world.user("ann")
    for name in ("x", "y", "z"):
        world.call("bob", "group.create", name=name)
    world.call("root", "group.delete", name="y")
    with pytest.raises(NotPermitted):
        world.call("bob", "audit.list")
    listed = world.call("super", "audit.list", limit=2)
    assert [(row["user"], row["operation"], row["target"]) for row in listed] == [
        ("root", "group.delete", "y"),
        ("bob", "audit.list", ""),
    ]
    assert [row["target"] for row in world.call("super", "audit.list", user="bob")] == ["x", "y", "z", ""]
    assert [row["operation"] for row in world.call("super", "audit.list", target="y")] == [
        "group.create",
        "group.delete",
    ]
    for limit in (0, -1):
        with pytest.raises(BadArgument):
            world.call("super", "audit.list", limit=limit)
    assert len(world.call("super", "audit.list", limit=2**40)) == 5
