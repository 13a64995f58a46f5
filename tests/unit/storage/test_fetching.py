"""Downloading ISO images, from real servers on this machine; only who judges their addresses is another one."""

from __future__ import annotations

import datetime
import hashlib
import http.server
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mcvirt.errors import AlreadyExists, BadArgument, ChecksumWrong, Conflict, DownloadFailed, TaskCancelled
from mcvirt.types.task import TaskState
from mcvirt.units import MIB
from mcvirtd.host import files
from mcvirtd.storage.fetching import Fetcher, address_fault, checked_url, public
from mcvirtd.storage.iso_service import IsoService
from mcvirtd.storage.isos import RESERVE, IsoLibrary
from mcvirtd.storage.uploads import Uploads
from mcvirtd.tasks.task import Task, working_for
from tests.unit.storage.world import WITHIN, World

DATA = os.urandom(3 * MIB + 17)
SHA = hashlib.sha256(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.reached = threading.Event()
        self.go = threading.Event()
        self.base = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.headers.append(dict(self.headers))
        getattr(self, self.path.split("?")[0].strip("/").split(".")[0].replace("/", "_"))()

    def _head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def debian(self) -> None:
        self._head(Content_Length=str(len(DATA)), Content_Type="application/octet-stream")
        self.wfile.write(DATA)

    def lengthless(self) -> None:
        self._head()
        self.wfile.write(DATA)

    def short(self) -> None:
        self._head(Content_Length=str(len(DATA)))
        self.wfile.write(DATA[:1000])

    def missing(self) -> None:
        self._head(404)

    def page(self) -> None:
        self._head(Content_Type="text/html; charset=utf-8")
        self.wfile.write(b"<html>Please log in</html>")

    def compressed(self) -> None:
        self._head(Content_Encoding="gzip")

    def redirect(self) -> None:
        self._head(302, Location="/debian.iso")

    def loop(self) -> None:
        self._head(302, Location=f"/loop.iso?{len(self.server.asked)}")

    def to_file(self) -> None:
        self._head(302, Location="file:///etc/passwd")

    def to_ftp(self) -> None:
        self._head(302, Location="ftp://127.0.0.1/x")

    def to_inside(self) -> None:
        self._head(302, Location=f"http://localhost:{self.server.server_port}/debian.iso")

    def to_password(self) -> None:
        self._head(302, Location=f"http://me:secret@127.0.0.1:{self.server.server_port}/debian.iso")

    def silent(self) -> None:
        self.server.reached.set()
        self.server.go.wait(WITHIN)

    def stalls(self) -> None:
        self._head(Content_Length=str(len(DATA)))
        self.wfile.write(DATA[:MIB])
        self.wfile.flush()
        self.server.reached.set()
        self.server.go.wait(WITHIN)

    def huge(self) -> None:
        self._head(Content_Length=str(2**50))

    def endless(self) -> None:
        self._head()
        try:
            while not self.server.go.is_set():
                self.wfile.write(bytes(MIB))
        except OSError:
            pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.go.set()
    made.shutdown()
    thread.join(WITHIN)
    made.server_close()


@pytest.fixture
def library(world: World) -> IsoLibrary:
    made = IsoLibrary(world.state)
    made.prepare()
    return made


def service(world: World, library: IsoLibrary, fetcher: Fetcher) -> IsoService:
    return IsoService(
        store=world.store,
        journal=world.journal,
        locks=world.locks,
        node="n1",
        library=library,
        uploads=Uploads(library, clock=time.monotonic),
        fetcher=fetcher,
    )


@pytest.fixture
def isos(world: World, library: IsoLibrary) -> IsoService:
    return service(world, library, Fetcher(fault=lambda address: "", stalled=5.0))


def left(library: IsoLibrary) -> list[str]:
    return sorted(path.name for path in library.directory.iterdir())


def test_whole(isos: IsoService, library: IsoLibrary, server: Server) -> None:
    image = isos.add_url(f"{server.base}/debian.iso")
    assert (image.name, image.size, image.sha256) == ("debian.iso", len(DATA), SHA)
    assert Path(library.path("debian")).read_bytes() == DATA
    assert left(library) == [".debian.iso.sha256", "debian.iso"]
    assert isos.list() == (image,)


def test_reports_how_far_it_is(isos: IsoService, server: Server) -> None:
    task = Task("iso.add_url", "", "ann", "n1")
    with working_for(task):
        isos.add_url(f"{server.base}/debian.iso")
    (download,) = [step for step in task.info().steps if step.unit == "B"]
    assert (download.done, download.total, download.finished) == (len(DATA), len(DATA), True)


def test_name_and_digest_given(isos: IsoService, server: Server) -> None:
    image = isos.add_url(f"{server.base}/lengthless.img?token=1", name="mine", sha256=SHA.upper())
    assert (image.name, image.sha256) == ("mine.iso", SHA)


def test_redirect(isos: IsoService, server: Server) -> None:
    assert isos.add_url(f"{server.base}/redirect.iso").name == "redirect.iso"
    assert server.asked == ["/redirect.iso", "/debian.iso"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing.iso", "answers 404"),
        ("short.iso", "1000 bytes instead of"),
        ("page.iso", "web page"),
        ("compressed.iso", "compressed"),
        ("loop.iso", "sends elsewhere"),
        ("to/file.iso", "sends elsewhere"),
    ],
)
def test_failures(isos: IsoService, library: IsoLibrary, server: Server, world: World, path: str, words: str) -> None:
    with pytest.raises(DownloadFailed, match=words):
        isos.add_url(f"{server.base}/{path}")
    assert left(library) == []
    assert world.journal_rows() == []


