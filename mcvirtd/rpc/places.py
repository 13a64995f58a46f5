"""How many connections there may be: so many for anybody, and places of their own for the nodes of the cluster.

Who a connection is of shows only after it was let in, so each begins in a place for anybody. When these are all taken,
two ways are left for a node: from the address of a member a few connections at a time may come in and show a member's
certificate, which nobody at another address can take from it; and who comes from elsewhere is looked at by the thread
that refuses the others, one after the other. A member's connection then takes nobody's place.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter
from collections.abc import Callable

# Connections from a member's address that have not shown yet who they are, while all places for anybody are taken.
AT_THE_DOOR = 8
# No more than that many threads for all nodes of the cluster together.
MEMBERS = 1000


class Place:
    """Of one connection. *members_only*: only a node of the cluster may have it."""

    def __init__(self, places: Places, kind: str) -> None:
        self._places = places
        self._kind = kind

    @property
    def members_only(self) -> bool:
        """Whether users are to be told that there is no room."""
        return self._kind != ANYBODY

    def recognise(self) -> None:
        """The connection is that of a node of the cluster."""
        self._places._move(self._kind, MEMBER)
        self._kind = MEMBER

    def give(self) -> None:
        """The connection has ended."""
        self._places._move(self._kind, "")


ANYBODY, MEMBER = "anybody", "member"


class Places:
    """*connections* are for anybody; *member_at* says whether a node of the cluster has that address."""

    def __init__(self, connections: int, member_at: Callable[[str], bool]) -> None:
        self._connections = connections
        self._member_at = member_at
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    @property
    def most(self) -> int:
        """How many there may be at all."""
        return self._connections + MEMBERS

    def take(self, address: str) -> Place | None:
        """A place for a connection from *address*, or None if there is none."""
        plain = _plain(address)
        with self._lock:
            if self._taken[ANYBODY] < self._connections:
                kind = ANYBODY
            elif self._taken[plain] < AT_THE_DOOR and self._member_at(plain):
                kind = plain
            else:
                return None
            self._taken[kind] += 1
            return Place(self, kind)

    def take_for_member(self) -> Place:
        """A place for a connection that has shown already that it is a node's."""
        with self._lock:
            self._taken[MEMBER] += 1
        return Place(self, MEMBER)

    def _move(self, before: str, after: str) -> None:
        with self._lock:
            self._taken[before] -= 1
            if not self._taken[before]:
                del self._taken[before]
            if after:
                self._taken[after] += 1


def _plain(address: str) -> str:
    """An IPv4 address that arrived on a socket for both kinds is one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(getattr(found, "ipv4_mapped", None) or found)
