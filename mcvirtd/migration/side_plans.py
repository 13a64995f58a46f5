"""Checking the move of one side of a machine's replicated hard drives: all is looked at, and told together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from mcvirt import names
from mcvirt.errors import BadArgument, Conflict, McvirtError, NodeUnreachable, NotFound, Refused
from mcvirt.types.migration import MigrationCheck
from mcvirt.types.move import MovePlan
from mcvirt.types.replica import Outlook
from mcvirt.types.vm import StorageType
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.former_legs import has_former_leg
from mcvirtd.drbd.local_legs import States
from mcvirtd.drbd.reader import describe
from mcvirtd.drbd.resources import being_replaced
from mcvirtd.drbd.roles import Roles
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import BackendRecord, DiskRecord, NetworkRecord, NodeRecord, SplitUndoRecord
from mcvirtd.storage import backends
from mcvirtd.storage.planning import Replicas
from mcvirtd.vm import checks
from mcvirtd.vm.design import Machine
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.unsettled import settled

_USUAL_SPEED = 100 * 1024 * 1024
_COMMON_STEPS = 2


class PreparedMove(msgspec.Struct, frozen=True, kw_only=True):
    """A move that was looked at. *ports* are those that the new sides can't have."""

    disks: tuple[DiskRecord, ...]
    source: str
    ports: frozenset[int]
    plan: MovePlan


