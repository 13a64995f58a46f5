"""Users' accounts: the contract UserApi."""

from __future__ import annotations

import logging

import msgspec

from mcvirt import names
from mcvirt.api.auth import UserApi
from mcvirt.errors import AlreadyExists, BadArgument, Conflict, McvirtError
from mcvirt.types.auth import CreatedUser, UserInfo
from mcvirtd.auth import passwords as password_rules
from mcvirtd.auth.caller import SYSTEM, Caller, current_caller
from mcvirtd.auth.grants import Authority, check_vm, drop_user, in_order, named, user_of
from mcvirtd.auth.login import Login
from mcvirtd.auth.passwords import Passwords
from mcvirtd.auth.rights import Rights
from mcvirtd.auth.tokens import Sessions
from mcvirtd.state.records import GroupRecord, UserRecord
from mcvirtd.state.store import Change, Store

log = logging.getLogger(__name__)


class UserService(UserApi):
    """Users' accounts. Nobody changes one that has more rights than their own."""

    def __init__(
        self, *, store: Store, rights: Rights, sessions: Sessions, passwords: Passwords, login: Login
    ) -> None:
        self._store = store
        self._authority = Authority(rights)
        self._sessions = sessions
        self._passwords = passwords
        self._login = login

    def list(self) -> tuple[UserInfo, ...]:
        """All users, by name."""
        return tuple(self._info(record) for _, record in sorted(self._store.all(UserRecord).items()))

    def create(self, name: str, password: str | None = None) -> CreatedUser:
        """Create a user."""
        names.user_name(name)
        if name == SYSTEM:
            raise BadArgument(what=f"user name '{name}'", why="this name is reserved for mcvirt itself.")
        if self._store.get(UserRecord, name) is not None:
            raise AlreadyExists(kind="user", name=name)
        chosen = password_rules.generate() if password is None else password
        record = UserRecord(name=name, password_hash=self._passwords.hash(chosen))
        # An earlier user of that name whose sessions could not be ended must not come back to life.
        self._sessions.revoke_user(name)
        with self._store.change() as change:
            if change.get(UserRecord, name) is not None:
                raise AlreadyExists(kind="user", name=name)
            change.put(record)
        return CreatedUser(name=name, password=chosen if password is None else None)

    def delete(self, name: str) -> None:
        """Delete a user, with all memberships, permissions and sessions."""
        with self._store.change() as change:
            self._authority.require_over(current_caller(), user_of(change, name), change)
            drop_user(change, name)
            change.delete(UserRecord, name)
        self._end_sessions(name)

    def change_password(self, new_password: str, user: str | None = None, old_password: str | None = None) -> None:
        """Change one's own password, or that of *user*."""
        caller = current_caller()
        name = caller.user if user is None else user
        own = name == caller.user
        if own and caller.root:
            raise Conflict(text="root has no password here: root is known on the node itself without one.")
        with self._store.change() as change:
            self._check_password_change(change, caller, name)
        password_rules.acceptable(new_password)
        if own:
            self._confirm(caller, old_password)
        new_hash = self._passwords.hash(new_password)
        with self._store.change() as change:
            self._check_password_change(change, caller, name)
            change.edit(UserRecord, name, password_hash=new_hash)
        self._end_sessions(name, but=caller.session if own else None)

    def _check_password_change(self, change: Change, caller: Caller, name: str) -> None:
        record = user_of(change, name)
        if name != caller.user:
            self._authority.require_over(caller, record, change)

    def _confirm(self, caller: Caller, old_password: str | None) -> None:
        if old_password is None:
            raise BadArgument(what="old password", why="it is needed to change one's own password.")
        if not self._login.confirm(caller.user, old_password, caller.address):
            raise BadArgument(what="old password", why="it is wrong.")

    def add_permissions(self, user: str, permissions: tuple[str, ...], vm: str | None = None) -> UserInfo:
        """Give a user permissions, everywhere or on *vm*."""
        return self._change_permissions(user, permissions, vm, give=True)

    def remove_permissions(self, user: str, permissions: tuple[str, ...], vm: str | None = None) -> UserInfo:
        """Take permissions from a user, everywhere or on *vm*."""
        return self._change_permissions(user, permissions, vm, give=False)

    def _change_permissions(self, user: str, permissions: tuple[str, ...], vm: str | None, *, give: bool) -> UserInfo:
        caller = current_caller()
        wanted = named(permissions, vm=vm)
        with self._store.change() as change:
            record = user_of(change, user)
            check_vm(change, vm)
            self._authority.require(caller, wanted, vm)
            if record.superuser:
                self._authority.require_over(caller, record, change)
            held = set(record.permissions if vm is None else record.vm_permissions.get(vm, ()))
            names_wanted = {permission.value for permission in wanted}
            wrong = in_order(names_wanted & held if give else names_wanted - held)
            if wrong:
                on = "" if vm is None else f" on virtual machine '{vm}'"
                has = "has" if give else "does not have"
                already = " already" if give else " of their own"
                raise Conflict(text=f"User '{user}' {has} the permission {', '.join(wrong)}{on}{already}.")
            left = in_order(held | names_wanted if give else held - names_wanted)
            if vm is None:
                changed = msgspec.structs.replace(record, permissions=left)
            else:
                others = {name: kept for name, kept in record.vm_permissions.items() if name != vm}
                changed = msgspec.structs.replace(record, vm_permissions={**others, vm: left} if left else others)
            change.put(changed)
        return self._info(changed)

    def add_superuser(self, user: str) -> None:
        """Make a user a superuser."""
        self._set_superuser(user, to=True)

    def remove_superuser(self, user: str) -> None:
        """Make a superuser an ordinary user."""
        self._set_superuser(user, to=False)

    def _set_superuser(self, user: str, *, to: bool) -> None:
        with self._store.change() as change:
            if user_of(change, user).superuser is to:
                raise Conflict(text=f"User '{user}' is {'a superuser already' if to else 'not a superuser'}.")
            change.edit(UserRecord, user, superuser=to)

    def _end_sessions(self, user: str, *, but: str | None = None) -> None:
        try:
            self._sessions.revoke_user(user, but=but)
        except McvirtError as error:
            # Of a user who is gone they are refused all the same; of one who is not, the caller has to know.
            log.error("the sessions of %s could not be ended: %s", user, error)
            if self._store.get(UserRecord, user) is not None:
                raise

    def _info(self, record: UserRecord) -> UserInfo:
        groups = self._store.all(GroupRecord)
        return UserInfo(
            name=record.name,
            user_type="Local",
            superuser=record.superuser,
            groups=tuple(name for name, group in sorted(groups.items()) if record.name in group.users),
            permissions=in_order(record.permissions),
            vm_permissions={vm: in_order(held) for vm, held in sorted(record.vm_permissions.items())},
        )
