"""What strangers and broken clients can send, and what it does to everybody else: nothing."""

from __future__ import annotations

import json
import marshal
import os
import resource
import socket
import ssl
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt import api
from mcvirt.errors import DaemonBusy
from mcvirt.rpc.contract import Operation, operations
from mcvirt_client import Client
from mcvirtd.rpc.incoming import HungUp, receive, send
from tests.node.attacker import (
    BATCH,
    COMPRESSED,
    CONNECT,
    CONNECTFAIL,
    DILL,
    INVOKE,
    ITEMSTREAM,
    KEEPSERIALIZED,
    MARSHAL,
    META,
    MSGPACK,
    ONEWAY,
    PICKLE,
    PING,
    RESULT,
    SERPENT,
    Denied,
    Network,
    Wire,
    call_data,
    frame,
    hung_up,
    silent,
)
from tests.node.mcvirt_node import McvirtNode

MOST = 64
HANDSHAKE = 2
SETTINGS = f'[limits]\nconnections = {MOST}\nhandshake_timeout = "{HANDSHAKE}s"\nidle_connection = "10s"\n'
MIB = 1024 * 1024


@pytest.fixture(scope="module", autouse=True)
def idle(sim_node: McvirtNode, network: Network) -> Iterator[tuple[Wire, Client]]:
    """Connections that are left alone from the beginning of the module to the test at its end."""
    wire = network.wire()
    client = Client.connect(run_dir=str(sim_node.run_dir))
    assert network.run(client.vms.names) == ()
    yield wire, client
    network.run(client.close)
    wire.close()


@pytest.fixture(autouse=True)
def unharmed(sim_node: McvirtNode, network: Network) -> Iterator[None]:
    """After each test: no traceback in the log, nothing changed, and the next client is served."""
    before = sim_node.log_path.stat().st_size
    with network.wire() as wire:
        state = everything(wire)
    yield
    with admitted(network) as wire:
        assert everything(wire) == state
    log = sim_node.log_path.read_bytes()[before:].decode()
    assert "Traceback" not in log, log


def everything(wire: Wire) -> list[object]:
    """All that is configured, and how many changes it has seen."""
    objects = ("vm", "hard_drive", "storage", "iso", "network", "user", "group")
    return [wire.call(object_id, "list")["ok"] for object_id in objects] + [
        wire.call("node", "settings")["ok"],
        wire.call("node", "list")["ok"][0]["revision"],
    ]


def admitted(network: Network, within: float = 20.0) -> Wire:
    """A connection as root, as soon as there is room for one."""
    deadline = time.monotonic() + within
    while True:
        try:
            return network.wire()
        except (Denied, OSError, AssertionError):
            assert time.monotonic() < deadline, "there is no room again"


