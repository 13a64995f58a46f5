"""What services ask of a hypervisor. `libvirt.Hypervisor` is the real one; `simulated` serves tests of scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from mcvirtd.hypervisor.console import Console
from mcvirtd.hypervisor.facts import DomainStats, HostFacts
from mcvirtd.hypervisor.states import DomainState, Predicate, Subscriber


class HypervisorVerbs(Protocol):
    """Every verb raises LibvirtUnreachable at once while there is no connection, and LibvirtFailed when it fails."""

    @property
    def connected(self) -> bool:
        """Whether libvirtd answers, as far as is known."""

    def wait_connected(self, within: float) -> bool:
        """True as soon as there is a connection and every domain was read; False after *within* seconds."""

    def close(self) -> None:
        """Give the connection up for good."""

    def domains(self) -> Mapping[str, DomainState]:
        """Every domain of this node by UUID, as last known."""

    def state(self, uuid: str) -> DomainState | None:
        """The domain as last known, or None."""

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Be told of changes; the result ends that."""

    def wait_for(self, uuid: str, predicate: Predicate, within: float) -> bool:
        """True as soon as *predicate* holds for the domain's state, False if it does not in *within* seconds."""

    def description(self, uuid: str, *, secure: bool = False, inactive: bool = False) -> str:
        """libvirt's XML of a domain."""

    def vnc_port(self, uuid: str) -> int | None:
        """The port on 127.0.0.1 that shows the screen."""

    def list_block_paths(self) -> Mapping[str, frozenset[str]]:
        """Every path on which a disk of any domain stands -> UUIDs of those domains."""

    def stats(self, uuid: str) -> DomainStats:
        """What a domain uses now."""

    def all_stats(self) -> Mapping[str, DomainStats]:
        """What every running domain uses now."""

    def facts(self) -> HostFacts:
        """What this machine is."""

    def version(self) -> str:
        """libvirt's, as 9.0.0; it is not asked for it."""

    def define(self, xml: str) -> str:
        """Define a domain, or define it anew."""

    def undefine(self, uuid: str) -> None:
        """Remove the definition; no error if there is none."""

    def start(self, uuid: str, *, paused: bool = False) -> bool:
        """Start a domain; False if it ran already."""

    def resume(self, uuid: str) -> None:
        """Let the processors of a paused domain run."""

    def destroy(self, uuid: str) -> bool:
        """Switch a domain off, hard; False if it was off."""

    def shutdown(self, uuid: str) -> bool:
        """Press the power button; False if the domain was off."""

    def reset(self, uuid: str) -> None:
        """Press the reset button."""

    def attach_device(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        """Add a device."""

    def update_device(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        """Change a device."""

    def detach_device(self, uuid: str, xml: str, *, live: bool, config: bool, within: float = 30.0) -> None:
        """Take a device away, and return when it is gone."""

    def resize_block(self, uuid: str, target: str, size: int) -> None:
        """Tell a running domain that its disk has *size* bytes now."""

    def open_console(self, uuid: str) -> Console:
        """The serial console of a running domain."""
