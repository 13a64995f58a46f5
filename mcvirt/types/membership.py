"""Joining and leaving a cluster, as it crosses the wire."""

from __future__ import annotations

from datetime import datetime

import msgspec


class ConnectStringInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A connect string, good once, and until *expires*."""

    text: str
    node: str
    address: str
    expires: datetime


class JoinCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at before a node joins; *text* says what was found."""

    name: str
    ok: bool
    text: str


class JoinReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and whether the node has joined."""

    node: str
    address: str
    joined: bool
    checks: tuple[JoinCheck, ...]


class LeaveReport(msgspec.Struct, frozen=True, kw_only=True):
    """What would go with a node: *machines* are registered there, *disks* and *backends* are there only.

    *legs* are replicated hard drives that have one of their two sides there.

    *lost* are the virtual machines that have such a disk.
    """

    node: str
    reachable: bool
    leader: bool
    machines: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    legs: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """Who orders the changes of the cluster now, and the nodes that do not know it yet."""

    leader: str
    epoch: int
    away: tuple[str, ...]


class ConflictInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A change that only one node had, and that is not part of the configuration; *what* names the records in it."""

    id: int
    time: datetime
    leader: str
    epoch: int
    revision: int
    what: tuple[str, ...]


# --- between the member that takes a node in and that node ----------------------------------------------------------


class Place(msgspec.Struct, frozen=True):
    """Where a node is to be reached."""

    name: str
    address: str
    port: int


class JoinQuestions(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster wants to know of a node: can it reach these members, does it have these bridges, and DRBD?"""

    members: tuple[Place, ...]
    bridges: tuple[str, ...]
    drbd: bool = False


class JoinerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself before it joins. *time* is its clock, in seconds since 1970.

    *unreached* maps member to why it can't be reached from there, *bridges* interface to why it is of no use. *drbd* is
    what keeps it from replicating hard drives, if that was asked.
    """

    name: str
    id: str
    version: str
    kinds: tuple[str, ...]
    address: str | None
    port: int
    time: float
    members: int
    machines: tuple[str, ...]
    domains: tuple[str, ...]
    libvirt: str
    disks: tuple[str, ...]
    backends: tuple[str, ...]
    tasks: tuple[str, ...]
    unreached: dict[str, str]
    bridges: dict[str, str]
    drbd: tuple[str, ...] = ()


class JoinBegun(msgspec.Struct, frozen=True, kw_only=True):
    """The node is ready to join: its request for a certificate, and the ticket for what follows."""

    csr: str
    ticket: str


class JoinPackage(msgspec.Struct, frozen=True, kw_only=True):
    """All that makes a node a member: certificates, the key of the CA, and the configuration with its place."""

    cluster: str
    sponsor: str
    ca_key: str
    trust: str
    certificate: str
    snapshot: dict[str, object]
    promised: tuple[int, str]
