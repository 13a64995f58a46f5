"""The listening side: TLS, the handshake, limits, and the way of a call to the object that it is for.

Pyro4's own server would do the TLS handshake, and the refusal when it is full, in its accept loop: one client that says
nothing would stop everybody. Here the accept loop only accepts. A worker does TLS and Pyro4's handshake, both
under one deadline that a client can't stretch by sending a byte now and then; connections for which there is no place
(see `places`) are told so by a thread of their own. Of Pyro4's messages only plain calls are taken (see `incoming`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import msgspec
import Pyro4
import Pyro4.core
from Pyro4 import constants, message
from Pyro4.socketserver import threadpoolserver
from Pyro4.socketserver.threadpool import NoFreeWorkersError, Pool

from mcvirt.errors import BadArgument, DaemonBusy, Failed, McvirtError
from mcvirt.rpc.codec import Reply
from mcvirt.rpc.transport import MAX_MESSAGE_SIZE, REFUSED_PREFIX
from mcvirtd.auth.caller import NOBODY, Caller
from mcvirtd.rpc.incoming import Call, HungUp, Incoming, Unacceptable, receive, send
from mcvirtd.rpc.places import Place, Places

log = logging.getLogger(__name__)

Authenticate = Callable[[dict[str, Any], str, bytes | None], Caller]
_REFUSING_TIMEOUT = 2.0
_REFUSALS_WAITING = 32
# Before a login nothing large is sent: what strangers can make us keep in memory is their number times this.
_MOST_OF_STRANGERS = 65536
_MESSAGE_WITHIN = 120.0
_CLOSE_WITHIN = 2.0
_encode = msgspec.json.Encoder().encode
_handshake = msgspec.json.Decoder(dict[str, Any])
_call = msgspec.json.Decoder(Call)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many connections of users there may be, how long (seconds) one may take to log in and be idle, and how
    many bytes one message may have."""

    connections: int = 200
    handshake_timeout: float = 10.0
    idle_timeout: float = 600.0
    message_size: int = MAX_MESSAGE_SIZE


def caller_of_this_call() -> Caller:
    """Who the connection belongs to whose call this thread is answering."""
    return getattr(Pyro4.current_context.client, "caller", NOBODY)


def carry_on_this_connection(carry: Callable[[ssl.SSLSocket], None]) -> None:
    """Once the call that this thread is answering is answered, *carry* has its connection, until the end of it."""
    Pyro4.current_context.client.carry = carry


class _Connection:
    """A client's connection. One that nobody has logged in on lives no longer than until *stranger_until*."""

    def __init__(self, sock: ssl.SSLSocket, address: str, stranger_until: float) -> None:
        self.sock = sock
        self.address = address
        self.stranger_until = stranger_until
        self.caller = NOBODY
        self.carry: Callable[[ssl.SSLSocket], None] | None = None
        # Only a certificate that leads up to a CA of ours gets through TLS.
        self.certificate = sock.getpeercert(binary_form=True)

    @property
    def stranger(self) -> bool:
        return not (self.caller.user or self.caller.root or self.caller.peer or self.caller.joiner)

    def hang_up(self) -> None:
        """Let the worker that reads here find the end; what it is just answering still goes out."""
        # SSLSocket's own shutdown() would make the worker go on without TLS.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RD)


class _Job:
    """One connection, in a worker: TLS, handshake, then its requests. Without *place* only a node's goes on."""

    def __init__(self, server: _TransportServer, sock: socket.socket, address: Any, place: Place | None) -> None:
        self._server = server
        self._socket = sock
        self._place = place
        self._address = str(address[0])
        self._connection: _Connection | None = None

    def __call__(self) -> None:
        """Serve it to its end. Whatever a stranger sends must end here, and harm nobody else."""
        if self._guarded(self._let_in):
            self.serve()
        else:
            self.end()

    def look(self) -> None:
        """Refuse it, unless it is a node's: that is served by a worker."""
        if not self._guarded(self._let_in):
            self.end()
            return
        try:
            self._server.pool.process(self.serve)
        except (NoFreeWorkersError, RuntimeError):
            self.end()

    def serve(self) -> None:
        """The requests of who was let in."""
        self._guarded(self._answer)
        self.end()

    def end(self) -> None:
        """Close the connection; its place is free."""
        if self._connection is not None:
            self._server.closed(self._connection)
        _close(self._socket)
        if self._place is not None:
            self._place.give()

    def _guarded(self, part: Callable[[], bool]) -> bool:
        try:
            return part()
        except (HungUp, Unacceptable, OSError) as error:
            log.debug("connection of %s ends: %s", self._address, error)
        except Exception:
            log.exception("connection of %s failed", self._address)
        return False

    def _let_in(self) -> bool:
        limits = self._server.limits
        deadline = time.monotonic() + (limits.handshake_timeout if self._place else _REFUSING_TIMEOUT)
        # Wrapping takes the descriptor away from the raw socket.
        self._socket = tls = self._begin_tls(deadline)
        connection = self._connection = _Connection(tls, self._address, deadline)
        self._server.opened(connection)
        if not self._server.daemon.shake_hands(connection, self._place is None or self._place.members_only):
            return False
        if self._place is None:
            self._place = self._server.places.take_for_member()
        elif connection.caller.peer:
            self._place.recognise()
        return True

    def _answer(self) -> bool:
        while True:
            self._server.daemon.answer(self._connection)

    def _begin_tls(self, deadline: float) -> ssl.SSLSocket:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        context = self._server.context()
        tls = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        try:
            # The timeout is for the whole of the handshake, however many bytes it arrives in.
            tls.settimeout(max(0.001, deadline - time.monotonic()))
            tls.do_handshake()
        except BaseException:
            _close(tls)
            raise
        return tls


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        sock.close()


