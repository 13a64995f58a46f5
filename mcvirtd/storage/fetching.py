"""Downloading over http and https for somebody who is not root, from a process that is.

Who may add images chooses the address, so it must not be one that means this machine or its cloud: the services that
listen there trust whoever reaches them. Names are looked up here and the connection goes to the very address that was
judged, at every redirect again. Addresses of the local network are fine: mirrors are there. Proxies are not used, for
they would look names up themselves.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import logging
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPMessage
from typing import IO, Any
from urllib.parse import SplitResult, unquote, urlsplit

from mcvirt import names
from mcvirt.errors import BadArgument, DownloadFailed, McvirtError
from mcvirt.units import MIB
from mcvirtd.tasks.task import Task

log = logging.getLogger(__name__)
PIECE = MIB
STALLED = 30.0
LONGEST = 6 * 3600.0
REDIRECTS = 10
_LOOK = 0.25
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What clouds tell about a machine, its secrets included, in addresses that look like any other.
_METADATA = frozenset((ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")))


def checked_url(url: str) -> SplitResult:
    """*url* in its parts, if it can be downloaded from."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BadArgument(what="address", why="it is not the address of a web server.") from None
    if parts.username is not None or parts.password is not None:
        raise BadArgument(what="address", why="a name or password must not stand in it.")
    shown = f"address '{names.printable(public(parts))}'"
    if parts.scheme not in ("http", "https"):
        raise BadArgument(what=shown, why="it must begin with http:// or https://.")
    if not parts.hostname or port == 0:
        raise BadArgument(what=shown, why="it names no server.")
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > 4000:
        raise BadArgument(what=shown, why="write other characters than ASCII, and blanks, as %xx.")
    return parts


def public(parts: SplitResult) -> str:
    """The address without what may be a secret."""
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def name_in(parts: SplitResult) -> str:
    """What the file at the address is called."""
    name = unquote(parts.path.rsplit("/", 1)[-1])
    if not name:
        raise BadArgument(what="address", why="it does not end with a file's name; name the image with --name.")
    return name


def address_fault(address: str) -> str:
    """Why nothing is downloaded from that IP address, or ''."""
    ip = _meant(ipaddress.ip_address(address.partition("%")[0]))
    if ip.is_loopback or ip.is_unspecified:
        return "that is this node itself."
    if ip.is_link_local or ip in _METADATA:
        return "addresses like that are for services of the machine or its cloud."
    if ip.is_multicast or ip.is_reserved:
        return "no server has an address like that."
    return ""


