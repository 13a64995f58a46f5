"""The listening side: TLS, the handshake, limits.

Pyro4's own server would do the TLS handshake, and the refusal when it is full, in its accept loop: one client that says
nothing would stop everybody. Here the accept loop only accepts. A worker does TLS and Pyro4's handshake, both
under one deadline that a client can't stretch by sending a byte now and then; connections that do not get a worker
are told so by a thread of their own.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import Pyro4
import Pyro4.core
from Pyro4 import constants, socketutil
from Pyro4.socketserver import threadpoolserver
from Pyro4.socketserver.threadpool import NoFreeWorkersError, Pool

from mcvirt.errors import DaemonBusy, McvirtError
from mcvirt.rpc.transport import REFUSED_PREFIX
from mcvirtd.auth.caller import NOBODY, Caller

log = logging.getLogger(__name__)

Authenticate = Callable[[dict[str, Any], str], Caller]
_REFUSING_TIMEOUT = 2.0
_REFUSALS_WAITING = 32


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many connections there may be, how long (seconds) one may take to log in and be idle, and how
    many bytes one message may have."""

    connections: int = 200
    handshake_timeout: float = 10.0
    idle_timeout: float = 600.0
    message_size: int = 16 * 1024 * 1024


def caller_of_this_call() -> Caller:
    """Who the connection belongs to whose call this thread is answering."""
    return getattr(Pyro4.current_context.client, "caller", NOBODY)


class _Connection(socketutil.SocketConnection):  # type: ignore[misc]
    caller: Caller = NOBODY
    address: str = ""


class _Deadlines:
    """Closes sockets whose handshake is not over in time, whatever trickles in on them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Condition()
        self._open: dict[int, tuple[float, socket.socket]] = {}
        self._stopped = False
        threading.Thread(target=self._run, name="handshake-deadlines", daemon=True).start()

    def begin(self, sock: socket.socket) -> int:
        with self._lock:
            self._open[id(sock)] = (time.monotonic() + self._seconds, sock)
            self._lock.notify()
        return id(sock)

    def end(self, key: int) -> bool:
        """False if the deadline has passed already."""
        with self._lock:
            return self._open.pop(key, None) is not None

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify()

    def _run(self) -> None:
        with self._lock:
            while not self._stopped:
                now = time.monotonic()
                for key, (deadline, sock) in list(self._open.items()):
                    if deadline <= now:
                        del self._open[key]
                        with contextlib.suppress(OSError):
                            sock.shutdown(socket.SHUT_RDWR)
                oldest = min((deadline for deadline, _ in self._open.values()), default=None)
                self._lock.wait(None if oldest is None else max(0.05, oldest - now))


class _Job(threadpoolserver.ClientConnectionJob):  # type: ignore[misc]
    """One connection, in a worker: TLS, handshake, then its requests."""

    def __init__(
        self, server: _TransportServer, sock: socket.socket, address: Any, refusal: McvirtError | None
    ) -> None:
        self._server = server
        self._raw = sock
        self._refusal = refusal
        self.caddr = address
        self.daemon = server.daemon
        self.csock: Any = None

    def handleConnection(self) -> bool:
        server = self._server
        timeout = server.limits.handshake_timeout if self._refusal is None else _REFUSING_TIMEOUT
        accepted = False
        key = None
        try:
            self._raw.settimeout(timeout)
            socketutil.setNoDelay(self._raw)
            socketutil.setKeepalive(self._raw)
            # Wrapping takes the descriptor away from the raw socket, so it is the wrapped one that has the deadline.
            tls = server.context().wrap_socket(self._raw, server_side=True, do_handshake_on_connect=False)
            self.csock = _Connection(tls)
            self.csock.address = str(self.caddr[0])
            key = server.deadlines.begin(tls)
            tls.do_handshake()
            if self._refusal is None:
                accepted = self.daemon._handshake(self.csock)
            else:
                self.daemon._handshake(self.csock, denied_reason=refusal_text(self._refusal))
        except Exception as error:  # whatever a stranger sends must end here, and harm nobody else
            log.debug("handshake with %s failed: %r", self.caddr, error)
        in_time = key is not None and server.deadlines.end(key)
        if accepted and in_time:
            self.csock.timeout = server.limits.idle_timeout
            return True
        self._close()
        return False

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            (self.csock or self._raw).close()


class _TransportServer(threadpoolserver.SocketServer_Threadpool):  # type: ignore[misc]
    """Pyro4's thread-pool server with an accept loop that only accepts. `Server` sets it up."""

    limits = Limits()
    context: Callable[[], ssl.SSLContext]

    def init(self, daemon: Any, host: str, port: int, unixsocket: str | None = None) -> None:  # noqa: ARG002
        self.daemon = daemon
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind((host, port))
        self.sock.listen(256)
        self._socketaddr = self.sock.getsockname()
        self.locationStr = f"[{host}]:{self._socketaddr[1]}" if ":" in host else f"{host}:{self._socketaddr[1]}"
        self.deadlines = _Deadlines(self.limits.handshake_timeout)
        self._refusals: queue.Queue[_Job | None] = queue.Queue(_REFUSALS_WAITING)
        threading.Thread(target=self._refuse, name="refusals", daemon=True).start()
        Pyro4.config.THREADPOOL_SIZE = self.limits.connections
        Pyro4.config.THREADPOOL_SIZE_MIN = 4
        Pyro4.config.MAX_MESSAGE_SIZE = self.limits.message_size
        self.pool = Pool()
        self.housekeeper = threadpoolserver.Housekeeper(daemon)
        self.housekeeper.start()
        self._selector.register(self.sock, threadpoolserver.selectors.EVENT_READ, self)

    def events(self, eventsockets: Any) -> None:  # noqa: ARG002
        if not self._selector.select(Pyro4.config.POLLTIMEOUT):
            return
        sock, address = self.sock.accept()
        if self.shutting_down:
            sock.close()
            return
        try:
            self.pool.process(_Job(self, sock, address, None))
        except NoFreeWorkersError:
            refusal = DaemonBusy(node=self.daemon.node)
            try:
                self._refusals.put_nowait(_Job(self, sock, address, refusal))
            except queue.Full:
                sock.close()

    def _refuse(self) -> None:
        while (job := self._refusals.get()) is not None:
            job.handleConnection()

    def close(self) -> None:
        super().close()
        self.deadlines.stop()
        with contextlib.suppress(queue.Full):
            self._refusals.put_nowait(None)


def refusal_text(error: McvirtError) -> str:
    """An error in the form in which the door says it, for `mcvirt.rpc.transport` to read."""
    return REFUSED_PREFIX + msgspec.json.encode(error.to_wire()).decode()


class _Refused(Exception):
    """What Pyro4 sends to a client whose handshake we refuse: str(exception)."""


class Server(Pyro4.core.Daemon):  # type: ignore[misc]
    """Listens on *host*:*port* (0 = any free port) and answers for what is registered.

    *authenticate* turns the handshake's data and the client's address into a Caller, or raises an McvirtError.
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
    ) -> None:
        self.node = node
        self._authenticate = authenticate
        made = type("TransportServer", (_TransportServer,), {"limits": limits, "context": staticmethod(context)})
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

    def validateHandshake(self, conn: Any, data: Any) -> str:
        """Who is it? Called by Pyro4 in the connection's worker, under the handshake's deadline."""
        try:
            conn.caller = self._authenticate(data if isinstance(data, dict) else {}, conn.address)
        except McvirtError as error:
            raise _Refused(refusal_text(error)) from None
        return self.node
