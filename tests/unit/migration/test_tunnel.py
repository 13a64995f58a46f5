"""Who may speak on the channels of a migration, and what root does to names in a directory of QEMU's user."""

from __future__ import annotations

import errno
import os
import queue
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt.errors import LibvirtUnreachable, NodeUnreachable
from mcvirt.rpc.codec import Reply
from mcvirt.rpc.transport import Connection
from mcvirtd.migration import sockets
from mcvirtd.migration.sockets import CHANNELS, Channel
from mcvirtd.migration.tunnel import Tunnel

QEMU = (64055, 64055)
WITHIN = 10.0
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for being another user")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that other users may pass, as pytest's are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o711)
        monkeypatch.setattr(sockets, "DIRECTORY", Path(name) / "qemus")
        monkeypatch.setattr(sockets, "OWN", Path(name) / "own")
        yield Path(name)


class Dialled:
    """Notes how often the other node was dialled, which is away."""

    def __init__(self) -> None:
        self.count = 0
        self.changed = threading.Condition()

    def __call__(self) -> Connection:
        with self.changed:
            self.count += 1
            self.changed.notify_all()
        raise NodeUnreachable(node="n2", reason="it is said to be away.")

    def until(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.count >= count, WITHIN)


@pytest.fixture
def dialled() -> Dialled:
    return Dialled()


@pytest.fixture
def tunnel(places: Path, dialled: Dialled) -> Iterator[Tunnel]:
    owner = QEMU if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    made = Tunnel("web1", owner, dialled, disks=2)
    made.open()
    yield made
    made.close()
    assert not any(place.exists() for channel in CHANNELS for place in (sockets.path(channel, "web1"),))


def connect(channel: Channel) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(WITHIN)
    try:
        made.connect(str(sockets.path(channel, "web1")))
    except OSError:
        made.close()
        raise
    return made


def error_of_another_user(channel: Channel, user: int) -> int:
    """The number of the error that a process of *user* gets when it connects; 0 when it was let in, and sent away."""
    child = os.fork()
    if child == 0:
        number = 255
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            with connect(channel) as made:
                made.recv(1)
            number = 0
        except OSError as error:
            number = error.errno or 255
        finally:
            os._exit(number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@as_root
def test_qemus_user_reaches_its_channels_and_not_the_other_nodes_libvirt(tunnel: Tunnel, dialled: Dialled) -> None:
    user, _ = QEMU
    assert error_of_another_user("libvirt", user) == errno.EACCES
    assert dialled.count == 0
    assert error_of_another_user("disks", user) == 0
    assert dialled.until(1)
    assert error_of_another_user("disks", user + 1) == errno.EACCES


@as_root
def test_libvirts_channel_asks_who_is_there(tunnel: Tunnel, dialled: Dialled) -> None:
    """Were its directory open: another user is sent away, and takes no place of ours."""
    place = sockets.path("libvirt", "web1")
    place.parent.chmod(0o711)
    place.chmod(0o666)
    assert error_of_another_user("libvirt", QEMU[0]) == 0
    assert dialled.count == 0
    with connect("libvirt"):
        assert dialled.until(1)


def test_no_more_connections_than_a_migration_makes(tunnel: Tunnel, dialled: Dialled) -> None:
    channels: tuple[tuple[Channel, int], ...] = (("memory", 1), ("disks", 2))
    for channel, wanted in channels:
        before = dialled.count
        for number in range(wanted):
            with connect(channel) as taken:
                assert dialled.until(before + number + 1)
                assert taken.recv(1) == b""
        with pytest.raises(OSError), connect(channel) as refused:
            refused.sendall(b"x")
            refused.recv(1)
            raise ConnectionResetError  # it was in the queue of a socket that closed
        assert dialled.count == before + wanted


@as_root
def test_what_qemus_user_makes_of_a_name_is_not_given_to_it(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That user, as fast as can be, puts a link to another's file in the place of each name that appears there."""
    sockets.prepare(QEMU)
    secret = places / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    place = sockets.path("disks", "web1")
    chown, chmod = os.chown, Path.chmod

    def swap() -> None:
        if place.is_socket():
            place.unlink()
            place.symlink_to(secret)

    def late_chown(*args: object, **more: object) -> None:
        swap()
        chown(*args, **more)  # type: ignore[arg-type]

    def late_chmod(path: Path, mode: int) -> None:
        swap()
        chmod(path, mode)

    place.symlink_to(secret)
    monkeypatch.setattr(os, "chown", late_chown)
    monkeypatch.setattr(Path, "chmod", late_chmod)
    with sockets.listen("disks", "web1", QEMU):
        found = secret.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o600)
        made = place.lstat()
        assert (stat.S_ISSOCK(made.st_mode), stat.S_IMODE(made.st_mode), made.st_uid) == (True, 0o600, QEMU[0])
        assert list(sockets.OWN.iterdir()) == []


@as_root
def test_nothing_but_qemu_is_at_the_other_end(places: Path) -> None:
    """A link to a socket of root's, which libvirt's is, is not connected to as if it were QEMU's."""
    sockets.prepare(QEMU)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as libvirts:
        libvirts.bind(str(places / "libvirt-sock"))
        libvirts.listen()
        sockets.path("memory", "web1").symlink_to(places / "libvirt-sock")
        with pytest.raises(LibvirtUnreachable, match="not QEMU"):
            sockets.reach("memory", "web1", "qemu:///system", "n2")
        uri = f"qemu:///system?socket={places / 'libvirt-sock'}"
        sockets.reach("libvirt", "web1", uri, "n2").close()


# --- what libvirt there was told ------------------------------------------------------------------------------------


class Wire:
    """A connection to the other node, of which the test has the far end."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as door:
            self._near = socket.create_connection(door.getsockname())
            self.far, _ = door.accept()
        self.far.settimeout(WITHIN)

    def call(self, *_: object, **__: object) -> bytes:
        return msgspec.json.encode(Reply())

    def socket(self) -> socket.socket:
        return self._near

    def close(self) -> None:
        self._near.close()


def message(program: int) -> bytes:
    return struct.pack(">II", 28, program) + bytes(20)


def test_whether_libvirt_there_may_have_let_the_guest_run(places: Path) -> None:
    remote, keepalive = 0x20008086, 0x6B656570
    dialled: queue.Queue[Wire] = queue.Queue()

    def dial() -> Any:
        wire = Wire()
        dialled.put(wire)
        return wire

    tunnel = Tunnel("web1", (os.geteuid(), os.getegid()), dial, disks=0)
    tunnel.open()
    try:
        with connect("libvirt") as client:
            wire = dialled.get(timeout=WITHIN)

            def says(program: int) -> None:
                client.sendall(message(program))
                assert wire.far.recv(28, socket.MSG_WAITALL) == message(program)

            says(remote)  # to prepare
            assert not tunnel.begun and not tunnel.asked_to_run
            with connect("memory") as memory:
                memory.sendall(b"x")
                assert dialled.get(timeout=WITHIN).far.recv(1) == b"x"
                assert tunnel.begun and not tunnel.asked_to_run
                says(keepalive)
                assert not tunnel.asked_to_run
                says(remote)  # all was sent
                assert tunnel.asked_to_run
                wire.far.close()
                assert tunnel.lost.wait(WITHIN) and tunnel.asked_to_run
    finally:
        tunnel.close()
