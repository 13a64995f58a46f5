"""The connections to the other nodes: persistent, each call under a deadline, and watched by heartbeats.

A node that did not answer its last heartbeat is unreachable: whoever calls it is told so at once, and who waits for it
already is told then. Heartbeats go on, and the first that is answered makes it reachable again.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import msgspec

from mcvirt.errors import McvirtError, NodeUnreachable, NotAMember, NotAuthenticated, from_wire
from mcvirt.rpc.codec import Reply
from mcvirt.rpc.transport import CALL_TIMEOUT, Connection
from mcvirt.types.peer import Beat, BeatAnswer
from mcvirtd.cluster.members import Members
from mcvirtd.state.records import NodeRecord

log = logging.getLogger(__name__)

DEFAULT_PORT = 9090
CONNECT_WITHIN = 2.0
BEAT_EVERY = 1.0
# A node that is gone is noticed within the time between two heartbeats and this.
BEAT_WITHIN = 3.0
_LONGEST_PAUSE = 3.0
# What changes several times in a moment is told once.
_SHORTEST_PAUSE = 0.05
_IDLE_KEPT = 8
_ASKING_AT_ONCE = 64
_reply = msgspec.json.Decoder(Reply)
_answer = msgspec.json.Decoder(BeatAnswer)
_message = msgspec.json.Decoder(dict[str, Any])


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a node answers. *silent_for* is how many seconds ago it last did; None if it never has."""

    reachable: bool
    silent_for: float | None
    reason: str = ""


