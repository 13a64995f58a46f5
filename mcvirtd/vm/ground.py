"""What all work on virtual machines stands on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mcvirtd.hypervisor.verbs import HypervisorVerbs
from mcvirtd.state.store import Store
from mcvirtd.storage.disks import Disks
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.transaction import Journal
from mcvirtd.vm.design import Designer
from mcvirtd.vm.domains import Domains
from mcvirtd.vm.release import Release


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The node's parts. *bridge_problem* says why machines can't be connected to an interface, '' if they can.

    *bridges_at* says that of other nodes, as far as they answer.
    """

    node: str
    store: Store
    journal: Journal
    locks: Locks
    hypervisor: HypervisorVerbs
    domains: Domains
    designs: Designer
    disks: Disks
    release: Release
    bridge_problem: Callable[[str], str]
    bridges_at: Callable[[Iterable[str], str], Mapping[str, list[str]]] = lambda nodes, interface: {}  # noqa: ARG005
