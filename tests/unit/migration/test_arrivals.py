"""What comes from another node is kept until that node has said how the migration ended, whoever dies meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mcvirt.errors import Conflict, DomainMissing, McvirtError, NodeUnreachable
from mcvirt.types.arrival import Traveller
from mcvirtd.auth.caller import Caller, called_by
from mcvirtd.host.facts import Memory
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.hypervisor.xml.domain import domain_xml
from mcvirtd.migration.arrivals import Arrivals
from mcvirtd.migration.expectations import Expectations
from mcvirtd.migration.ticket import Ticket
from mcvirtd.migration.volumes import Copies
from mcvirtd.state.records import BackendRecord, DiskRecord, NodeRecord, VmRecord
from mcvirtd.vm.design import AcceleratorOfNode
from mcvirtd.vm.failover import Strays
from mcvirtd.vm.unsettled import SETTLE
from tests.unit.vm.world import World


class NoReplicas:
    """For a machine without replicated disks."""

    def settle_in(self, disks: object) -> None: ...

    give_up = settle_in

    def lapsed(self, disks: object) -> bool:
        return False


class Target:
    """Node n1, to which web1 of n2's comes with the data of its disk. *says* is n2's answer to `sends`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.says: bool | McvirtError = True
        self.leaving: list[Ticket] = []
        self.free = 2**34
        self.used: dict[str, int] = {}
        self.arrivals = Arrivals(
            world.ground,
            hypervisor=world.hypervisor,
            uri="",
            copies=Copies(world.ground, world.node),
            expectations=Expectations(world.ground, self.ask),
            leaving=lambda: self.leaving,
            power=world.vms._power,
            accelerator=AcceleratorOfNode(lambda: ("tcg", "simulated")),
            memory=lambda: Memory(total=2**34, used=2**34 - self.free),
            used_by=lambda name: self.used.get(name, 0),
            carry_on=lambda _: None,
            replicas=NoReplicas(),  # type: ignore[arg-type]
        )
        self.strays = Strays(world.ground, sure=lambda: True, expected=self.arrivals.expects)

    def ask(self, node: str, operation: str, **arguments: Any) -> msgspec.Raw:
        assert (node, operation, arguments) == ("n2", "sends", {"uuid": self.uuid})
        if isinstance(self.says, McvirtError):
            raise self.says
        return msgspec.Raw(msgspec.json.encode(self.says))

    @property
    def uuid(self) -> str:
        return self.world.record().uuid

    @property
    def disk(self) -> DiskRecord:
        (disk,) = self.world.store.all(DiskRecord).values()
        return disk

    def traveller(self) -> Traveller:
        return Traveller(name="web1", uuid=self.uuid, copied=(self.disk.id,))

    def told(self, work: Callable[[], object]) -> McvirtError | None:
        """n2 has asked for *work*."""

        def by_n2() -> None:
            with called_by(Caller(peer="n2")):
                work()

        return self.world.error_of(self.world.run(by_n2))

    def arrive(self) -> None:
        """All of the migration but its end."""
        assert self.told(lambda: self.arrivals.expect(self.traveller())) is None
        assert self.told(lambda: self.arrivals.make_volume("web1", self.disk.id)) is None
        self.world.hypervisor.define(domain_xml(self.world.designs.design(self.world.domains.machine("web1"))))
        assert self.world.hypervisor.start(self.uuid)

    def reborn(self) -> Target:
        return Target(self.world.reborn())

    def settle(self) -> None:
        """As the timers do."""
        for _ in range(3):
            self.world.tasks.settle()
            self.strays.settle()

    def is_kept(self) -> bool:
        kept = self.uuid in self.world.hypervisor.domains()
        assert kept == (self.disk.volume in self.world.volumes.names())
        return kept