def memory(node: McvirtNode) -> int:
    """What the daemon has in memory, in bytes."""
    status = Path(f"/proc/{node.daemon_pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


# --- those who say nothing --------------------------------------------------------------------------------------------


def test_silent_clients_delay_nobody_and_are_closed(network: Network) -> None:
    quiet = [network.tcp() for _ in range(50)]
    try:
        with network.wire() as wire:
            assert wire.call("vm", "list") == {"ok": []}
        # All of them were still there: nobody had to wait for their end.
        assert all(silent(sock) for sock in quiet)
        assert all(hung_up(sock, HANDSHAKE + 10) for sock in quiet)
    finally:
        for sock in quiet:
            sock.close()


def test_silence_after_tls_and_after_the_handshake(network: Network) -> None:
    quiet = [network.tls() for _ in range(8)] + [network.wire(None).sock for _ in range(8)]
    try:
        with network.wire() as wire:
            assert wire.call("vm", "list") == {"ok": []}
        assert all(silent(sock) for sock in quiet)
        # Whoever has not logged in has as long for it as for the handshake.
        assert all(hung_up(sock, HANDSHAKE + 10) for sock in quiet)
    finally:
        for sock in quiet:
            sock.close()


def drip(sock: Any, data: bytes) -> bool:
    """Whether the daemon hangs up although a byte of *data* comes in every now and then."""
    end = time.monotonic() + HANDSHAKE + 8
    for byte in data:
        if time.monotonic() > end:
            return False
        try:
            sock.sendall(bytes([byte]))
        except OSError:
            return True
        if hung_up(sock, 0.2):
            return True
    return False


def test_a_byte_now_and_then_does_not_stretch_the_deadline(network: Network) -> None:
    hello = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    hello.check_hostname = False
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        hello.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    greeting = frame(CONNECT, json.dumps({"handshake": {}, "object": "mcvirt"}).encode())
    tcp, tls, stranger = network.tcp(), network.tls(), network.wire(None)
    login = frame(INVOKE, call_data("auth", "login", (), {"user": "x" * 200, "password": "y"}))
    pairs = [(tcp, outgoing.read()), (tls, greeting), (stranger.sock, login)]
    try:
        ended = [network._threads.submit(drip, sock, data) for sock, data in pairs]
        with network.wire() as wire:
            assert wire.call("vm", "list") == {"ok": []}
        assert [each.result(60) for each in ended] == [True, True, True]
    finally:
        for sock, _ in pairs:
            sock.close()


def test_more_connections_than_there_may_be(sim_node: McvirtNode, network: Network) -> None:
    wires: list[Wire] = []
    try:
        with pytest.raises(Denied) as denied:
            while len(wires) <= MOST:
                wires.append(network.wire())
        assert denied.value.error["name"] == "DaemonBusy"
        assert denied.value.error["fields"] == {"node": "node1"}
        assert MOST - 2 <= len(wires) <= MOST  # two are idle since the beginning
        client = Client.connect(run_dir=str(sim_node.run_dir))
        with pytest.raises(DaemonBusy, match="as many connections as it takes"):
            network.run(client.vms.names)
        refused = sim_node.mcvirt("list", check=False)
        assert (refused.returncode, refused.stdout) == (5, "")
        assert "as many connections as it takes" in refused.stderr
        # Who is in is served on, also when others crowd in front of the door and say nothing.
        crowd = [network.tcp() for _ in range(60)]
        assert wires[0].call("vm", "list") == {"ok": []}
        for sock in crowd:
            sock.close()
    finally:
        for wire in wires:
            wire.close()
    admitted(network).close()


def test_no_more_files_for_the_daemon(sim_node: McvirtNode, network: Network) -> None:
    pid = sim_node.daemon_pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with network.wire() as wire:
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 3, limits[1]))
        crowd = [network.tcp() for _ in range(20)]
        try:
            before = sim_node.log_path.stat().st_size
            assert wire.call("vm", "list") == {"ok": []}
            for sock in crowd[:3]:
                assert hung_up(sock, HANDSHAKE + 5)
            # It waits between its tries to accept, and does not burn the processor and fill the log.
            assert sim_node.log_path.read_bytes()[before:].count(b"no connection can be taken") < 100
        finally:
            for sock in crowd:
                sock.close()
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def test_a_message_that_trickles_in_or_out_has_its_time_too() -> None:
    # Of who has logged in: the daemon's own limits are too long to be waited for.
    ours, theirs = socket.socketpair()
    with ours, theirs:
        data = frame(INVOKE, call_data("vm", "list"))
        for byte in data[:40]:
            theirs.send(bytes([byte]))
        with pytest.raises(HungUp):
            receive(ours, most=MIB, patience=10.0, within=0.2)
        with pytest.raises(HungUp):
            send(ours, RESULT, 1, b" " * (64 * MIB), within=0.2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data + data)
        for _ in range(2):
            assert receive(ours, most=MIB, patience=10.0, within=10.0).data == call_data("vm", "list")
        with pytest.raises(HungUp):
            receive(ours, most=MIB, patience=0.05, within=10.0)


def test_an_answer_in_many_pieces_arrives_whole() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as thread:
        sent = thread.submit(send, ours, RESULT, 7, b"x" * (5 * MIB), within=10.0)
        received = receive(theirs, most=5 * MIB, patience=10.0, within=10.0)
        sent.result(10)
    assert (received.kind, received.sequence, received.data) == (RESULT, 7, b"x" * (5 * MIB))


