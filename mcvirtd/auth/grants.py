"""Giving and taking rights: what all services that do it have in common.

The one rule is that nobody gives or takes what they do not have themselves, whichever way round they try: permissions,
groups, members, or another's account. All of it is judged inside the change that it is judged for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import msgspec

from mcvirt.errors import BadArgument, NotFound, NotPermitted, VmNotFound
from mcvirt.names import printable
from mcvirt.permissions import VM_SCOPED, Permission
from mcvirtd.auth.caller import Caller
from mcvirtd.auth.rights import Rights
from mcvirtd.state.records import GroupRecord, UserRecord, VmRecord
from mcvirtd.state.store import Change

_ORDER = {permission.value: number for number, permission in enumerate(Permission)}
# They allow nothing. An owner, whose group has another of them than the users' group, may make users all the same.
_MEANS_NOTHING = frozenset({Permission.TEST_OWNER_PERMISSION, Permission.TEST_USER_PERMISSION})
_RULE = "nobody gives or takes what they do not have themselves"


def named(names: Iterable[str], *, vm: str | None = None) -> tuple[Permission, ...]:
    """The permissions called *names*, each once; BadArgument for what is none, or can't be given (for *vm*)."""
    found: dict[Permission, None] = {}
    for name in names:
        if name.upper() not in _ORDER:
            near = difflib.get_close_matches(name.upper(), _ORDER, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else " `mcvirt permission --list` shows all of them."
            raise BadArgument(what=f"permission '{printable(name)}'", why=f"there is no such permission.{hint}")
        permission = Permission(name.upper())
        if permission is Permission.SUPERUSER:
            raise BadArgument(
                what="permission SUPERUSER",
                why="it is not given as a permission. `mcvirt permission --add-superuser` makes a superuser.",
            )
        if vm is not None and permission not in VM_SCOPED:
            raise BadArgument(
                what=f"permission {permission.value}", why="it can't be given for one virtual machine, only everywhere."
            )
        found[permission] = None
    if not found:
        raise BadArgument(what="permissions", why="name at least one.")
    return tuple(found)


def in_order(permissions: Iterable[str]) -> tuple[str, ...]:
    """The names of permissions as they are stored and shown: each once, in the order of the list of all."""
    return tuple(sorted(set(permissions), key=lambda name: _ORDER.get(name, len(_ORDER))))


def user_of(change: Change, name: str) -> UserRecord:
    """The user's record; NotFound if there is none."""
    record = change.get(UserRecord, name)
    if record is None:
        raise NotFound(kind="user", name=printable(name), hint=" `mcvirt user list` shows all of them.")
    return record


def group_of(change: Change, name: str) -> GroupRecord:
    """The group's record; NotFound if there is none."""
    record = change.get(GroupRecord, name)
    if record is None:
        raise NotFound(kind="group", name=printable(name), hint=" `mcvirt group list` shows all of them.")
    return record


def check_vm(change: Change, vm: str | None) -> None:
    """VmNotFound if *vm* is named and does not exist."""
    if vm is not None and change.get(VmRecord, vm) is None:
        raise VmNotFound(name=printable(vm))


class Authority:
    """Whether a caller has what they are about to give or to take."""

    def __init__(self, rights: Rights) -> None:
        self._rights = rights

    def require(self, caller: Caller, permissions: Iterable[Permission], vm: str | None) -> None:
        """NotPermitted unless the caller has all *permissions*, for *vm* where one is named."""
        if not caller.root:
            _complain(caller, set(permissions) - self._rights.of(caller.user, vm), vm, f", and {_RULE}")

    def require_group(self, caller: Caller, group: GroupRecord, vm: str | None) -> None:
        """NotPermitted unless the caller has all that members of *group* have (for *vm*)."""
        given = {Permission(name) for name in group.permissions if name in _ORDER} - _MEANS_NOTHING
        self.require(caller, given if vm is None else given & VM_SCOPED, vm)

    def require_over(self, caller: Caller, user: UserRecord, change: Change) -> None:
        """NotPermitted unless the caller has every right of *user*, everywhere and on each virtual machine."""
        if caller.root:
            return
        everywhere: list[str | None] = [None]
        for vm in (*everywhere, *sorted(_machines_of(user, change))):
            missing = self._rights.of(user.name, vm) - self._rights.of(caller.user, vm) - _MEANS_NOTHING
            if user.superuser and missing:
                missing = frozenset({Permission.SUPERUSER})
            why = f", which user '{user.name}' has, and {_RULE}"
            _complain(caller, missing, vm, why)


def _machines_of(user: UserRecord, change: Change) -> set[str]:
    found = set(user.vm_permissions)
    for group in change.all(GroupRecord).values():
        found.update(vm for vm, members in group.vm_users.items() if user.name in members)
    return found


def _complain(caller: Caller, missing: Iterable[Permission], vm: str | None, why: str) -> None:
    names = in_order(permission.value for permission in missing)
    if names:
        on = f" on virtual machine '{printable(vm)}'" if vm is not None else ""
        raise NotPermitted(user=caller.user, permission=", ".join(names), scope=on + why)


def drop_vm(change: Change, name: str) -> None:
    """Take away every right that anybody holds on virtual machine *name* alone: for the change that deletes it."""
    for user in change.all(UserRecord).values():
        if name in user.vm_permissions:
            kept = {vm: held for vm, held in user.vm_permissions.items() if vm != name}
            change.put(msgspec.structs.replace(user, vm_permissions=kept))
    for group in change.all(GroupRecord).values():
        if name in group.vm_users:
            kept = {vm: members for vm, members in group.vm_users.items() if vm != name}
            change.put(msgspec.structs.replace(group, vm_users=kept))


def drop_user(change: Change, name: str) -> None:
    """Take a user out of every group: for the change that deletes the user."""
    for group in change.all(GroupRecord).values():
        users = tuple(user for user in group.users if user != name)
        vm_users = {vm: tuple(user for user in members if user != name) for vm, members in group.vm_users.items()}
        vm_users = {vm: members for vm, members in vm_users.items() if members}
        if users != group.users or vm_users != group.vm_users:
            change.put(msgspec.structs.replace(group, users=users, vm_users=vm_users))
