"""Users, groups, sessions and the audit trail as they cross the wire."""

from __future__ import annotations

from datetime import datetime

import msgspec


class LoginResult(msgspec.Struct, frozen=True, kw_only=True):
    """A session's token, shown this once, and when the session ends at the latest."""

    token: str
    user: str
    expires: datetime


class Whoami(msgspec.Struct, frozen=True, kw_only=True):
    """Who is calling, and what they may do everywhere."""

    user: str
    superuser: bool
    permissions: tuple[str, ...]
    node: str


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A session; *id* names it and gives no access."""

    id: str
    user: str
    address: str
    created: datetime
    last_used: datetime
    expires: datetime
    current: bool = False


class UserInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A user. *user_type* is Local for those that mcvirt keeps itself."""

    name: str
    user_type: str
    superuser: bool
    groups: tuple[str, ...]
    permissions: tuple[str, ...]
    vm_permissions: dict[str, tuple[str, ...]] = {}


class CreatedUser(msgspec.Struct, frozen=True, kw_only=True):
    """A new user, with the password where it was generated, shown this once."""

    name: str
    password: str | None = None


class GroupInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A group: its permissions, its members everywhere, and its members on single virtual machines."""

    name: str
    id: str
    permissions: tuple[str, ...]
    users: tuple[str, ...]
    vm_users: dict[str, tuple[str, ...]]


class PermissionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A permission and what it allows."""

    permission: str
    description: str
    vm: bool  # may be given for one virtual machine


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what, from where, to what, and how it ended."""

    id: int
    time: datetime
    user: str
    address: str
    node: str
    operation: str
    target: str
    result: str
    detail: str = ""
    reference: str = ""