class _Pool(Pool):  # type: ignore[misc]
    """Pyro4's pool, which would wait a tenth of a second for each of its workers when it closes."""

    closed: bool

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def process(self, job: Callable[[], None]) -> None:
        with self._lock:  # not only the accept loop has jobs
            super().process(job)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        workers = [*self.busy, *self.idle]
        for worker in workers:
            worker.process(None)
        deadline = time.monotonic() + _CLOSE_WITHIN
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(256)
        # A client that is gone again before it was accepted must not leave the loop waiting for the next one.
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class _TransportServer(threadpoolserver.SocketServer_Threadpool):  # type: ignore[misc]
    """Pyro4's thread-pool server with an accept loop that only accepts. `Server` sets it up."""

    limits = Limits()
    places: Places
    context: Callable[[], ssl.SSLContext]

    def init(self, daemon: Any, host: str, port: int, unixsocket: str | None = None) -> None:  # noqa: ARG002
        self.daemon = daemon
        self.sock = _listening(host, port)
        self._also: dict[str, socket.socket] = {}
        self._socketaddr = self.sock.getsockname()
        self.locationStr = f"[{host}]:{self._socketaddr[1]}" if ":" in host else f"{host}:{self._socketaddr[1]}"
        self._connections: set[_Connection] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._refusals: queue.Queue[_Job | None] = queue.Queue(_REFUSALS_WAITING)
        threading.Thread(target=self._refuse, name="refusals", daemon=True).start()
        Pyro4.config.THREADPOOL_SIZE = self.places.most
        Pyro4.config.THREADPOOL_SIZE_MIN = 4
        self.pool = _Pool()
        self._selector.register(self.sock, threadpoolserver.selectors.EVENT_READ, self)

    def events(self, eventsockets: Any) -> None:  # noqa: ARG002
        for key, _ in self._selector.select(Pyro4.config.POLLTIMEOUT):
            self._accept(key.fileobj)

    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, address = listening.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.error("no connection can be taken now: %s", error)
                # It stays in the queue, so that the loop would come straight back here.
                self._closing.wait(0.2)
            return
        if self.shutting_down:
            sock.close()
            return
        place = self.places.take(str(address[0]))
        if place is not None:
            try:
                self.pool.process(_Job(self, sock, address, place))
                return
            except (NoFreeWorkersError, RuntimeError):  # the latter: the machine has no more threads for us
                place.give()
        try:
            self._refusals.put_nowait(_Job(self, sock, address, None))
        except queue.Full:
            sock.close()

    def listen_also(self, hosts: Collection[str]) -> None:
        """Besides the first address, listen on *hosts*, and on no others any more."""
        for host in [host for host in self._also if host not in hosts]:
            sock = self._also.pop(host)
            self._selector.unregister(sock)
            sock.close()
        for host in hosts:
            if host not in self._also:
                sock = _listening(host, self._socketaddr[1])
                self._selector.register(sock, threadpoolserver.selectors.EVENT_READ, self)
                self._also[host] = sock

    def _refuse(self) -> None:
        while (job := self._refusals.get()) is not None:
            job.look()

    def opened(self, connection: _Connection) -> None:
        """Keep *connection* among those that end when this does."""
        with self._lock:
            self._connections.add(connection)
        if self._closing.is_set():
            connection.hang_up()

    def closed(self, connection: _Connection) -> None:
        """Forget *connection*."""
        with self._lock:
            self._connections.discard(connection)

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.hang_up()
        for sock in self._also.values():
            sock.close()
        super().close()
        with contextlib.suppress(queue.Full):
            self._refusals.put_nowait(None)


def refusal_text(error: McvirtError) -> str:
    """An error in the form in which the door says it, for `mcvirt.rpc.transport` to read."""
    return REFUSED_PREFIX + _encode(error.to_wire()).decode()


