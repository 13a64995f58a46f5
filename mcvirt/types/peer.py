"""What nodes tell each other."""

from __future__ import annotations

from typing import Any

import msgspec

from mcvirt.types.cluster import NodeInfo
from mcvirt.types.drbd import ResourceState


class LiveNews(msgspec.Struct, frozen=True, kw_only=True):
    """What has changed on a node since version *since* of its facts, which makes it version *version*.

    *life* is another text after each start of its mcvirtd. *domains* maps UUID to power state; None: no such domain.
    *libvirt* is false while the node's libvirt does not answer. *resources* are those of DRBD; None: no such resource.
    """

    life: str
    since: int
    version: int
    domains: dict[str, str | None] = {}
    info: NodeInfo | None = None
    libvirt: bool = True
    resources: dict[str, ResourceState | None] = {}


class LiveVersion(msgspec.Struct, frozen=True, kw_only=True):
    """How much a node has of another one's facts."""

    life: str = ""
    version: int = 0


class LocationState(msgspec.Struct, frozen=True, kw_only=True):
    """What a node sees of a storage backend's location: what is wrong with it, and the backends whose marks it has."""

    faults: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """A heartbeat: the sender's version of mcvirt and its cluster address, where its replica is, and its news.

    Nodes of all versions understand each other this far: fields are added to it, and to its answer, and never changed.
    """

    version: str = ""
    replica: dict[str, Any] = {}
    live: LiveNews | None = None
    address: str = ""


class BeatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one: the receiver's version, where its replica is, and what it has of the sender's facts."""

    version: str = ""
    replica: dict[str, Any] = {}
    have: LiveVersion = LiveVersion()


class DrbdOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps a node from replicating, and what works there and could be better: a sentence each."""

    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
