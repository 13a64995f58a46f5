"""Taking a machine over from a node that is gone, and giving up what another node has taken over."""

from __future__ import annotations

import msgspec
import pytest

from mcvirt.errors import (
    BadArgument,
    Conflict,
    LeaderUnreachable,
    McvirtError,
    NodeUnreachable,
    OwnerAlive,
    OwnerUnconfirmed,
    TakenOverOnly,
    UnsuitableNode,
    VmLocked,
    VmNotFound,
    VmNotRegistered,
    VmRegistered,
)
from mcvirt.types.arrival import Whereabouts
from mcvirtd.hypervisor.xml.domain import domain_xml
from mcvirtd.state.records import BackendRecord, DiskRecord, VmRecord
from mcvirtd.vm.failover import Strays
from mcvirtd.vm.unsettled import SETTLE
from tests.unit.vm.world import World


def on_shared_storage(world: World, name: str = "web1", *, owner: str | None = "n2", **fields: object) -> None:
    """A machine of n2's, as this node knows it: its disk on a backend that both nodes have."""
    if not world.store.all(BackendRecord).get("pool", None) or "n2" not in world.store.all(BackendRecord)["pool"].nodes:
        world.second_node()
        backend = world.store.all(BackendRecord)["pool"]
        with world.store.change() as change:
            change.edit(BackendRecord, "pool", shared=True, nodes={**backend.nodes, "n2": ""})
    assert world.create(name) is None
    world.hypervisor.undefine(world.record(name).uuid)
    with world.store.change() as change:
        change.edit(VmRecord, name, node=owner, nodes=("n1", "n2"), **fields)
        for disk in world.store.all(DiskRecord).values():
            if disk.vm == name:
                change.edit(DiskRecord, disk.id, nodes=("n1", "n2"))


def failover(world: World, off: str | None = "n2", *, start: bool = False, name: str = "web1") -> McvirtError | None:
    return world.error_of(world.run(lambda: world.vms.failover(name, off, start)))


def untouched(world: World, owner: str | None = "n2") -> None:
    assert world.record().node == owner
    assert world.record().uuid not in world.hypervisor.domains()
    assert world.journal_rows() == []


def test_machine_is_this_nodes_afterwards(world: World) -> None:
    on_shared_storage(world)
    assert failover(world) is None
    assert world.record().node == "n1"
    assert not world.hypervisor.domains()[world.record().uuid].active
    world.assert_whole()


def test_it_can_be_started_at_once(world: World) -> None:
    on_shared_storage(world)
    assert failover(world, start=True) is None
    assert world.hypervisor.domains()[world.record().uuid].active


@pytest.mark.parametrize(("target", "taken"), [("n2", True), ("n3", False)])
def test_a_start_that_is_outstanding_on_the_dead_node_keeps_nobody_from_it(
    world: World, target: str, taken: bool
) -> None:
    """The machine went to n2, which was to start it; of one that was on its way elsewhere nobody knows where it is."""
    on_shared_storage(world)
    world.journal.register(SETTLE, lambda **_: None)
    world.journal.add(0, "undo", SETTLE, {"ticket": {"name": "web1", "uuid": world.record().uuid, "target": target}})
    error = failover(world, start=True)
    assert (error is None) == taken, error
    assert (world.journal.due_of(SETTLE) == []) == taken
    assert taken or "not settled yet" in str(error)


def test_an_owner_that_somebody_reaches_is_alive(world: World) -> None:
    on_shared_storage(world)
    world.reach.witnesses["n2"] = "node 'n3' reaches it (it answers)."
    error = failover(world)
    assert isinstance(error, OwnerAlive)
    assert "node 'n3' reaches it" in str(error)
    untouched(world)


def test_without_the_operators_word_nothing_is_done(world: World) -> None:
    on_shared_storage(world)
    error = failover(world, None)
    assert isinstance(error, OwnerUnconfirmed)
    assert "--yes-node-is-off n2" in str(error)
    untouched(world)


def test_the_word_must_be_about_the_right_node(world: World) -> None:
    on_shared_storage(world)
    assert isinstance(failover(world, "n3"), BadArgument)
    untouched(world)


def test_a_dead_leader_is_told_of_before_anything_is_done(world: World) -> None:
    on_shared_storage(world)
    world.reach.leaderless = LeaderUnreachable(leader="n2")
    error = failover(world)
    assert isinstance(error, LeaderUnreachable)
    assert "mcvirt cluster promote" in str(error)
    untouched(world)


def test_a_disk_that_only_the_other_node_has_can_not_be_taken_over(world: World) -> None:
    on_shared_storage(world)
    with world.store.change() as change:
        change.edit(BackendRecord, "pool", shared=False)
    error = failover(world)
    assert isinstance(error, Conflict)
    assert "its data is only on node" in str(error)
    untouched(world)


def test_one_that_has_come_to_a_third_node_is_not_started_again(world: World) -> None:
    on_shared_storage(world)
    world.reach.has = {"n3": Whereabouts(active=True), "n4": Whereabouts(defined=True)}
    error = failover(world, start=True)
    assert isinstance(error, Conflict)
    assert "runs on node 'n3', and can be taken over only there" in str(error) and "'n4'" not in str(error)
    untouched(world)


def test_who_answers_and_can_not_say_stands_against_it(world: World) -> None:
    on_shared_storage(world)
    world.reach.has = {"n3": NodeUnreachable(node="n3", reason="it did not answer in time.")}
    error = failover(world)
    assert isinstance(error, Conflict)
    assert "Node 'n3' answers, and can't say" in str(error)
    untouched(world)


