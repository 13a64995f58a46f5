"""The audit trail: who, from where, what, on what, and how it ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from mcvirt.errors import McvirtError
from mcvirt.types.auth import AuditEntry
from mcvirtd.auth.caller import Caller
from mcvirtd.state.store import Store

log = logging.getLogger("mcvirtd.audit")
_decode = msgspec.json.Decoder(AuditEntry).decode
MOST_ENTRIES = 200_000
MOST_LISTED = 10_000


class Audit:
    """Kept in the state file for *keep_days*, and sent to the log."""

    def __init__(self, store: Store, node: str, *, keep_days: float = 365) -> None:
        self._store = store
        self._node = node
        self._keep = keep_days * 86400.0

    def record(
        self,
        caller: Caller,
        operation: str,
        target: str,
        error: McvirtError | None,
        reference: str,
        *,
        others: str = "",
        detail: str = "",
    ) -> None:
        """Write down how *operation* on *target* ended, which *others* it named, and a *detail* where it went well.

        That it can't be written is logged, and no error.
        """
        now = time.time()
        entry = AuditEntry(
            id=0,
            time=datetime.fromtimestamp(now, UTC),
            user=caller.user or "(nobody)",
            address=f"{caller.address} through {caller.via}" if caller.via else caller.address,
            node=self._node,
            operation=operation,
            target=_line(target)[:200],
            result="ok" if error is None else type(error).__name__,
            detail=_line(": ".join(part for part in (others, detail if error is None else str(error)) if part))[:500],
            reference=reference,
        )
        log.info(
            "%s from %s: %s %s: %s [%s]", entry.user, entry.address, operation, entry.target, entry.result, reference
        )
        try:
            self._store.execute(
                "INSERT INTO audit (time, user, target, data) VALUES (?, ?, ?, ?)",
                (now, entry.user, entry.target, msgspec.json.encode(entry)),
            )
        except McvirtError as problem:
            log.error("the audit trail can't be written: %s", problem)
        except Exception:  # what it is a record of is over and done, and its answer must go out
            log.exception("the audit trail can't be written")

    def entries(self, limit: int, user: str | None, target: str | None) -> Sequence[AuditEntry]:
        """The newest *limit* entries, the oldest of them first."""
        rows = self._store.query(
            "SELECT id, data FROM audit WHERE (?1 IS NULL OR user = ?1) AND (?2 IS NULL OR target = ?2) "
            "ORDER BY id DESC LIMIT ?3",
            (user, target, max(0, min(limit, MOST_LISTED))),
        )
        return [msgspec.structs.replace(_decode(data), id=number) for number, data in reversed(rows)]

    def prune(self) -> None:
        """Forget what is older than it is kept, and what is more than fits."""
        self._store.execute("DELETE FROM audit WHERE time < ?", (time.time() - self._keep,))
        self._store.execute("DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?", (MOST_ENTRIES,))


def _line(text: str) -> str:
    # Names come from the wire: one with a line feed would write lines of its own into the log.
    return "".join(char if char.isprintable() else "?" for char in text)