def test_redirect_to_another_scheme_or_with_a_password(isos: IsoService, library: IsoLibrary, server: Server) -> None:
    with pytest.raises(BadArgument, match="http://"):
        isos.add_url(f"{server.base}/to/ftp.iso")
    with pytest.raises(BadArgument, match="password") as raised:
        isos.add_url(f"{server.base}/to/password.iso")
    assert "secret" not in str(raised.value)
    assert left(library) == []


def test_wrong_digest(isos: IsoService, library: IsoLibrary, server: Server) -> None:
    with pytest.raises(ChecksumWrong, match=SHA):
        isos.add_url(f"{server.base}/debian.iso", sha256="0" * 64)
    assert left(library) == []


def test_no_server(isos: IsoService) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(DownloadFailed, match="refused"):
            isos.add_url(f"http://127.0.0.1:{port}/debian.iso")


def test_silent_server(world: World, library: IsoLibrary, server: Server) -> None:
    isos = service(world, library, Fetcher(fault=lambda address: "", stalled=0.3))
    for path in ("silent", "stalls"):
        with pytest.raises(DownloadFailed, match="does not answer any more"):
            isos.add_url(f"{server.base}/{path}.iso")
    assert left(library) == []


def test_deadline(world: World, library: IsoLibrary, server: Server) -> None:
    isos = service(world, library, Fetcher(fault=lambda address: "", stalled=WITHIN, longest=0.3))
    for path in ("silent", "stalls", "endless"):
        before = time.monotonic()
        with pytest.raises(DownloadFailed, match="took longer"):
            isos.add_url(f"{server.base}/{path}.iso")
        assert time.monotonic() - before < 5
    assert left(library) == []


@pytest.mark.parametrize("path", ["silent", "stalls"])
def test_cancel_is_heard_while_waiting(world: World, library: IsoLibrary, server: Server, path: str) -> None:
    isos = service(world, library, Fetcher(fault=lambda address: "", stalled=WITHIN))
    task = Task("iso.add_url", "", "ann", "n1")

    def cancel() -> None:
        server.reached.wait(WITHIN)
        task.cancel("bob")

    canceller = threading.Thread(target=cancel)
    canceller.start()
    before = time.monotonic()
    with working_for(task), pytest.raises(TaskCancelled, match="by bob"):
        isos.add_url(f"{server.base}/{path}.iso")
    assert time.monotonic() - before < 5
    canceller.join()
    assert left(library) == []
    assert world.journal_rows() == []


def test_too_large(isos: IsoService, library: IsoLibrary, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Conflict, match="larger than"):
        isos.add_url(f"{server.base}/huge.iso")
    monkeypatch.setattr(files, "space", lambda path: files.Space(total=2 * RESERVE, free=RESERVE + 5 * MIB))
    with pytest.raises(Conflict, match="does not fit"):
        isos.add_url(f"{server.base}/endless.iso")
    assert left(library) == []
    isos.add_url(f"{server.base}/debian.iso")


def test_existing(isos: IsoService, library: IsoLibrary, server: Server) -> None:
    (library.directory / "debian.iso").write_bytes(b"mine")
    with pytest.raises(AlreadyExists):
        isos.add_url(f"{server.base}/debian.iso")
    assert server.asked == []
    assert (library.directory / "debian.iso").read_bytes() == b"mine"


def test_existing_by_the_end(world: World, isos: IsoService, library: IsoLibrary, server: Server) -> None:
    publish = library.publish

    def late(part: str, name: str, sha256: str) -> Any:
        (library.directory / name).write_bytes(b"mine")
        return publish(part, name, sha256)

    library.publish = late  # type: ignore[method-assign]
    with pytest.raises(AlreadyExists):
        isos.add_url(f"{server.base}/debian.iso")
    assert (library.directory / "debian.iso").read_bytes() == b"mine"
    assert [name for name in left(library) if name.startswith(".download")] == []