def arrived(world: World, *, paused: bool = False) -> str:
    """The guest has come here in a migration, and its node died before the record was changed."""
    on_shared_storage(world)
    world.hypervisor.define(domain_xml(world.designs.design(world.domains.machine("web1"))))
    world.hypervisor.start(world.record().uuid, paused=paused)
    return world.record().uuid


@pytest.mark.parametrize("start", [False, True])
def test_one_that_has_come_here_goes_on_running(world: World, start: bool) -> None:
    uuid = arrived(world)
    before = world.hypervisor.domains()[uuid]
    assert failover(world, start=start) is None
    assert world.record().node == "n1"
    assert world.hypervisor.domains()[uuid] == before and before.running
    world.assert_whole()


def test_one_that_stands_here_is_told(world: World) -> None:
    uuid = arrived(world, paused=True)
    assert "its guest stands still" in str(failover(world, start=True))
    assert world.record().node == "n2" and world.hypervisor.domains()[uuid].active


def test_all_that_is_wrong_here_is_said_at_once(world: World) -> None:

    on_shared_storage(world, locked=True)
    world.bridges.clear()
    with world.store.change() as change:
        change.edit(VmRecord, "web1", nodes=("n2",))
    text = str(failover(world))
    for kind in (VmLocked(name="web1"), UnsuitableNode(name="web1", node="n1", nodes="n2")):
        assert str(kind).rstrip(".") in text
    assert "There is no bridge" in text
    untouched(world)


@pytest.mark.parametrize(("owner", "refusal"), [("n1", VmRegistered), (None, VmNotRegistered)])
def test_only_another_nodes_machine_is_taken_over(world: World, owner: str | None, refusal: type[McvirtError]) -> None:
    on_shared_storage(world, owner=owner)
    assert isinstance(failover(world), refusal)
    assert isinstance(failover(world, name="nothing"), VmNotFound)


def test_an_image_that_is_not_here_is_taken_out(world: World) -> None:
    on_shared_storage(world, iso="there.iso", boot_iso=True)
    assert failover(world) is None
    assert (world.record().iso, world.record().boot_iso) == (None, False)


def test_an_image_that_is_here_stays(world: World) -> None:
    on_shared_storage(world, iso="a.iso")
    assert failover(world) is None
    assert world.record().iso == "a.iso"


def test_who_was_first_has_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:

    on_shared_storage(world)
    define = world.hypervisor.define

    def meanwhile(xml: str) -> str:
        with world.store.change() as change:
            change.edit(VmRecord, "web1", node="n3")
        return define(xml)

    monkeypatch.setattr(world.hypervisor, "define", meanwhile)
    assert "given to another node" in str(failover(world))
    untouched(world, "n3")


def test_one_that_does_not_start_is_this_nodes_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on_shared_storage(world)

    def fails(uuid: str, *, paused: bool = False) -> bool:
        raise Conflict(text="No.")

    monkeypatch.setattr(world.hypervisor, "start", fails)
    error = failover(world, start=True)
    assert isinstance(error, TakenOverOnly)
    assert world.record().node == "n1"


# --- the node that comes back ---------------------------------------------------------------------------------------


def taken_from(world: World, *, running: bool) -> None:
    """Node n2 has taken over the machine of this node."""

    on_shared_storage(world)
    assert failover(world, start=running) is None
    with world.store.change() as change:
        change.edit(VmRecord, "web1", node="n2")


def test_a_stopped_stray_is_undefined(world: World) -> None:
    taken_from(world, running=False)
    told: list[tuple[str, McvirtError | None]] = []
    strays = Strays(world.ground, sure=lambda: True, tell=lambda name, error: told.append((name, error)))
    strays.settle()
    assert world.hypervisor.domains() == {}
    assert told == [("web1", None)]
    assert strays.warnings() == ()


def test_nothing_is_given_up_before_the_node_knows_the_cluster(world: World) -> None:
    taken_from(world, running=False)
    Strays(world.ground, sure=lambda: False).settle()
    assert len(world.hypervisor.domains()) == 1


def test_a_running_stray_is_told_once_and_left_alone_until_it_is_off(world: World) -> None:
    taken_from(world, running=True)
    uuid = world.record().uuid
    told: list[str] = []
    strays = Strays(world.ground, sure=lambda: True, tell=lambda _, error: told.append(str(error)))
    strays.settle()
    strays.settle()
    assert world.hypervisor.domains()[uuid].active
    assert len(told) == 1
    assert "although node 'n2' has taken it over" in told[0]
    assert strays.warnings() == (told[0],)
    assert "It runs on node 'n1' as well" in " ".join(world.vms.info("web1").warnings)
    world.hypervisor.destroy(uuid)
    strays.settle()
    assert world.hypervisor.domains() == {}
    assert strays.warnings() == ()


def test_a_machine_at_work_is_no_stray(world: World) -> None:
    taken_from(world, running=False)
    strays = Strays(world.ground, sure=lambda: True)

    def settle() -> None:
        from mcvirtd.tasks.task import Task, working_for

        with working_for(Task("other", "", "root", "n1")):
            strays.settle()

    def work() -> None:
        import threading

        with world.locks.hold("vm:web1"):
            other = threading.Thread(target=settle)
            other.start()
            other.join()

    assert world.error_of(world.run(work)) is None
    assert len(world.hypervisor.domains()) == 1


def test_machines_of_this_node_stay(world: World) -> None:
    assert world.create("web1") is None
    Strays(world.ground, sure=lambda: True).settle()
    world.assert_whole()
    assert msgspec.structs.asdict(world.record())["node"] == "n1"
