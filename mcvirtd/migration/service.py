"""Migrations of this node's machines: the contract MigrationApi."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mcvirt.api.migration import MigrationApi
from mcvirt.errors import (
    ChangeUnknown,
    Conflict,
    LeaderUnreachable,
    McvirtError,
    MigratedOnly,
    MigrationFailed,
    Refused,
    SeveralReasons,
    TaskCancelled,
)
from mcvirt.rpc.transport import Connection
from mcvirt.types.migration import Migration, MigrationPlan, MigrationReport, Waiting
from mcvirtd.auth.caller import current_caller
from mcvirtd.hypervisor.moving import JobResult, MovingVerbs
from mcvirtd.migration.disks import Ask, DisksOfMachines
from mcvirtd.migration.planning import MigrationPlanner, Prepared, check_words
from mcvirtd.migration.sending import Sending
from mcvirtd.migration.settling import Settlement
from mcvirtd.migration.tunnel import Tunnel
from mcvirtd.migration.waiting import Waits
from mcvirtd.state.records import NodeRecord, VmRecord
from mcvirtd.tasks.task import current_task, step
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.unsettled import SETTLE

START_WITHIN = 60.0


class MigrationService(MigrationApi):
    """*dial* connects to another node, for one's own use."""

    def __init__(
        self,
        ground: Ground,
        *,
        hypervisor: MovingVerbs,
        planner: MigrationPlanner,
        settlement: Settlement,
        disks: DisksOfMachines,
        waits: Waits,
        ask: Ask,
        dial: Callable[[str], Connection],
        reachable: Callable[[str], bool],
    ) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._locks = ground.locks
        self._domains = ground.domains
        self._hypervisor = hypervisor
        self._planner = planner
        self._settlement = settlement
        self._disks = disks
        self._waits = waits
        self._ask = ask
        self._dial = dial
        self._reachable = reachable

    def plan(self, name: str, how: Migration) -> MigrationPlan:
        return self._planner.prepare(name, how, current_caller().user).plan

    def migrate(self, name: str, how: Migration) -> MigrationReport:
        check_words(how)
        by = current_caller().user
        self._waits.check(name)
        if how.wait_for_shutdown:
            self._require(self._planner.prepare(name, how, by))
            waiting = Waiting(node=how.node, start_after=how.start_after, copy_storage=how.copy_storage, by=by)
            with self._waits.at(name, waiting):
                return self._wait(name, waiting)
        return self._migrate(name, how, by)

    def wait(self, name: str, waiting: Waiting) -> MigrationReport:
        """Wait until the guest is off, and migrate the machine then; also for a wait of an earlier process.

        That may take days: NotPermitted if who asked for it may not have it (any more), before or after.
        """
        with self._waits.at(name):
            return self._wait(name, waiting)

    def _wait(self, name: str, waiting: Waiting) -> MigrationReport:
        self._waits.require(name, waiting)
        self._waits.until_off(name, self._domains.machine(name).vm.uuid)
        self._waits.require(name, waiting)
        how = Migration(node=waiting.node, start_after=waiting.start_after, copy_storage=waiting.copy_storage)
        return self._migrate(name, how, waiting.by)

    def _migrate(self, name: str, how: Migration, by: str) -> MigrationReport:
        with self._locks.hold(f"vm:{name}"):
            with step("Checking"):
                prepared = self._planner.prepare(name, how, by)
                self._require(prepared)
            self._carry_out(prepared, how)
        if how.start_after:
            self._start(name, how.node)
        vm = self._store.get(VmRecord, name)
        if vm is None or vm.last_migration is None:
            raise Conflict(text=f"Virtual machine '{name}' was deleted meanwhile.")
        return vm.last_migration

    @staticmethod
    def _require(prepared: Prepared) -> None:
        against: list[Refused] = [Conflict(text=check.text) for check in prepared.plan.checks if not check.ok]
        if against:
            raise SeveralReasons.of(against)

    def _carry_out(self, prepared: Prepared, how: Migration) -> None:
        ticket = prepared.ticket
        result: JobResult | None = None
        failure: McvirtError | None = None
        with self._journal.transaction() as tx:
            tx.undo(SETTLE, ticket=ticket.to_journal())
            tx.leave_due_if_unknown()
            try:
                result = self._move(prepared, how)
            except (ChangeUnknown, LeaderUnreachable):
                raise  # whether the machine is on the other node now, its record will say
            except McvirtError as error:
                failure = error
            with current_task().shielded(), step("Settling where the machine is"):
                outcome = self._settlement.settle(ticket, result)
            tx.keep()
        if outcome == "there":
            return
        if isinstance(failure, TaskCancelled):
            raise failure
        reason = str(failure or "the machine was changed meanwhile.")
        raise MigrationFailed(name=ticket.name, reason=reason, node=ticket.source) from failure

    def _move(self, prepared: Prepared, how: Migration) -> JobResult | None:
        ticket, machine = prepared.ticket, prepared.machine
        with step(f"Preparing node {ticket.target}"):
            self._ask(ticket.target, "expect", traveller=msgspec.to_builtins(ticket.traveller))
        if prepared.journey is not None:
            try:
                self._disks.each("prepare", machine, ticket)
                return self._send(prepared, how)
            finally:
                self._disks.each("let_go", machine, ticket)
        self._disks.each("prepare", machine, ticket)
        with step(f"Registering the machine on node {ticket.target}"), current_task().shielded():
            self._ask(ticket.target, "define", name=ticket.name)
            self._disks.each("switch", machine, ticket)
            self._settlement.commit(ticket, None)
        return None

    def _send(self, prepared: Prepared, how: Migration) -> JobResult:
        ticket, journey = prepared.ticket, prepared.journey
        assert journey is not None
        owner, disks = self._hypervisor.guests_user(), len(journey.copied)
        tunnel = Tunnel(ticket.name, owner, lambda: self._dial(ticket.target), disks)
        try:
            tunnel.open()
            sending = Sending(
                ticket,
                hypervisor=self._hypervisor,
                tunnel=tunnel,
                ask=self._ask,
                reachable=self._reachable,
                member=lambda node: self._store.get(NodeRecord, node) is not None,
                deadline=how.deadline,
                broken=lambda: self._disks.broken(prepared.machine),
            )
            return sending.run(journey, prepared.plan.size)
        finally:
            tunnel.close()

    def _start(self, name: str, node: str) -> None:
        try:
            with step(f"Starting the machine on node {node}"):
                self._ask(node, "start", within=START_WITHIN, name=name)
        except McvirtError as error:
            raise MigratedOnly(name=name, node=node, reason=str(error)) from error