def test_power_loss_leaves_nothing(world: World, isos: IsoService, library: IsoLibrary, server: Server) -> None:
    dying = threading.Thread(target=lambda: world.run(lambda: isos.add_url(f"{server.base}/stalls.iso")))
    dying.start()
    assert server.reached.wait(WITHIN)
    deadline = time.monotonic() + WITHIN
    while not left(library) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    after = world.after_power_loss()
    copy = IsoLibrary(after.state)
    assert [name for name in left(copy) if name.startswith(".download-")] != []
    service(after, copy, Fetcher())
    (settled,) = after.tasks.settle()
    assert settled.state is TaskState.FAILED
    assert left(copy) == []
    after.store.close()
    server.go.set()
    dying.join(WITHIN)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "http://"),
        ("ftp://example.org/x.iso", "http://"),
        ("/etc/passwd", "http://"),
        ("", "http://"),
        ("data:text/plain,x", "http://"),
        ("http:///x.iso", "no server"),
        ("http://example.org:0/x.iso", "no server"),
        ("http://example.org:99999/x.iso", "not the address"),
        ("http://[::1/x.iso", "not the address"),
        ("http://me:secret@example.org/x.iso", "password"),
        ("ftp://me:secret@example.org/x.iso", "password"),
        ("http://example.org/a b.iso", "as %xx"),
        ("http://example.org/ä.iso", "as %xx"),
        ("http://example.org/a.iso\r\nX-Evil: 1", "as %xx"),
        ("http://example.org/", "does not end with a file's name"),
        ("http://example.org", "does not end with a file's name"),
        ("http://example.org/%2e%2e%2fx", "ISO name"),
        ("http://example.org/" + "a" * 5000, "as %xx"),
    ],
)
def test_bad_addresses(isos: IsoService, url: str, words: str) -> None:
    with pytest.raises(BadArgument, match=words) as raised:
        isos.add_url(url)
    assert "secret" not in str(raised.value)


def test_all_reasons_at_once(isos: IsoService) -> None:
    with pytest.raises(Exception, match=r"64 hex digits.*http://"):
        isos.add_url("file:///etc/passwd", sha256="abc")


def test_what_may_be_a_secret_is_not_shown() -> None:
    assert public(checked_url("https://example.org:8080/x.iso?token=secret#more")) == "https://example.org:8080/x.iso"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "169.254.169.254", "169.254.0.1", "224.0.0.1", "255.255.255.255"),
        *("240.0.0.1", "100.100.100.200", "::1", "::", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
        *("fe80::1", "fe80::1%eth0", "ff02::1", "fd00:ec2::254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        "2002:7f00:1::1",
    ],
)
def test_addresses_that_are_refused(address: str) -> None:
    assert address_fault(address) != ""


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "192.168.0.5", "172.16.0.1", "8.8.8.8", "fd12::1", "2a00::1", "64:ff9b::808:808", "100.64.0.1"],
)
def test_addresses_that_are_fine(address: str) -> None:
    assert address_fault(address) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.1", "2130706433", "0x7f.1"])
def test_services_of_this_machine_are_not_asked(world: World, library: IsoLibrary, server: Server, host: str) -> None:
    isos = service(world, library, Fetcher())
    with pytest.raises(BadArgument, match="this node itself"):
        isos.add_url(f"http://{host}:{server.server_port}/debian.iso")
    assert server.asked == []


def test_each_redirect_is_judged(world: World, library: IsoLibrary, server: Server) -> None:
    asked: list[str] = []

    def fault(address: str) -> str:
        asked.append(address)
        return "that is this node itself." if len(asked) > 1 else ""

    isos = service(world, library, Fetcher(fault=fault))
    with pytest.raises(BadArgument, match="localhost is"):
        isos.add_url(f"{server.base}/to/inside.iso")
    assert server.asked == ["/to/inside.iso"]
    assert left(library) == []


def test_proxies_of_the_environment_are_not_used(
    isos: IsoService, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert isos.add_url(f"{server.base}/debian.iso").size == len(DATA)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "cert.pem"
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    )
    return path


@pytest.mark.parametrize("trusted", [True, False])
def test_https(
    isos: IsoService, server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    url = f"https://127.0.0.1:{server.server_port}/debian.iso"
    if trusted:
        assert isos.add_url(url, sha256=SHA).size == len(DATA)
    else:
        with pytest.raises(DownloadFailed, match="certificate is not trusted"):
            isos.add_url(url)


def test_deadline_in_the_middle_of_a_tls_handshake(world: World, library: IsoLibrary) -> None:
    isos = service(world, library, Fetcher(fault=lambda address: "", stalled=WITHIN, longest=0.3))
    before = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(DownloadFailed, match="took longer"):
        isos.add_url(f"https://127.0.0.1:{mute.getsockname()[1]}/debian.iso")
    assert time.monotonic() - before < 5
