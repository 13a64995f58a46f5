"""Sockets inside a node's network, and Pyro4's message frames made by hand: what a stranger could send."""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from tests.node.mcvirt_node import McvirtNode

T = TypeVar("T")
HEADER = struct.Struct("!4sHHHHiHHHH")
VERSION = 48
CONNECT, CONNECTOK, CONNECTFAIL, INVOKE, RESULT, PING = 1, 2, 3, 4, 5, 6
EXCEPTION, COMPRESSED, ONEWAY, BATCH, META, ITEMSTREAM, KEEPSERIALIZED = (1 << bit for bit in range(7))
SERPENT, JSON, MARSHAL, PICKLE, DILL, MSGPACK, CLOUDPICKLE = range(1, 8)
WITHIN = 20.0
_CLONE_NEWNET = 0x40000000


def frame(
    kind: int,
    data: bytes = b"",
    *,
    flags: int = 0,
    sequence: int = 1,
    serializer: int = JSON,
    annotations: bytes = b"",
    size: int | None = None,
    annotations_size: int | None = None,
    magic: bytes = b"PYRO",
    version: int = VERSION,
    checksum: int | None = None,
) -> bytes:
    """One message; what is not said is as it should be, the checksum of a lie included."""
    size = len(data) if size is None else size
    annotations_size = len(annotations) if annotations_size is None else annotations_size
    total = kind + version + size + annotations_size + flags + serializer + sequence + 0x34E9
    checksum = total & 0xFFFF if checksum is None else checksum
    head = HEADER.pack(magic, version, kind, flags, sequence, size, serializer, annotations_size, 0, checksum)
    return head + annotations + data


def call_data(object_id: object, method: object, args: object = (), kwargs: object = None) -> bytes:
    """The payload of a call."""
    return json.dumps(
        {"object": object_id, "method": method, "params": args, "kwargs": {} if kwargs is None else kwargs}
    ).encode()


class Network:
    """A thread that lives in the network of *node*: sockets that it makes are there."""

    def __init__(self, node: McvirtNode) -> None:
        self.node = node
        self._threads = ThreadPoolExecutor(8, initializer=_enter, initargs=(node.host.pid,))

    def run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What *work* returns, done there."""
        return self._threads.submit(work, *args, **kwargs).result(120)

    def close(self) -> None:
        self._threads.shutdown()

    def tcp(self, address: str = "127.0.0.1") -> socket.socket:
        """A connection that has said nothing yet."""
        sock = self.run(socket.create_connection, (address, self.port), WITHIN)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small messages follow each other
        return sock

    @property
    def port(self) -> int:
        return int(json.loads((self.node.run_dir / "endpoint.json").read_bytes())["port"])

    def root_token(self) -> str:
        return (self.node.run_dir / "root.token").read_text().strip()

    def tls(self, address: str = "127.0.0.1", *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLSocket:
        """A connection that has done TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(str(self.node.run_dir / "ca.pem"))
        context.maximum_version = newest
        context.check_hostname = address == "127.0.0.1"
        raw = self.tcp(address)
        try:
            return context.wrap_socket(raw, server_hostname="localhost")
        except BaseException:
            raw.close()
            raise

    def wire(self, token: str | None = "", address: str = "127.0.0.1") -> Wire:
        """A connection that is logged in: as root, with *token*, or as nobody if that is None."""
        wire = Wire(self.tls(address))
        credentials = {} if token is None else {"token": token or self.root_token()}
        answer = wire.handshake(credentials)
        if answer.kind != CONNECTOK:
            wire.close()
            raise Denied(answer.text)
        return wire


class Denied(Exception):
    """The daemon's door said no."""

    @property
    def error(self) -> dict[str, Any]:
        """The error in it."""
        text = str(self)
        return json.loads(text[text.index("MCVIRT ") + 7 :])


class Answer:
    """One message of the daemon."""

    def __init__(self, head: tuple[Any, ...], data: bytes) -> None:
        _, _, self.kind, self.flags, self.sequence, _, self.serializer, _, _, _ = head
        self.data = data

    @property
    def value(self) -> Any:
        return json.loads(self.data)

    @property
    def text(self) -> str:
        value = self.value
        return value if isinstance(value, str) else str(value.get("text"))

    def __repr__(self) -> str:
        return f"Answer(kind={self.kind}, flags={self.flags}, {self.data[:300]!r})"


class Wire:
    """A TLS connection, with frames sent as they are given."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send *data*, or as much of it as the daemon takes before it hangs up."""
        try:
            self.sock.sendall(data)
        except OSError:
            pass

    def receive(self) -> Answer | None:
        """The next message, or None if the daemon hung up."""
        head = self._exactly(HEADER.size)
        if head is None:
            return None
        fields = HEADER.unpack(head)
        assert fields[0] == b"PYRO", head
        self._exactly(fields[7])
        return Answer(fields, self._exactly(fields[5]) or b"")

    def _exactly(self, size: int) -> bytes | None:
        found = b""
        while len(found) < size:
            try:
                piece = self.sock.recv(size - len(found))
            except (ConnectionError, ssl.SSLError):
                return None
            if not piece:
                return None
            found += piece
        return found

    def ask(self, data: bytes) -> Answer | None:
        """Send *data* and give the answer."""
        self.send(data)
        return self.receive()

    def handshake(self, credentials: object) -> Answer:
        """Pyro4's handshake."""
        answer = self.ask(frame(CONNECT, json.dumps({"handshake": credentials, "object": "mcvirt"}).encode()))
        assert answer is not None, "the daemon hung up"
        return answer

    def call(self, object_id: object, method: object, *args: object, **kwargs: object) -> dict[str, Any]:
        """The Reply to one proper call."""
        return self.call_raw(call_data(object_id, method, args, kwargs))

    def call_raw(self, data: bytes) -> dict[str, Any]:
        """The Reply to a proper frame around *data*."""
        self._sequence += 1
        answer = self.ask(frame(INVOKE, data, sequence=self._sequence))
        assert answer is not None, "the daemon hung up"
        assert answer.kind == RESULT and not answer.flags, answer
        assert answer.sequence == self._sequence
        value = answer.value
        assert isinstance(value, dict) and set(value) <= {"ok", "error", "task"}, answer
        return value

    def alive(self) -> bool:
        """Whether the daemon still answers here."""
        answer = self.ask(frame(PING, b"ping"))
        return answer is not None and answer.kind == PING


def hung_up(sock: socket.socket, within: float = WITHIN) -> bool:
    """Whether the daemon closes this connection within that many seconds; what it says before is thrown away."""
    deadline = time.monotonic() + within
    sock.settimeout(0.0)
    while (left := deadline - time.monotonic()) > 0:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            pass
        elif not poll.poll(left * 1000):
            return False
        try:
            if not sock.recv(65536):
                return True
        except (BlockingIOError, ssl.SSLWantReadError):
            continue
        except (ConnectionError, ssl.SSLError, OSError):
            return True
    return False


def silent(sock: socket.socket) -> bool:
    """Whether the daemon has neither said anything here nor hung up."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _enter(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(namespace)