# --- no TLS, or no Pyro -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 4096,
        os.urandom(4096),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        frame(CONNECT, b'{"handshake": {}, "object": "mcvirt"}'),
        b"\x16\x03\x01\x40\x00" + b"\x01" * 64,
    ],
    ids=["zeros", "noise", "http", "plaintext-pyro", "lying-tls-record"],
)
def test_what_is_not_tls(network: Network, data: bytes) -> None:
    with network.tcp() as sock:
        sock.sendall(data)
        assert hung_up(sock, HANDSHAKE + 5)


def test_tls_1_2_is_refused(network: Network) -> None:
    with pytest.raises(ssl.SSLError):
        network.tls(newest=ssl.TLSVersion.TLSv1_2)


GREETING = b'{"handshake": {}, "object": "mcvirt"}'
BAD_FRAMES = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "noise": os.urandom(64),
    "magic": frame(CONNECT, GREETING, magic=b"PYR0"),
    "version": frame(CONNECT, GREETING, version=47),
    "checksum": frame(CONNECT, GREETING, checksum=1),
    "negative": frame(CONNECT, b"", size=-1),
    "most negative": frame(CONNECT, b"", size=-(2**31)),
    "gigabyte": frame(CONNECT, b"", size=2**30),
    "largest": frame(CONNECT, b"", size=2**31 - 1),
    "large for a stranger": frame(CONNECT, b'{"handshake": {"token": "' + b"x" * MIB + b'"}}'),
    "compressed": frame(CONNECT, zlib.compress(GREETING), flags=COMPRESSED),
    "meta": frame(CONNECT, GREETING, flags=META),
    "all flags": frame(CONNECT, GREETING, flags=0xFFFF),
    "call first": frame(INVOKE, call_data("vm", "list")),
    "ping first": frame(PING, b"ping"),
    "result": frame(RESULT, b"null"),
    "unknown type": frame(999, b""),
    "no type": frame(0, b""),
}
for _name, _id in {"serpent": SERPENT, "marshal": MARSHAL, "pickle": PICKLE, "dill": DILL, "msgpack": MSGPACK}.items():
    BAD_FRAMES[_name] = frame(CONNECT, GREETING, serializer=_id)
BAD_FRAMES["real pickle"] = frame(CONNECT, b"cposix\nsystem\n(S'touch /tmp/owned'\ntR.", serializer=PICKLE)


@pytest.mark.parametrize("data", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_frames_before_the_login(sim_node: McvirtNode, network: Network, data: bytes) -> None:
    before = memory(sim_node)
    with Wire(network.tls()) as wire:
        wire.send(data)
        assert hung_up(wire.sock, HANDSHAKE + 5)
    assert memory(sim_node) - before < 16 * MIB


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"handshake"',
        b'{"object": "mcvirt"}',
        b'{"handshake": null}',
        b'{"handshake": "hello", "object": "Pyro.Daemon"}',
        b'{"handshake": []}',
        b'{"handshake": {"token": null}}',
        b'{"handshake": {"token": 1}}',
        b'{"handshake": {"token": {"token": ""}}}',
        b'{"handshake": {"token": "", "user": "root"}}',
        b'{"handshake": {"user": "root"}}',
        b'{"handshake": {"root": true}}',
        b"{" * 60000,
        b'{"handshake": ' + b"[" * 60000,
        b'{"handshake": NaN}',
        b'{"handshake": "\xff\xfe"}',
        b'{"handshake": "\\ud800"}',
    ],
)
def test_credentials_that_make_no_sense(network: Network, data: bytes) -> None:
    with Wire(network.tls()) as wire:
        answer = wire.ask(frame(CONNECT, data))
        assert answer is not None and answer.kind == CONNECTFAIL
        assert Denied(answer.text).error["name"] == "BadArgument"
        assert hung_up(wire.sock, 10)


def annotation(name: bytes, data: bytes, length: int | None = None) -> bytes:
    return name + struct.pack("!H", len(data) if length is None else length) + data