def _meant(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address in an IPv6 one that stands for it."""
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped or ip.sixtofour:
            return ip.ipv4_mapped or ip.sixtofour or ip
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


class _Line:
    """The connection in use, which another thread can cut. *fault* judges addresses."""

    def __init__(self, fault: Callable[[str], str]) -> None:
        self._fault = fault
        self.socket: socket.socket | None = None
        self.cut_for = ""

    def connect(self, host: str, port: int, timeout: float) -> socket.socket:
        refused, last = "", None
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            fault = self._fault(str(address[0]))
            if fault:
                refused = refused or f"{host} is {address[0]}, and {fault}"
                continue
            new = socket.socket(family, kind, protocol)
            new.settimeout(timeout)
            self.socket = new
            try:
                if self.cut_for:
                    raise OSError(self.cut_for)
                new.connect(address)
            except OSError as error:
                new.close()
                last = error
                continue
            return new
        if last is None and refused:
            raise BadArgument(what="address", why=f"nothing is downloaded from there: {refused}")
        raise last or OSError("it has no address")

    def cut(self, reason: str) -> None:
        self.cut_for = reason
        if self.socket is not None:
            try:
                # Not SSLSocket.shutdown, which would also take the session from under the thread that reads.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)
            except OSError as error:
                log.debug("cutting the connection: %s", error)


class _Http(http.client.HTTPConnection):
    def __init__(self, host: str, *, line: _Line, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._line = line
        self._seconds = timeout

    def connect(self) -> None:
        self.sock = self._line.connect(self.host, self.port, self._seconds)


class _Https(http.client.HTTPSConnection):
    def __init__(self, host: str, *, line: _Line, timeout: float) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, timeout=timeout, context=self._tls)
        self._line = line
        self._seconds = timeout

    def connect(self) -> None:
        plain = self._line.connect(self.host, self.port, self._seconds)
        wrapped = self._tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        self._line.socket = self.sock = wrapped
        wrapped.do_handshake()


class _HttpHandler(urllib.request.HTTPHandler):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_Http, line=self._line), request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_Https, line=self._line), request)


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = REDIRECTS

    def redirect_request(  # noqa: PLR0917 - urllib's signature
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        checked_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Answer:
    """What a server sends: *length* bytes, where it says how many."""

    def __init__(self, response: Any, address: str, line: _Line, task: Task) -> None:
        self._response = response
        self._address = address
        self._line = line
        self._task = task
        length = response.headers.get("Content-Length")
        self.length = int(length) if length is not None and length.isdecimal() else None

    def chunks(self) -> Iterator[bytes]:
        """The content, piece by piece; DownloadFailed if it ends too early."""
        received = 0
        with _told(self._address, self._line, self._task):
            while data := self._response.read(PIECE):
                received += len(data)
                yield data
            if self._line.cut_for:
                raise OSError(self._line.cut_for)
        if self.length is not None and received != self.length:
            reason = f"the server sent {received} bytes instead of {self.length}."
            raise DownloadFailed(url=self._address, reason=reason)


class Fetcher:
    """Downloads. *fault* judges addresses; a server may be silent for *stalled* seconds, and take *longest* in all."""

    def __init__(
        self, *, fault: Callable[[str], str] = address_fault, stalled: float = STALLED, longest: float = LONGEST
    ) -> None:
        self._fault = fault
        self._stalled = stalled
        self._longest = longest

    @contextmanager
    def open(self, parts: SplitResult, task: Task) -> Iterator[Answer]:
        """The server's answer. Cancelling *task* ends the waiting for it, wherever it is."""
        line = _Line(self._fault)
        opener = urllib.request.OpenerDirector()
        for handler in (
            _HttpHandler(line),
            _HttpsHandler(line),
            _Redirects(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            parts.geturl(), headers={"User-Agent": "mcvirt", "Accept-Encoding": "identity"}
        )
        with self._watched(line, task):
            with _told(public(parts), line, task):
                response = opener.open(request, timeout=self._stalled)
            with response:
                self._judge(response, public(parts))
                yield Answer(response, public(parts), line, task)

    @staticmethod
    def _judge(response: Any, address: str) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadFailed(url=address, reason="the server sends it compressed, which was not asked for.")
        if response.headers.get_content_type() == "text/html":
            raise DownloadFailed(url=address, reason="the server sends a web page instead of an image.")

    @contextmanager
    def _watched(self, line: _Line, task: Task) -> Iterator[None]:
        done = threading.Event()
        deadline = time.monotonic() + self._longest

        def watch() -> None:
            while not done.wait(_LOOK):
                if task.cancelled.is_set():
                    return line.cut("it was cancelled.")
                if time.monotonic() > deadline:
                    return line.cut(f"it took longer than {self._longest:.0f} s.")
            return None

        watcher = threading.Thread(target=watch, name="download", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


@contextmanager
def _told(address: str, line: _Line, task: Task) -> Iterator[None]:
    """Turns what may happen on the way into DownloadFailed, or TaskCancelled where that is why."""
    try:
        yield
    except McvirtError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        task.check()
        raise DownloadFailed(url=address, reason=line.cut_for or _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        if 300 <= error.code < 400:
            return "the server sends elsewhere, too often or to what is not http or https."
        return f"the server answers {error.code} ({names.printable(str(error.reason))})."
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "the server does not answer any more."
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted ({cause.verify_message})."
    if isinstance(cause, socket.gaierror):
        return "there is no server of that name."
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause) or type(cause).__name__
    return f"{names.printable(text).rstrip('.')}."
