from __future__ import annotations

import threading
from typing import Any

import pytest

from mcvirt.errors import (
    AlreadyExists,
    BadArgument,
    Conflict,
    LoginSlowedDown,
    NotFound,
    NotPermitted,
    SessionRefused,
    StateNotWritable,
    VmNotFound,
)
from mcvirt.permissions import GROUP_OWNER, Permission
from mcvirtd.auth.grants import drop_vm
from mcvirtd.state.records import GroupRecord, UserRecord
from tests.unit.services.world import World

NEW = "a new password"


def stored(world: World, name: str) -> UserRecord:
    record = world.store.get(UserRecord, name)
    assert record is not None
    return record


# --- creating and deleting ----------------------------------------------------------------------------------------


def test_a_new_user_has_no_rights_at_all(world: World) -> None:
    world.user("boss", "MANAGE_USERS")
    assert world.call("boss", "user.create", name="new", password=NEW) == {"name": "new", "password": None}
    assert world.rights.of("new") == frozenset()
    assert not stored(world, "new").superuser
    world.auth.login("new", NEW)


def test_without_a_password_one_is_made_and_told_once(world: World) -> None:
    password = world.call("root", "user.create", name="new")["password"]
    assert len(password) >= 16
    world.auth.login("new", password)
    assert password not in str(world.call("root", "user.list"))
    assert password not in str(world.audit.entries(10, None, None))


@pytest.mark.parametrize(
    "name", ["", "root", "mcvirtd", "mcv-cluster-1", "drbd-hook-1", "a b", "a\nb", "-x", "x" * 65, "ä", "a/b", "a:b"]
)
def test_names_that_nobody_may_have(world: World, name: str) -> None:
    with pytest.raises(BadArgument):
        world.call("root", "user.create", name=name, password=NEW)
    assert world.call("root", "user.list") == []


def test_a_name_that_is_taken_is_refused(world: World) -> None:
    world.user("bob", password="his own")
    with pytest.raises(AlreadyExists, match="'bob'"):
        world.call("root", "user.create", name="bob", password=NEW)
    world.auth.login("bob", "his own")


def test_deleting_takes_away_everything_of_the_user(world: World) -> None:
    world.vm("web1")
    world.user("bob", "CREATE_VM", on={"web1": ("MODIFY_VM",)})
    world.group("team", "CREATE_VM", users=("ann", "bob"), on={"web1": ("bob",), "web2": ("ann", "bob")})
    bob = world.caller("bob")
    world.call("root", "user.delete", name="bob")
    group = world.store.get(GroupRecord, "team")
    assert group is not None
    assert (group.users, group.vm_users) == (("ann",), {"web2": ("ann",)})
    with pytest.raises(SessionRefused):
        world.call(bob, "auth.whoami")
    world.call("root", "user.create", name="bob", password=NEW)
    assert world.rights.of("bob", "web1") == frozenset()
    with pytest.raises(SessionRefused):
        world.call(bob, "auth.whoami")


def test_sessions_of_a_deleted_user_stay_dead_even_if_they_could_not_be_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.user("bob")
    bob = world.caller("bob")

    def full(*_: Any, **__: Any) -> int:
        raise StateNotWritable(path="x", reason="full")

    with monkeypatch.context() as patch:
        patch.setattr(world.sessions, "revoke_user", full)
        world.call("root", "user.delete", name="bob")
        with pytest.raises(SessionRefused):
            world.call(bob, "auth.whoami")
        with pytest.raises(StateNotWritable):
            world.call("root", "user.create", name="bob", password=NEW)
    world.call("root", "user.create", name="bob", password=NEW)
    with pytest.raises(SessionRefused):
        world.call(bob, "auth.whoami")


def test_deleting_nobody_is_refused(world: World) -> None:
    with pytest.raises(NotFound, match="no user called 'ghost'"):
        world.call("root", "user.delete", name="ghost")


def test_users_are_listed_by_name_with_their_groups(world: World) -> None:
    world.user("bob", "CREATE_VM", superuser=True)
    world.user("ann")
    world.group("z", users=("ann",))
    world.group("a", users=("ann",), on={"web1": ("bob",)})
    rows = world.call("ann", "user.list")
    assert [(row["name"], row["user_type"], row["superuser"], row["groups"], row["permissions"]) for row in rows] == [
        ("ann", "Local", False, ["a", "z"], []),
        ("bob", "Local", True, [], ["CREATE_VM"]),
    ]


# --- permissions --------------------------------------------------------------------------------------------------