BLOB = marshal.dumps(("x", "auth", "whoami"))
BAD_CALLS = {
    name: data
    for name, data in BAD_FRAMES.items()
    if name not in ("call first", "ping first", "large for a stranger", "compressed", "meta")
} | {
    "greeting again": frame(CONNECT, GREETING),
    "keep serialized": frame(INVOKE, flags=KEEPSERIALIZED, annotations=annotation(b"BLBI", BLOB)),
    "keep serialized, no blob": frame(INVOKE, flags=KEEPSERIALIZED),
    "batch": frame(INVOKE, call_data("auth", "<batch>", [["whoami", [], {}]] * 3), flags=BATCH),
    "one way": frame(INVOKE, call_data("node", "set_autostart_interval", [77]), flags=ONEWAY),
    "item stream": frame(INVOKE, call_data("vm", "list"), flags=ITEMSTREAM),
    "zip bomb": frame(INVOKE, zlib.compress(b" " * (256 * MIB)), flags=COMPRESSED),
    "compressed": frame(INVOKE, zlib.compress(call_data("vm", "list")), flags=COMPRESSED),
    "too large": frame(INVOKE, b" " * (17 * MIB)),
    "marshalled": frame(INVOKE, marshal.dumps(("vm", "list", (), {})), serializer=MARSHAL),
}


@pytest.mark.parametrize("name", BAD_CALLS)
@pytest.mark.parametrize("who", ["stranger", "root"])
def test_frames_after_the_handshake(sim_node: McvirtNode, network: Network, name: str, who: str) -> None:
    before = memory(sim_node)
    with network.wire(None if who == "stranger" else "") as wire:
        wire.send(BAD_CALLS[name])
        assert hung_up(wire.sock, HANDSHAKE + 8)
    assert memory(sim_node) - before < 40 * MIB


def test_announced_and_never_sent(sim_node: McvirtNode, network: Network) -> None:
    before = memory(sim_node)
    wires = [network.wire() for _ in range(20)]
    for wire in wires:
        wire.send(frame(INVOKE, b"{", size=16 * MIB))
    with network.wire() as wire:
        assert wire.call("vm", "list") == {"ok": []}
    assert all(silent(wire.sock) for wire in wires)
    assert memory(sim_node) - before < 20 * MIB
    for wire in wires:
        wire.close()


@pytest.mark.parametrize(
    "annotations",
    [
        annotation(b"CORR", b"x" * 16),
        annotation(b"CORR", b"short"),
        annotation(b"\xff\xfe\xfd\xfc", b"data"),
        annotation(b"HMAC", b"0" * 20),
        annotation(b"BLBI", BLOB),
        annotation(b"LIES", b"data", 60000),
        annotation(b"ZERO", b""),
        b"\x00",
        os.urandom(65535),
    ],
)
def test_annotations_are_read_over(network: Network, annotations: bytes) -> None:
    with network.wire() as wire:
        answer = wire.ask(frame(INVOKE, call_data("vm", "list"), annotations=annotations))
        assert answer is not None and answer.value == {"ok": []}


# --- calls that are none ----------------------------------------------------------------------------------------------


def assert_refused(reply: dict[str, Any]) -> None:
    """It is a refusal that an operator understands, and no defect."""
    error = reply.get("error")
    assert error is not None, reply
    assert error["exit_code"] in (2, 3, 4), error
    assert error["name"] != "InternalError"
    assert len(error["text"]) < 2000 and "Traceback" not in error["text"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\x00",
        b'{"object": "vm", "method": "list", "params": [], "kwargs": {}',
        b'{"object": "vm", "method": "list", "params": {}, "kwargs": {}}',
        b'{"object": "vm", "method": "list", "params": [], "kwargs": []}',
        b'{"object": "vm", "method": "list", "params": null, "kwargs": null}',
        b'{"object": null, "method": "list", "params": [], "kwargs": {}}',
        b'{"object": ["vm"], "method": "list", "params": [], "kwargs": {}}',
        b'{"object": "vm", "method": {"list": 1}, "params": [], "kwargs": {}}',
        b'{"object": "vm", "method": "info", "params": [NaN], "kwargs": {}}',
        b'{"object": "vm", "method": "info", "params": [Infinity], "kwargs": {}}',
        b'{"object": "vm", "method": "info", "params": [-Infinity], "kwargs": {}}',
        b'{"object": "vm", "method": "info", "params": ["\\ud800"], "kwargs": {}}',
        b'{"object": "vm", "method": "info", "params": ["\xff\xfe"], "kwargs": {}}',
        b'{"object": "vm", "method": "info", "params": [1e99999], "kwargs": {}}',
        b'{"object": "vm", "method": "info", "params": [' + b"9" * 100000 + b'], "kwargs": {}}',
        b'{"object": "vm", "method": "info", "params": [' + b"[" * 200000 + b"]" * 200000 + b'], "kwargs": {}}',
        b'{"object": "vm", "method": "info", "params": [], "kwargs": ' + b'{"a":' * 200000,
        b'{"object": "vm", "method": "info", "params": [], "kwargs": {"_facade": 1}}',
        b'{"object": "vm", "method": "info", "params": ["a"], "kwargs": {"name": "b"}}',
        b'{"object": "vm", "method": "info", "params": ["a", "b", "c"], "kwargs": {}}',
        b'{"object": "vm", "method": "info", "params": [], "kwargs": {"name": "abc", "": 1}}',
    ],
    ids=lambda data: data[:60].decode("latin-1"),
)
def test_payloads_that_are_no_call(network: Network, data: bytes) -> None:
    with network.wire() as wire:
        assert_refused(wire.call_raw(data))
        assert wire.call("vm", "list") == {"ok": []}  # on the same connection


