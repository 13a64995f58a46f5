"""Which keys and certificates this node uses, and how they are exchanged for others when it joins or leaves.

    pki         in use
    pki.next    being prepared: for the cluster that the node joins, or for itself alone
    pki.before  kept while a joining can still fail: those of the node as it was

Nothing here decides. The node's own record in the state file names the key that is its own; whatever directory has
that key is the one in use, whenever a crash came. So the one commit of the state file exchanges both.
"""

from __future__ import annotations

import logging
import shutil
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

from mcvirtd.cluster import pki, tls
from mcvirtd.state.records import NodeRecord
from mcvirtd.state.store import Store

log = logging.getLogger(__name__)

NEXT = pki.DIRECTORY + ".next"
BEFORE = pki.DIRECTORY + ".before"


class Keys:
    """The identity of *node*, in its directory *state*; what it trusts is published in the file *trust*.

    *listens* are addresses of its own that the certificate names besides the cluster address.
    """

    def __init__(self, state: Path, node: str, store: Store, trust: Path, *, listens: Sequence[str] = ()) -> None:
        self._state = state
        self._node = node
        self._store = store
        self._trust = trust
        self._listens = tuple(listens)
        self._lock = threading.RLock()
        self._trusted = b""
        self.identity = self.settle(keep_before=True)

    @property
    def next(self) -> Path:
        """Where keys are prepared."""
        return self._state / NEXT

    def settle(self, *, keep_before: bool) -> pki.Identity:
        """Take into use the keys that the node's record names, make what is missing or due, and drop the others.

        *keep_before* keeps what may be needed again.
        """
        with self._lock:
            record = self._store.get(NodeRecord, self._node)
            self._exchange(record.fingerprint if record is not None else "")
            if not keep_before:
                _drop(self._state / BEFORE)
            return self._load(record.address if record is not None else None)

    def renew(self) -> bool:
        """Make certificates that are due, or whose names have changed, anew; True if there are new ones."""
        with self._lock:
            record = self._store.get(NodeRecord, self._node)
            before = self.identity
            self.identity = self._load(record.address if record is not None else None)
            return self.identity != before

    def _exchange(self, wanted: str) -> None:
        used, staged, before = (self._state / name for name in (pki.DIRECTORY, NEXT, BEFORE))
        if wanted and pki.held_key(used) != wanted:
            if pki.held_key(staged) == wanted:
                log.warning("the keys in %s are taken into use", staged)
                if used.exists():
                    _drop(before)
                    used.rename(before)
                staged.rename(used)
            elif pki.held_key(before) == wanted:
                log.warning("the keys in %s are taken into use again", before)
                _drop(used)
                before.rename(used)
        _drop(staged)

    def _addresses(self, address: str | None) -> Sequence[str]:
        return tuple(dict.fromkeys((*([address] if address else []), *self._listens)))

    def _load(self, address: str | None) -> pki.Identity:
        found = pki.ensure(self._state / pki.DIRECTORY, self._node, self._addresses(address))
        server_context, self._peer_context = tls.server_context(found), tls.peer_context(found)
        # Who reads it at any time trusts whom they meet then, or finds another one there when they read it again.
        pki.publish_trust(found, self._trust, and_still=self._trusted)
        self._server_context = server_context
        self._trusted = pki.publish_trust(found, self._trust)
        self.identity = found
        return found

    def stage_own(self, address: str | None) -> pki.Identity:
        """Prepare a CA and keys of this node's own."""
        with self._lock:
            _drop(self.next)
            return pki.ensure(self.next, self._node, self._addresses(address))

    def stage_key(self) -> bytes:
        """Prepare a key for another cluster; returns the request for its certificate."""
        with self._lock:
            _drop(self.next)
            return pki.stage_key(self.next, self._node)

    def stage_authority(self, ca_key: str, trust: str, certificate: str) -> str:
        """Complete what stage_key began; returns the fingerprint of the key."""
        with self._lock:
            pki.stage_authority(
                self.next, self._node, ca_key=ca_key.encode(), trust=trust.encode(), certificate=certificate.encode()
            )
            return pki.held_key(self.next)

    def unstage(self) -> None:
        """Drop what was prepared."""
        with self._lock:
            _drop(self.next)

    def server_context(self) -> ssl.SSLContext:
        """For the next connection that is accepted."""
        return self._server_context

    def peer_context(self) -> ssl.SSLContext:
        """For the next connection to another member."""
        return self._peer_context


def _drop(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
