"""Sessions: who is logged in, proved by a token of which only the hash is kept."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Iterable
from typing import Protocol

import msgspec

from mcvirt.errors import NotFound, SessionRefused

IDLE_TIMEOUT = 30 * 60
ABSOLUTE_TIMEOUT = 12 * 3600
SAVE_EVERY = 60.0
MOST_PER_USER = 1000

_TOKEN_BYTES = 32
_TOKEN_LENGTH = 43
_log = logging.getLogger(__name__)


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One login. All times are seconds since 1970; *id* is public and says nothing about the token."""

    id: str
    token_hash: str
    user: str
    created: float
    last_used: float
    idle_timeout: float
    expires: float
    address: str = ""
    note: str = ""


class SessionStore(Protocol):
    """Where sessions outlive the daemon."""

    def save(self, session: Session) -> None:
        """Keep *session*, in place of what is kept under its id."""

    def delete(self, session_id: str) -> None:
        """Keep nothing under *session_id*; it is no error if nothing was."""

    def load_all(self) -> Iterable[Session]:
        """All that are kept."""


def new_token() -> str:
    """A new token: 256 random bits as 43 characters that need no quoting anywhere."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def token_hash(token: str) -> str:
    """What may be stored of *token*."""
    # Nobody guesses 256 random bits, so that a slow hash would protect nothing here.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def expired(session: Session, now: float) -> bool:
    """Whether *session* was left unused for too long, or is too old, at *now*."""
    return now >= session.expires or now >= session.last_used + session.idle_timeout


class _Live:
    __slots__ = ("dead_at", "expires", "idle_timeout", "last_used", "saved", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.expires = session.expires
        self.idle_timeout = session.idle_timeout
        self.last_used = self.saved = session.last_used
        self.dead_at = min(session.expires, session.last_used + session.idle_timeout)

    def use(self, now: float) -> None:
        # A clock that was set back shall not make a session look unused.
        if now > self.last_used:
            self.last_used = now
            self.dead_at = min(self.expires, now + self.idle_timeout)

    def value(self) -> Session:
        return msgspec.structs.replace(self.session, last_used=self.last_used)


class Sessions:
    """All sessions of this node, in memory, and in *store* for the next start. Safe to share between threads.

    What the store refuses to take or to forget is raised before anything has changed here. Only the time of the last
    use may be up to a minute old in the store, so that a call costs no write; after a crash a session ends that much
    earlier, never later.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        idle_timeout: float = IDLE_TIMEOUT,
        absolute_timeout: float = ABSOLUTE_TIMEOUT,
        most_per_user: int = MOST_PER_USER,
    ) -> None:
        """Take up the sessions of *store*; those that have expired meanwhile are refused until purge() drops them."""
        self._store = store
        self._idle_timeout = idle_timeout
        self._absolute_timeout = absolute_timeout
        self._most_per_user = most_per_user
        self._lock = threading.Lock()
        # Held over each write, so that a session being revoked is not written again by a call that just used it.
        self._writing = threading.Lock()
        self._by_hash: dict[str, _Live] = {session.token_hash: _Live(session) for session in store.load_all()}

    def issue(self, user: str, *, address: str, now: float, note: str = "") -> tuple[str, Session]:
        """Log *user* in: the token, which is told this once, and the session.

        A user who has very many sessions loses the one that was not used for longest.
        """
        token = new_token()
        with self._writing:
            mine = sorted((live for live in self._all() if live.session.user == user), key=lambda live: live.last_used)
            for live in mine[: max(0, len(mine) + 1 - self._most_per_user)]:
                self._drop(live)
            taken = {live.session.id for live in self._all()}
            session_id = secrets.token_hex(6)
            while session_id in taken:
                session_id = secrets.token_hex(6)
            session = Session(
                id=session_id,
                token_hash=token_hash(token),
                user=user,
                created=now,
                last_used=now,
                idle_timeout=self._idle_timeout,
                expires=now + self._absolute_timeout,
                address=address,
                note=note,
            )
            self._store.save(session)
            with self._lock:
                self._by_hash[session.token_hash] = _Live(session)
        return token, session

    def check(self, token: str, now: float) -> Session:
        """The session that *token* belongs to, marked as used at *now*; its own last_used may lag behind by a minute.

        Raises SessionRefused, the same for a token that is unknown, revoked or expired.
        """
        if len(token) != _TOKEN_LENGTH:
            raise SessionRefused()
        # The hash is looked up, not compared: what a timing could tell is about the hash and leads to no token.
        live = self._by_hash.get(token_hash(token))
        if live is None or now >= live.dead_at:
            raise SessionRefused()
        live.use(now)
        if now - live.saved >= SAVE_EVERY:
            self._save_use(live, now)
        return live.session

    def touch(self, session_id: str, now: float) -> None:
        """Count *session_id* as used at *now*, if it is still there: for the end of a call that took long."""
        live = self._find(session_id)
        if live is not None:
            live.use(now)

    def listing(self, user: str | None = None, *, now: float) -> list[Session]:
        """The sessions of *user*, or of everybody, that are good at *now*; the newest first."""
        found = [live.value() for live in self._all() if user in (None, live.session.user) and now < live.dead_at]
        return sorted(found, key=lambda session: (-session.created, session.id))

    def get(self, session_id: str) -> Session:
        """The session called *session_id*; raises NotFound."""
        live = self._find(session_id)
        if live is None:
            raise NotFound(kind="session", name=session_id, hint=" `mcvirt session list` shows yours.")
        return live.value()

    def revoke(self, session_id: str) -> Session:
        """End the session called *session_id* at once; raises NotFound if there is none."""
        with self._writing:
            session = self.get(session_id)
            self._drop(self._by_hash[session.token_hash])
            return session

    def revoke_user(self, user: str, *, but: str | None = None) -> int:
        """End all sessions of *user* except the one called *but*; how many there were."""
        with self._writing:
            mine = [live for live in self._all() if live.session.user == user and live.session.id != but]
            for live in mine:
                self._drop(live)
            return len(mine)

    def forget_all(self) -> None:
        """All sessions are over, and the store has been emptied of them already."""
        with self._writing, self._lock:
            self._by_hash.clear()

    def purge(self, now: float) -> int:
        """Forget the sessions that have expired at *now*; how many there were. For a timer."""
        with self._writing:
            dead = [live for live in self._all() if now >= live.dead_at]
            for live in dead:
                self._drop(live)
            return len(dead)

    def flush(self) -> None:
        """Write all times of last use that are not in the store yet. For an orderly shutdown."""
        with self._writing:
            for live in self._all():
                if live.saved < live.last_used:
                    self._write_use(live)

    def _all(self) -> list[_Live]:
        with self._lock:
            return list(self._by_hash.values())

    def _find(self, session_id: str) -> _Live | None:
        return next((live for live in self._all() if live.session.id == session_id), None)

    def _drop(self, live: _Live) -> None:
        self._store.delete(live.session.id)
        with self._lock:
            self._by_hash.pop(live.session.token_hash, None)

    def _save_use(self, live: _Live, now: float) -> None:
        # Whoever finds another writer at work leaves it to a later call: check() waits for no disk but its own.
        if not self._writing.acquire(blocking=False):
            return
        try:
            if live.session.token_hash in self._by_hash and now - live.saved >= SAVE_EVERY:
                self._write_use(live)
        except Exception:  # a full disk must not end a session that is good
            _log.exception("the last use of session %s could not be stored", live.session.id)
            live.saved = now
        finally:
            self._writing.release()

    def _write_use(self, live: _Live) -> None:
        value = live.value()
        self._store.save(value)
        live.saved = value.last_used
        live.session = value
