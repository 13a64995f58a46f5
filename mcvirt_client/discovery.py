"""Where the daemon is, and which CA vouches for it."""

# Importing pathlib would cost several milliseconds at every start of the mcvirt command.
# ruff: noqa: PTH110, PTH111, PTH118, PTH123
from __future__ import annotations

import os
import socket

import msgspec

from mcvirt.errors import BadArgument, NodeUnreachable

DEFAULT_PORT = 9090
RUN_DIR = "/run/mcvirt"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon's address and the PEM text of the CA to trust.

    *ca_path* is where that text was read. *root_token* is the path of the local root user's token; it is None for
    daemons that were named by host.
    """

    host: str
    port: int
    node: str
    ca_pem: str
    ca_path: str | None = None
    root_token: str | None = None

    @property
    def key(self) -> str:
        """What cached sessions of this daemon are kept under."""
        return f"{self.host}:{self.port}"


class _File(msgspec.Struct, frozen=True):
    host: str
    port: int
    node: str


def find(
    host: str | None = None, port: int | None = None, *, ca_file: str | None = None, run_dir: str | None = None
) -> Endpoint:
    """The daemon of this machine, or the one that *host* names.

    The CA of a named one is read from *ca_file*, $MCVIRT_CA_FILE, ~/.config/mcvirt/ca.pem, or, on a node, the
    cluster's own. Raises NodeUnreachable if this machine has no running daemon, BadArgument if a file is missing.
    """
    run_dir = run_dir or os.environ.get("MCVIRT_RUN_DIR") or RUN_DIR
    if host is not None:
        ca_path = _ca_path(ca_file, run_dir)
        return Endpoint(host=host, port=port or DEFAULT_PORT, node=host, ca_pem=_text(ca_path), ca_path=ca_path)
    path = os.path.join(run_dir, "endpoint.json")
    try:
        with open(path, "rb") as file:
            local = msgspec.json.decode(file.read(), type=_File)
    except OSError as error:
        why = f"{path} can't be read ({error.strerror}). Is mcvirtd running? `--host NAME` names another machine's."
        raise NodeUnreachable(node=socket.gethostname(), reason=why) from None
    except msgspec.DecodeError as error:
        raise NodeUnreachable(node=socket.gethostname(), reason=f"{path} is damaged ({error}).") from None
    ca_path = ca_file or os.path.join(run_dir, "ca.pem")
    return Endpoint(
        host=local.host,
        port=port or local.port,
        node=local.node,
        ca_pem=_text(ca_path),
        ca_path=ca_path,
        root_token=os.path.join(run_dir, "root.token"),
    )


def read_again(endpoint: Endpoint) -> Endpoint:
    """*endpoint* with the CA that its file has now: a node that joins or leaves a cluster gets another one.

    Raises BadArgument if the file is gone, or is none any more.
    """
    if endpoint.ca_path is None:
        return endpoint
    return msgspec.structs.replace(endpoint, ca_pem=_text(endpoint.ca_path))


def _ca_path(ca_file: str | None, run_dir: str) -> str:
    named = ca_file or os.environ.get("MCVIRT_CA_FILE")
    if named:
        return named
    own = os.path.join(os.path.expanduser("~"), ".config", "mcvirt", "ca.pem")
    for path in (own, os.path.join(run_dir, "ca.pem")):
        if os.path.exists(path):
            return path
    raise BadArgument(
        what="CA certificate",
        why=f"none was found. Copy {RUN_DIR}/ca.pem from a node to {own}, or name the copy with --ca-file.",
    )


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read()
    except OSError as error:
        raise BadArgument(what=f"CA certificate {path}", why=f"it can't be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        text = ""
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise BadArgument(what=f"CA certificate {path}", why="this is not a certificate in PEM form.")
    return text


def read_root_token(endpoint: Endpoint) -> str | None:
    """The token of the local root user, or None for who may not read it."""
    if endpoint.root_token is None:
        return None
    try:
        with open(endpoint.root_token, encoding="ascii") as file:
            return file.read().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def split_host(text: str) -> tuple[str, int | None]:
    """Host and port of NAME, NAME:PORT, an IPv6 address, or [ADDRESS]:PORT; raises BadArgument."""
    host, colon, port = text, "", ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    if not host or not host.isprintable() or set(host) & set(" @/[]") or colon not in ("", ":"):
        raise BadArgument(what=f"host '{_printable(text)}'", why="write NAME, NAME:PORT or [ADDRESS]:PORT.")
    if not colon:
        return host, None
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    if not 1 <= number <= 65535:
        raise BadArgument(what=f"host '{_printable(text)}'", why="the port must be a number from 1 to 65535.")
    return host, number


def _printable(text: str) -> str:
    from mcvirt import names  # imported for those who mistype only

    return names.printable(text)
