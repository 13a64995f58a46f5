"""Which node an operation runs on."""

from __future__ import annotations

from typing import Any

from mcvirt.errors import NodeUnreachable, NotFound
from mcvirt.rpc.contract import NodeArgument, Operation, Owner
from mcvirtd.auth.caller import Caller
from mcvirtd.state.records import NodeRecord, VmRecord
from mcvirtd.state.store import Store


class Router:
    """Reads `runs_at` of operations. Calls for another node are refused until there are other nodes to call."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self._node = node

    def owner(self, operation: Operation, arguments: dict[str, Any]) -> str:
        """The node that the operation is for; this one where nothing says otherwise."""
        place = operation.remote.runs_at
        if isinstance(place, Owner):
            vm = self._store.get(VmRecord, arguments[place.argument])
            return vm.node or self._node if vm is not None else self._node
        if isinstance(place, NodeArgument):
            return arguments[place.argument] or self._node
        return self._node

    def forward(self, operation: Operation, arguments: dict[str, Any], caller: Caller) -> bytes | None:  # noqa: ARG002
        """None if the operation runs here; see the guard."""
        owner = self.owner(operation, arguments)
        if owner == self._node:
            return None
        if self._store.get(NodeRecord, owner) is None:
            raise NotFound(kind="node", name=owner, hint=" `mcvirt info` shows all of them.")
        raise NodeUnreachable(node=owner, reason="this node has no connection to it.")