@pytest.fixture
def target(world: World) -> Target:
    world.second_node()
    with world.store.change() as change:
        change.edit(BackendRecord, "pool", nodes={"n1": "", "n2": ""})
    assert world.create() is None
    made = Target(world)
    world.hypervisor.undefine(made.uuid)
    world.volumes.delete(made.disk.volume)
    with world.store.change() as change:
        change.edit(VmRecord, "web1", node="n2", nodes=("n2",))
        change.edit(DiskRecord, made.disk.id, nodes=("n2",))
    return made


def test_what_came_is_kept_by_the_next_process_until_its_source_is_back(target: Target) -> None:
    target.arrive()
    target = target.reborn()
    target.says = NodeUnreachable(node="n2", reason="it is off.")
    assert target.arrivals.expects("web1")
    target.settle()
    target.world.hypervisor.destroy(target.uuid)  # its guest shuts down
    target.settle()
    assert target.is_kept(), "n2 can't be asked"
    target.says = True
    target.settle()
    assert target.is_kept(), "n2 has not settled it"
    with target.world.store.change() as change:
        change.edit(VmRecord, "web1", node="n1", nodes=("n1",))
        change.edit(DiskRecord, target.disk.id, nodes=("n1",))
    assert target.told(lambda: target.arrivals.finish("web1")) is None
    target.settle()
    assert target.is_kept() and target.world.journal_rows() == []


def test_nothing_stays_when_the_source_has_kept_it(target: Target) -> None:
    target.arrive()
    target = target.reborn()
    target.world.hypervisor.destroy(target.uuid)
    assert target.told(lambda: target.arrivals.abandon(target.traveller())) is None
    assert not target.is_kept() and target.world.journal_rows() == []


