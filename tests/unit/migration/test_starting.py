"""A machine that is to be started after its migration is started, whoever dies or falls silent meanwhile."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mcvirt.errors import (
    AnswerLost,
    Busy,
    Conflict,
    McvirtError,
    MigratedOnly,
    MigrationUnfinished,
    NodeUnreachable,
    VmAlreadyRunning,
)
from mcvirt.types.migration import Migration, MigrationPlan, MigrationReport
from mcvirt.types.task import TaskInfo
from mcvirtd.auth.rights import Rights
from mcvirtd.migration.planning import Prepared
from mcvirtd.migration.service import MigrationService
from mcvirtd.migration.ticket import Ticket
from mcvirtd.migration.waiting import Waits
from mcvirtd.state.records import VmRecord
from mcvirtd.tasks.engine import CLOSING
from mcvirtd.tasks.task import current_task
from mcvirtd.vm.unsettled import SETTLE
from tests.unit.migration.test_settling import DEFINED, Story
from tests.unit.vm.world import World

ANY: Any = None  # not looked at here
LOST = AnswerLost(node="n2", reason="it fell silent.")
REFUSED = Conflict(text="Virtual machine 'web1' is locked.")


@pytest.fixture
def story(world: World) -> Story:
    return Story(world, online=False, start_after=True)


def settle(story: Story) -> list[TaskInfo]:
    return list(story.world.tasks.settle())


# --- the next process -------------------------------------------------------------------------------------------------


def test_a_journal_of_before_knows_of_no_start(story: Story) -> None:
    entry = story.ticket.to_journal()
    assert entry.pop("start_after") is True
    assert Ticket.from_journal(entry) == msgspec.structs.replace(story.ticket, start_after=False)
    assert Ticket.from_journal(story.ticket.to_journal()) == story.ticket


def test_it_is_started_by_who_finishes_its_migration(story: Story) -> None:
    story.settlement.commit(story.ticket, None)
    story.leave_due()
    story.away = False
    (task,) = settle(story)
    assert (task.state.value, story.asked) == ("DONE", ["finish", "start"])
    assert story.world.journal_rows() == []


def test_it_is_not_started_where_nobody_has_asked_for_it(story: Story) -> None:
    story.ticket = msgspec.structs.replace(story.ticket, start_after=False)
    story.settlement.commit(story.ticket, None)
    story.leave_due()
    story.away = False
    assert settle(story)[0].state.value == "DONE" and story.asked == ["finish"]


@pytest.mark.parametrize("gone", [False, True])
def test_what_has_stayed_or_is_a_third_nodes_is_not_started(story: Story, gone: bool) -> None:
    story.there = DEFINED
    if gone:
        with story.world.store.change() as change:
            change.edit(VmRecord, "web1", node="n3")
    story.leave_due()
    story.away = False
    (task,) = settle(story)
    assert (task.state.value, story.asked) == ("FAILED", ["abandon"])


@pytest.mark.parametrize("allowed", [False, True])
def test_that_it_is_not_started_is_how_its_task_ends(story: Story, allowed: bool) -> None:
    story.settlement.commit(story.ticket, None)
    story.leave_due()
    story.away = False
    story.may_start, story.errors["start"] = allowed, REFUSED
    (task,) = settle(story)
    assert task.state.value == "FAILED" and story.world.journal_rows() == []
    why = "locked" if allowed else "CHANGE_VM_POWER_STATE"
    error = str(story.world.error_of(task))
    assert "was migrated to node 'n2', but not started there" in error and why in error
    assert story.asked == (["finish", "start"] if allowed else ["finish"])


@pytest.mark.parametrize("error", [LOST, Busy(object="Virtual machine 'web1'", task="t2", operation="arrival.start")])
def test_it_is_asked_for_until_there_is_an_answer(story: Story, error: McvirtError) -> None:
    story.settlement.commit(story.ticket, None)
    story.leave_due()
    story.away = False
    story.errors["start"] = error
    (task,) = settle(story)
    assert task.state.value == "STUCK" and story.settlement.left() == [story.ticket]
    story.errors["start"] = VmAlreadyRunning(name="web1")  # the first time it was heard, or somebody else was faster
    (task,) = settle(story)
    assert task.state.value == "DONE" and story.world.journal_rows() == []
    assert story.asked == ["finish", "start"] * 2


# --- who has asked for it ---------------------------------------------------------------------------------------------


class Planner:
    """Finds nothing that stands against it."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def prepare(self, name: str, wanted: Migration, by: str) -> Prepared:
        ticket = self._story.ticket
        assert (name, by, wanted.node) == (ticket.name, ticket.by, ticket.target)
        plan = MigrationPlan(name=name, source="n1", target="n2", online=False, checks=(), steps=(), size=0)
        machine = self._story.world.domains.machine(name)
        return Prepared(machine=machine, ticket=ticket, traveller=ticket.traveller, plan=plan, journey=None)


