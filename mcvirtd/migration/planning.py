"""Checking a migration: all of it is looked at on both nodes, and told together. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from mcvirt.errors import (
    BadArgument,
    Conflict,
    McvirtError,
    NodeUnreachable,
    NotFound,
    Refused,
    SeveralReasons,
    Unreachable,
    UnsuitableNode,
    VmPaused,
    VmRunning,
    VmStopped,
)
from mcvirt.types.arrival import Place, Traveller
from mcvirt.types.migration import Migration, MigrationCheck, MigrationPlan
from mcvirt.types.vm import PowerState, StorageType
from mcvirt.units import MIB
from mcvirtd.hypervisor.moving import Journey, MovingVerbs
from mcvirtd.hypervisor.xml.travel import moved, running
from mcvirtd.migration.disks import Ask, DisksOfMachines
from mcvirtd.migration.ticket import Ticket, nodes_at
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import NodeRecord, VmRecord
from mcvirtd.vm import checks
from mcvirtd.vm.design import AcceleratorOfNode, Machine
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.unsettled import disks_rest

EXAMINE_WITHIN = 30.0
# Bytes a second that are assumed for the estimate where nobody has limited them.
_USUAL_SPEED = 100 * MIB
_COMMON_STEPS = 2


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A migration that was looked at: the machine as it is, what was found, and, online, how it would be sent.

    *traveller* is what the other node is told of the machine.
    """

    machine: Machine
    ticket: Ticket
    traveller: Traveller
    plan: MigrationPlan
    journey: Journey | None


