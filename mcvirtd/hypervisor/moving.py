"""What is asked of a hypervisor about domains that go to another node, and come from one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from mcvirtd.hypervisor.states import DomainState
from mcvirtd.hypervisor.verbs import HypervisorVerbs

USUAL_DOWNTIME = 300
"""Milliseconds: how long QEMU lets a guest stand still in the end, as far as it can tell before; its own default."""
BRIEF_DOWNTIME = 50


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Unix sockets of this node that lead to the other: to its libvirt, its QEMU's memory, and its QEMU's disks.

    The last two have the same path on the other node, where QEMU listens.
    """

    libvirt: str
    memory: str
    disks: str


class Journey(msgspec.Struct, frozen=True, kw_only=True):
    """How a domain is sent: *xml* is what it is to be there, *copied* are the names (vda) of disks whose data is sent.

    *checked*: the caller knows that the other disks are the same there, and libvirt need not look. *bandwidth* is in
    MiB a second (libvirt knows no parts of them), *max_downtime* in milliseconds: without it, the end begins with
    BRIEF_DOWNTIME, and whoever watches may allow more (`set_max_downtime`).
    """

    xml: str
    copied: Sequence[str] = ()
    checked: bool = False
    bandwidth: int | None = None
    max_downtime: int | None = None


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the sending is, in bytes; *round_* counts how often the memory was gone through."""

    total: int
    remaining: int
    round_: int = 0


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What libvirt measured: milliseconds in which the guest did not run, and bytes sent."""

    downtime: int | None
    size: int | None


class MovingVerbs(HypervisorVerbs, Protocol):
    """The errors are those of HypervisorVerbs."""

    def look(self, uuid: str) -> DomainState | None:
        """The domain as it is now, asked and not remembered; None if there is none."""

    def running_description(self, uuid: str) -> str:
        """What another node needs to take the running domain over; it holds secrets."""

    def guests_user(self) -> tuple[int, int]:
        """The user and group that QEMU runs as."""

    def cannot_take(self, kind: str, machine_type: str, cpu: str) -> str:
        """Why a running domain of that *kind* (kvm, qemu), machine type and <cpu> can't come here; '' if it can."""

    def send(self, uuid: str, route: Route, journey: Journey) -> JobResult:
        """Move the running domain, for good; returns when it runs there and is gone here."""

    def job(self, uuid: str) -> JobProgress | None:
        """How far `send` is, which another thread has called; None while it is not at work."""

    def is_busy(self, uuid: str) -> bool:
        """Whether libvirt is still at a job of the domain's, be it only its end; it begins no other until then."""

    def set_max_downtime(self, uuid: str, milliseconds: int) -> None:
        """How long the guest may stand still in the end."""

    def abort_job(self, uuid: str) -> None:
        """Have `send` fail, the domain staying here; nothing happens if it is over."""
