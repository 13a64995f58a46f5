"""Numbers about the machine and about what domains use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The machine: *memory* in bytes."""

    cpus: int
    memory: int
    qemu_version: str


class DomainStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a domain uses: processor time since its start in nanoseconds, memory of its QEMU (*rss*) and size of its
    balloon in bytes; zero for one that does not run."""

    uuid: str
    cpu_time: int = 0
    rss: int = 0
    balloon: int = 0


def stats_of(uuid: str, facts: Mapping[str, Any]) -> DomainStats:
    """libvirt's bulk statistics of one domain in our words."""
    return DomainStats(
        uuid=uuid,
        cpu_time=int(facts.get("cpu.time", 0)),
        rss=int(facts.get("balloon.rss", 0)) * 1024,
        balloon=int(facts.get("balloon.current", 0)) * 1024,
    )


def version_text(number: int) -> str:
    """9.0.0 for libvirt's 9000000."""
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
