"""The only file that sets Pyro4.config, and one connection of a client to a daemon.

Many contracts share one connection: an operation names the object it is for.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, cast

import msgspec
import Pyro4.core
from Pyro4 import errors as pyro_errors
from Pyro4 import message, socketutil

from mcvirt.errors import AnswerLost, DaemonBusy, McvirtError, NodeUnreachable, NotAuthenticated, from_wire
from mcvirt.rpc import codec

MAX_MESSAGE_SIZE = 16 * 1024 * 1024
UPLOAD_PIECE = 1024 * 1024
CONNECT_TIMEOUT = 10.0
CALL_TIMEOUT = 60.0
REFUSED_PREFIX = "MCVIRT "

_chosen = threading.local()


class _ContextOfThisThread:
    """Stands where Pyro4 keeps its one client SSL context, and wraps with the one that this thread has chosen.

    Without it a process could only ever talk to one cluster, with one certificate.
    """

    def wrap_socket(self, sock: Any, server_side: bool = False, server_hostname: str | None = None) -> ssl.SSLSocket:
        context = cast(ssl.SSLContext, _chosen.context)
        return context.wrap_socket(sock, server_side=server_side, server_hostname=server_hostname)


def configure() -> None:
    """Set up Pyro4 for this process; whatever the environment's PYRO_ variables say is overruled."""
    config = Pyro4.config
    config.SSL = True
    config.SERIALIZER = "json"
    config.SERIALIZERS_ACCEPTED = {"json"}
    config.METADATA = False
    config.REQUIRE_EXPOSE = True
    config.AUTOPROXY = False
    config.ITER_STREAMING = False
    config.FLAME_ENABLED = False
    config.DETAILED_TRACEBACK = False
    config.ONEWAY_THREADED = False
    config.COMPRESSION = False
    config.LOGWIRE = False
    config.SOCK_NODELAY = True
    config.MAX_RETRIES = 0
    config.MAX_MESSAGE_SIZE = MAX_MESSAGE_SIZE
    config.COMMTIMEOUT = 0.0
    codec.install()
    setattr(socketutil, "__ssl_client_context", _ContextOfThisThread())
    logging.getLogger("Pyro4").setLevel(logging.CRITICAL)


def client_context(ca_pem: str) -> ssl.SSLContext:
    """A context that trusts the CA in *ca_pem* (text) and no other, and speaks TLS 1.3 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem)
    return context


class Connection:
    """One authenticated connection to one daemon; used by one thread at a time, others wait.

    *credentials* are sent in the handshake: {} for a login, {"token": ...} for everything else. It connects with the
    first call, and again after it was lost. Raises NodeUnreachable, DaemonBusy or NotAuthenticated.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        credentials: dict[str, str],
        *,
        node: str = "",
        timeout: float = CALL_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
        verify: Callable[[bytes], None] | None = None,
    ) -> None:
        """*verify* is given the daemon's certificate (DER) and may raise an McvirtError, before anything is called."""
        self.node = node or host
        self.address = f"{host}:{port}"
        self._context = context
        bracketed = f"[{host}]" if ":" in host else host
        self._proxy = Pyro4.core.Proxy(f"PYRO:mcvirt@{bracketed}:{port}")
        self._proxy._pyroHandshake = credentials
        self._proxy._pyroRawWireResponse = True
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._verify = verify
        self._lock = threading.Lock()
        # The nodes without which changes were made that were asked for here.
        self.away: set[str] = set()

    def close(self) -> None:
        """Close the connection; a later call would open it again."""
        with self._lock:
            self._proxy._pyroRelease()

    def abort(self) -> None:
        """End a call that another thread waits for, if there is one: it raises NodeUnreachable."""
        connection = self._proxy._pyroConnection
        if connection is not None:
            with contextlib.suppress(OSError, AttributeError):
                # SSLSocket's own shutdown() would make that thread go on without TLS.
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    def socket(self) -> ssl.SSLSocket:
        """The open connection itself, for bytes that are no calls; `close` closes it."""
        connection = self._proxy._pyroConnection
        if connection is None:
            raise NodeUnreachable(node=self.node, reason="the connection was lost.")
        return cast(ssl.SSLSocket, cast(Any, connection).sock)

    def call(self, object_id: str, method: str, arguments: dict[str, Any], *, timeout: float | None = None) -> bytes:
        """The bytes of the reply to *method* of *object_id*; raises what the wire or the daemon's door says."""
        with self._lock:
            connected = False
            try:
                self._connect(timeout or self._timeout)
                connected = True
                reply = self._proxy._pyroInvoke(method, (), arguments, objectId=object_id)
            except McvirtError:
                self._proxy._pyroRelease()
                raise
            except pyro_errors.PyroError as error:
                self._proxy._pyroRelease()
                raise self._said(error, connected) from None
            except OSError as error:
                self._proxy._pyroRelease()
                raise self._lost(_reason(error), connected) from None
        if reply.flags & message.FLAGS_EXCEPTION:
            raise self._exception(bytes(reply.data))
        return cast(bytes, reply.data)

    def _connect(self, timeout: float) -> None:
        if self._proxy._pyroConnection is not None and _readable(self._proxy._pyroConnection.sock):
            # Nobody was asked anything, so this is the daemon's goodbye to an idle connection.
            self._proxy._pyroRelease()
        if self._proxy._pyroConnection is None:
            _chosen.context = self._context
            self._proxy._pyroTimeout = min(self._connect_timeout, timeout)
            self._proxy._pyroBind()
            if self._verify is not None:
                self._verify(cast(Any, self._proxy._pyroConnection).sock.getpeercert(binary_form=True))
        self._proxy._pyroTimeout = timeout
        self._proxy._pyroConnection.timeout = timeout

    def _said(self, error: Exception, connected: bool) -> McvirtError:
        text = str(error)
        start = text.find(REFUSED_PREFIX)
        if start >= 0:
            # The daemon's door refused with an error of ours, which Pyro4 wrapped into its own sentence.
            try:
                return from_wire(msgspec.json.decode(text[start + len(REFUSED_PREFIX) :]))
            except msgspec.DecodeError:
                return NotAuthenticated(text=f"The daemon on {self.address} refused the connection.")
        if isinstance(error, pyro_errors.MessageTooLargeError):
            return NodeUnreachable(node=self.node, reason="the message is larger than the daemon takes.")
        if isinstance(error, pyro_errors.TimeoutError):
            return self._lost(f"{self.address} did not answer in time.", connected)
        cause = error.__cause__ or error
        if isinstance(error, pyro_errors.ConnectionClosedError):
            if not connected:
                return DaemonBusy(node=self.node)
            return self._lost("the connection was lost before the answer came.", connected)
        return self._lost(_reason(cause), connected)

    def _lost(self, reason: str, connected: bool) -> NodeUnreachable:
        return (AnswerLost if connected else NodeUnreachable)(node=self.node, reason=reason)

    def _exception(self, data: bytes) -> McvirtError:
        try:
            text = str(msgspec.json.decode(data, type=dict[str, Any]).get("text"))
        except msgspec.DecodeError:
            text = "an answer that can't be read"
        return NodeUnreachable(node=self.node, reason=f"mcvirtd answered: {text}.")


def _readable(sock: ssl.SSLSocket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})."
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there. Is mcvirtd running?"
    if isinstance(error, TimeoutError):
        return "it did not answer in time."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    return f"{error}."
