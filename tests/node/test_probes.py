"""The looks at the machine that `mcvirtd --check` takes, on this one."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from mcvirtd.cluster import pki, tls
from mcvirtd.probes import IN_USE, file_system_of, port_trouble, served_certificate


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener, listener.getsockname()[1]


def test_a_port_is_free_used_or_elsewhere() -> None:
    with listening() as (_, port):
        assert port_trouble("127.0.0.1", port) == IN_USE
    assert port_trouble("127.0.0.1", port) == ""
    assert "assign" in port_trouble("192.0.2.1", port)


def test_who_serves_a_port_is_known_by_the_certificate(tmp_path: Path) -> None:
    identity = pki.ensure(tmp_path / "pki", "n1")
    context = tls.server_context(identity)
    with listening() as (listener, port):

        def serve() -> None:
            raw, _ = listener.accept()
            with contextlib.suppress(OSError), raw, context.wrap_socket(raw, server_side=True) as end:
                end.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        shown = served_certificate("127.0.0.1", port)
        thread.join(10)
    assert shown == ssl.PEM_cert_to_DER_cert(identity.certificate.read_text())


def test_who_listens_and_says_nothing_is_not_waited_for() -> None:
    with listening() as (_, port):
        assert served_certificate("0.0.0.0", port, within=0.2) is None
    assert served_certificate("127.0.0.1", port, within=0.2) is None


def test_the_file_system_of_a_directory_is_the_one_mounted_last() -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
    assert file_system_of(Path("/sys/kernel")) == "sysfs"
    assert file_system_of(Path("/")) not in {"", "proc"}