def migrate(story: Story, reports: list[MigrationReport] | None = None) -> TaskInfo:
    world = story.world
    service = MigrationService(
        world.ground,
        hypervisor=world.hypervisor,
        planner=Planner(story),  # type: ignore[arg-type]
        settlement=story.settlement,
        disks=story.disks,
        waits=Waits(world.ground, Rights(world.store), lambda: False, lambda name: None),
        ask=story.ask,
        dial=ANY,
        reachable=ANY,
    )
    how = Migration(node="n2", start_after=story.ticket.start_after)

    def work() -> None:
        report = service._migrate("web1", how, "bob")
        (reports if reports is not None else []).append(report)

    return world.run(work)


BEFORE = ["expect", "make_volume", "define", "finish"]


@pytest.mark.parametrize("start_after", [False, True])
def test_it_is_started_once_and_nothing_is_due(story: Story, start_after: bool) -> None:
    story.ticket = msgspec.structs.replace(story.ticket, start_after=start_after)
    reports: list[MigrationReport] = []
    assert migrate(story, reports).state.value == "DONE"
    assert story.asked == BEFORE + ["start"] * start_after
    assert reports[0].target == "n2" and story.world.journal_rows() == []


def test_the_start_is_due_until_it_is_answered_and_the_machine_is_not_held(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    due: list[list[tuple[str, dict[str, Any]]]] = []
    held: list[object] = []
    ask = story.ask

    def look(node: str, operation: str, within: float = 1.0, **arguments: Any) -> msgspec.Raw:
        if operation == "start":
            due.append(story.world.after_power_loss().journal.due_of(SETTLE))
            held.append(story.world.locks.holder("vm:web1"))
            assert story.settlement.left() == []
        return ask(node, operation, within, **arguments)

    monkeypatch.setattr(story.settlement, "_ask", look)
    assert migrate(story).state.value == "DONE"
    ((_, arguments),) = due[0]
    assert Ticket.from_journal(arguments["ticket"]) == story.ticket and held == [None]


def test_a_start_that_is_refused_is_said_and_not_asked_for_again(story: Story) -> None:
    story.errors["start"] = REFUSED
    task = migrate(story)
    assert isinstance(story.world.error_of(task), MigratedOnly) and task.state.value == "FAILED"
    assert story.asked == [*BEFORE, "start"] and story.world.journal_rows() == []


def test_a_start_whose_answer_is_lost_is_asked_for_again(story: Story) -> None:
    story.errors["start"] = LOST
    task = migrate(story)
    error = story.world.error_of(task)
    assert isinstance(error, MigrationUnfinished) and task.state.value == "STUCK"
    assert "is on node 'n2' now. Its start follows by itself" in str(error) and "Look before" not in str(error)
    assert task.remains == "Node 'n2' can't be reached: it fell silent."
    del story.errors["start"]
    (task,) = settle(story)
    assert task.state.value == "DONE" and story.asked == [*BEFORE, "start", "finish", "start"]


@pytest.mark.parametrize("start_after", [False, True])
def test_what_can_not_be_finished_there_says_that_the_machine_is_there(story: Story, start_after: bool) -> None:
    story.ticket = msgspec.structs.replace(story.ticket, start_after=start_after)
    story.errors["finish"] = NodeUnreachable(node="n2", reason="it does not answer.")
    task = migrate(story)
    error = story.world.error_of(task)
    assert isinstance(error, MigrationUnfinished) and task.state.value == "STUCK"
    start = ", its start included," if start_after else ""
    assert str(error) == (
        f"Virtual machine 'web1' is on node 'n2' now. The rest of its migration{start} follows by itself as soon as it "
        "can. Just now it can't: Node 'n2' can't be reached: it does not answer."
    )
    assert story.world.record().node == "n2" and "start" not in story.asked
    story.errors.clear()
    (task,) = settle(story)
    assert task.state.value == "DONE" and story.asked.count("start") == start_after


@pytest.mark.parametrize("by", [CLOSING, "bob"])
def test_who_cancels_it_then_cancels_the_start_and_the_end_of_mcvirtd_does_not(
    story: Story, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = story.ask

    def cancel(node: str, operation: str, within: float = 1.0, **arguments: Any) -> msgspec.Raw:
        answer = ask(node, operation, within, **arguments)
        if operation == "finish" and "start" not in story.asked:
            working.cancel(by)
        return answer

    begin = story.settlement.settle

    def settled(*arguments: Any) -> Any:
        nonlocal working
        working = current_task()
        return begin(*arguments)

    working = current_task()
    monkeypatch.setattr(story.settlement, "settle", settled)
    monkeypatch.setattr(story.settlement, "_ask", cancel)
    task = migrate(story)
    error = story.world.error_of(task)
    monkeypatch.undo()
    if by == CLOSING:
        assert (
            isinstance(error, MigrationUnfinished)
            and task.remains == "Node 'n1' can't be reached: mcvirtd is stopping."
        )
        assert settle(story)[0].state.value == "DONE" and story.asked[-1] == "start"
    else:
        assert isinstance(error, MigratedOnly) and "cancelled by bob" in str(error)
        assert "start" not in story.asked and story.world.journal_rows() == []
