"""Where this node's mcvirtd is reached, for programs on the node itself."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mcvirtd.auth import first_start
from mcvirtd.host import files

ENDPOINT_FILE = "endpoint.json"


def announce(directory: Path, *, address: str, port: int, node: str) -> None:
    """Say in *directory* that mcvirtd listens on *address*."""
    host = "localhost" if address in ("0.0.0.0", "::", "127.0.0.1", "::1") else address  # noqa: S104
    endpoint = msgspec.json.encode({"host": host, "port": port, "node": node})
    files.write_atomically(directory / ENDPOINT_FILE, endpoint + b"\n", mode=0o644)


def withdraw(directory: Path) -> None:
    """It listens no more, and root's token is good for nothing."""
    for name in (ENDPOINT_FILE, first_start.TOKEN_FILE):
        (directory / name).unlink(missing_ok=True)
