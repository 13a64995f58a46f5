"""Logging in, users, groups, permissions, and the audit trail."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import Vm, remote
from mcvirt.types.auth import (
    AuditEntry,
    CreatedUser,
    GroupInfo,
    LoginResult,
    PermissionInfo,
    SessionInfo,
    UserInfo,
    Whoami,
)


class AuthApi:
    """Sessions."""

    object_id = "auth"

    @remote(needs=Access.ANYONE)
    def login(self, user: str, password: str) -> LoginResult:
        """A session token for *user*. Failed logins are slowed down for the user and for the address."""
        raise NotImplementedError

    @remote(needs=Access.SELF)
    def logout(self) -> None:
        """End the session that this call is made with."""
        raise NotImplementedError

    @remote(needs=Access.ANY_USER, reads=True)
    def whoami(self) -> Whoami:
        """Who is calling."""
        raise NotImplementedError

    @remote(needs=Access.SELF, also={"user": Permission.MANAGE_USERS, "every": Permission.MANAGE_USERS}, reads=True)
    def sessions(self, user: str | None = None, every: bool = False) -> tuple[SessionInfo, ...]:
        """One's own sessions; those of *user* or of everybody with MANAGE_USERS."""
        raise NotImplementedError

    @remote(needs=Access.SELF, also={"user": Permission.MANAGE_USERS})
    def revoke(self, session: str | None = None, user: str | None = None) -> int:
        """End a session by its ID, or all of *user*; returns how many ended. Others' need MANAGE_USERS."""
        raise NotImplementedError


class UserApi:
    """Users' accounts."""

    object_id = "user"

    @remote(needs=Access.ANY_USER, reads=True)
    def list(self) -> tuple[UserInfo, ...]:
        """All users, by name."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_USERS)
    def create(self, name: str, password: str | None = None) -> CreatedUser:
        """Create a user; without *password* one is generated and returned."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_USERS)
    def delete(self, name: str) -> None:
        """Delete a user, with all memberships, permissions and sessions."""
        raise NotImplementedError

    @remote(needs=Access.SELF, also={"user": Permission.MANAGE_USERS})
    def change_password(self, new_password: str, user: str | None = None, old_password: str | None = None) -> None:
        """Change one's own password (the old one is asked for again), or that of *user* with MANAGE_USERS.

        All other sessions of the user end. The password of a superuser can only be changed by a superuser.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_USERS, on=Vm("vm"), instead=Permission.MANAGE_VM_USERS)
    def add_permissions(self, user: str, permissions: tuple[str, ...], vm: str | None = None) -> UserInfo:
        """Give a user permissions, everywhere or on *vm*. Nobody gives what they do not have themselves.

        On a virtual machine who has MANAGE_VM_USERS there may do it as well.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_USERS, on=Vm("vm"), instead=Permission.MANAGE_VM_USERS)
    def remove_permissions(self, user: str, permissions: tuple[str, ...], vm: str | None = None) -> UserInfo:
        """Take permissions from a user, everywhere or on *vm*."""
        raise NotImplementedError

    @remote(needs=Permission.SUPERUSER)
    def add_superuser(self, user: str) -> None:
        """Make a user a superuser."""
        raise NotImplementedError

    @remote(needs=Permission.SUPERUSER)
    def remove_superuser(self, user: str) -> None:
        """Make a superuser an ordinary user."""
        raise NotImplementedError


class GroupApi:
    """Groups: permissions that several users have together, everywhere or on single virtual machines."""

    object_id = "group"

    @remote(needs=Access.ANY_USER, reads=True)
    def list(self) -> tuple[GroupInfo, ...]:
        """All groups, by name."""
        raise NotImplementedError

    @remote(needs=Access.ANY_USER, reads=True)
    def permissions(self) -> tuple[PermissionInfo, ...]:
        """All permissions and what they allow."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_GROUPS)
    def create(self, name: str) -> GroupInfo:
        """Create a group without permissions and members."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_GROUPS)
    def delete(self, name: str) -> None:
        """Delete a group that has no members."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_GROUPS)
    def add_permissions(self, name: str, permissions: tuple[str, ...]) -> GroupInfo:
        """Add permissions to a group. Nobody gives what they do not have themselves."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_GROUPS)
    def remove_permissions(self, name: str, permissions: tuple[str, ...]) -> GroupInfo:
        """Take permissions from a group."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_GROUP_MEMBERS, on=Vm("vm"))
    def add_users(self, name: str, users: tuple[str, ...], vm: str | None = None) -> GroupInfo:
        """Put users into a group, everywhere or on *vm*. Nobody gives what they do not have themselves."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_GROUP_MEMBERS, on=Vm("vm"))
    def remove_users(self, name: str, users: tuple[str, ...], vm: str | None = None) -> GroupInfo:
        """Take users out of a group, everywhere or on *vm*."""
        raise NotImplementedError


class AuditApi:
    """Who did what."""

    object_id = "audit"

    @remote(needs=Permission.SUPERUSER, reads=True)
    def list(self, limit: int = 100, user: str | None = None, target: str | None = None) -> tuple[AuditEntry, ...]:
        """The newest *limit* entries (10,000 at most), the oldest of them first."""
        raise NotImplementedError
