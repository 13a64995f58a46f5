"""Where the machine is, by what both nodes say, and what is made of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mcvirt.errors import Conflict, Failed, McvirtError, NodeUnreachable, NotPermitted
from mcvirt.types.arrival import Whereabouts
from mcvirtd.hypervisor.moving import JobResult
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.migration.disks import CopiedDisks, DisksOfMachines
from mcvirtd.migration.settling import Settlement
from mcvirtd.migration.ticket import Ticket
from mcvirtd.migration.volumes import Copies
from mcvirtd.state.records import BackendRecord, DiskRecord, VmRecord
from mcvirtd.vm.unsettled import SETTLE
from tests.unit.vm.world import World

NOWHERE = Whereabouts()
RUNS = Whereabouts(defined=True, active=True, running=True)
STANDS = Whereabouts(active=True)
DEFINED = Whereabouts(defined=True)


class Story:
    """web1 on n1, on its way to n2, which says *there*; *asked* is what n2 was told to do."""

    def __init__(self, world: World, *, online: bool = True, start_after: bool = False) -> None:
        self.world = world
        self.there = NOWHERE
        self.away = False
        self.asked: list[str] = []
        self.errors: dict[str, McvirtError] = {}
        self.may_start = True
        world.second_node()
        assert world.create() is None
        with world.store.change() as change:
            change.edit(BackendRecord, "pool", nodes={"n1": "", "n2": ""})
        self.copies = Copies(world.ground, world.node)
        self.disks = DisksOfMachines(world.store, CopiedDisks(self.ask, self.copies), None)
        self.settlement = Settlement(world.ground, world.hypervisor, self.disks, self.ask, may_start=self.require_start)
        (self.disk,) = world.store.all(DiskRecord).values()
        vm = world.record()
        self.uuid = vm.uuid
        self.ticket = Ticket(
            name="web1",
            uuid=vm.uuid,
            source="n1",
            target="n2",
            online=online,
            copied=(self.disk.id,),
            by="bob",
            begun=0,
            start_after=start_after,
        )
        if online:
            assert world.start() is None

    def ask(self, node: str, operation: str, within: float = 1.0, **arguments: Any) -> msgspec.Raw:
        assert node == "n2"
        if self.away:
            raise NodeUnreachable(node=node, reason="it is said to be away.")
        if operation == "whereabouts":
            return msgspec.Raw(msgspec.json.encode(self.there))
        self.asked.append(operation)
        if operation in self.errors:
            raise self.errors[operation]
        return msgspec.Raw(b"null")

    def require_start(self, name: str, by: str) -> None:
        assert (name, by) == ("web1", "bob")
        if not self.may_start:
            raise NotPermitted(user=by, permission="CHANGE_VM_POWER_STATE", scope="")

    def leave_due(self) -> None:
        """A migration ends without n2 having been asked how."""

        def work() -> None:
            with self.world.journal.transaction() as tx:
                tx.undo(SETTLE, ticket=self.ticket.to_journal())
                self.away = True
                raise NodeUnreachable(node="n2", reason="it fell silent.")

        assert self.world.run(work).state.value == "STUCK"

    def stand(self) -> None:
        """The guest stands still here, for the migration."""
        state = DomainState(uuid=self.uuid, name="web1", condition="paused", reason="migrating", id=7)
        self.world.hypervisor._states.put(self.uuid, state)

    def state(self) -> DomainState | None:
        return self.world.hypervisor.state(self.uuid)

    def is_here(self) -> None:
        assert self.asked[-1] == "abandon" and self.world.record().node == "n1"
        assert self.world.store.all(DiskRecord)[self.disk.id].nodes == ("n1",)
        assert self.disk.volume in self.world.volumes.names()
        state = self.state()
        assert state is not None and state.persistent

    def is_there(self) -> None:
        vm = self.world.record()
        assert self.asked == ["finish"] and (vm.node, vm.nodes) == ("n2", ("n2",))
        assert self.world.store.all(DiskRecord)[self.disk.id].nodes == ("n2",)
        assert self.state() is None and self.disk.volume not in self.world.volumes.names()
        assert vm.last_migration is not None and vm.last_migration.by == "bob"


def test_what_is_under_way_is_left_to_who_works_at_it(story: Story) -> None:
    meanwhile: list[list[Ticket]] = []

    def work() -> None:
        with story.world.journal.transaction() as tx:
            tx.undo(SETTLE, ticket=story.ticket.to_journal())
            meanwhile.append(story.settlement.due())
            meanwhile.append(story.settlement.left())
            tx.keep()

    assert story.world.run(work).state.value == "DONE"
    assert meanwhile == [[story.ticket], []]
    story.leave_due()
    assert story.settlement.left() == story.settlement.due() == [story.ticket]


@pytest.fixture
def story(world: World) -> Story:
    return Story(world)


@pytest.mark.parametrize("there", [NOWHERE, STANDS, DEFINED])
def test_guest_that_runs_here_stays(story: Story, there: Whereabouts) -> None:
    story.there = there
    assert story.settlement.settle(story.ticket) == "here"
    story.is_here()
    state = story.state()
    assert state is not None and state.running


@pytest.mark.parametrize("there", [NOWHERE, STANDS, DEFINED])
def test_guest_that_stands_here_and_runs_nowhere_goes_on_here(story: Story, there: Whereabouts) -> None:
    story.stand()
    story.there = there
    assert story.settlement.settle(story.ticket) == "here"
    story.is_here()
    state = story.state()
    assert state is not None and state.running


def test_guest_that_runs_there_is_there_whatever_stands_here(story: Story) -> None:
    story.stand()
    story.there = RUNS
    assert story.settlement.settle(story.ticket, JobResult(downtime=40, size=9)) == "there"
    story.is_there()
    report = story.world.record().last_migration
    assert report is not None and (report.downtime, report.size) == (40, 9)


def test_guest_that_went_there_and_ended_is_there(story: Story) -> None:
    story.world.hypervisor.destroy(story.uuid)
    story.there = DEFINED
    assert story.settlement.settle(story.ticket) == "there"
    story.is_there()


@pytest.mark.parametrize("there", [NOWHERE, STANDS])
def test_guest_that_ended_here_on_its_way_is_here(story: Story, there: Whereabouts) -> None:
    story.world.hypervisor.destroy(story.uuid)
    story.there = there  # libvirt there may not have noticed yet that nothing more comes
    assert story.settlement.settle(story.ticket) == "here"
    story.is_here()


def test_guest_that_runs_twice_is_told_and_nothing_is_touched(story: Story) -> None:
    story.there = RUNS
    with pytest.raises(Failed, match="runs on both nodes"):
        story.settlement.settle(story.ticket)
    state = story.state()
    assert story.asked == [] and state is not None and state.running


def test_nothing_is_decided_while_the_other_node_can_not_be_asked(story: Story) -> None:
    story.stand()
    story.away = True
    with pytest.raises(NodeUnreachable):
        story.settlement.settle(story.ticket)
    state = story.state()
    assert state is not None and state.condition == "paused" and story.world.record().node == "n1"


def test_node_that_is_no_member_any_more_has_nothing(story: Story) -> None:
    from mcvirtd.state.records import NodeRecord

    with story.world.store.change() as change:
        change.delete(NodeRecord, "n2")
    story.stand()
    assert story.settlement.settle(story.ticket) == "here"
    assert story.asked == []
    state = story.state()
    assert state is not None and state.running


def test_what_was_stored_is_finished_and_may_be_finished_again(story: Story) -> None:
    story.stand()
    story.settlement.commit(story.ticket, None)
    for _ in range(2):
        story.asked.clear()
        assert story.settlement.settle(story.ticket) == "there"
        story.is_there()


def test_machine_that_was_deleted_meanwhile_leaves_nothing(story: Story) -> None:
    story.world.stop()
    assert story.world.delete() is None
    assert story.settlement.settle(story.ticket) == "gone"
    assert story.asked == ["abandon"] and story.state() is None


def test_machine_that_was_taken_over_meanwhile_is_not_expected_there_any_more(story: Story) -> None:
    story.world.stop()
    with story.world.store.change() as change:
        change.edit(VmRecord, "web1", node="n3")
    story.away = True
    with pytest.raises(NodeUnreachable):
        story.settlement.settle(story.ticket)
    story.away = False
    assert story.settlement.settle(story.ticket) == "gone"
    assert story.asked == ["abandon"] and story.state() is None


def test_stopped_machine_is_where_its_record_says(world: World) -> None:
    story = Story(world, online=False)
    story.there = DEFINED  # as `define` has left it there
    assert story.settlement.settle(story.ticket) == "here"
    story.is_here()
    story.asked.clear()
    story.settlement.commit(story.ticket, None)
    assert story.settlement.settle(story.ticket) == "there"
    story.is_there()


def test_next_process_settles_and_says_how_it_ended(story: Story) -> None:
    story.stand()
    story.there = RUNS
    story.leave_due()
    assert story.settlement.due() == [story.ticket]
    story.away = False
    (settled,) = story.world.tasks.settle()
    assert settled.state.value == "DONE" and story.settlement.due() == []
    story.is_there()


def test_copy_is_dropped_only_where_it_is_not_needed(story: Story) -> None:
    disk = story.disk
    story.copies.drop(disk.id, disk.backend, disk.volume)
    assert disk.volume in story.world.volumes.names(), "it is this node's disk"


def test_machine_that_may_run_there_is_neither_started_nor_changed_nor_deleted(story: Story) -> None:
    world = story.world
    world.hypervisor.destroy(story.uuid)
    story.leave_due()

    def refused(error: McvirtError | None) -> None:
        assert isinstance(error, Conflict) and "to node 'n2' is not settled yet" in str(error)
        assert str(error).count("not settled") == 1
        state = story.state()
        assert state is not None and not state.active and story.disk.volume in world.volumes.names()
        assert world.record().node == "n1"

    refused(world.start())
    refused(world.delete())
    refused(world.update(memory=128 * 2**20, old_memory=world.record().memory))
    refused(world.error_of(world.run(lambda: world.vms.unregister("web1"))))
    refused(world.error_of(world.run(lambda: world.changes.detach(story.disk.id))))
    assert world.create("web2") is None and world.start("web2") is None, "it is only about the one"
    story.away = False
    world.tasks.settle()
    assert world.start() is None


def test_stays_only_when_libvirt_is_done_with_it(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process that died had begun, libvirt ends by itself, and it refuses another migration until then."""
    answers = [True, True, False]
    monkeypatch.setattr(story.world.hypervisor, "is_busy", lambda uuid: answers.pop(0))
    assert story.settlement.settle(story.ticket) == "here"
    assert answers == []
    story.is_here()


def test_both_nodes_fail_and_the_other_ones_error_is_logged(
    story: Story, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    story.settlement.commit(story.ticket, None)
    story.stand()

    def fail(act: str, machine: object, ticket: object) -> None:
        raise Conflict(text=f"{act}: it is in use here.")

    monkeypatch.setattr(story.disks, "each", fail)
    with pytest.raises(Conflict, match="in use here"):
        story.settlement.settle(story.ticket)
    assert "not finished on node" not in caplog.text
    story.errors["finish"] = Conflict(text="libvirt there is away.")
    with pytest.raises(Conflict, match="in use here"):
        story.settlement.settle(story.ticket)
    assert "web1 was not finished on node n2 either: libvirt there is away." in caplog.text