def test_permissions_are_given_and_taken_everywhere(world: World) -> None:
    world.user("bob", "MODIFY_VM")
    info = world.call("root", "user.add_permissions", user="bob", permissions=["clone_vm", "CREATE_VM"])
    assert info["permissions"] == ["CREATE_VM", "MODIFY_VM", "CLONE_VM"]
    info = world.call("root", "user.remove_permissions", user="bob", permissions=["MODIFY_VM", "MODIFY_VM"])
    assert info["permissions"] == ["CREATE_VM", "CLONE_VM"]


def test_permissions_are_given_and_taken_for_one_machine(world: World) -> None:
    world.vm("web1")
    world.user("bob")
    info = world.call("root", "user.add_permissions", user="bob", permissions=["CLONE_VM", "MODIFY_VM"], vm="web1")
    assert info["vm_permissions"] == {"web1": ["MODIFY_VM", "CLONE_VM"]} and info["permissions"] == []
    assert world.rights.of("bob", "web1") == {Permission.MODIFY_VM, Permission.CLONE_VM}
    assert world.rights.of("bob") == world.rights.of("bob", "web2") == frozenset()
    world.call("root", "user.remove_permissions", user="bob", permissions=["MODIFY_VM", "CLONE_VM"], vm="web1")
    assert stored(world, "bob").vm_permissions == {}


def test_an_owner_gives_and_takes_what_owners_have_on_that_machine_alone(world: World) -> None:
    for name in ("web1", "web2"):
        world.vm(name)
    for name in ("owner", "bob"):
        world.user(name)
    world.group("owner", *(permission.value for permission in GROUP_OWNER), on={"web1": ("owner",)})
    asked: dict[str, Any] = {"user": "bob", "permissions": ["CHANGE_VM_POWER_STATE"]}
    world.call("owner", "user.add_permissions", **asked, vm="web1")
    assert world.rights.of("bob", "web1") == {Permission.CHANGE_VM_POWER_STATE}
    for refused in ({**asked, "vm": "web2"}, asked, {**asked, "permissions": ["MODIFY_VM"], "vm": "web1"}):
        with pytest.raises(NotPermitted):
            world.call("owner", "user.add_permissions", **refused)
    assert world.rights.of("bob", "web2") == world.rights.of("bob") == frozenset()
    details = [entry.detail for entry in world.audit.entries(10, "owner", "web1")]
    assert details[0] == "user bob, permissions CHANGE_VM_POWER_STATE"
    assert details[1].startswith("user bob, permissions MODIFY_VM: User 'owner' does not have")
    world.call("owner", "user.remove_permissions", **asked, vm="web1")
    assert stored(world, "bob").vm_permissions == {}


@pytest.mark.parametrize("operation", ["user.add_permissions", "user.remove_permissions"])
@pytest.mark.parametrize(
    ("permissions", "vm", "error", "said"),
    [
        (["CREATE_VMS"], None, BadArgument, "Did you mean CREATE_VM?"),
        (["zzz"], None, BadArgument, "permission --list"),
        (["CREATE_VM\n"], None, BadArgument, "CREATE_VM?"),
        (["SUPERUSER"], None, BadArgument, "add-superuser"),
        (["superuser"], "web1", BadArgument, "add-superuser"),
        (["MANAGE_USERS"], "web1", BadArgument, "only everywhere"),
        (["MODIFY_VM"], "nope", VmNotFound, "nope"),
        (["MODIFY_VM"], "", VmNotFound, "''"),
        ([], None, BadArgument, "at least one"),
    ],
)
def test_what_can_not_be_given_is_refused(
    world: World, operation: str, permissions: list[str], vm: str | None, error: type[Exception], said: str
) -> None:
    world.vm("web1")
    world.user("bob", *(each.value for each in Permission))
    before = stored(world, "bob")
    with pytest.raises(error) as caught:
        world.call("root", operation, user="bob", permissions=permissions, vm=vm)
    assert said in str(caught.value)
    assert stored(world, "bob") == before


def test_what_is_so_already_is_refused_by_name_and_nothing_is_changed(world: World) -> None:
    world.user("bob", "CREATE_VM", "CLONE_VM")
    with pytest.raises(Conflict, match=r"'bob' has the permission CREATE_VM, CLONE_VM already"):
        world.call("root", "user.add_permissions", user="bob", permissions=["CLONE_VM", "MODIFY_VM", "CREATE_VM"])
    with pytest.raises(Conflict, match=r"'bob' does not have the permission MODIFY_VM of their own"):
        world.call("root", "user.remove_permissions", user="bob", permissions=["CLONE_VM", "MODIFY_VM"])
    assert stored(world, "bob").permissions == ("CREATE_VM", "CLONE_VM")