class Server(Pyro4.core.Daemon):  # type: ignore[misc]
    """Listens on *host*:*port* (0 = any free port) and answers for what is registered.

    *authenticate* turns the handshake's data, the client's address and its certificate (DER, where it has shown one
    that leads up to a CA of ours) into a Caller, or raises an McvirtError.
    *context* gives the SSL context for the next connection, so that a renewed certificate needs no restart.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        node: str,
        context: Callable[[], ssl.SSLContext],
        authenticate: Authenticate,
        limits: Limits,
        member_at: Callable[[str], bool] = lambda address: False,  # noqa: ARG005
    ) -> None:
        """*member_at* says whether a node of the cluster has that address."""
        self.node = node
        self._authenticate = authenticate
        self._limits = limits
        places = Places(limits.connections, member_at)
        own = {"limits": limits, "context": staticmethod(context), "places": places}
        made = type("TransportServer", (_TransportServer,), own)
        original = threadpoolserver.SocketServer_Threadpool
        threadpoolserver.SocketServer_Threadpool = made
        try:
            super().__init__(host=host, port=port)
        finally:
            threadpoolserver.SocketServer_Threadpool = original
        # Pyro4's own object would list our objects to anybody and serve their metadata.
        self.objectsById.pop(constants.DAEMON_NAME, None)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.transportServer._socketaddr[1])

    def listen_also(self, hosts: Collection[str]) -> None:
        """Listen on *hosts* too, at the same port, and end that for others; OSError says that one can't be had.

        Connections go on, whatever address they came in by.
        """
        own = str(self.transportServer._socketaddr[0])
        self.transportServer.listen_also([host for host in hosts if own not in (host, "0.0.0.0", "::")])  # noqa: S104

    def shake_hands(self, connection: _Connection, members_only: bool) -> bool:
        """Pyro4's handshake: who is it? False, and the reason is told, if they may not come in.

        *members_only*: there is room for nodes of the cluster, and for nobody else.
        """
        left = connection.stranger_until - time.monotonic()
        incoming = receive(connection.sock, most=_MOST_OF_STRANGERS, patience=left, within=left)
        if incoming.kind != message.MSG_CONNECT:
            raise Unacceptable("it begins without a handshake")
        try:
            credentials = _credentials(incoming.data)
            if members_only and ("peer" not in credentials or connection.certificate is None):
                raise DaemonBusy(node=self.node)
            connection.caller = self._authenticate(credentials, connection.address, connection.certificate)
        except McvirtError as error:
            self._send(connection, message.MSG_CONNECTFAIL, incoming.sequence, _encode(refusal_text(error)))
            return False
        self._send(connection, message.MSG_CONNECTOK, incoming.sequence, _encode(self.node))
        return True

    def answer(self, connection: _Connection) -> None:
        """Wait for the next message on *connection* and answer it."""
        if connection.stranger:
            left = connection.stranger_until - time.monotonic()
            incoming = receive(connection.sock, most=_MOST_OF_STRANGERS, patience=left, within=left)
        else:
            incoming = receive(
                connection.sock,
                most=self._limits.message_size,
                patience=self._limits.idle_timeout,
                within=_MESSAGE_WITHIN,
            )
        if incoming.kind == message.MSG_PING:
            self._send(connection, message.MSG_PING, incoming.sequence, b"pong")
            return
        if incoming.kind != message.MSG_INVOKE:
            raise Unacceptable(f"a message of type {incoming.kind} is none for a daemon")
        data = _encode(self._reply(connection, incoming))
        if len(data) > MAX_MESSAGE_SIZE:
            data = _encode(_refusal(Failed(text="The answer is larger than a message may be. Ask for less at once.")))
        self._send(connection, message.MSG_RESULT, incoming.sequence, data)
        if connection.carry is not None:
            connection.carry(connection.sock)
            raise HungUp("what it carried has ended")

    def _reply(self, connection: _Connection, incoming: Incoming) -> Reply:
        try:
            call = _call.decode(incoming.data)
        except (ValueError, RecursionError) as error:
            return _refusal(BadArgument(what="call", why=f"it can't be read: {str(error)[:200]}."))
        door: Any = type(self.objectsById.get(call.object)).__dict__.get(call.method)
        if not getattr(door, "_pyroExposed", False):
            asked = f"{call.object}.{call.method}"
            shown = "".join(char if char.isprintable() else "?" for char in asked[:80])
            return _refusal(BadArgument(what=f"operation '{shown}'", why="this mcvirtd does not have it."))
        Pyro4.current_context.client = connection
        reply: Reply = door(None, *call.params, **call.kwargs)
        return reply

    def _send(self, connection: _Connection, kind: int, sequence: int, data: bytes) -> None:
        send(connection.sock, kind, sequence, data, within=_MESSAGE_WITHIN if not connection.stranger else 10.0)


def _credentials(data: bytes) -> dict[str, Any]:
    try:
        found = _handshake.decode(data).get("handshake")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadArgument(what="handshake", why="it is not a map with credentials.")
    return found


def _refusal(error: McvirtError) -> Reply:
    return Reply(error=msgspec.to_builtins(error.to_wire(), enc_hook=str))
