"""Which node's storage backends can be acted on from here."""

from __future__ import annotations

from pathlib import Path

from mcvirt.errors import NodeUnreachable
from mcvirtd.state.records import BackendRecord
from mcvirtd.storage.backends import BackendsOnNode, LocalBackends, Nodes


def backends_by_node(node: str, state: Path, *, simulate: bool = False) -> Nodes:
    """The backends of *node*, this one; NodeUnreachable for any other. With *simulate* they are in memory."""
    if simulate:
        from mcvirtd.storage.simulated_volumes import SimulatedVolumes

        made: dict[str, SimulatedVolumes] = {}

        def simulated(backend: BackendRecord, location: str) -> SimulatedVolumes:  # noqa: ARG001
            return made.setdefault(location, SimulatedVolumes(location))

        local = LocalBackends(node, state, open_volumes=simulated)
    else:
        local = LocalBackends(node, state)

    def on(name: str) -> BackendsOnNode:
        if name != node:
            raise NodeUnreachable(node=name, reason="its storage can't be reached from here yet.")
        return local

    return on
