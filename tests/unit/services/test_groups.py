from __future__ import annotations

import pytest

from mcvirt.errors import AlreadyExists, BadArgument, Conflict, NotFound, NotPermitted, VmNotFound
from mcvirt.permissions import DEFAULT_GROUPS, DESCRIPTIONS, VM_SCOPED, Permission
from mcvirtd.state.records import GroupRecord
from tests.unit.services.world import World


def test_a_group_begins_empty_and_keeps_its_id(world: World) -> None:
    made = world.call("root", "group.create", name="team")
    assert (made["permissions"], made["users"], made["vm_users"]) == ([], [], {})
    assert made["id"].startswith("gp-")
    assert [len(part) for part in made["id"].split("-")] == [2, 18, 22]
    world.call("root", "group.add_permissions", name="team", permissions=["CREATE_VM"])
    assert world.call("root", "group.list")[0]["id"] == made["id"]


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "x" * 65, "a_b", "ä"])
def test_names_that_no_group_may_have(world: World, name: str) -> None:
    with pytest.raises(BadArgument):
        world.call("root", "group.create", name=name)


def test_a_name_that_is_taken_is_refused(world: World) -> None:
    world.group("team", "CREATE_VM")
    with pytest.raises(AlreadyExists, match="'team'"):
        world.call("root", "group.create", name="team")
    assert world.call("root", "group.list")[0]["permissions"] == ["CREATE_VM"]


def test_all_permissions_are_listed_with_what_they_allow(world: World) -> None:
    world.user("plain")
    rows = world.call("plain", "group.permissions")
    assert {row["permission"] for row in rows} == {each.value for each in Permission}
    for row in rows:
        permission = Permission(row["permission"])
        assert row["description"] == DESCRIPTIONS[permission]
        assert row["vm"] is (permission in VM_SCOPED)


def test_members_get_its_permissions_with_their_next_call(world: World) -> None:
    world.vm("web1")
    world.user("bob")
    world.group("team", "MODIFY_VM")
    world.call("root", "group.add_users", name="team", users=["bob"], vm="web1")
    assert (world.rights.of("bob"), world.rights.of("bob", "web1")) == (frozenset(), {Permission.MODIFY_VM})
    info = world.call("root", "group.add_users", name="team", users=["bob"])
    assert (info["users"], info["vm_users"]) == (["bob"], {"web1": ["bob"]})
    assert world.rights.of("bob") == {Permission.MODIFY_VM}
    world.call("root", "group.remove_permissions", name="team", permissions=["MODIFY_VM"])
    assert world.rights.of("bob", "web1") == frozenset()
    world.call("root", "group.remove_users", name="team", users=["bob"], vm="web1")
    assert world.call("root", "group.remove_users", name="team", users=["bob"])["vm_users"] == {}


@pytest.mark.parametrize(
    ("operation", "arguments", "error", "said"),
    [
        ("add_users", {"name": "nope", "users": ["bob"]}, NotFound, "group called 'nope'"),
        ("add_users", {"name": "team", "users": ["ghost"]}, NotFound, "user called 'ghost'"),
        ("add_users", {"name": "team", "users": ["bob", "root"]}, NotFound, "user called 'root'"),
        ("add_users", {"name": "team", "users": ["bob"], "vm": "nope"}, VmNotFound, "nope"),
        ("add_users", {"name": "team", "users": []}, BadArgument, "at least one"),
        ("add_users", {"name": "team", "users": ["bob", "ann"]}, Conflict, "ann are in it already"),
        ("remove_users", {"name": "team", "users": ["bob", "ann"]}, Conflict, "bob are not in it"),
        ("remove_users", {"name": "team", "users": ["ann"], "vm": "web1"}, Conflict, "'web1': ann are not in it"),
        ("add_permissions", {"name": "team", "permissions": ["CREATE_VM", "MOVE_VM"]}, Conflict, "CREATE_VM already"),
        ("remove_permissions", {"name": "team", "permissions": ["MOVE_VM"]}, Conflict, "not have the permission MOVE"),
        ("add_permissions", {"name": "team", "permissions": ["SUPERUSER"]}, BadArgument, "add-superuser"),
        ("add_permissions", {"name": "team", "permissions": ["MODIFYVM"]}, BadArgument, "Did you mean MODIFY_VM?"),
        ("add_permissions", {"name": "nope", "permissions": ["MOVE_VM"]}, NotFound, "group called 'nope'"),
        ("delete", {"name": "nope"}, NotFound, "group called 'nope'"),
        ("delete", {"name": "team"}, Conflict, "has members (ann)"),
        ("delete", {"name": "local"}, Conflict, "has members (bob)"),
    ],
)
def test_refusals_change_nothing(
    world: World, operation: str, arguments: dict[str, object], error: type[Exception], said: str
) -> None:
    world.vm("web1")
    world.user("ann")
    world.user("bob")
    world.group("team", "CREATE_VM", users=("ann",))
    world.group("local", on={"web1": ("bob",)})
    before = dict(world.store.all(GroupRecord))
    with pytest.raises(error) as caught:
        world.call("root", f"group.{operation}", **arguments)
    assert said in str(caught.value)
    assert dict(world.store.all(GroupRecord)) == before