class _Link:
    """All connections to one node."""

    def __init__(self, name: str, record: NodeRecord, connect: Callable[[], Connection]) -> None:
        self.name = name
        self.record = record
        self.connect = connect
        self.wake = threading.Event()
        self.ended = False
        self.tried = threading.Event()
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._reachable: bool | None = None  # None: nothing is known yet
        self._reason = "it has not answered yet."
        self._heard: float | None = None

    def status(self) -> PeerStatus:
        with self._lock:
            silent_for = None if self._heard is None else time.monotonic() - self._heard
            return PeerStatus(reachable=bool(self._reachable), silent_for=silent_for, reason=self._reason)

    def answered(self) -> bool:
        """A heartbeat was answered; True if the node was not reachable before."""
        with self._lock:
            before, self._reachable, self._reason = self._reachable, True, ""
            self._heard = time.monotonic()
        self.tried.set()
        return not before

    def silent(self, reason: str) -> bool:
        """A heartbeat was not answered: whoever waits for the node is told. True if that is news."""
        with self._lock:
            before, self._reachable, self._reason = self._reachable, False, reason
            busy, idle, self._idle = list(self._busy), self._idle, []
        for connection in busy:
            connection.abort()
        for connection in idle:
            connection.close()
        self.tried.set()
        return before is not False

    def end(self) -> None:
        self.ended = True
        self.silent("it is no longer a member.")
        self.wake.set()

    def moved(self, record: NodeRecord, connect: Callable[[], Connection]) -> _Link:
        """The link to the same node at its new address; what is being asked at the old one is still answered there."""
        new = _Link(self.name, record, connect)
        with self._lock:
            self.ended = True
            new._reachable, new._reason, new._heard = self._reachable, self._reason, self._heard
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self.wake.set()
        return new

    def call(self, object_id: str, operation: str, arguments: dict[str, Any], within: float) -> bytes:
        connection = self._take()
        sound = False
        try:
            data = connection.call(object_id, operation, arguments, timeout=within)
            sound = True
            return data
        except NotAuthenticated as error:
            raise NodeUnreachable(node=self.name, reason=f"it refuses this node. {error}") from None
        finally:
            self._give(connection, sound)

    def _take(self) -> Connection:
        with self._lock:
            if self._reachable is False or self.ended:
                raise NodeUnreachable(node=self.name, reason=self._reason)
            connection = self._idle.pop() if self._idle else self.connect()
            self._busy.add(connection)
            return connection

    def _give(self, connection: Connection, sound: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if sound and self._reachable is not False and not self.ended and len(self._idle) < _IDLE_KEPT:
                self._idle.append(connection)
                return
        connection.close()


class Peers:
    """See the module. *context* gives the SSL context of a new connection, and shows this node's certificate.

    *say* makes the heartbeat for a node, and *heard* is called with its answer. `start` begins, `close` ends.
    """

    def __init__(
        self,
        *,
        members: Members,
        context: Callable[[], ssl.SSLContext],
        say: Callable[[str], Beat],
        heard: Callable[[str, BeatAnswer], None],
    ) -> None:
        self._members = members
        self._context = context
        self._say = say
        self._heard = heard
        # Called with the name of a member that does not know this node as one.
        self.stranger: Callable[[str], None] = _no_matter
        # Called with the name of a member that answers, and did not before.
        self.returned: Callable[[str], None] = _no_matter
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {}
        self._started = False
        self._answers = threading.Condition()
        self._asking = ThreadPoolExecutor(_ASKING_AT_ONCE, thread_name_prefix="ask")

    def start(self, within: float = 0.0) -> None:
        """Begin with the heartbeats, and wait up to *within* seconds until each member has been tried."""
        self._started = True
        self.refresh()
        deadline = time.monotonic() + within
        for link in list(self._links.values()):
            link.tried.wait(max(0.0, deadline - time.monotonic()))

    def refresh(self) -> None:
        """The members may have changed: connect to new ones, and cut connections to those that are none any more."""
        if not self._started:
            return
        with self._lock:
            others = self._members.others()
            for name, link in list(self._links.items()):
                if name not in others or others[name].fingerprint != link.record.fingerprint:
                    self._links.pop(name).end()
                elif _place(others[name]) != _place(link.record):
                    self._begin(link.moved(others[name], partial(self._connect, others[name])))
            for name, record in others.items():
                if name not in self._links:
                    self._begin(_Link(name, record, partial(self._connect, record)))

    def _begin(self, link: _Link) -> None:
        self._links[link.name] = link
        threading.Thread(target=self._beat_on, args=(link,), name=f"beat-{link.name}", daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            self._started = False
            links, self._links = self._links, {}
        for link in links.values():
            link.end()
        self._asking.shutdown(wait=False, cancel_futures=True)

    def reconnect(self) -> None:
        """Give up all connections and make new ones: this node's certificate, or what it trusts, is another now."""
        with self._lock:
            links, self._links = self._links, {}
        for link in links.values():
            link.end()
        self.refresh()

    def _connect(self, record: NodeRecord) -> Connection:
        return Connection(
            record.address or "",
            record.port or DEFAULT_PORT,
            self._context(),
            {"peer": self._members.node},
            node=record.name,
            connect_timeout=CONNECT_WITHIN,
            verify=lambda certificate: self._members.verify(record.name, certificate),
        )

    def dial(self, node: str) -> Connection:
        """A connection of the caller's own to *node*, which ends with no membership; raises NodeUnreachable."""
        link = self._links.get(node)
        if link is None or not link.status().reachable:
            raise NodeUnreachable(node=node, reason=self.status(node).reason)
        return self._connect(link.record)

    # --- asking -------------------------------------------------------------------------------------------------------

    def call(
        self, node: str, object_id: str, operation: str, arguments: dict[str, Any], within: float = CALL_TIMEOUT
    ) -> msgspec.Raw:
        """The result (in wire form) of an operation of another node.

        Raises the operation's error, or NodeUnreachable: at once for a node that is known to be away or of a version
        that this one does not work together with, and after *within* seconds at the latest.
        """
        link = self._links.get(node)
        if link is None:
            raise NodeUnreachable(node=node, reason="it is no member with an address.")
        self._members.check_version(node)
        reply = _reply.decode(link.call(object_id, operation, arguments, within))
        if reply.error is not None:
            raise from_wire(reply.error)
        return reply.ok

    def ask(self, node: str, message: Mapping[str, Any], within: float) -> dict[str, Any]:
        """The answer of *node* to a message of the replication protocol; raises NodeUnreachable."""
        return _message.decode(self.call(node, "peer", "replicate", {"message": dict(message)}, within))

    def ask_all(self, messages: Mapping[str, Mapping[str, Any]], within: float) -> dict[str, dict[str, Any] | None]:
        """The answers of several nodes, asked at the same time; None for who did not answer in time."""
        futures = {node: self._asking.submit(self._try, node, message, within) for node, message in messages.items()}
        wait(futures.values(), timeout=within + 0.1)
        return {node: future.result() if future.done() else None for node, future in futures.items()}

    def _try(self, node: str, message: Mapping[str, Any], within: float) -> dict[str, Any] | None:
        try:
            return self.ask(node, message, within)
        except McvirtError as error:
            log.debug("node %s was asked in vain: %s", node, error)
            return None

    def call_all(
        self,
        nodes: Sequence[str],
        operation: str,
        arguments: dict[str, Any],
        within: float,
        object_id: str = "peer",
    ) -> dict[str, msgspec.Raw | McvirtError]:
        """The results of an operation (of PeerApi) on several nodes at the same time, or why there is none."""

        def one(node: str) -> msgspec.Raw | McvirtError:
            try:
                return self.call(node, object_id, operation, arguments, within)
            except McvirtError as error:
                return error

        futures = {node: self._asking.submit(one, node) for node in nodes}
        wait(futures.values(), timeout=within + 0.1)
        late = "it did not answer in time."
        return {
            node: future.result() if future.done() else NodeUnreachable(node=node, reason=late)
            for node, future in futures.items()
        }

    def fault(self, node: str) -> NodeUnreachable | None:
        """What keeps this node from asking one that answers."""
        fault = self._members.version_fault(node)
        return NodeUnreachable(node=node, reason=fault) if fault else None

    def reachable(self) -> Sequence[str]:
        """The other members that answer."""
        return [name for name, link in list(self._links.items()) if link.status().reachable]

    def silent(self) -> Sequence[str]:
        """The other members that did not answer their last heartbeat, or none so far, or can't be worked with."""
        answering = {name for name in self.reachable() if not self._members.version_fault(name)}
        return [name for name in self._members.others() if name not in answering]

    def status(self, node: str) -> PeerStatus:
        """Whether *node* answers."""
        link = self._links.get(node)
        if link is None:
            return PeerStatus(reachable=False, silent_for=None, reason="it is no member with an address.")
        return link.status()

    def wait_for(self, node: str, within: float) -> bool:
        """Whether *node* answers a heartbeat from now on, as soon as it does; False after *within* seconds, and at once
        for no member."""
        began = time.monotonic()

        def answered() -> bool:
            silent_for = self.status(node).silent_for
            return silent_for is not None and time.monotonic() - silent_for > began

        self.wake(node)
        with self._answers:
            self._answers.wait_for(lambda: node not in self._links or answered(), within)
        return answered()

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    def wake(self, node: str | None = None) -> None:
        """Send the next heartbeat to *node*, or to all, now: there is news."""
        for name, link in list(self._links.items()):
            if node is None or name == node:
                link.wake.set()

    def _beat_on(self, link: _Link) -> None:
        connection = self._new_pulse(link)
        pause = BEAT_EVERY
        resting = threading.Event()  # nobody sets it
        while not link.ended:
            link.wake.clear()
            try:
                self._beat_once(link, connection)
                pause = BEAT_EVERY
            except McvirtError as error:
                if isinstance(error, NotAMember) and not link.ended:
                    self.stranger(link.name)
                # After a change of certificates, or of the CA, only a new context will do.
                connection.close()
                connection = self._new_pulse(link)
                pause = min(_LONGEST_PAUSE, pause * 1.3)
                if link.silent(_why(error)) and not link.ended:
                    log.warning("node %s does not answer: %s", link.name, _why(error))
            except Exception:
                log.exception("a heartbeat for node %s failed", link.name)
            ended = time.monotonic()
            link.wake.wait(pause)
            if (left := ended + _SHORTEST_PAUSE - time.monotonic()) > 0:
                resting.wait(left)
        connection.close()

    def _new_pulse(self, link: _Link) -> Connection:
        return self._connect(link.record)

    def _beat_once(self, link: _Link, connection: Connection) -> None:
        began = time.monotonic()
        arguments = {"beat": self._say(link.name)}
        try:
            data = connection.call("peer", "heartbeat", arguments, timeout=BEAT_WITHIN)
        except NodeUnreachable:
            if time.monotonic() - began > BEAT_EVERY:
                raise
            # Its mcvirtd may have been restarted meanwhile, and the connection is merely an old one.
            data = connection.call("peer", "heartbeat", arguments, timeout=BEAT_WITHIN - BEAT_EVERY)
        reply = _reply.decode(data)
        if reply.error is not None:
            raise from_wire(reply.error)
        answer = _answer.decode(reply.ok)
        if link.ended:
            return
        returned = link.answered()
        if returned:
            log.info("node %s answers", link.name)
        self._heard(link.name, answer)
        with self._answers:
            self._answers.notify_all()
        if returned:
            self.returned(link.name)


def _no_matter(node: str) -> None:
    pass


def _place(record: NodeRecord) -> tuple[str | None, int, str]:
    return record.address, record.port, record.fingerprint


def _why(error: McvirtError) -> str:
    return str(error.fields.get("reason") or error)
