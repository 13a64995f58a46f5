"""TLS that trusts one key: nothing is said to anybody else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcvirt.errors import DaemonBusy, NodeUnreachable
from mcvirt.rpc.transport import Connection, configure
from mcvirtd.cluster import pki, tls


class Impostor:
    """Speaks TLS with *identity*, and keeps what it was told."""

    def __init__(self, identity: pki.Identity) -> None:
        self.told = b""
        self._context = tls.server_context(identity)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.done = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            raw, _ = self._listening.accept()
            with self._context.wrap_socket(raw, server_side=True) as sock:
                sock.settimeout(5)
                self.told = sock.recv(1000)
        except OSError:
            pass
        finally:
            self.done.set()


@pytest.fixture
def right(tmp_path: Path) -> pki.Identity:
    return pki.ensure(tmp_path / "right", "n1")


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Impostor]:
    yield Impostor(pki.ensure(tmp_path / "wrong", "n1"))


def connection(port: int, fingerprint: str) -> Connection:
    configure()
    return Connection("127.0.0.1", port, tls.pinned_context(fingerprint), {"join": "the-secret"}, node="n1", timeout=5)


def test_another_key_hears_nothing(impostor: Impostor, right: pki.Identity) -> None:
    with pytest.raises(NodeUnreachable, match="not the one that was meant"):
        connection(impostor.port, right.key_fingerprint).call("join", "facts", {})
    assert impostor.done.wait(10)
    assert impostor.told == b""


def test_the_right_key_hears_the_secret(right: pki.Identity) -> None:
    there = Impostor(right)
    with pytest.raises(DaemonBusy):  # it hangs up without an answer
        connection(there.port, right.key_fingerprint).call("join", "facts", {})
    assert there.done.wait(10)
    assert b"the-secret" in there.told
