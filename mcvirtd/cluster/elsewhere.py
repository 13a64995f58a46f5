"""The bridges and the storage locations of the other nodes: asked about, and marked, through those nodes themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from mcvirt.errors import McvirtError
from mcvirt.types.peer import LocationState
from mcvirtd.cluster.peers import Peers
from mcvirtd.state.records import BackendRecord, NodeRecord
from mcvirtd.state.replication import given_up
from mcvirtd.state.store import Store
from mcvirtd.storage.backends import LocationsOnNode, NodeLocations, Nodes

# How long a look at another node's bridges and locations may take; storage that hangs is to be told of, not waited for.
LOOK_WITHIN = 15.0
ACT_WITHIN = 60.0


class BridgesElsewhere:
    """Asks all other members about a bridge."""

    def __init__(self, store: Store, node: str, peers: Peers) -> None:
        self._store = store
        self._node = node
        self._peers = peers

    def __call__(self, interface: str) -> Mapping[str, list[str]]:
        """What keeps *interface* from being used, by node; a node that can't be asked has that as its fault.

        Nodes that an operator goes on without are left out: `mcvirt network list` on them shows what they lack.
        """
        gone = given_up()
        others = sorted(name for name in self._store.all(NodeRecord) if name != self._node and name not in gone)
        answers = self._peers.call_all(others, "bridge_faults", {"interface": interface}, LOOK_WITHIN)
        return {
            node: [str(answer)] if isinstance(answer, McvirtError) else msgspec.json.decode(answer, type=list[str])
            for node, answer in answers.items()
        }


    def at(self, nodes: Iterable[str], interface: str) -> Mapping[str, list[str]]:
        """The same of those of *nodes* that answer: what can't be asked now is no reason against anything."""
        there = [node for node in nodes if node in self._peers.reachable()]
        answers = self._peers.call_all(there, "bridge_faults", {"interface": interface}, LOOK_WITHIN)
        return {
            node: msgspec.json.decode(answer, type=list[str])
            for node, answer in answers.items()
            if not isinstance(answer, McvirtError)
        }


class LocationElsewhere:
    """A backend's location on another node. Every call asks the node, and raises NodeUnreachable if it can't be."""

    def __init__(self, ask: Callable[..., msgspec.Raw], backend: BackendRecord, location: str) -> None:
        self._ask = ask
        self._backend: dict[str, Any] = msgspec.to_builtins(backend)
        self.location = location

    def _state(self) -> LocationState:
        return msgspec.json.decode(self._ask("location", LOOK_WITHIN, backend=self._backend), type=LocationState)

    def check(self) -> list[str]:
        return list(self._state().faults)

    def marked_with(self) -> frozenset[str]:
        return frozenset(self._state().marks)

    def mark(self, backend_id: str) -> None:
        self._ask("mark_location", ACT_WITHIN, backend=self._backend, mark=backend_id, present=True)

    def unmark(self, backend_id: str) -> None:
        self._ask("mark_location", ACT_WITHIN, backend=self._backend, mark=backend_id, present=False)


class LocationsElsewhere:
    """The locations of backends on *node*, which is another one."""

    def __init__(self, peers: Peers, node: str) -> None:
        self._peers = peers
        self._node = node

    def volumes(self, backend: BackendRecord) -> LocationElsewhere:
        return LocationElsewhere(self._ask, backend, backend.location_on(self._node) or "")

    def faults(self, backend: BackendRecord, others: Iterable[BackendRecord]) -> list[str]:
        asked = {
            "backend": msgspec.to_builtins(backend),
            "others": [msgspec.to_builtins(other) for other in others if self._node in other.nodes],
        }
        return msgspec.json.decode(self._ask("location_faults", LOOK_WITHIN, **asked), type=list[str])

    def _ask(self, operation: str, within: float, **arguments: Any) -> msgspec.Raw:
        return self._peers.call(self._node, "peer", operation, arguments, within)


def locations_by_node(nodes: Nodes, node: str, peers: Peers) -> NodeLocations:
    """The locations on *node*, this one, and through the other members on each of them."""

    def on(name: str) -> LocationsOnNode:
        return nodes(node) if name == node else LocationsElsewhere(peers, name)

    return on
