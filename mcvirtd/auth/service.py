"""Sessions, and the audit trail: the contracts AuthApi and AuditApi."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from mcvirt.api.auth import AuditApi, AuthApi
from mcvirt.errors import BadArgument, Conflict, NotFound
from mcvirt.names import printable
from mcvirt.permissions import Permission
from mcvirt.types.auth import AuditEntry, LoginResult, SessionInfo, Whoami
from mcvirtd.auth.audit import MOST_LISTED, Audit
from mcvirtd.auth.caller import current_caller
from mcvirtd.auth.grants import in_order
from mcvirtd.auth.login import Login
from mcvirtd.auth.rights import Rights
from mcvirtd.auth.tokens import Session, Sessions
from mcvirtd.state.records import UserRecord
from mcvirtd.state.store import Store


class AuthService(AuthApi):
    """Sessions. *clock* gives seconds since 1970, *node* is this node's name."""

    def __init__(
        self,
        *,
        store: Store,
        sessions: Sessions,
        login: Login,
        rights: Rights,
        node: str,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._login = login
        self._rights = rights
        self._node = node
        self._clock = clock

    def login(self, user: str, password: str) -> LoginResult:
        """A session token for *user*."""
        token, session = self._login.log_in(user, password, current_caller().address)
        return LoginResult(token=token, user=user, expires=_time(session.expires))

    def logout(self) -> None:
        """End the session that this call is made with."""
        caller = current_caller()
        if not caller.session:
            raise Conflict(text="There is no session to end: root is known on the node itself without one.")
        self._sessions.revoke(caller.session)

    def whoami(self) -> Whoami:
        """Who is calling."""
        caller = current_caller()
        held = frozenset(Permission) if caller.root else self._rights.of(caller.user)
        return Whoami(
            user=caller.user,
            superuser=self._rights.is_superuser(caller),
            permissions=in_order(permission.value for permission in held),
            node=self._node,
        )

    def sessions(self, user: str | None = None, every: bool = False) -> tuple[SessionInfo, ...]:
        """One's own sessions, those of *user*, or all."""
        caller = current_caller()
        if user is not None:
            self._check_user(user)
        whose = user if user is not None else None if every else caller.user
        found = self._sessions.listing(whose, now=self._clock())
        return tuple(_info(session, caller.session) for session in found)

    def revoke(self, session: str | None = None, user: str | None = None) -> int:
        """End a session, or all of *user*; one's own where neither is named."""
        caller = current_caller()
        if user is not None:
            self._check_user(user)
        if session is None:
            return self._sessions.revoke_user(caller.user if user is None else user)
        found = self._sessions.get(session)
        if user is not None:
            mine = found.user == user
        else:
            mine = found.user == caller.user or self._rights.allowed(caller, Permission.MANAGE_USERS)
        if not mine:
            # The very answer of a session that does not exist: whose it is, is nobody's business.
            raise _no_session(session)
        self._sessions.revoke(session)
        return 1

    def _check_user(self, user: str) -> None:
        if self._store.get(UserRecord, user) is None:
            raise NotFound(kind="user", name=printable(user), hint=" `mcvirt user list` shows all of them.")


class AuditService(AuditApi):
    """The audit trail."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def list(self, limit: int = 100, user: str | None = None, target: str | None = None) -> tuple[AuditEntry, ...]:
        """The newest *limit* entries, the oldest of them first."""
        if limit < 1:
            raise BadArgument(what="limit", why=f"it is a number from 1 to {MOST_LISTED}.")
        return tuple(self._audit.entries(limit, user, target))


def _no_session(session: str) -> NotFound:
    return NotFound(kind="session", name=session, hint=" `mcvirt session list` shows yours.")


def _info(session: Session, current: str) -> SessionInfo:
    return SessionInfo(
        id=session.id,
        user=session.user,
        address=session.address,
        created=_time(session.created),
        last_used=_time(session.last_used),
        expires=_time(min(session.expires, session.last_used + session.idle_timeout)),
        current=session.id == current,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