def test_of_a_key_that_is_there_twice_only_one_counts(network: Network) -> None:
    with network.wire() as wire:
        reply = wire.call_raw(b'{"object":"vm","method":"info","params":[],"kwargs":{"name":"aaa","name":"bbb"}}')
        assert_refused(reply)
        assert reply["error"]["fields"]["name"] == "bbb"


@pytest.mark.parametrize("object_id", ["Pyro.Daemon", "Pyro.NameServer", "", "nothing", "VM", "vm\0", "x" * MIB])
def test_objects_that_are_not_there(network: Network, object_id: str) -> None:
    with network.wire() as wire:
        for method in ("list", "registered", "ping", "info", "get_metadata", "shutdown"):
            assert_refused(wire.call(object_id, method))


@pytest.mark.parametrize(
    "method",
    (
        *("__getattr__", "__setattr__", "__class__", "__init__", "__dict__", "__reduce__", "__call__", "_pyroExposed"),
        *("_check", "nothing", "", "list\0", "list.list", "x" * MIB, "get_metadata", "mro"),
    ),
)
def test_methods_that_are_not_there(network: Network, method: str) -> None:
    with network.wire() as wire:
        for arguments in ([], ["_service"], ["_guard", 1]):
            assert_refused(wire.call("vm", method, *arguments))


# --- every operation, with everything that its contract does not say --------------------------------------------------


def _operations() -> list[Operation]:
    return [each for contract in api.contracts() for each in operations(contract).values()]


CANDIDATES: list[Any] = [None, True, 0, -1, 10**30, 1.5, "", "x", [], [1], [None], [[]], {}, {"a": 1}, {"": None}]


def _fits(value: Any, type_: Any) -> bool:
    try:
        msgspec.convert(value, type_, strict=True)
    except msgspec.ValidationError:
        return False
    return True


def plausible(type_: Any) -> Any:
    """Some value of that type."""
    for value in ("abc", "YWJj", 1, [], {}, True, None):
        if _fits(value, type_):
            return value
    for value in (
        {"name": "abc", "memory": 2**28, "cpu_count": 1},
        {"name": "abc", "type": "File"},
        {"size": 2**28},
        {"node": "abc"},
    ):
        if _fits(value, type_):
            return value
    raise AssertionError(f"the test knows no {type_}")


@pytest.mark.parametrize("operation", _operations(), ids=str)
def test_arguments_of_a_wrong_type(network: Network, operation: Operation) -> None:
    good = {p.name: plausible(operation.hints[p.name]) for p in operation.parameters}
    with network.wire() as wire:
        for name in good:
            wrong = [value for value in CANDIDATES if not _fits(value, operation.hints[name])]
            assert len(wrong) > 5
            for value in wrong:
                reply = wire.call(operation.object_id, operation.name, **{**good, name: value})
                assert_refused(reply)
                assert reply["error"]["name"] == "BadArgument", reply
                assert name in reply["error"]["text"], reply
        assert_refused(wire.call(operation.object_id, operation.name, **good, nonsense=1))
        assert_refused(wire.call(operation.object_id, operation.name, *[1] * (len(good) + 1)))
        needed = [p.name for p in operation.parameters if p.default is p.empty]
        for name in needed:
            assert_refused(
                wire.call(operation.object_id, operation.name, **{k: v for k, v in good.items() if k != name})
            )


