"""Migrations of this node's machines: the contract MigrationApi."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mcvirt.api.migration import MigrationApi
from mcvirt.errors import (
    AnswerLost,
    ChangeUnknown,
    Conflict,
    LeaderUnreachable,
    McvirtError,
    MigratedOnly,
    MigrationFailed,
    MigrationUnfinished,
    NodeUnreachable,
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
from mcvirtd.migration.settling import Outcome, Settlement
from mcvirtd.migration.ticket import Ticket
from mcvirtd.migration.tunnel import Tunnel
from mcvirtd.migration.waiting import Waits
from mcvirtd.state.records import NodeRecord, VmRecord
from mcvirtd.tasks.task import current_task, step
from mcvirtd.tasks.transaction import Transaction
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.unsettled import SETTLE


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
        how = Migration(node=waiting.node, start_after=waiting.start_after, copy_storage=waiting.copy_storage)
        self._waits.until_possible(lambda: self._planner.prepare(name, how, waiting.by).plan)
        self._waits.require(name, waiting)
        try:
            return self._migrate(name, how, waiting.by)
        except (Refused, MigrationFailed) as error:
            raise self._waits.give_up(name, waiting, error) from error

    def _migrate(self, name: str, how: Migration, by: str) -> MigrationReport:
        with self._journal.transaction() as tx:
            with self._locks.hold(f"vm:{name}"):
                with step("Checking"):
                    prepared = self._planner.prepare(name, how, by)
                    self._require(prepared)
                self._carry_out(tx, prepared, how)
            # Its ticket is due until the start was answered: who dies before that leaves it to the next process.
            if how.start_after:
                self._start(tx, prepared.ticket)
            tx.keep()
        vm = self._store.get(VmRecord, name)
        if vm is None or vm.last_migration is None:
            raise Conflict(text=f"Virtual machine '{name}' was deleted meanwhile.")
        return vm.last_migration

    @staticmethod
    def _require(prepared: Prepared) -> None:
        against: list[Refused] = [Conflict(text=check.text) for check in prepared.plan.checks if not check.ok]
        if against:
            raise SeveralReasons.of(against)

    def _carry_out(self, tx: Transaction, prepared: Prepared, how: Migration) -> None:
        """Return when the machine is on the other node, and raise if it has stayed."""
        ticket = prepared.ticket
        result: JobResult | None = None
        failure: McvirtError | None = None
        tx.undo(SETTLE, ticket=ticket.to_journal())
        tx.leave_due_if_unknown()
        try:
            result = self._move(prepared, how)
        except (ChangeUnknown, LeaderUnreachable):
            raise  # whether the machine is on the other node now, its record will say
        except McvirtError as error:
            failure = error
        with current_task().shielded(), step("Settling where the machine is"):
            outcome = self._settle(tx, ticket, result)
        if outcome == "there":
            return
        tx.keep()
        if isinstance(failure, TaskCancelled):
            raise failure
        reason = str(failure or "the machine was changed meanwhile.")
        raise MigrationFailed(name=ticket.name, reason=reason, node=ticket.source) from failure

    def _settle(self, tx: Transaction, ticket: Ticket, result: JobResult | None) -> Outcome:
        try:
            return self._settlement.settle(ticket, result)
        except (ChangeUnknown, LeaderUnreachable):
            raise
        except McvirtError as error:
            vm = self._store.get(VmRecord, ticket.name)
            if vm is None or vm.uuid != ticket.uuid or vm.node != ticket.target:
                raise
            start = ", its start included," if ticket.start_after else ""
            raise self._left_due(tx, ticket, f"The rest of its migration{start}", error) from error

    def _move(self, prepared: Prepared, how: Migration) -> JobResult | None:
        ticket, machine = prepared.ticket, prepared.machine
        with step(f"Preparing node {ticket.target}"):
            self._ask(ticket.target, "expect", traveller=msgspec.to_builtins(prepared.traveller))
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

    def _start(self, tx: Transaction, ticket: Ticket) -> None:
        try:
            self._settlement.start(ticket)
        except MigratedOnly:
            tx.keep()
            raise
        except McvirtError as error:
            raise self._left_due(tx, ticket, "Its start", error) from error

    @staticmethod
    def _left_due(tx: Transaction, ticket: Ticket, what: str, error: McvirtError) -> MigrationUnfinished:
        """The error that says that *what* is not done, for *error*, and is done later: the ticket stays due."""
        tx.leave_due()
        if isinstance(error, AnswerLost):  # nobody is to look whether it was done, and do it again
            error = NodeUnreachable(node=error.node, reason=error.reason)
        return MigrationUnfinished(name=ticket.name, node=ticket.target, what=what, remains=str(error))