class MigrationPlanner:
    """Makes plans. *unsettled* says whether an earlier migration of a machine is not at its end."""

    def __init__(
        self,
        ground: Ground,
        *,
        hypervisor: MovingVerbs,
        disks: DisksOfMachines,
        accelerator: AcceleratorOfNode,
        ask: Ask,
        reachable: Callable[[str], bool],
        unsettled: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._store = ground.store
        self._domains = ground.domains
        self._designs = ground.designs
        self._sources = ground.disks
        self._node = ground.node
        self._hypervisor = hypervisor
        self._disks = disks
        self._accelerator = accelerator
        self._ask = ask
        self._reachable = reachable
        self._unsettled = unsettled
        self._clock = clock

    def prepare(self, name: str, wanted: Migration, by: str) -> Prepared:
        """Look at everything. What stands against it is in the plan; raises for what can't even be looked at."""
        check_words(wanted)
        machine = self._domains.machine(name)
        vm = machine.vm
        if self._store.get(NodeRecord, wanted.node) is None:
            raise NotFound(kind="node", name=wanted.node, hint=" `mcvirt info` shows all of them.")
        ticket = Ticket(
            name=name,
            uuid=vm.uuid,
            source=self._node,
            target=wanted.node,
            online=wanted.online,
            copied=tuple(disk.id for disk in machine.disks if self._disks.is_local(disk))
            if wanted.copy_storage
            else (),
            by=by,
            begun=self._clock(),
            start_after=wanted.start_after,
        )
        # What memory there will be when the guest shuts down, nobody knows; it is looked at then.
        starts = wanted.start_after and not wanted.wait_for_shutdown
        traveller = msgspec.structs.replace(ticket.traveller, starts=starts)
        itself = self._look("Virtual machine", "it can be migrated now.", lambda: self._check_machine(machine, wanted))
        if self._unsettled(vm.name):
            text = f"An earlier migration of '{vm.name}' is not settled yet; `mcvirt task list` shows it."
            text = text if itself.ok else f"{itself.text} {text}"
            itself = MigrationCheck(name=itself.name, ok=False, text=text, transient=itself.ok or itself.transient)
        found = [itself]
        found.append(self._look("Node", "it may run there.", lambda: self._check_node(vm, ticket)))
        check_disks = self._look("Disks", "they can go there.", lambda: self._check_disks(machine, ticket))
        # That a disk is of a kind that can't go was said when somebody asked first: what is new since is its state.
        found.append(msgspec.structs.replace(check_disks, transient=not check_disks.ok))
        place, journey = Place(checks=()), None
        if wanted.node != self._node:
            place, journey = self._there(machine, ticket, traveller, wanted, found)
        size = (vm.memory if wanted.online else 0) + sum(d.size for d in machine.disks if d.id in ticket.copied)
        plan = MigrationPlan(
            name=name,
            source=self._node,
            target=wanted.node,
            online=wanted.online,
            checks=(*found, *place.checks),
            steps=tuple(_steps(machine, ticket, wanted)),
            size=size,
            seconds=_COMMON_STEPS + size // (MIB * _whole(wanted.bandwidth) if wanted.bandwidth else _USUAL_SPEED),
        )
        return Prepared(machine=machine, ticket=ticket, traveller=traveller, plan=plan, journey=journey)

    @staticmethod
    def _look(what: str, fine: str, check: Callable[[], object]) -> MigrationCheck:
        try:
            check()
        except McvirtError as error:
            return _against(what, error)
        return MigrationCheck(name=what, ok=True, text=fine)

    # --- here ---------------------------------------------------------------------------------------------------------

    def _check_machine(self, machine: Machine, wanted: Migration) -> None:
        vm = machine.vm
        reasons = Reasons()
        checks.registered_here(vm, self._node)
        with reasons.gather():
            checks.unlocked(vm)
        self._domains.require_libvirt()
        active = self._domains.is_active(vm)
        if wanted.online and not active:
            reasons.add(VmStopped(name=vm.name))
        elif active and self._domains.power_state(vm) is PowerState.PAUSED:
            reasons.add(VmPaused(name=vm.name))
        elif active and not wanted.online and not wanted.wait_for_shutdown:
            reasons.add(VmRunning(name=vm.name))
        with reasons.gather():
            disks_rest(self._store, vm.name)
        if vm.unfinished:
            reasons.add(Conflict(text=f"The creation of virtual machine '{vm.name}' was not finished."))
        reasons.raise_all()

    def _check_node(self, vm: VmRecord, ticket: Ticket) -> None:
        if ticket.target == self._node:
            raise Conflict(text=f"Virtual machine '{vm.name}' is on node '{self._node}' already.")
        if ticket.target not in (nodes_at(vm, ticket.target) if ticket.copied else vm.nodes):
            raise UnsuitableNode(name=vm.name, node=ticket.target, nodes=", ".join(vm.nodes))
        if not self._reachable(ticket.target):
            raise NodeUnreachable(node=ticket.target, reason="it does not answer.")

    def _check_disks(self, machine: Machine, ticket: Ticket) -> None:
        reasons: list[Refused] = []
        for kind, disks in self._disks.by_kind(machine):
            reasons += [Conflict(text=text[:1].upper() + text[1:]) for text in kind.check(disks, ticket)]
        if reasons:
            raise SeveralReasons.of(reasons)

    # --- there --------------------------------------------------------------------------------------------------------

    def _there(
        self, machine: Machine, ticket: Ticket, traveller: Traveller, wanted: Migration, found: list[MigrationCheck]
    ) -> tuple[Place, Journey | None]:
        try:
            description = ""
            if wanted.online and self._domains.is_active(machine.vm):
                description = self._hypervisor.running_description(ticket.uuid)
                with_it = running(description)
                traveller = msgspec.structs.replace(
                    traveller,
                    accelerator=self._accelerator()[0],
                    machine_type=with_it.machine_type,
                    cpu=with_it.cpu,
                )
            answer = self._ask(
                ticket.target, "examine", within=EXAMINE_WITHIN, traveller=msgspec.to_builtins(traveller)
            )
            place = msgspec.json.decode(answer, type=Place)
            if not description or not all(check.ok for check in place.checks):
                return place, None
            return place, self._journey(machine, ticket, wanted, place, description)
        except McvirtError as error:
            found.append(_against("Other node", error))
            return Place(checks=()), None

    def _journey(self, machine: Machine, ticket: Ticket, wanted: Migration, place: Place, description: str) -> Journey:
        sources = {disk.id: self._sources.source(disk) for disk in machine.disks}
        paths = {sources[disk.id].path: place.disks[disk.id] for disk in machine.disks}
        paths[self._designs.console_log(machine.vm)] = place.console
        mine = self._designs.iso_path(machine.vm)
        if mine is not None and place.image is not None:
            paths[mine] = place.image
        targets = running(description).targets
        return Journey(
            xml=moved(description, paths),
            copied=tuple(targets[sources[disk].path] for disk in ticket.copied if sources[disk].path in targets),
            # libvirt knows only some file systems to be shared. We know by its mark that the place is the same, and
            # past the page cache both nodes see the same data.
            checked=all(source.direct for disk, source in sources.items() if disk not in ticket.copied),
            bandwidth=_whole(wanted.bandwidth) if wanted.bandwidth else None,
            max_downtime=wanted.max_downtime,
        )


def _against(what: str, error: McvirtError) -> MigrationCheck:
    return MigrationCheck(name=what, ok=False, text=str(error), transient=isinstance(error, Unreachable))


def check_words(wanted: Migration) -> None:
    """Raise BadArgument for what can't be wanted together."""
    if wanted.online:
        for given, word in (
            (wanted.wait_for_shutdown, "--wait-for-shutdown"),
            (wanted.start_after, "--start-after-migration"),
        ):
            if given:
                raise BadArgument(what="--online", why=f"it can't be combined with {word}: the guest goes on running.")
    elif wanted.max_downtime is not None or wanted.bandwidth is not None or wanted.deadline is not None:
        raise BadArgument(what="--max-downtime, --bandwidth and --deadline", why="they are for --online.")
    if wanted.max_downtime is not None and wanted.max_downtime <= 0:
        raise BadArgument(what="--max-downtime", why="it must be more than 0.")
    check_limits(wanted.bandwidth, wanted.deadline)


def check_limits(bandwidth: int | None, deadline: int | None) -> None:
    """Raise BadArgument for limits that can't be kept."""
    if bandwidth is not None and _whole(bandwidth) < 1:
        raise BadArgument(what="--bandwidth", why="it must be 1 MiB a second or more, of which whole MiB count.")
    if deadline is not None and deadline <= 0:
        raise BadArgument(what="--deadline", why="it must be more than 0.")


def _whole(bandwidth: int) -> int:
    """The MiB in it, as libvirt takes them: what is sent never exceeds what was allowed."""
    return bandwidth // MIB


def _steps(machine: Machine, ticket: Ticket, wanted: Migration) -> Sequence[str]:
    name, target = ticket.name, ticket.target
    steps = []
    if wanted.wait_for_shutdown:
        steps.append(f"Wait until the guest of {name} has shut down")
    steps += [f"Make a volume for {disk} on node {target}" for disk in ticket.copied]
    replicated = [disk.id for disk in machine.disks if disk.storage_type is StorageType.DRBD]
    if wanted.online:
        if replicated:
            steps.append(f"Let both nodes use {', '.join(replicated)} as long as that takes")
        what = "memory and disks" if ticket.copied else "memory"
        steps.append(f"Send the {what} of the running guest to node {target}")
        steps.append("Let the guest go on there, and end it here")
    else:
        steps.append(f"Define {name} on node {target}, and undefine it on node {ticket.source}")
    steps.append(f"Store that {name} is on node {target}")
    steps += [
        f"Delete the volume of {disk.id} on node {ticket.source}" for disk in machine.disks if disk.id in ticket.copied
    ]
    if wanted.start_after:
        steps.append(f"Start {name} on node {target}")
    return steps