def test_an_empty_group_is_deleted(world: World) -> None:
    world.group("team", "CREATE_VM")
    world.user("boss", "MANAGE_GROUPS")
    world.call("boss", "group.delete", name="team")
    assert world.call("boss", "group.list") == []


def defaults(world: World) -> None:
    for name, permissions in DEFAULT_GROUPS.items():
        world.group(name, *(each.value for each in permissions))


def test_an_owner_makes_users_and_owners_of_that_machine_and_of_no_other(world: World) -> None:
    defaults(world)
    for name in ("web1", "web2"):
        world.vm(name)
    for name in ("owner", "ann", "bob"):
        world.user(name)
    world.call("root", "group.add_users", name="owner", users=["owner"], vm="web1")
    world.call("owner", "group.add_users", name="user", users=["ann"], vm="web1")
    world.call("owner", "group.add_users", name="owner", users=["bob"], vm="web1")
    for vm in ("web2", None, ""):
        with pytest.raises(NotPermitted):
            world.call("owner", "group.add_users", name="user", users=["bob"], vm=vm)
    world.call("owner", "group.remove_users", name="user", users=["ann"], vm="web1")
    world.call("bob", "group.remove_users", name="owner", users=["owner"], vm="web1")
    with pytest.raises(NotPermitted):
        world.call("owner", "group.add_users", name="user", users=["ann"], vm="web1")


def test_an_owner_gives_no_group_that_is_stronger_than_an_owner(world: World) -> None:
    defaults(world)
    world.vm("web1")
    world.user("owner")
    world.user("bob")
    world.group("admins", "MODIFY_VM", "MANAGE_USERS")
    world.group("far", "MANAGE_USERS", "CLONE_VM")
    world.call("root", "group.add_users", name="owner", users=["owner"], vm="web1")
    for users in (["bob"], ["owner"]):
        with pytest.raises(NotPermitted, match="MODIFY_VM on virtual machine 'web1'"):
            world.call("owner", "group.add_users", name="admins", users=users, vm="web1")
    # For one machine a group gives only what means something there: so this one is no stronger.
    world.call("owner", "group.add_users", name="far", users=["bob"], vm="web1")
    assert world.rights.of("bob", "web1") == {Permission.CLONE_VM}


def test_a_manager_of_groups_only_can_not_grow_a_group_of_their_own(world: World) -> None:
    world.user("mallory", "MANAGE_GROUPS")
    world.group("mine", users=("mallory",))
    world.vm("web1")
    for permission in (each for each in Permission if each not in (Permission.MANAGE_GROUPS, Permission.SUPERUSER)):
        with pytest.raises(NotPermitted):
            world.call("mallory", "group.add_permissions", name="mine", permissions=[permission.value])
    with pytest.raises(NotPermitted):
        world.call("mallory", "group.add_users", name="mine", users=["mallory"])
    assert world.rights.of("mallory") == {Permission.MANAGE_GROUPS}


def test_a_right_on_one_machine_is_not_enough_to_grow_a_group(world: World) -> None:
    world.vm("web1")
    world.user("mallory", "MANAGE_GROUPS", on={"web1": ("MODIFY_VM",)})
    world.group("mine", users=("mallory",))
    with pytest.raises(NotPermitted, match="MODIFY_VM, and nobody gives"):
        world.call("mallory", "group.add_permissions", name="mine", permissions=["MODIFY_VM"])


def test_superuser_in_a_list_of_permissions_makes_no_superuser(world: World) -> None:
    world.user("bob", "SUPERUSER", on={"web1": ("SUPERUSER",)})
    world.group("fake", "SUPERUSER", users=("bob",), on={"web1": ("bob",)})
    assert world.rights.of("bob") == world.rights.of("bob", "web1") == frozenset()
    with pytest.raises(NotPermitted):
        world.call("bob", "audit.list")


def test_rights_do_not_fill_the_memory_with_names_of_machines_that_are_none(world: World) -> None:
    world.user("bob")
    for number in range(100):
        world.rights.of("bob", "x" * 1000 + str(number))
    assert len(world.rights._known) < 10