def test_superusers_are_made_and_unmade(world: World) -> None:
    world.user("bob")
    world.call("root", "user.add_superuser", user="bob")
    assert world.rights.of("bob") == frozenset(Permission)
    with pytest.raises(Conflict, match="already"):
        world.call("root", "user.add_superuser", user="bob")
    world.call("bob", "user.remove_superuser", user="bob")
    assert world.rights.of("bob") == frozenset()
    with pytest.raises(Conflict, match="not a superuser"):
        world.call("root", "user.remove_superuser", user="bob")
    with pytest.raises(NotFound):
        world.call("root", "user.add_superuser", user="root")


def test_deleting_a_machine_drops_the_rights_on_it(world: World) -> None:
    world.vm("web1")
    world.user("bob", on={"web1": ("MODIFY_VM",), "web2": ("CLONE_VM",)})
    world.group("team", "CLONE_VM", on={"web1": ("bob",), "web2": ("bob",)})
    with world.store.change() as change:
        drop_vm(change, "web1")
    assert world.rights.of("bob", "web1") == frozenset()
    assert world.rights.of("bob", "web2") == {Permission.CLONE_VM}


# --- passwords ----------------------------------------------------------------------------------------------------


def test_ones_own_password_takes_the_old_one_and_ends_the_other_sessions(world: World) -> None:
    world.user("bob", password="the old one")
    mine, other = world.caller("bob"), world.caller("bob")
    world.call(mine, "user.change_password", new_password=NEW, old_password="the old one")
    world.auth.login("bob", NEW)
    assert world.call(mine, "auth.whoami")["user"] == "bob"
    with pytest.raises(SessionRefused):
        world.call(other, "auth.whoami")


@pytest.mark.parametrize("named", [{}, {"user": "boss"}])
def test_ones_own_password_is_not_changed_without_the_old_one(world: World, named: dict[str, str]) -> None:
    world.user("boss", "MANAGE_USERS", password="the old one")
    before = stored(world, "boss")
    for old in ({}, {"old_password": "wrong"}, {"old_password": ""}):
        with pytest.raises(BadArgument, match="old password"):
            world.call("boss", "user.change_password", new_password=NEW, **named, **old)
    assert stored(world, "boss") == before


def test_the_old_password_can_not_be_guessed_with_a_stolen_session(world: World) -> None:
    world.user("bob")
    bob = world.caller("bob")
    for _ in range(10):
        try:
            world.call(bob, "user.change_password", new_password=NEW, old_password="guess")
        except BadArgument:
            continue
        except LoginSlowedDown:
            return
    pytest.fail("ten guesses in a row")


def test_who_may_changes_anothers_password_and_ends_all_their_sessions(world: World) -> None:
    world.user("boss", "MANAGE_USERS")
    world.user("bob")
    bob = world.caller("bob")
    world.call("boss", "user.change_password", new_password=NEW, user="bob")
    with pytest.raises(SessionRefused):
        world.call(bob, "auth.whoami")
    world.auth.login("bob", NEW)


def test_root_has_no_password_to_change(world: World) -> None:
    for named in ({}, {"user": "root"}):
        with pytest.raises(Conflict, match="root has no password"):
            world.call("root", "user.change_password", new_password=NEW, **named)
    with pytest.raises(NotFound):
        world.call("root", "user.change_password", new_password=NEW, user="ghost")


@pytest.mark.parametrize("password", ["", "        ", "short", "x" * 2000, "with\0nul-in-it"])
def test_a_bad_new_password_is_refused_before_the_old_one_is_looked_at(world: World, password: str) -> None:
    world.user("bob")
    with pytest.raises(BadArgument) as caught:
        world.call("bob", "user.change_password", new_password=password, old_password="wrong")
    assert caught.value.what == "password"


# --- attacks ------------------------------------------------------------------------------------------------------


ATTEMPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gives themselves": ("user.add_permissions", {"user": "mallory", "permissions": ["MANAGE_CLUSTER"]}),
    "gives a friend": ("user.add_permissions", {"user": "friend", "permissions": ["MIGRATE_VM"]}),
    "gives on a machine": ("user.add_permissions", {"user": "friend", "permissions": ["MODIFY_VM"], "vm": "web1"}),
    "mixes": ("user.add_permissions", {"user": "friend", "permissions": ["MANAGE_USERS", "MANAGE_DRBD"]}),
    "takes from an admin": ("user.remove_permissions", {"user": "admin", "permissions": ["MANAGE_CLUSTER"]}),
    "takes on a machine": ("user.remove_permissions", {"user": "owner", "permissions": ["MODIFY_VM"], "vm": "web1"}),
    "becomes superuser": ("user.add_superuser", {"user": "mallory"}),
    "unmakes a superuser": ("user.remove_superuser", {"user": "super"}),
    "password of a superuser": ("user.change_password", {"user": "super", "new_password": NEW}),
    "password of an admin": ("user.change_password", {"user": "admin", "new_password": NEW}),
    "password of an owner": ("user.change_password", {"user": "owner", "new_password": NEW}),
    "password of a member": ("user.change_password", {"user": "member", "new_password": NEW}),
    "password of a member on a machine": ("user.change_password", {"user": "local", "new_password": NEW}),
    "deletes a superuser": ("user.delete", {"name": "super"}),
    "deletes an admin": ("user.delete", {"name": "admin"}),
    "deletes an owner": ("user.delete", {"name": "owner"}),
    "takes from a superuser": ("user.remove_permissions", {"user": "super", "permissions": ["MANAGE_USERS"]}),
    "gives to a superuser": ("user.add_permissions", {"user": "super", "permissions": ["MANAGE_GROUPS"]}),
    "group for themselves": ("group.add_users", {"name": "strong", "users": ["mallory"]}),
    "group on a machine": ("group.add_users", {"name": "strong", "users": ["mallory"], "vm": "web1"}),
    "out of a group": ("group.remove_users", {"name": "strong", "users": ["member"]}),
    "out of a group on a machine": ("group.remove_users", {"name": "strong", "users": ["local"], "vm": "web1"}),
    "group grows": ("group.add_permissions", {"name": "weak", "permissions": ["MANAGE_CLUSTER"]}),
    "group shrinks": ("group.remove_permissions", {"name": "strong", "permissions": ["MIGRATE_VM"]}),
}


@pytest.mark.parametrize("attempt", list(ATTEMPTS))
def test_nobody_gives_or_takes_what_they_do_not_have(world: World, attempt: str) -> None:
    world.vm("web1")
    world.user("mallory", "MANAGE_USERS", "MANAGE_GROUPS", "MANAGE_GROUP_MEMBERS")
    world.user("friend")
    world.user("admin", "MANAGE_CLUSTER", "MANAGE_USERS")
    world.user("owner", on={"web1": ("MODIFY_VM",)})
    world.user("super", "MANAGE_USERS", superuser=True)
    world.user("member")
    world.user("local")
    world.group("strong", "MIGRATE_VM", "MANAGE_USERS", users=("member",), on={"web1": ("local",)})
    world.group("weak", users=("mallory",))
    before = (dict(world.store.all(UserRecord)), dict(world.store.all(GroupRecord)))
    sessions = [world.caller(name) for name in ("super", "admin", "owner", "member", "local")]
    operation, arguments = ATTEMPTS[attempt]
    with pytest.raises(NotPermitted):
        world.call("mallory", operation, **arguments)
    assert (dict(world.store.all(UserRecord)), dict(world.store.all(GroupRecord))) == before
    for caller in sessions:
        world.call(caller, "auth.whoami")
    # And it is not for another reason that it was refused: who has everything may.
    world.call("root", operation, **arguments)


def test_a_manager_of_users_may_give_and_take_what_they_have(world: World) -> None:
    world.vm("web1")
    world.user("boss", "MANAGE_USERS", "MIGRATE_VM", on={"web1": ("CLONE_VM",)})
    world.user("bob")
    world.call("boss", "user.add_permissions", user="bob", permissions=["MIGRATE_VM"])
    world.call("boss", "user.add_permissions", user="bob", permissions=["CLONE_VM", "MIGRATE_VM"], vm="web1")
    with pytest.raises(NotPermitted, match="CLONE_VM"):
        world.call("boss", "user.add_permissions", user="bob", permissions=["CLONE_VM"])
    world.call("boss", "user.change_password", user="bob", new_password=NEW)
    world.call("boss", "user.remove_permissions", user="bob", permissions=["CLONE_VM"], vm="web1")
    world.call("boss", "user.delete", name="bob")


def test_the_last_superuser_may_go(world: World) -> None:
    world.user("super", superuser=True)
    world.call("super", "user.delete", name="super")
    assert world.call("root", "user.list") == []


def test_two_changes_at_once_are_both_there(world: World) -> None:
    world.user("bob")
    wanted = [each.value for each in Permission if each is not Permission.SUPERUSER]
    threads = [
        threading.Thread(
            target=world.call, args=("root", "user.add_permissions"), kwargs={"user": "bob", "permissions": [name]}
        )
        for name in wanted
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert set(stored(world, "bob").permissions) == set(wanted)
