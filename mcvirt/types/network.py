"""Networks as they cross the wire."""

from __future__ import annotations

import msgspec


class NetworkInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A network: a name for the host bridge *interface* on every node."""

    name: str
    interface: str
    used_by: tuple[str, ...] = ()
    problem: str = ""
