"""Where sessions outlive the daemon: a table of the state file."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from mcvirtd.auth.tokens import Session
from mcvirtd.state.store import Store

log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Session).decode


class StoreSessions:
    """A tokens.SessionStore; raises StateNotWritable when the state file can't take a change."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def save(self, session: Session) -> None:
        """Keep *session*, in place of what is kept under its id."""
        self._store.execute("REPLACE INTO session VALUES (?, ?)", (session.id, _encode(session)))

    def delete(self, session_id: str) -> None:
        """Keep nothing under *session_id*; it is no error if nothing was."""
        self._store.execute("DELETE FROM session WHERE id = ?", (session_id,))

    def load_all(self) -> Iterable[Session]:
        """All that are kept. One that can't be read is left out: its user logs in again."""
        found = []
        for session_id, data in self._store.query("SELECT id, data FROM session ORDER BY id"):
            try:
                found.append(_decode(data))
            except (msgspec.MsgspecError, TypeError) as error:
                log.warning("session %s in the state file can't be read, and is over: %s", session_id, error)
        return found
