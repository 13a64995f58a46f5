"""Which node an operation runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcvirt.errors import Conflict, NodeUnreachable, NotFound
from mcvirt.rpc.contract import (
    AmongNodes,
    NodeArgument,
    NodeOfTask,
    Operation,
    Owner,
    OwnerOfDisk,
    OwnerOrBackend,
)
from mcvirtd.auth.caller import Caller
from mcvirtd.state.records import BackendRecord, DiskRecord, NodeRecord, VmRecord
from mcvirtd.state.store import Store

# Hands a call on to a node, and gives its Reply in wire form.
HandOn = Callable[[str, Operation, dict[str, Any], Caller], bytes]


class Router:
    """Reads `runs_at` of operations, and hands those that are for another node on."""

    def __init__(self, store: Store, node: str, hand_on: HandOn) -> None:
        self._store = store
        self._node = node
        self._hand_on = hand_on

    def owner(self, operation: Operation, arguments: dict[str, Any]) -> str:
        """The node that the operation is for; this one where nothing says otherwise."""
        place = operation.remote.runs_at
        if isinstance(place, Owner):
            vm = self._store.get(VmRecord, arguments[place.argument])
            return vm.node or self._node if vm is not None else self._owner_of_disk(arguments[place.argument])
        if isinstance(place, OwnerOfDisk):
            return self._owner_of_disk(arguments[place.argument])
        if isinstance(place, OwnerOrBackend):
            vm = self._store.get(VmRecord, arguments[place.argument] or "")
            return (vm.node if vm is not None else None) or self._with_backend(_value(arguments, place.backend))
        if isinstance(place, AmongNodes):
            named = [name for name in _value(arguments, place.argument) or () if self._store.get(NodeRecord, name)]
            return self._nearest(tuple(named))
        if isinstance(place, NodeArgument):
            return arguments[place.argument] or self._node
        if isinstance(place, NodeOfTask):
            return arguments[place.argument].partition("@")[2] or self._node
        return self._node

    def _owner_of_disk(self, disk_id: str) -> str:
        disk = self._store.get(DiskRecord, disk_id)
        if disk is None:
            return self._node
        vm = self._store.get(VmRecord, disk.vm or "")
        return (vm.node if vm is not None else None) or self._nearest(disk.nodes)

    def _with_backend(self, backend: str | None) -> str:
        every = self._store.all(BackendRecord)
        record = next((each for each in every.values() if backend in (each.name, each.id)), None)
        if record is None or (len(record.nodes) > 1 and not record.shared):
            return self._node  # which of them is meant, only who calls knows
        return self._nearest(tuple(sorted(record.nodes)))

    def _nearest(self, nodes: tuple[str, ...]) -> str:
        return self._node if self._node in nodes or not nodes else nodes[0]

    def forward(self, operation: Operation, arguments: dict[str, Any], caller: Caller) -> bytes | None:
        """None if the operation runs here; see the guard."""
        owner = self.owner(operation, arguments)
        if owner == self._node:
            return None
        if self._store.get(NodeRecord, owner) is None:
            raise NotFound(kind="node", name=owner, hint=" `mcvirt info` shows all of them.")
        if caller.via:
            # Two nodes that see it differently would hand it to and fro.
            raise Conflict(text=f"Node '{owner}' is to do this, as node '{self._node}' sees it. Try again in a moment.")
        try:
            return self._hand_on(owner, operation, arguments, caller)
        except NodeUnreachable:
            if operation.remote.known_here:
                return None
            raise


def _value(arguments: dict[str, Any], path: str) -> Any:
    """An argument, or a field of one: "spec.nodes"."""
    name, _, field = path.partition(".")
    return getattr(arguments[name], field) if field else arguments[name]
