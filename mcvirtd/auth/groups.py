"""Groups: the contract GroupApi."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mcvirt import names
from mcvirt.api.auth import GroupApi
from mcvirt.errors import AlreadyExists, BadArgument, Conflict
from mcvirt.permissions import DESCRIPTIONS, VM_SCOPED, Permission
from mcvirt.types.auth import GroupInfo, PermissionInfo
from mcvirtd.auth.caller import current_caller
from mcvirtd.auth.grants import Authority, check_vm, group_of, in_order, named, user_of
from mcvirtd.auth.rights import Rights
from mcvirtd.state.records import GroupRecord
from mcvirtd.state.store import Store

ID_CODE = "gp"


class GroupService(GroupApi):
    """Groups. Nobody puts into one, or takes out of it, what they do not have themselves."""

    def __init__(self, *, store: Store, rights: Rights) -> None:
        self._store = store
        self._authority = Authority(rights)

    def list(self) -> tuple[GroupInfo, ...]:
        """All groups, by name."""
        return tuple(_info(record) for _, record in sorted(self._store.all(GroupRecord).items()))

    def permissions(self) -> tuple[PermissionInfo, ...]:
        """All permissions and what they allow."""
        return tuple(
            PermissionInfo(permission=each.value, description=DESCRIPTIONS[each], vm=each in VM_SCOPED)
            for each in Permission
        )

    def create(self, name: str) -> GroupInfo:
        """Create a group without permissions and members."""
        names.group_name(name)
        record = GroupRecord(name=name, id=names.new_id(ID_CODE))
        with self._store.change() as change:
            if change.get(GroupRecord, name) is not None:
                raise AlreadyExists(kind="group", name=name)
            change.put(record)
        return _info(record)

    def delete(self, name: str) -> None:
        """Delete a group that has no members."""
        with self._store.change() as change:
            record = group_of(change, name)
            members = set(record.users).union(*record.vm_users.values())
            if members:
                shown = ", ".join(sorted(members)[:5]) + (", ..." if len(members) > 5 else "")
                raise Conflict(text=f"Group '{name}' has members ({shown}). Take them out first.")
            change.delete(GroupRecord, name)

    def add_permissions(self, name: str, permissions: tuple[str, ...]) -> GroupInfo:
        """Add permissions to a group."""
        return self._change_permissions(name, permissions, give=True)

    def remove_permissions(self, name: str, permissions: tuple[str, ...]) -> GroupInfo:
        """Take permissions from a group."""
        return self._change_permissions(name, permissions, give=False)

    def _change_permissions(self, name: str, permissions: tuple[str, ...], *, give: bool) -> GroupInfo:
        wanted = named(permissions)
        with self._store.change() as change:
            record = group_of(change, name)
            self._authority.require(current_caller(), wanted, None)
            held = set(record.permissions)
            asked = {permission.value for permission in wanted}
            wrong = in_order(asked & held if give else asked - held)
            if wrong:
                has, already = ("has", " already") if give else ("does not have", "")
                raise Conflict(text=f"Group '{name}' {has} the permission {', '.join(wrong)}{already}.")
            left = in_order(held | asked if give else held - asked)
            return _info(change.edit(GroupRecord, name, permissions=left))

    def add_users(self, name: str, users: tuple[str, ...], vm: str | None = None) -> GroupInfo:
        """Put users into a group, everywhere or on *vm*."""
        return self._change_members(name, users, vm, enter=True)

    def remove_users(self, name: str, users: tuple[str, ...], vm: str | None = None) -> GroupInfo:
        """Take users out of a group, everywhere or on *vm*."""
        return self._change_members(name, users, vm, enter=False)

    def _change_members(self, name: str, users: tuple[str, ...], vm: str | None, *, enter: bool) -> GroupInfo:
        if not users:
            raise BadArgument(what="users", why="name at least one.")
        with self._store.change() as change:
            record = group_of(change, name)
            check_vm(change, vm)
            for user in users:
                user_of(change, user)
            self._authority.require_group(current_caller(), record, vm)
            members = set(record.users if vm is None else record.vm_users.get(vm, ()))
            wrong = sorted(members & set(users) if enter else set(users) - members)
            if wrong:
                on = "" if vm is None else f" on virtual machine '{vm}'"
                are = "are in it already" if enter else "are not in it"
                raise Conflict(text=f"Group '{name}'{on}: {', '.join(wrong)} {are}.")
            left = _sorted(members.union(users) if enter else members - set(users))
            if vm is None:
                changed = msgspec.structs.replace(record, users=left)
            else:
                others = {machine: kept for machine, kept in record.vm_users.items() if machine != vm}
                changed = msgspec.structs.replace(record, vm_users={**others, vm: left} if left else others)
            change.put(changed)
        return _info(changed)


def _sorted(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(values))


def _info(record: GroupRecord) -> GroupInfo:
    return GroupInfo(
        name=record.name,
        id=record.id,
        permissions=in_order(record.permissions),
        users=_sorted(record.users),
        vm_users={vm: _sorted(members) for vm, members in sorted(record.vm_users.items())},
    )
