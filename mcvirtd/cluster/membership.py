"""This node's own place: alone, joining, a member, leaving, or removed; and how it becomes another.

Whose configuration the node has, and with it who it is to others, is exchanged by one commit of the state file
(`Replicator.become`). What goes with it is kept in the table `meta` by the same commit, or follows at the next start:

    join      the hash of the connect string's secret that is good now
    joining   the node has taken over another cluster's configuration, and is not counted in yet: what it was before
    leaving   a member has announced that this node is removed
    removed   the cluster has removed this node while it was away
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from mcvirt import names
from mcvirt.errors import Conflict, ConnectStringRefused, McvirtError, NodeRemoved, NotAuthenticated
from mcvirt.permissions import DEFAULT_GROUPS
from mcvirtd.auth.caller import Caller
from mcvirtd.auth.grants import in_order
from mcvirtd.auth.groups import ID_CODE
from mcvirtd.auth.tokens import Sessions
from mcvirtd.cluster import connect_string
from mcvirtd.cluster.connect_string import Kept
from mcvirtd.cluster.keys import Keys
from mcvirtd.state.log import to_wire
from mcvirtd.state.order import Epoch, Position, Snapshot
from mcvirtd.state.records import ClusterRecord, GroupRecord, NodeRecord, SettingsRecord
from mcvirtd.state.replication import Replicator
from mcvirtd.state.store import Change, Store

log = logging.getLogger(__name__)
T = TypeVar("T")

# Contracts that change nothing of the configuration or the virtual machines, or whose own rules hold.
_ALWAYS = frozenset({"auth", "join", "membership", "peer", "task"})

# An announcement that nothing came of is forgotten after so many seconds.
LEAVING_LASTS = 600.0
# Words of members that this node is none count for so long.
_WORD_LASTS = 30.0


class Joining(msgspec.Struct, frozen=True, kw_only=True):
    """What the node was before, until the cluster counts it in."""

    sponsor: str
    snapshot: Snapshot
    promised: Epoch


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """Who has announced the removal, and when."""

    by: str
    time: float


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """Who said that the node was removed, and when."""

    by: str
    time: float


class Membership:
    """See the module. *changed* is called after the node has become another: connections are to be made anew."""

    def __init__(
        self,
        *,
        node: str,
        store: Store,
        keys: Keys,
        replicator: Replicator,
        sessions: Sessions,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.node = node
        self.store = store
        self.keys = keys
        self._port = 0
        self.replicator = replicator
        self._sessions = sessions
        self._changed = changed
        self._clock = clock
        self._lock = threading.RLock()
        self._news = threading.Condition()
        store.subscribe(self._note_change)
        self._words: dict[str, float] = {}
        # A member has begun to take this node in, and nothing was exchanged yet.
        self.beginning = False
        self.removed = self._meta("removed", Removed)
        self.joining = self._meta("joining", Joining)
        self.settle_joining()
        if self.joining is None:
            keys.settle(keep_before=False)

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def record(self) -> NodeRecord:
        """This node's own record."""
        found = self.store.get(NodeRecord, self.node)
        return found if found is not None else NodeRecord(name=self.node, id="")

    @property
    def alone(self) -> bool:
        """Whether the node is all of its cluster."""
        return len(self.store.all(NodeRecord)) <= 1

    def status(self) -> str:
        """What `mcvirt info` says of this node."""
        return "Removed" if self.removed is not None else "Joining" if self.joining is not None else "Local"

    def warnings(self) -> tuple[str, ...]:
        """What operators must know about this node's place."""
        found = []
        if self.removed is not None:
            found.append(
                f"it was removed from the cluster (as node '{self.removed.by}' says), and does nothing to virtual "
                "machines any more. `mcvirt cluster reset` on it makes it a cluster of its own."
            )
        elif self.joining is not None:
            found.append(f"it is joining the cluster of node '{self.joining.sponsor}', and is not counted in yet.")
        if self.replicator.trouble:
            found.append(f"it can't take over what the others change: {self.replicator.trouble}")
        kept = len(self.replicator.log.conflicts())
        if kept:
            changes = "one change that only it had was" if kept == 1 else f"{kept} changes that only it had were"
            found.append(f"{changes} kept aside: `mcvirt cluster conflicts` shows them.")
        return tuple(found)

    def refuse_changes(self, operation: str) -> None:
        """Raise NodeRemoved, or Conflict, where the node may not do *operation* ("vm.start") as it is now."""
        if operation.partition(".")[0] in _ALWAYS or operation in ("cluster.reset", "cluster.connect_string"):
            return
        if self.removed is not None and operation not in ("vm.stop", "vm.shutdown"):
            raise NodeRemoved(node=self.node)
        if self.beginning or self.joining is not None:
            raise Conflict(text=f"Node '{self.node}' is joining a cluster. Try again when it has joined.")

    def wait_for_change(self, within: float) -> None:
        """Return when a record of a member has changed, or after *within* seconds."""
        with self._news:
            self._news.wait(within)

    def _note_change(self, change: Change) -> None:
        if any(kind == NodeRecord.kind for kind, _ in (*change.puts, *change.deletes)):
            with self._news:
                self._news.notify_all()

    # --- connect strings ----------------------------------------------------------------------------------------------

    def connect_string(self) -> tuple[str, Kept]:
        """A new one; the last one is worth nothing from now on."""
        self.note_port()
        record = self.record
        if not self.alone:
            raise Conflict(
                text=f"Node '{self.node}' is in a cluster with others already. A connect string is made on the node "
                "that is to join, and used on a member."
            )
        if not record.address:
            raise Conflict(
                text=f"Node '{self.node}' has no address that other nodes can reach it at: set it first, with "
                "`mcvirt node --set-ip-address ADDRESS`."
            )
        text, kept = connect_string.make(
            name=self.node,
            address=record.address,
            port=record.port,
            fingerprint=self.keys.identity.key_fingerprint,
            now=self._clock(),
        )
        self._put("join", kept)
        return text, kept

    def admit(self, secret: object, address: str) -> Caller:
        """The caller who has shown *secret*; NotAuthenticated if it is not that of the connect string."""
        if not isinstance(secret, str) or not self._good(secret):
            log.warning("a connect string that is not good was used from %s", address)
            raise NotAuthenticated(
                text=f"node '{self.node}' does not know it: it was used already, has expired, or a newer one was made. "
                "Have a new one made there."
            )
        return Caller(joiner=True, token=secret, address=address)

    def _good(self, secret: str) -> bool:
        kept = self._meta("join", Kept)
        return kept is not None and kept.fits(secret, self._clock())

    def use_up(self, secret: str) -> None:
        """The connect string dies. ConnectStringRefused if it is dead already."""
        with self._lock:
            if not self._good(secret):
                raise ConnectStringRefused(reason="it was used already, has expired, or a newer one was made.")
            self._drop("join")

    # --- becoming another ---------------------------------------------------------------------------------------------

    def take_over(self, snapshot: Snapshot, promised: Epoch, sponsor: str) -> None:
        """Become a member with this configuration; the keys for it are prepared. Can be taken back with `revert`."""
        with self._lock:
            log_ = self.replicator.log
            joining = Joining(sponsor=sponsor, snapshot=log_.whole(), promised=log_.promised())
            self._become(snapshot, promised, [_putting("joining", joining), _dropping("join")])
            self.joining = joining
            self._settled()
        log.warning("this node has taken over the configuration of the cluster of node '%s'", sponsor)

    def revert(self) -> None:
        """Be again what the node was before it took over another cluster's configuration."""
        with self._lock:
            joining = self.joining
            if joining is None:
                return
            self._become(joining.snapshot, joining.promised, [_dropping("joining"), _dropping("join")])
            self.joining = None
            self._settled()
            self.store.compact()
        log.warning("the joining was broken off: this node is what it was before")

    def reset(self) -> None:
        """Become a cluster of one, with an empty configuration and keys of its own."""
        with self._lock:
            record = self.record
            identity = self.keys.stage_own(record.address)
            fresh = self._fresh(msgspec.structs.replace(record, fingerprint=identity.key_fingerprint, away=False))
            epoch = Epoch(1, self.node)
            snapshot = Snapshot(Position(epoch, self.store.revision + 1), [(epoch, 0)], fresh)
            gone = [_dropping(name) for name in ("join", "joining", "leaving", "removed")]
            self._become(snapshot, epoch, [*gone, ("DELETE FROM conflict", ())])
            self.joining = self.removed = None
            self._words.clear()
            self._settled()
            self.store.compact()
        log.warning("this node is a cluster of its own now, with an empty configuration")

    def _become(self, snapshot: Snapshot, promised: Epoch, statements: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        self.replicator.become(snapshot, promised, [*statements, ("DELETE FROM session", ())])

    def _settled(self) -> None:
        self._sessions.forget_all()
        self.keys.settle(keep_before=self.joining is not None)
        self._changed()

    def _fresh(self, record: NodeRecord) -> str:
        change = Change(self.store)
        change.put(SettingsRecord())
        for name, permissions in DEFAULT_GROUPS.items():
            held = in_order(permission.value for permission in permissions)
            change.put(GroupRecord(name=name, id=names.new_id(ID_CODE), permissions=held))
        change.put(record)
        change.put(ClusterRecord(id=str(uuid.uuid4()), leader=self.node))
        return to_wire(change)

    # --- what follows -------------------------------------------------------------------------------------------------

    def settle_joining(self) -> None:
        """Once the cluster counts this node in, there is no way back, and nothing is kept for one."""
        if self.joining is None or self.record.away:
            return
        # What was stored here is not enough: a leader that did not hear of it has taken it back, and the node that it
        # then knows nothing of must still be able to be what it was. So the leader is asked, and no lock is held.
        try:
            if not self.replicator.rejoin():
                return
        except McvirtError as error:
            log.info("the leader could not be asked whether this node has joined: %s", error)
            return
        with self._lock:
            if self.joining is None:
                return
            self._drop("joining")
            self.joining = None
            self.keys.settle(keep_before=False)
            self.store.compact()
        log.info("this node has joined the cluster")

    def told_stranger(self, by: str) -> None:
        """Member *by* does not know this node. Its word counts if it leads, or if most others say the same."""
        with self._lock:
            if self.alone or self.removed is not None:
                return
            now = time.monotonic()
            self._words[by] = now
            others = [name for name in self.store.all(NodeRecord) if name != self.node]
            said = [name for name in others if now - self._words.get(name, -_WORD_LASTS) < _WORD_LASTS]
            if by != self.replicator.replica.leader and len(said) * 2 <= len(others) + 1:
                return
            self._words.clear()
            self._believe(by)

    def _believe(self, by: str) -> None:
        leaving = self._meta("leaving", Leaving)
        if self.joining is not None:
            self.revert()
        elif leaving is not None and self._clock() - leaving.time < LEAVING_LASTS:
            self.reset()
        else:
            log.error("node '%s' says that this node was removed from the cluster", by)
            self._put("removed", Removed(by=by, time=self._clock()))
            self.removed = self._meta("removed", Removed)

    def known_again(self) -> None:
        """A member took this node for one: what others said before does not count."""
        self._words.clear()

    def announce_leaving(self, by: str) -> None:
        """A member will remove this node."""
        self._put("leaving", Leaving(by=by, time=self._clock()))

    def announced(self) -> bool:
        """Whether a member has announced that lately."""
        leaving = self._meta("leaving", Leaving)
        return leaving is not None and self._clock() - leaving.time < LEAVING_LASTS

    def note_port(self) -> None:
        """The same with the port that was said last: the address may have been set a moment ago."""
        if self._port:
            self.note_own(self._port)

    def note_own(self, port: int) -> None:
        """Bring this node's record in line with the key and the port that it has."""
        fingerprint = self.keys.identity.key_fingerprint
        record = self.record
        self._port = port
        if record.address is None:
            port = record.port  # nobody can be told of it, and with any free port it is another at each start
        if (record.fingerprint, record.port) == (fingerprint, port) or self.removed is not None:
            return
        if not self.alone and record.fingerprint != fingerprint:
            log.error("this node's key is not the one that the cluster knows it by: restore %s", self.keys.next.parent)
            return
        try:
            with self.store.change() as change:
                change.edit(NodeRecord, self.node, fingerprint=fingerprint, port=port)
        except McvirtError as error:
            log.warning("the port of this node could not be told to the cluster: %s", error)

    # --- kept ---------------------------------------------------------------------------------------------------------

    def _meta(self, name: str, kind: type[T]) -> T | None:
        rows = self.store.query("SELECT value FROM meta WHERE name = ?", (name,))
        if not rows:
            return None
        try:
            return msgspec.json.decode(rows[0][0], type=kind, strict=False)
        except msgspec.MsgspecError:
            log.error("what is kept as '%s' can't be read, and is left out", name)
            return None

    def _put(self, name: str, value: msgspec.Struct) -> None:
        self.store.execute(*_putting(name, value))

    def _drop(self, name: str) -> None:
        self.store.execute(*_dropping(name))


def _putting(name: str, value: msgspec.Struct) -> tuple[str, tuple[Any, ...]]:
    return "REPLACE INTO meta VALUES (?, ?)", (name, msgspec.json.encode(value).decode())


def _dropping(name: str) -> tuple[str, tuple[Any, ...]]:
    return "DELETE FROM meta WHERE name = ?", (name,)
