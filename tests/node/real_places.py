"""mcvirtd on a simulated hypervisor, over real bridges and real directories: what nodes share, and what one lacks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mcvirtd.daemon
from mcvirtd.host import network
from mcvirtd.main import main
from mcvirtd.state.records import BackendRecord
from mcvirtd.storage.backends import BackendsOnNode, LocalBackends, Nodes
from mcvirtd.storage.file_volumes import FileVolumes


def _open(backend: BackendRecord, location: str) -> FileVolumes:
    return FileVolumes(location, backend.format.value, guests_user=None)


def _backends(node: str, state: Path, *, simulate: bool = False) -> Nodes:
    local = LocalBackends(node, state, open_volumes=_open)

    def on(name: str) -> BackendsOnNode:
        assert name == node
        return local

    return on


if __name__ == "__main__":
    changed: Any = mcvirtd.daemon
    changed.backends_by_node = _backends
    changed.Daemon._bridge_faults = lambda self, interface: network.bridge_faults(interface)
    sys.exit(main())
