"""The receiving end of migrations: what other nodes ask of this one, which is to have a machine of theirs."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from mcvirt import names
from mcvirt.api.migration import ArrivalApi
from mcvirt.errors import BadArgument, Conflict, DomainMissing, McvirtError, Refused, Unreachable, VmNotFound
from mcvirt.types.arrival import Place, Traveller, Whereabouts
from mcvirt.types.migration import MigrationCheck
from mcvirt.types.vm import StorageType
from mcvirtd.auth.caller import current_caller
from mcvirtd.host.facts import Memory
from mcvirtd.hypervisor.moving import MovingVerbs
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.migration import carrying, sockets
from mcvirtd.migration.expectations import Expectations, awaited
from mcvirtd.migration.replicas import ArrivingReplicas
from mcvirtd.migration.room import Room
from mcvirtd.migration.sockets import CHANNELS
from mcvirtd.migration.ticket import Ticket, disks_in
from mcvirtd.migration.volumes import Copies, here
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import VmRecord
from mcvirtd.vm import checks
from mcvirtd.vm.design import AcceleratorOfNode, Machine
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.power import Power
from mcvirtd.vm.unsettled import settled

log = logging.getLogger(__name__)
# A guest that libvirt is just about to let run is not destroyed for standing still.
_STIRS_WITHIN = 3.0
# Who renews windows may be late on a node that has much to do, without having given up.
_LAPSES_WITHIN = 4.0


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that may come from node *source*. *close* gives what is due of it to others."""

    source: str
    uuid: str
    close: Callable[[], None]


