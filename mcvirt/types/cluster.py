"""Nodes and settings as they cross the wire."""

from __future__ import annotations

import msgspec


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node as `mcvirt info` shows it; sizes in bytes, use in percent.

    *age* is given for a node that is away: what is known of it is from so many seconds ago. One that was never heard
    of has no age, no version, and zeros.
    """

    name: str
    id: str
    address: str | None
    status: str  # Local, Connected, Away (it answers, and has not got all changes yet), Unreachable, Joining, Removed
    version: str
    revision: int
    cpu_count: int
    cpu_percent: float | None
    memory: int
    memory_used: int
    accelerator: str
    accelerator_reason: str
    libvirt: str
    vms_running: int
    vms: int
    warnings: tuple[str, ...] = ()
    age: int | None = None
    leader: bool = False
    lag: int | None = None  # how many changes it has not yet; None if that is not known


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What operators set for the whole cluster. *autostart_interval* in seconds, 0 = no polling."""

    autostart_interval: int
