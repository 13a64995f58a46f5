"""Where each machine of a node can go, or whether it can come back: looked at for all of them, and told together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from mcvirt.errors import McvirtError
from mcvirt.types.cluster import NodeInfo
from mcvirt.types.drain import Drain, DrainMove, DrainPlan, Staying
from mcvirt.types.migration import Migration, MigrationPlan
from mcvirt.types.vm import PowerState, StorageType, VmRow
from mcvirt.units import format_size
from mcvirtd.state.records import BackendRecord, DiskRecord, DrainRecord, NodeRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.task import step

Look = Callable[[str, str, Migration], MigrationPlan]
"""(node, machine, how): what the node that has the machine finds about a migration."""


class DrainPlanner:
    """Plans for *node*. *rows* are all machines as they are now, *nodes* all nodes."""

    def __init__(
        self,
        store: Store,
        node: str,
        *,
        look: Look,
        rows: Callable[[], Sequence[VmRow]],
        nodes: Callable[[], Sequence[NodeInfo]],
    ) -> None:
        self._store = store
        self._node = node
        self._look = look
        self._rows = rows
        self._nodes = nodes

    def plan(self, how: Drain) -> DrainPlan:
        """Look at every machine; of what can't go, the reasons are in the plan."""
        records = self._store.all(VmRecord)
        gone: tuple[str, ...] = ()
        if how.back:
            machines, gone = self._remembered()
        else:
            machines = [vm for vm in records.values() if vm.node == self._node]
        states = {row.name: row.state for row in self._rows()}
        room = _Room(self._nodes())
        moves: list[DrainMove] = []
        staying: list[Staying] = []
        # Those that need the most room choose first.
        running = {vm.name: states.get(vm.name) is not PowerState.STOPPED for vm in machines}
        machines.sort(key=lambda vm: (not running[vm.name], -vm.memory, vm.name))
        with step("Looking where each machine can go", total=len(machines)) as progress:
            for number, vm in enumerate(machines):
                progress.at(number)
                found = self._one(vm, how, states.get(vm.name, PowerState.UNKNOWN), room)
                if isinstance(found, Staying):
                    staying.append(found)
                else:
                    moves.append(found)
        staying.sort(key=lambda each: each.name)
        return DrainPlan(node=self._node, back=how.back, moves=tuple(moves), staying=tuple(staying), gone=gone)

    def _remembered(self) -> tuple[list[VmRecord], tuple[str, ...]]:
        """Those to be brought back, and the names of those that are gone for good, or back already."""
        record = self._store.get(DrainRecord, self._node) or DrainRecord(node=self._node)
        found, gone = [], []
        for each in record.machines:
            vm = self._store.get(VmRecord, each.name)
            if vm is None or vm.uuid != each.uuid or vm.node == self._node:
                gone.append(each.name)
            else:
                found.append(vm)
        return found, tuple(gone)

    def _one(self, vm: VmRecord, how: Drain, state: PowerState, room: _Room) -> DrainMove | Staying:
        local = self._local_disks(vm)
        copy = bool(local) and (how.copy_storage or self._was_copied(vm, how))
        reason = self._against(vm, state)
        if local and not copy:
            reason = reason or (
                f"the data of {', '.join(local)} is on node '{vm.node}' only. With --copy-storage it is sent along, "
                "while the guest runs."
            )
        if reason:
            return Staying(name=vm.name, reason=reason)
        reasons: list[str] = []
        online = state is PowerState.RUNNING
        for target in self._targets(vm, how, copy, room, reasons):
            if online and not room.has(target, vm.memory):
                reasons.append(room.sentence(target, vm.memory))
                continue
            try:
                move = DrainMove(name=vm.name, source=vm.node or "", target=target, online=online, copy_storage=copy)
                plan = self._look(move.source, move.name, migration(move, how))
            except McvirtError as error:
                reasons.append(str(error))
                continue
            if plan.ok:
                room.take(target, vm.memory if online else 0)
                return msgspec.structs.replace(move, size=plan.size)
            reasons += [check.text for check in plan.checks if not check.ok]
        return Staying(name=vm.name, reason=" ".join(dict.fromkeys(reasons)))

    def _against(self, vm: VmRecord, state: PowerState) -> str:
        if vm.node is None:
            return f"it is not registered on a node. `mcvirt register {vm.name}` on a node does that."
        if vm.waiting is not None:
            return (
                f"it waits for its guest to shut down, to be migrated to node '{vm.waiting.node}' then. Cancel that "
                "first; `mcvirt task list` shows it."
            )
        if state is PowerState.UNKNOWN:
            return f"it is not known whether it runs: libvirt on node '{vm.node}', or the node, does not answer."
        return ""

    def _local_disks(self, vm: VmRecord) -> list[str]:
        shared = {backend.name for backend in self._store.all(BackendRecord).values() if backend.shared}
        disks = sorted(self._store.all(DiskRecord).values(), key=lambda disk: disk.slot or 0)
        return [
            disk.id
            for disk in disks
            if disk.vm == vm.name and disk.storage_type is StorageType.LOCAL and disk.backend not in shared
        ]

    def _was_copied(self, vm: VmRecord, how: Drain) -> bool:
        record = self._store.get(DrainRecord, self._node)
        return how.back and record is not None and any(each.uuid == vm.uuid and each.copied for each in record.machines)

    def _targets(self, vm: VmRecord, how: Drain, copy: bool, room: _Room, reasons: list[str]) -> Sequence[str]:
        """The nodes that are worth a look, those with the most room first; why others are not goes to *reasons*."""
        if how.back:
            return [self._node]
        others = [name for name in self._store.all(NodeRecord) if name != self._node and (copy or name in vm.nodes)]
        if not others:
            reasons.append(f"No other node may have it: the nodes that may are {', '.join(vm.nodes)}.")
        found = []
        for name in sorted(others):
            if self._store.get(DrainRecord, name) is not None:
                reasons.append(f"Node '{name}' was emptied itself.")
            elif not room.answers(name):
                reasons.append(f"Node '{name}' does not answer.")
            else:
                found.append(name)
        return sorted(found, key=room.order)


class _Room:
    """How much memory each node will have left when all that was planned so far is there."""

    def __init__(self, nodes: Sequence[NodeInfo]) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._left = {node.name: node.memory - node.memory_used for node in nodes if node.memory}

    def answers(self, node: str) -> bool:
        return node in self._nodes and self._nodes[node].status != "Unreachable"

    def has(self, node: str, memory: int) -> bool:
        """True also where the node has not said how much it has: it is asked itself before anything is done."""
        return node not in self._left or self._left[node] >= memory

    def sentence(self, node: str, memory: int) -> str:
        left = format_size(max(0, self._left[node]))
        return f"It needs {format_size(memory)} of memory, and node '{node}' would have {left} left by then."

    def take(self, node: str, memory: int) -> None:
        if node in self._left:
            self._left[node] -= memory

    def order(self, node: str) -> tuple[int, str]:
        return -self._left.get(node, 0), node


def migration(move: DrainMove, how: Drain) -> Migration:
    """The one machine's migration."""
    return Migration(
        node=move.target,
        online=move.online,
        copy_storage=move.copy_storage,
        bandwidth=how.bandwidth if move.online else None,
        deadline=how.deadline if move.online else None,
    )