class Arrivals(ArrivalApi):
    """*expectations* outlive this process, *leaving* gives the migrations from here that are not settled.

    *carry_on* has the connection of the call that is being answered carried. *memory* measures this node, *used_by*
    what the QEMU of a machine has of it.
    """

    def __init__(
        self,
        ground: Ground,
        *,
        hypervisor: MovingVerbs,
        uri: str,
        copies: Copies,
        expectations: Expectations,
        leaving: Callable[[], Sequence[Ticket]],
        power: Power,
        accelerator: AcceleratorOfNode,
        memory: Callable[[], Memory],
        used_by: Callable[[str], int],
        carry_on: Callable[[Callable[[ssl.SSLSocket], None]], None],
        replicas: ArrivingReplicas,
    ) -> None:
        self._ground = ground
        self._store = ground.store
        self._locks = ground.locks
        self._domains = ground.domains
        self._designs = ground.designs
        self._disks = ground.disks
        self._node = ground.node
        self._hypervisor = hypervisor
        self._uri = uri
        self._copies = copies
        self._expectations = expectations
        self._leaving = leaving
        self._power = power
        self._accelerator = accelerator
        self._room = Room(ground.node, memory=memory, used_by=used_by, expected=self.expects)
        self._carry_on = carry_on
        self._replicas = replicas
        self._lock = threading.Lock()
        self._expected: dict[str, Expected] = {}
        self._defined: dict[str, str] = {}  # what libvirt was told of those that come while they are off
        self._carried: dict[str, set[ssl.SSLSocket]] = {}
        self._lapsed: dict[str, float] = {}  # since when, on the monotonic clock

    def expects(self, name: str) -> bool:
        """Whether the machine may just be coming here, or have come without its record saying so."""
        return awaited(self._store, self._ground.journal, name)

    # --- looking ------------------------------------------------------------------------------------------------------

    def examine(self, traveller: Traveller) -> Place:
        machine = self._machine(traveller.name)
        vm = machine.vm
        found: list[MigrationCheck] = []

        @contextmanager
        def look(what: str, fine: str, *, transient: bool = False) -> Iterator[Reasons]:
            reasons = Reasons()
            try:
                with reasons.gather():
                    yield reasons
                with reasons.gather():
                    reasons.raise_all()
            except McvirtError as error:  # libvirt does not answer, a command failed
                reasons.add(Refused(text=str(error)))
                transient = transient or isinstance(error, Unreachable)
            text = " ".join(reasons.sentences())
            passes = transient and bool(text)
            found.append(MigrationCheck(name=what, ok=not text, text=text or fine, transient=passes))

        with look("libvirt", "it answers, and has no other machine of this name."):
            self._domains.require_libvirt()
            self._check_domains(vm)
        with look("Networks", "their bridges are there.") as reasons:
            for network in dict.fromkeys(vm.adapters.values()):
                with reasons.gather():
                    checks.network(self._store, network, self._ground.bridge_problem)
        with look("ISO image", f"'{vm.iso}' is there." if vm.iso else "none is in the drive."):
            image = self._designs.iso_path(vm)
        with look("Memory", "there is enough."):
            self._room.check(vm, runs=_runs_here(traveller))
        with look("Processor", "it can do what the guest was started with."):
            self._check_processor(traveller)
        paths: dict[str, str] = {}
        with look("Hard drives", "they are there, or there is room for them.", transient=True) as reasons:
            paths = self._check_disks(machine, traveller, reasons)
        if any(not check.ok for check in found):
            image, paths = None, {}
        return Place(checks=tuple(found), disks=paths, image=image, console=self._designs.console_log(vm))

    def _check_domains(self, vm: VmRecord) -> None:
        for uuid, state in self._hypervisor.domains().items():
            if uuid == vm.uuid and state.active:
                raise Conflict(text=f"Virtual machine '{vm.name}' runs on node '{self._node}' already.")
            if uuid != vm.uuid and state.name == vm.name:
                raise Conflict(text=f"libvirt on node '{self._node}' has another domain called '{vm.name}'.")

    def _check_processor(self, traveller: Traveller) -> None:
        if not traveller.online:
            return
        mine = self._accelerator()[0]
        if traveller.accelerator != mine:
            raise Conflict(
                text=f"The guest runs on {traveller.accelerator}, and node '{self._node}' has {mine}. It can be "
                "migrated when it is off."
            )
        kind = "kvm" if mine == "kvm" else "qemu"
        problem = self._hypervisor.cannot_take(kind, traveller.machine_type, traveller.cpu)
        if problem:
            raise Conflict(text=f"The guest can't go on running on node '{self._node}': {problem}")

    def _check_disks(self, machine: Machine, traveller: Traveller, reasons: Reasons) -> dict[str, str]:
        paths = {}
        for disk in machine.disks:
            with reasons.gather():
                if disk.id in traveller.copied:
                    self._copies.check(disk, reasons)
                    paths[disk.id] = self._copies.path(disk)
                elif self._node not in disk.nodes:
                    places = " and ".join(disk.nodes)
                    raise Conflict(
                        text=f"Hard drive {disk.id} is on {places} only, and so node '{self._node}' can't use it."
                    )
                else:
                    drbd = disk.storage_type is StorageType.DRBD
                    problem = self._replicas.problem(disk) if drbd else self._disks.available(disk)
                    if problem:
                        raise Conflict(text=f"Hard drive {disk.id} can't be used on node '{self._node}': {problem}")
                    paths[disk.id] = self._disks.source(here(disk, self._node)).path
        return paths

    def whereabouts(self, uuid: str) -> Whereabouts:
        state = self._hypervisor.look(uuid)
        if state is None:
            return Whereabouts()
        return Whereabouts(defined=state.persistent, active=state.active, running=state.running, reason=state.reason)

    # --- receiving ----------------------------------------------------------------------------------------------------

    def expect(self, traveller: Traveller) -> None:
        vm = self._machine(traveller.name).vm
        peer = current_caller().peer
        if vm.node != peer:
            raise Conflict(text=f"Virtual machine '{vm.name}' is registered on node '{vm.node}', and not on '{peer}'.")
        with self._locks.hold(f"vm:{vm.name}"):
            self._check_domains(vm)
            settled(self._ground.journal, vm.name)  # who settles one from here would end this guest as its rest
            self._forget(vm.name)
            sockets.forget(vm.name)
            # What is found here from now on has come: nothing that was left of it earlier is to be taken for that.
            self._hypervisor.undefine(vm.uuid)
            if traveller.online:
                sockets.prepare(self._hypervisor.guests_user())
            close = self._ground.journal.keep_open()
            try:
                self._expectations.begin(vm, peer)
                if _runs_here(traveller):  # others may have come since `examine`, or be about to
                    self._room.take(vm)
            except BaseException:
                close()
                self._expectations.end(vm.name)
                raise
            self._expected[vm.name] = Expected(source=peer, uuid=vm.uuid, close=close)

    def make_volume(self, name: str, disk: str) -> None:
        self._require_expected(name)
        # What is due of it must be as long as the machine is expected.
        self._hold_back(name)
        self._copies.make(self._copies.find(disk), current_caller().peer)

    def open_disks(self, name: str) -> None:
        self._require_expected(name)
        self._replicas.open(self._coming(name).disks)

    def use_disks(self, name: str) -> None:
        self._require_expected(name)
        self._replicas.use(self._coming(name).disks)

    def keep_disks(self, name: str) -> None:
        self._require_expected(name)
        self._replicas.keep(self._coming(name).disks)

    def rejoin_disk(self, name: str, disk: str) -> None:
        with self._locks.hold(f"vm:{name}"):
            found = next((each for each in self._coming(name).disks if each.id == disk), None)
            if found is None or self._domains.is_active(self._machine(name).vm):
                raise Conflict(text=f"Hard drive {names.printable(disk)} can't give way on node '{self._node}'.")
            self._replicas.rejoin(found)

    def _coming(self, name: str) -> Machine:
        """The machine, which is the asking node's still."""
        machine = self._machine(name)
        if machine.vm.node != current_caller().peer:
            raise Conflict(text=f"Virtual machine '{name}' is registered on node '{machine.vm.node}'.")
        return machine

    def _hold_back(self, name: str) -> None:
        before = self._expected[name]
        more = self._ground.journal.keep_open()

        def close() -> None:
            before.close()
            more()

        self._expected[name] = msgspec.structs.replace(before, close=close)

    def _require_expected(self, name: str) -> Expected:
        found = self._expected.get(name)
        if found is None or found.source != current_caller().peer:
            shown = names.printable(name)
            raise Conflict(text=f"Virtual machine '{shown}' is not expected on node '{self._node}' (any more).")
        return found

    def carry(self, name: str, channel: str) -> None:
        self._require_expected(name)
        known = next((each for each in CHANNELS if each == channel), None)
        if known is None:
            raise BadArgument(what="channel", why=f"there is none called '{names.printable(channel)}'.")
        plain = sockets.reach(known, name, self._uri, self._node)

        def carry(far: ssl.SSLSocket) -> None:
            with self._lock:
                self._carried.setdefault(name, set()).add(far)
            try:
                carrying.notice_silence(far)
                carrying.carry(far, plain)
            except OSError as error:
                log.info("the %s channel of %s broke: %s", channel, name, error)
            finally:
                plain.close()
                with self._lock:
                    self._carried.get(name, set()).discard(far)

        self._carry_on(carry)

    def turn_away(self) -> None:
        """For a timer: give up guests on their way here whose windows nobody renews, and that can't be closed.

        The daemon that sends them hangs, then, and its connections are as good as ever. Without these libvirt here ends
        the guest that never came, which had the device open, and the guard can close the window.
        """
        lapsed = {name for name in list(self._expected) if self._has_lapsed(name)}
        self._lapsed = {name: self._lapsed.get(name, time.monotonic()) for name in lapsed}
        for name, since in self._lapsed.items():
            if time.monotonic() - since >= _LAPSES_WITHIN and (carried := self._carried_for(name)):
                log.warning("nobody keeps the disks of %s open to both nodes: it is not waited for any longer", name)
                for sock in carried:
                    carrying.end(sock)

    def _has_lapsed(self, name: str) -> bool:
        try:
            machine = self._machine(name)
            if not self._replicas.lapsed(machine.disks):
                return False
            state = self._hypervisor.look(machine.vm.uuid)
        except McvirtError as error:
            log.info("whether %s still comes can't be seen now: %s", name, error)
            return False
        return state is not None and state.active and not state.running  # one that runs has come

    def _carried_for(self, name: str) -> Sequence[ssl.SSLSocket]:
        with self._lock:
            return tuple(self._carried.get(name, ()))

    def define(self, name: str) -> None:
        self._require_expected(name)
        with self._locks.hold(f"vm:{name}"):
            machine = self._machine(name)
            self._check_domains(machine.vm)
            self._defined[name] = self._domains.define(machine)

    # --- the end ------------------------------------------------------------------------------------------------------

    def finish(self, name: str) -> None:
        with self._locks.hold(f"vm:{name}"):
            machine = self._machine(name)
            if machine.vm.node != self._node:
                raise Conflict(text=f"Virtual machine '{name}' is registered on node '{machine.vm.node}'.")
            for disk in machine.disks:
                self._copies.forget(disk.id)
            defined = self._defined.get(name, "")
            self._forget(name)
            self._replicas.settle_in(machine.disks)
            state = self._hypervisor.look(machine.vm.uuid)
            self._domains.define(machine, "" if state is None or state.active else defined)
            if state is not None and state.active and not state.running and state.reason == "migrating":
                self._hypervisor.resume(machine.vm.uuid)

    def abandon(self, traveller: Traveller) -> None:
        name, uuid = traveller.name, traveller.uuid
        with self._locks.hold(f"vm:{name}"):
            vm = self._store.get(VmRecord, name)
            if vm is not None and vm.uuid == uuid and vm.node == self._node:
                raise Conflict(text=f"Virtual machine '{name}' is registered on node '{self._node}'.")
            state = self._hypervisor.look(uuid)
            if state is not None and state.active:
                self._hypervisor.wait_for(uuid, _runs, _STIRS_WITHIN)
                state = self._hypervisor.look(uuid)
            if state is not None and state.running:
                raise Conflict(text=f"Virtual machine '{name}' runs on node '{self._node}'.")
            if state is not None and state.active:
                with contextlib.suppress(DomainMissing):  # libvirt, which has lost the other end, was first
                    self._hypervisor.destroy(uuid)
            self._hypervisor.undefine(uuid)
            if vm is not None and vm.uuid == uuid:
                self._replicas.give_up(self._machine(name).disks)
            for disk in () if vm is None else disks_in(self._machine(name), traveller.copied):
                self._copies.drop(disk.id, disk.backend, disk.volume)
                self._copies.forget(disk.id)
            if vm is None or vm.uuid == uuid:  # it may be another machine of that name that is to come now
                self._forget(name)

    def sends(self, uuid: str) -> bool:
        peer = current_caller().peer
        return any(ticket.uuid == uuid and ticket.target == peer for ticket in self._leaving())

    def start(self, name: str) -> None:
        with self._locks.hold(f"vm:{name}"):
            self._power.start(name, None)

    def _forget(self, name: str) -> None:
        self._expectations.end(name)
        self._room.leave(name)
        self._defined.pop(name, None)
        expected = self._expected.pop(name, None)
        for sock in self._carried_for(name):
            carrying.end(sock)
        if expected is not None:
            expected.close()
            with contextlib.suppress(OSError):
                sockets.forget(name)

    def _machine(self, name: str) -> Machine:
        if self._store.get(VmRecord, name) is None:
            raise VmNotFound(name=names.printable(name))
        return self._domains.machine(name)


def _runs_here(traveller: Traveller) -> bool:
    return traveller.online or traveller.starts


def _runs(state: DomainState | None) -> bool:
    return state is None or state.running
