"""What is looked at on the node that has the machine, and what the other one is asked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mcvirt.errors import McvirtError, NodeUnreachable
from mcvirt.types.arrival import Place, Traveller
from mcvirt.types.migration import Migration, MigrationCheck, MigrationPlan
from mcvirt.units import MIB
from mcvirtd.auth.rights import Rights
from mcvirtd.migration import waiting
from mcvirtd.migration.disks import CopiedDisks, DisksOfMachines
from mcvirtd.migration.planning import MigrationPlanner
from mcvirtd.migration.volumes import Copies
from mcvirtd.state.records import BackendRecord, DiskRecord, VmRecord
from mcvirtd.tasks.task import Task, working_for
from mcvirtd.vm.design import AcceleratorOfNode
from tests.unit.vm.world import World

ONLINE = Migration(node="n2", online=True, copy_storage=True)
SETTLED_AFTER = 3


class Source:
    """Node n1 with web1, whose disk it alone has. n2 has been *asked*, and answers with *place*."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked: list[Traveller] = []
        self.away: McvirtError | None = None
        self.unsettled = False
        (disk,) = world.store.all(DiskRecord).values()
        self.place = Place(checks=(MigrationCheck(name="All", ok=True, text=""),), disks={disk.id: "/there"})
        self.planner = MigrationPlanner(
            world.ground,
            hypervisor=world.hypervisor,
            disks=DisksOfMachines(world.store, CopiedDisks(self.ask, Copies(world.ground, world.node)), None),  # type: ignore[arg-type]
            accelerator=AcceleratorOfNode(lambda: ("tcg", "simulated")),
            ask=self.ask,
            reachable=lambda _: self.away is None,
            unsettled=lambda _: self.unsettled,
            clock=lambda: 0.0,
        )

    def ask(self, node: str, operation: str, within: float = 0, **arguments: Any) -> msgspec.Raw:
        assert (node, operation) == ("n2", "examine")
        if self.away is not None:
            raise self.away
        self.asked.append(msgspec.convert(arguments["traveller"], Traveller))
        return msgspec.Raw(msgspec.json.encode(self.place))


@pytest.fixture
def source(world: World) -> Source:
    world.second_node()
    with world.store.change() as change:
        change.edit(BackendRecord, "pool", nodes={"n1": "", "n2": ""})
    assert world.create() is None
    return Source(world)


def test_what_is_sent_a_second_is_never_more_than_was_allowed(source: Source) -> None:
    assert source.world.start() is None
    for allowed, sent in ((None, None), (MIB, 1), (3 * MIB - 1, 2)):
        prepared = source.planner.prepare("web1", msgspec.structs.replace(ONLINE, bandwidth=allowed), "bob")
        assert prepared.plan.ok and prepared.journey is not None
        assert prepared.journey.bandwidth == sent
        assert prepared.plan.seconds == 2 + prepared.plan.size // ((sent or 100) * MIB)


def test_machine_that_is_registered_nowhere_is_not_migrated(source: Source) -> None:
    with source.world.store.change() as change:
        change.edit(VmRecord, "web1", node=None)
    plan = source.planner.prepare("web1", Migration(node="n2"), "bob").plan
    (check,) = (check for check in plan.checks if check.name == "Virtual machine")
    assert not check.ok and "not registered" in check.text


@pytest.mark.parametrize("waits", [False, True])
def test_other_node_is_told_whether_it_starts_there_now(source: Source, waits: bool) -> None:
    how = Migration(node="n2", start_after=True, wait_for_shutdown=waits)
    prepared = source.planner.prepare("web1", how, "bob")
    assert prepared.traveller.starts != waits
    assert source.asked == [prepared.traveller]


def test_what_may_pass_is_told_apart(source: Source) -> None:
    def failed(**how: bool) -> dict[str, bool]:
        checks = source.planner.prepare("web1", Migration(node="n2", **how), "bob").plan.checks
        assert not any(check.ok and check.transient for check in checks)
        return {check.name: check.transient for check in checks if not check.ok}

    source.away = NodeUnreachable(node="n2", reason="it is just starting.")
    assert failed(copy_storage=True) == {"Node": True, "Disks": True, "Other node": True}
    source.away = None
    assert failed() == {"Node": False, "Disks": True}
    assert source.world.start() is None
    assert failed()["Virtual machine"] is False


def test_what_is_not_settled_yet_only_delays_a_wait(source: Source) -> None:
    def about_itself() -> MigrationCheck:
        checks = source.planner.prepare("web1", Migration(node="n2"), "bob").plan.checks
        (found,) = (check for check in checks if check.name == "Virtual machine")
        assert ("is not settled yet" in found.text) == source.unsettled
        return found

    assert about_itself().ok
    source.unsettled = True
    found = about_itself()
    assert not found.ok and found.transient
    # So it does together with what may pass as well: mcvirtd and libvirt have just started again.
    source.world.hypervisor.connected = False
    found = about_itself()
    assert not found.ok and found.transient and "libvirt" in found.text
    source.world.hypervisor.connected = True
    # Together with what stays it is told, and no reason to wait.
    assert source.world.start() is None
    found = about_itself()
    assert not found.ok and not found.transient and "is running" in found.text


def test_wait_lasts_until_it_is_settled(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK_AGAIN", 0.01)
    world = source.world
    with world.store.change() as change:
        change.edit(BackendRecord, "pool", shared=True)
        change.edit(VmRecord, "web1", nodes=("n1", "n2"))
    looks: list[bool] = []

    def look() -> MigrationPlan:
        source.unsettled = len(looks) < SETTLED_AFTER
        plan = source.planner.prepare("web1", Migration(node="n2"), "bob").plan
        looks.append(plan.ok)
        return plan

    waits = waiting.Waits(world.ground, Rights(world.store), lambda: False, lambda _: None)
    with working_for(Task("migration.migrate", "web1", "bob", "n1")):
        waits.until_possible(look)
    assert looks == [False] * SETTLED_AFTER + [True]
