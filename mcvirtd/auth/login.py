"""Who is calling: names and passwords, the tokens of sessions, and root's token."""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Callable, Collection
from typing import Any

from mcvirt import names
from mcvirt.errors import BadArgument, LoginFailed, McvirtError, NotAuthenticated, SessionRefused
from mcvirtd.auth.caller import ROOT, Caller
from mcvirtd.auth.passwords import Passwords, needs_rehash
from mcvirtd.auth.throttle import LoginThrottle
from mcvirtd.auth.tokens import Session, Sessions
from mcvirtd.state.records import UserRecord
from mcvirtd.state.store import Store

log = logging.getLogger(__name__)
_CREDENTIALS = frozenset({"token", "without", "ignore_drbd"})
_MOST_NODES = 64


class Login:
    """The daemon's door. *clock* gives seconds since 1970.

    root's token is taken from loopback addresses only, and from *own_addresses*: where the daemon listens itself, if
    that is not a loopback address.
    """

    def __init__(
        self,
        *,
        store: Store,
        sessions: Sessions,
        passwords: Passwords,
        throttle: LoginThrottle,
        root_token: str,
        clock: Callable[[], float],
        own_addresses: Collection[str] = (),
    ) -> None:
        if len(root_token) < 32:
            raise ValueError("root's token is too short to be a secret")
        self._store = store
        self._sessions = sessions
        self._passwords = passwords
        self._throttle = throttle
        self._root_token = _octets(root_token)
        self._clock = clock
        self._own_addresses = frozenset(own_addresses)

    def authenticate(self, data: dict[str, Any], address: str) -> Caller:
        """Who a new connection from *address* belongs to, by what it said in the handshake.

        {} is nobody yet, who can only log in. {"token": ...} is root, or the user of that session; beside it,
        "without" names nodes to go on without, and "ignore_drbd" may be true.
        """
        if not data:
            return Caller(address=address)
        token = data.get("token")
        if not isinstance(token, str) or data.keys() - _CREDENTIALS:
            raise BadArgument(what="credentials", why="they are a map with a token, or empty for a login.")
        without, ignore_drbd = _wishes(data)
        if hmac.compare_digest(_octets(token), self._root_token):
            if not (_is_loopback(address) or address in self._own_addresses):
                log.warning("root's token was used from %s, and refused", address)
                raise NotAuthenticated(
                    text="root's token is only taken on the node itself. Log in as a user from anywhere else."
                )
            return Caller(user=ROOT, root=True, address=address, without=without, ignore_drbd=ignore_drbd)
        session = self.check(token, self._clock())
        return Caller(
            user=session.user,
            session=session.id,
            token=token,
            address=address,
            without=without,
            ignore_drbd=ignore_drbd,
        )

    def check(self, token: str, now: float) -> Session:
        """The session of *token*, marked as used; SessionRefused if it is not good, or its user is gone."""
        session = self._sessions.check(token, now)
        if self._store.get(UserRecord, session.user) is None:
            raise SessionRefused()
        return session

    def log_in(self, user: str, password: str, address: str) -> tuple[str, Session]:
        """A new session of *user*, with its token; raises LoginFailed, LoginSlowedDown or LoginsBusy."""
        record = self._verified(user, password, address)
        if needs_rehash(record.password_hash):
            record = self._rehash(record, password)
        token, session = self._sessions.issue(user, address=address, now=self._clock())
        # Whoever deleted the user or changed the password since has ended all sessions, but not this one.
        now_stored = self._store.get(UserRecord, user)
        if now_stored is None or not (
            now_stored.password_hash == record.password_hash
            or self._passwords.verify(now_stored.password_hash, password)
        ):
            self._sessions.revoke(session.id)
            raise LoginFailed()
        return token, session

    def confirm(self, user: str, password: str, address: str) -> bool:
        """Whether *password* is the user's; wrong ones count, and slow down, as failed logins do."""
        try:
            self._verified(user, password, address)
        except LoginFailed:
            return False
        return True

    def _verified(self, user: str, password: str, address: str) -> UserRecord:
        with self._throttle.attempt(user, address) as attempt:
            record = self._store.get(UserRecord, user)
            # A name that nobody has takes as long as a wrong password.
            if not self._passwords.verify(record.password_hash if record else None, password) or record is None:
                raise LoginFailed()
            attempt.succeeded()
            return record

    def _rehash(self, record: UserRecord, password: str) -> UserRecord:
        try:
            stronger = self._passwords.hash(password)
            with self._store.change() as change:
                now_stored = change.get(UserRecord, record.name)
                if now_stored is None or now_stored.password_hash != record.password_hash:
                    return record
                return change.edit(UserRecord, record.name, password_hash=stronger)
        except McvirtError as error:  # it can be made up for at the next login
            log.warning("the password of %s could not be hashed anew: %s", record.name, error)
            return record


def _wishes(data: dict[str, Any]) -> tuple[tuple[str, ...], bool]:
    without, ignore_drbd = data.get("without", []), data.get("ignore_drbd", False)
    named = isinstance(without, list) and len(without) <= _MOST_NODES and all(isinstance(name, str) for name in without)
    if not named or not isinstance(ignore_drbd, bool):
        raise BadArgument(what="credentials", why="what is to be passed over is a list of nodes, and a yes or no.")
    return tuple(names.node_name(name) for name in without), ignore_drbd


def _octets(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")


def _is_loopback(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped.is_loopback
    return ip.is_loopback