def test_a_domain_that_libvirt_ends_in_the_same_moment_is_abandoned_too(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.arrive()
    hypervisor, uuid = target.world.hypervisor, target.uuid
    hypervisor._states.put(uuid, DomainState(uuid=uuid, name="web1", condition="paused", reason="migrating", id=7))
    monkeypatch.setattr("mcvirtd.migration.arrivals._STIRS_WITHIN", 0.01)

    def gone(_: str) -> bool:
        hypervisor.undefine(uuid)
        raise DomainMissing(node="n1", uuid=uuid)

    monkeypatch.setattr(hypervisor, "destroy", gone)
    assert target.told(lambda: target.arrivals.abandon(target.traveller())) is None
    assert not target.is_kept()


def test_nothing_stays_when_the_source_knows_of_no_migration(target: Target) -> None:
    target.arrive()
    target = target.reborn()
    target.world.hypervisor.destroy(target.uuid)
    target.says = False
    target.settle()
    assert not target.is_kept() and target.world.journal_rows() == []


def test_volume_is_kept_although_no_domain_has_it(target: Target) -> None:
    target.arrive()
    target = target.reborn()
    target.world.hypervisor.undefine(target.uuid)
    target.settle()
    assert target.disk.volume in target.world.volumes.names()
    target.says = False
    target.settle()
    assert target.disk.volume not in target.world.volumes.names() and target.world.journal_rows() == []


def test_nobody_is_asked_while_this_process_expects_it(target: Target) -> None:
    target.says = False
    target.arrive()
    target.settle()
    assert target.is_kept() and target.arrivals.expects("web1")


@pytest.mark.parametrize("gone", [False, True])
def test_what_a_third_node_has_taken_over_or_a_removed_one_had_is_not_expected(target: Target, gone: bool) -> None:
    target.arrive()
    assert target.arrivals.expects("web1")
    with target.world.store.change() as change:
        if gone:
            change.delete(NodeRecord, "n2")
        else:
            change.edit(VmRecord, "web1", node="n3")
    assert not target.arrivals.expects("web1")
    target.strays.settle()
    assert target.strays.warnings(), "it runs here all the same"


# --- its source is lost for good --------------------------------------------------------------------------------------


def failover(target: Target, *, start: bool = False) -> McvirtError | None:
    return target.world.error_of(target.world.run(lambda: target.world.vms.failover("web1", "n2", start)))


def lost(target: Target) -> Target:
    """The next process here, which can't ask n2."""
    after = target.reborn()
    after.says = NodeUnreachable(node="n2", reason="it is off.")
    after.settle()
    return after


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_what_came_with_the_guest_is_its_disk(target: Target, ended: bool, again: bool) -> None:
    target.arrive()
    if again:
        target = lost(target)
    if ended:
        target.world.hypervisor.destroy(target.uuid)
    assert failover(target, start=True) is None
    vm = target.world.record()
    assert (vm.node, vm.nodes, target.disk.nodes) == ("n1", ("n1",), ("n1",))
    state = target.world.hypervisor.state(target.uuid)
    assert state is not None and state.running and state.persistent
    assert target.world.journal_rows() == [] and not target.arrivals.expects("web1")
    target.settle()
    assert target.is_kept()


@pytest.mark.parametrize("state", [None, "paused"])
def test_a_copy_without_its_guest_is_not_taken_for_the_disk_and_kept(target: Target, state: str | None) -> None:
    target.arrive()
    if state is None:
        target.world.hypervisor.destroy(target.uuid)
        target.world.hypervisor.undefine(target.uuid)
    else:
        standing = DomainState(
            uuid=target.uuid, name="web1", condition="paused", reason="migrating", id=7, persistent=False
        )
        target.world.hypervisor._states.put(target.uuid, standing)
    target = lost(target)
    error = failover(target)
    assert "the guest has not gone over" in str(error) and "virsh resume" not in str(error)
    assert target.world.record().node == "n2" and target.disk.nodes == ("n2",)
    assert target.disk.volume in target.world.volumes.names()


def removed(target: Target) -> str:
    """n2 is removed from the cluster for good, with all that it had alone; returns the name of the volume."""
    volume = target.disk.volume
    with target.world.store.change() as change:
        change.delete(NodeRecord, "n2")
        change.edit(BackendRecord, "pool", nodes={"n1": ""})
        change.delete(VmRecord, "web1")
        change.delete(DiskRecord, target.disk.id)
    return volume


@pytest.mark.parametrize("back", [False, True])
def test_what_may_be_the_only_copy_is_kept_until_somebody_decides(target: Target, back: bool) -> None:
    target.arrive()
    uuid = target.uuid
    target = lost(target)
    volume = removed(target)
    if back:  # as another member of that name
        with target.world.store.change() as change:
            change.put(NodeRecord(name="n2", id="another", address="10.0.0.9"))
    target.world.hypervisor.destroy(uuid)
    target.world.hypervisor.undefine(uuid)
    for _ in range(2):
        target.world.tasks.settle()
    assert target.world.volumes.names() == [volume]
    (task,) = target.world.tasks.list(ended=False)
    assert f"`mcvirt hard-drive import {volume} pool`" in (task.remains or "")
    drive = target.world.drives.import_volume(volume, "pool")
    target.world.tasks.settle()
    assert target.world.journal_rows() == [] and target.world.volumes.names() == [volume]
    assert drive.id in target.world.store.all(DiskRecord)


def test_a_copy_that_somebody_has_deleted_is_forgotten(target: Target) -> None:
    target.arrive()
    uuid = target.uuid
    target = lost(target)
    volume = removed(target)
    target.world.hypervisor.destroy(uuid)
    target.world.hypervisor.undefine(uuid)
    target.world.volumes.delete(volume)
    target.world.tasks.settle()
    assert target.world.journal_rows() == []


def test_what_was_left_of_it_earlier_is_not_taken_for_what_comes(target: Target) -> None:
    target.world.hypervisor.define(domain_xml(target.world.designs.design(target.world.domains.machine("web1"))))
    assert target.told(lambda: target.arrivals.expect(target.traveller())) is None
    assert target.world.hypervisor.state(target.uuid) is None


# --- who asks -------------------------------------------------------------------------------------------------------


def test_another_machine_of_that_name_is_not_what_is_abandoned(target: Target) -> None:
    target.arrive()
    old = msgspec.structs.replace(target.traveller(), uuid="6f1e7c4e-0000-4000-8000-000000000000", copied=())
    assert target.told(lambda: target.arrivals.abandon(old)) is None
    assert target.is_kept() and target.arrivals.expects("web1")
    error = target.told(lambda: target.arrivals.abandon(target.traveller()))
    assert isinstance(error, Conflict) and "runs on node 'n1'" in str(error)


def test_who_sends_it_says_so_to_whom_it_goes(target: Target) -> None:
    def sends(peer: str) -> bool:
        with called_by(Caller(peer=peer)):
            return target.arrivals.sends(target.uuid)

    assert not sends("n2")
    target.leaving = [
        Ticket(name="web1", uuid=target.uuid, source="n1", target="n2", online=True, copied=(), by="bob", begun=0)
    ]
    assert sends("n2") and not sends("n3")


@pytest.mark.parametrize("lost_meanwhile", [False, True])
def test_what_comes_while_it_is_off_is_defined_once(target: Target, lost_meanwhile: bool) -> None:
    defined: list[str] = []
    define = target.world.hypervisor.define
    target.world.hypervisor.define = lambda xml: [defined.append(xml), define(xml)][1]  # type: ignore[method-assign,func-returns-value]
    assert target.told(lambda: target.arrivals.expect(target.traveller())) is None
    assert target.told(lambda: target.arrivals.define("web1")) is None
    if lost_meanwhile:
        target.world.hypervisor.undefine(target.uuid)
    with target.world.store.change() as change:
        change.edit(VmRecord, "web1", node="n1", nodes=("n1",))
    for _ in range(2):  # the second time nobody knows any more what libvirt was told
        assert target.told(lambda: target.arrivals.finish("web1")) is None
        assert target.world.hypervisor.state(target.uuid) is not None
    assert len(defined) == (3 if lost_meanwhile else 2) and len(set(defined)) == 1


def test_a_guest_whose_sender_hangs_is_not_waited_for_once_nobody_keeps_its_disks_open(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcvirtd.migration.arrivals._LAPSES_WITHIN", 0.0)
    ended: list[object] = []
    monkeypatch.setattr("mcvirtd.migration.carrying.end", ended.append)
    lapsed = [False]
    monkeypatch.setattr(NoReplicas, "lapsed", lambda self, disks: lapsed[0])
    carried: Any = object()
    target.arrive()
    target.arrivals._carried["web1"] = {carried}
    still = DomainState(uuid=target.uuid, name="web1", condition="paused", reason="migrating", id=7)
    target.world.hypervisor._states.put(target.uuid, still)
    target.arrivals.turn_away()
    assert ended == []
    lapsed[0] = True
    target.world.hypervisor.resume(target.uuid)
    target.arrivals.turn_away()
    assert ended == [], "it runs here"
    target.world.hypervisor._states.put(target.uuid, still)
    monkeypatch.setattr("mcvirtd.migration.arrivals._LAPSES_WITHIN", 600.0)
    target.arrivals.turn_away()
    assert ended == [], "it is late, and no more"
    monkeypatch.setattr("mcvirtd.migration.arrivals._LAPSES_WITHIN", 0.0)
    target.arrivals.turn_away()
    assert ended == [carried]


def test_one_that_went_away_and_is_not_settled_does_not_come_back_yet(target: Target) -> None:
    """Who settles that would end what is just coming as the rest of it."""
    ticket = {"name": "web1", "uuid": target.uuid, "source": "n1", "target": "n2"}
    target.world.journal.register(SETTLE, lambda **_: None)
    target.world.journal.add(0, "undo", SETTLE, {"ticket": ticket})
    error = target.told(lambda: target.arrivals.expect(target.traveller()))
    assert isinstance(error, Conflict) and "not settled yet" in str(error)
    target.world.journal.withdraw(SETTLE, ticket=ticket)
    assert target.told(lambda: target.arrivals.expect(target.traveller())) is None
