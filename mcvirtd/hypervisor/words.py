"""libvirt's numbers and messages in our words. The numbers are its ABI; a test holds them against the module."""

from __future__ import annotations

from typing import Any

from mcvirtd.hypervisor.states import Condition, DomainState

RUNNING, BLOCKED, PAUSED, SHUTDOWN, SHUTOFF, CRASHED, PMSUSPENDED = range(1, 8)

_CONDITIONS: dict[int, Condition] = {
    RUNNING: "running",
    BLOCKED: "running",
    PAUSED: "paused",
    SHUTDOWN: "stopping",
    SHUTOFF: "stopped",
    CRASHED: "crashed",
    PMSUSPENDED: "sleeping",
}
REASONS: dict[tuple[int, int], str] = {
    (RUNNING, 2): "migrated",
    (PAUSED, 1): "paused",
    (PAUSED, 2): "migrating",
    (PAUSED, 5): "disk error",
    (PAUSED, 11): "starting",
    (PAUSED, 13): "migration failed",
    (SHUTOFF, 1): "shut down",
    (SHUTOFF, 2): "destroyed",
    (SHUTOFF, 3): "crashed",
    (SHUTOFF, 4): "migrated",
    (SHUTOFF, 5): "saved",
    (SHUTOFF, 6): "failed to start",
    (SHUTOFF, 8): "lost while libvirtd was away",
}
LEAVES = (3, 1)
"""libvirt's event, and its detail, of a guest that stands still so that the last of it can be sent elsewhere."""
DEFINED = 0
"""libvirt's event of a domain that has got a new description for good, or its first one."""


def state_of(domain: Any) -> DomainState:
    """What a domain is now; libvirtd is asked twice."""
    code, reason = domain.state()
    return known_state(domain, (code, reason), bool(domain.isPersistent()))


def known_state(domain: Any, code: tuple[int, int], persistent: bool) -> DomainState:
    """What a domain is, of which libvirtd has told all: nothing is asked."""
    number = domain.ID()
    return DomainState(
        uuid=domain.UUIDString(),
        name=domain.name(),
        condition=_CONDITIONS.get(code[0], "unknown"),
        reason=REASONS.get(code, ""),
        persistent=persistent,
        id=number if number > 0 else None,
    )


def sentence(error: Any) -> str:
    """libvirt's message as a sentence."""
    text = str(error.get_error_message() or error).strip()
    return text if text.endswith((".", "!", "?")) else text + "."