class SidePlanner:
    """Makes plans on the node whose sides stay. *reachable* says whether another node's mcvirtd answers."""

    def __init__(
        self, ground: Ground, *, replicas: Replicas, roles: Roles, states: States, reachable: Callable[[str], bool]
    ) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._domains = ground.domains
        self._bridges_at = ground.bridges_at
        self._node = ground.node
        self._replicas = replicas
        self._roles = roles
        self._states = states
        self._reachable = reachable

    def prepare(self, name: str, destination: str, source: str | None, *, force: bool) -> PreparedMove:
        """Look at everything. What stands against it is in the plan; raises for what can't even be looked at."""
        for node in (destination, source or destination):
            names.node_name(node)
        machine = self._domains.machine(name)
        if self._store.get(NodeRecord, destination) is None:
            raise NotFound(kind="node", name=destination, hint=" `mcvirt info` shows all of them.")
        disks = tuple(disk for disk in machine.disks if disk.replica is not None)
        if not disks:
            raise Conflict(text=f"Virtual machine '{name}' has no replicated hard drive: there is nothing to move.")
        checks.registered_here(machine.vm, self._node)
        there = self._other_node(disks)
        found: list[MigrationCheck] = []

        def look(what: str, fine: str, check: Callable[[Reasons], object]) -> None:
            reasons = Reasons()
            try:
                with reasons.gather():
                    check(reasons)
                text = " ".join(reasons.sentences())
            except McvirtError as error:
                text = " ".join((*reasons.sentences(), str(error)))
            found.append(MigrationCheck(name=what, ok=not text, text=text or fine))

        look("Virtual machine", "its disks can be moved now.", lambda reasons: self._check_machine(machine, reasons))
        look(
            "Source node",
            f"the disks have a side on '{there}'." if there else "the disks have no other side.",
            lambda _: self._check_source(machine, source, there, force=force),
        )
        look(
            "Destination node",
            "it may have the disks.",
            lambda reasons: self._check_destination(machine, disks, destination, there, reasons),
        )
        look("Disks", "they are good, and at rest.", lambda reasons: self._check_disks(disks, reasons, force=force))
        ports: set[int] = set()
        if destination not in (self._node, there):
            look(
                "Room",
                f"node '{destination}' can have them.",
                lambda reasons: ports.update(self._check_room(disks, destination, reasons)),
            )
        size = sum(disk.size for disk in disks)
        plan = MovePlan(
            name=name,
            source=there,
            destination=destination,
            checks=tuple(found),
            steps=tuple(self._steps(disks, there, destination)),
            size=size,
            seconds=_COMMON_STEPS + size // _USUAL_SPEED,
        )
        return PreparedMove(disks=disks, source=there, ports=frozenset(ports), plan=plan)

    def _other_node(self, disks: Sequence[DiskRecord]) -> str:
        others = {node for disk in disks for node in disk.nodes if node != self._node}
        if len(others) > 1 or any(self._node not in disk.nodes for disk in disks):
            places = "; ".join(f"{disk.id} on {' and '.join(disk.nodes)}" for disk in disks)
            raise Conflict(text=f"The machine's replicated hard drives are not all on the same two nodes: {places}.")
        return next(iter(others), "")

    def _check_machine(self, machine: Machine, reasons: Reasons) -> None:
        vm = machine.vm
        with reasons.gather():
            checks.unlocked(vm)
        with reasons.gather():
            settled(self._journal, vm.name)
        if vm.unfinished:
            reasons.add(Conflict(text=f"The creation of virtual machine '{vm.name}' was not finished."))
        if vm.waiting is not None:
            reasons.add(
                Conflict(text=f"It waits for its guest to shut down, to be migrated to node '{vm.waiting.node}'.")
            )

    def _check_source(self, machine: Machine, source: str | None, there: str, *, force: bool) -> None:
        name = machine.vm.name
        if source == self._node:
            to = there or "NODE"
            raise Conflict(
                text=f"Virtual machine '{name}' is on node '{source}', and stays where it is. Migrate it first, with "
                f"`mcvirt migrate {name} --node {to}`."
            )
        if source and source != there and (there or self._store.get(NodeRecord, source) is not None):
            raise BadArgument(
                what=f"source node '{names.printable(source)}'",
                why=f"the machine's replicated hard drives are on {' and '.join(filter(None, (self._node, there)))}.",
            )
        if there and not self._reachable(there) and not force:
            raise NodeUnreachable(
                node=there, reason="it does not answer. If it is gone, --force replaces what it has all the same."
            )

    def _check_destination(
        self, machine: Machine, disks: Sequence[DiskRecord], node: str, there: str, reasons: Reasons
    ) -> None:
        vm = machine.vm
        if node in (self._node, there):
            raise Conflict(text=f"Node '{node}' has the disks already.")
        if not self._reachable(node):
            raise NodeUnreachable(node=node, reason="it does not answer.")
        for disk in machine.disks:
            backend = self._store.get(BackendRecord, disk.backend)
            if backend is None or node in backend.nodes:
                continue
            if disk in disks or backend.shared:
                reasons.add(backends.not_on_node(backend, node))
        for disk in disks:
            if has_former_leg(self._store, disk.id, node):
                reasons.add(
                    Conflict(
                        text=f"Node '{node}' still has what it had of hard drive {disk.id} before. It deletes that by "
                        "itself, within a minute, unless its log says why it can't."
                    )
                )
        for network in sorted(set(vm.adapters.values())):
            record = self._store.get(NetworkRecord, network)
            faults = self._bridges_at((node,), record.interface).get(node, []) if record is not None else []
            for fault in faults:
                reasons.add(Conflict(text=f"Network '{network}' can't be used on node '{node}': {fault}"))

    def _check_disks(self, disks: Sequence[DiskRecord], reasons: Reasons, *, force: bool) -> None:
        for disk in disks:
            if why := self._against(disk, force=force):
                reasons.add(Conflict(text=f"Hard drive {disk.id} can't be moved: {why}"))

    def _against(self, disk: DiskRecord, *, force: bool) -> str:
        if disk.deleting:
            return "it is being deleted."
        if why := being_replaced(self._store, disk):
            return why
        undo = self._store.get(SplitUndoRecord, disk.id)
        if undo is not None:
            return (
                f"data of a split is kept on node '{undo.node}'. `mcvirt drbd split-brain forget {disk.vm}` deletes it."
            )
        one_sided = len(disk.nodes) < 2
        if why := self._roles.problem(disk) if force or one_sided else self._roles.unequal(disk):
            return why if force or one_sided else f"{why} --force moves it all the same, if this side is good."
        state = self._states.state(resource_name(disk.id))
        if state is None or state.disk != "UpToDate":
            return f"it must be up to date on node '{self._node}': {describe(state)}"
        if state.peer_role == "Primary":
            return "the other node uses it."
        if state.checking:
            return "its two sides are being compared. Wait until that is over."
        return ""

    def _check_room(self, disks: Sequence[DiskRecord], node: str, reasons: Reasons) -> frozenset[int]:
        needed: dict[str, int] = {}
        for disk in disks:
            needed[disk.backend] = needed.get(disk.backend, 0) + self._replicas.needed(disk.size)
        fitting = {name: size for name, size in needed.items() if self._is_on(name, node)}
        asked: Mapping[str, Mapping[str, int]] = {node: fitting, self._node: {}}
        ports: set[int] = set()
        for name, outlook in self._replicas.outlooks(asked).items():
            if not isinstance(outlook, Outlook):
                reasons.add(outlook if isinstance(outlook, Refused) else Conflict(text=str(outlook)))
                continue
            ports |= set(outlook.ports)
            for fault in outlook.faults:
                reasons.add(Conflict(text=fault))
            for disk in disks if name == node else ():
                if disk.replica is not None and disk.replica.minor in outlook.minors:
                    minor = disk.replica.minor
                    why = f"Something on node '{node}' uses DRBD's minor {minor}, which is hard drive {disk.id}'s."
                    reasons.add(Conflict(text=why))
        return frozenset(ports)

    def _is_on(self, backend: str, node: str) -> bool:
        record = self._store.get(BackendRecord, backend)
        return record is not None and node in record.nodes

    def _steps(self, disks: Sequence[DiskRecord], source: str, destination: str) -> Sequence[str]:
        which = ", ".join(disk.id for disk in disks)
        steps = [
            f"Make a side of {which} on node {destination}",
            f"Connect node {self._node} with {destination}" + (f" instead of {source}" if source else ""),
            f"Copy all of it to {destination}; until then node {self._node} alone has the newest data",
            f"Store that the disks are on {self._node} and {destination}",
        ]
        if source and self._store.get(NodeRecord, source) is not None:
            steps.append(f"Delete what node {source} has of them")
        return steps


def nodes_after(
    machine: Machine, source: str, destination: str, there: Callable[[DiskRecord], bool]
) -> tuple[str, ...]:
    """The nodes that can have the machine once its replicated disks are moved; *there*: a disk is on *destination*."""
    kept = [node for node in machine.vm.nodes if node != source]
    others = [disk for disk in machine.disks if disk.storage_type is not StorageType.DRBD]
    if all(there(disk) for disk in others) and destination not in kept:
        kept.append(destination)
    return tuple(sorted(kept))