HOSTILE = [
    "",
    "\0",
    "a\0b",
    "a\nb: c",
    "../../etc/passwd",
    "/etc/passwd",
    "-rf",
    "--help",
    "$(reboot)",
    "<x/>&amp;'\"",
    "%s%n{0}{name}",
    "\u202egnp.exe",
    "x" * MIB,
    -1,
    -(2**63),
    10**30,
    2**63,
    -0.5,
    1e308,
]
# What is no error: these only look, "" means this node, simulated machines have every bridge and directory, and a
# password may be anything that is long enough.
HARMLESS = {"task.list", "auth.sessions", "auth.revoke", "audit.list"}


def _harmless(operation: Operation, name: str, value: Any) -> bool:
    return (
        str(operation) in HARMLESS
        or (name == "node" and value == "")
        or (str(operation) == "network.create" and value in ("-rf", "--help"))
        or (str(operation) == "storage.create" and isinstance(value, dict) and value.get("location") == "/etc/passwd")
        or ("password" in name and isinstance(value, str) and 8 <= len(value) < 1024)
    )


@pytest.mark.parametrize("operation", [each for each in _operations() if each.parameters], ids=str)
def test_hostile_values_of_the_right_type(network: Network, operation: Operation) -> None:
    good = {p.name: plausible(operation.hints[p.name]) for p in operation.parameters}
    with network.wire() as wire:
        for name in good:
            for bad in _spoilt(good[name], operation.hints[name]):
                if _harmless(operation, name, bad):
                    continue
                reply = wire.call(operation.object_id, operation.name, **{**good, name: bad})
                if "task" in reply:
                    reply = _end_of(wire, reply["task"])
                assert_refused(reply)


def _spoilt(good: Any, type_: Any) -> Iterator[Any]:
    """Hostile values of that type, also in each place inside of it."""
    for value in HOSTILE:
        if _fits(value, type_):
            yield value
        for wrapped in ([value], {value: value} if isinstance(value, str) else {}):
            if wrapped and _fits(wrapped, type_):
                yield wrapped
    if isinstance(good, dict):
        fields = msgspec.structs.fields(type_) if isinstance(type_, type) else ()
        for field in fields:
            for value in HOSTILE:
                for each in (value, [value], {str(value): str(value)}, [{"size": value}]):
                    spoilt = {**good, field.name: each}
                    if _fits(spoilt, type_):
                        yield spoilt


def _end_of(wire: Wire, task: str) -> dict[str, Any]:
    seen = -1
    while True:
        news = wire.call("task", "follow", task, seen, 10.0)["ok"]
        if news["info"]["state"] in ("DONE", "FAILED", "CANCELLED", "STUCK"):
            return {"error": news["info"]["error"]} if news["info"].get("error") else {"ok": None}
        seen = news["info"]["version"]


# --- at the end -------------------------------------------------------------------------------------------------------


def test_idle_connections_are_closed_and_clients_come_back(network: Network, idle: tuple[Wire, Client]) -> None:
    wire, client = idle
    assert hung_up(wire.sock, 20.0)
    before = client._wire._connection
    assert network.run(client.vms.names) == ()  # as if nothing had been
    assert client._wire._connection is before


def test_the_daemon_ends_in_seconds_whoever_is_connected(sim_node: McvirtNode, network: Network) -> None:
    there = [network.wire().sock for _ in range(40)] + [network.tls() for _ in range(5)]
    there += [network.tcp() for _ in range(5)]  # type: ignore[list-item]
    try:
        begun = time.monotonic()
        assert sim_node.stop_daemon(within=15.0) == 0
        assert time.monotonic() - begun < HANDSHAKE + 6
        assert all(hung_up(sock, 5) for sock in there)
    finally:
        for sock in there:
            sock.close()
        sim_node.start_daemon()


_: Callable[..., object] = call_data  # keeps the import of what only the parameters above use
