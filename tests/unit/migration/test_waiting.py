"""Waiting for a guest to shut down: who may have it, and what is taken for being off."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mcvirt.errors import Conflict, Failed, MigrationFailed, NotPermitted, TaskCancelled, UndoIncomplete
from mcvirt.permissions import Permission
from mcvirt.types.migration import MigrationCheck, MigrationPlan, Waiting
from mcvirtd.auth.rights import Rights
from mcvirtd.migration import waiting as module
from mcvirtd.migration.moves import Moves
from mcvirtd.migration.service import MigrationService
from mcvirtd.migration.waiting import Waits
from mcvirtd.state.records import UserRecord
from mcvirtd.tasks.task import Task, current_task, working_for
from mcvirtd.vm.unsettled import SETTLE
from tests.unit.vm.world import World

ANY: Any = None  # not looked at here
BOTH = (Permission.MIGRATE_VM.value, Permission.CHANGE_VM_POWER_STATE.value)
WITHIN = 10.0


@pytest.fixture
def waits(world: World) -> Waits:
    world.create()
    power = world.vms._power
    return Waits(world.ground, Rights(world.store), lambda: False, lambda name: power.start(name, None))


def give(world: World, name: str, *permissions: str) -> None:
    with world.store.change() as change:
        change.put(UserRecord(name=name, password_hash="", vm_permissions={"web1": permissions}))


def test_who_asked_must_still_be_allowed_to(world: World, waits: Waits) -> None:
    wait, start = Waiting(node="n2", by="bob"), Waiting(node="n2", by="bob", start_after=True)
    with pytest.raises(NotPermitted, match="MIGRATE_VM"):
        waits.require("web1", wait)  # there is no bob any more
    give(world, "bob", *BOTH)
    waits.require("web1", start)
    give(world, "bob", BOTH[0])
    waits.require("web1", wait)
    with pytest.raises(NotPermitted, match="CHANGE_VM_POWER_STATE"):
        waits.require("web1", start)


def test_root_is_no_user_of_that_name(world: World, waits: Waits) -> None:
    wait = Waiting(node="n2", by="root", start_after=True)
    waits.require("web1", wait)
    give(world, "root")
    with pytest.raises(NotPermitted):
        waits.require("web1", wait)


@pytest.fixture
def service(world: World, waits: Waits) -> MigrationService:
    return MigrationService(
        world.ground,
        hypervisor=world.hypervisor,
        planner=ANY,
        settlement=ANY,
        disks=ANY,
        waits=waits,
        ask=ANY,
        dial=ANY,
        reachable=ANY,
    )


def test_wait_of_an_earlier_process_ends_when_it_is_not_allowed_any_more(
    world: World, waits: Waits, service: MigrationService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "until_off", None)  # it does not come to that
    wait = Waiting(node="n2", by="bob", start_after=True)
    give(world, "bob", BOTH[0])
    waits._begin("web1", wait)
    assert waits.left() == {"web1": wait}
    with pytest.raises(NotPermitted, match="CHANGE_VM_POWER_STATE"):
        service.wait("web1", wait)
    assert waits.left() == {} and world.record().waiting is None


def test_who_begins_to_wait_is_at_it_from_the_first_moment_on(world: World, waits: Waits) -> None:
    """Else a timer could take it up in between, and who has asked for it would be refused."""
    left: list[dict[str, Waiting]] = []
    world.store.subscribe(lambda _: left.append(waits.left()))
    with waits.at("web1", Waiting(node="n2", by="bob")):
        pass
    assert left == [{}, {}] and world.record().waiting is None
    wait = Waiting(node="n3", by="bob")
    waits._begin("web1", wait)
    with pytest.raises(Conflict, match="waits already"), waits.at("web1", Waiting(node="n2", by="bob")):
        pass
    assert waits.left() == {"web1": wait}


def test_rights_are_asked_for_again_when_the_guest_is_off(
    world: World, waits: Waits, service: MigrationService, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Waiting(node="n2", by="bob")
    give(world, "bob", *BOTH)
    monkeypatch.setattr(waits, "until_off", lambda *_: give(world, "bob"))
    monkeypatch.setattr(waits, "until_possible", lambda _: None)
    with pytest.raises(NotPermitted, match="MIGRATE_VM"):
        service.wait("web1", wait)


def test_guest_is_off_only_when_libvirt_says_so(world: World, waits: Waits) -> None:
    """Before libvirt has answered for the first time, nothing is known of any domain."""
    world.hypervisor.connected = False
    task, ended = Task("migration.migrate", "web1", "bob", "n1"), threading.Event()

    def wait() -> None:
        with working_for(task):
            waits.until_off("web1", world.record().uuid)
            ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not ended.wait(0.3)
    world.hypervisor.connected = True
    assert ended.wait(WITHIN)
    thread.join(WITHIN)


def test_machine_that_waits_is_not_started_by_itself_until_that_is_over(world: World, waits: Waits) -> None:
    moves = object.__new__(Moves)
    moves._store = world.store
    moves._settlement = SimpleNamespace(due=list)  # type: ignore[assignment]
    moves.arrivals = SimpleNamespace(expects=lambda _: False)  # type: ignore[assignment]
    moves._catches_up = lambda _: False
    assert not moves.unsettled("web1")
    with waits.at("web1", Waiting(node="n2", by="bob")):
        assert moves.unsettled("web1")
    assert not moves.unsettled("web1") and not moves.unsettled("nobody")


# --- the guest is off, and it can't be migrated just then -------------------------------------------------------------

FINE = MigrationCheck(name="Virtual machine", ok=True, text="it can be migrated now.")
AWAY = MigrationCheck(name="Node", ok=False, text="Node 'n2' can't be reached.", transient=True)
FULL = MigrationCheck(name="Memory", ok=False, text="There is too little.")


class Looks:
    """Finds what stands against it, one set of checks after the other; the last one stays."""

    def __init__(self, *found: tuple[MigrationCheck, ...]) -> None:
        self.found = list(found)
        self.count = 0

    def __call__(self) -> MigrationPlan:
        self.count += 1
        checks = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        return MigrationPlan(name="web1", source="n1", target="n2", online=False, checks=checks, steps=(), size=0)


@pytest.fixture
def task() -> Task:
    return Task("migration.migrate", "web1", "bob", "n1")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.01)
    monkeypatch.setattr(module, "_KEEP_TRYING", 0.1)


def test_what_passes_is_waited_for(waits: Waits, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.01)
    looks = Looks((FINE, AWAY), (AWAY,), (FINE,))
    with working_for(task):
        waits.until_possible(looks)
    assert looks.count == 3
    assert [each.finished for each in task.info().steps] == [True]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("found", [(FINE,), (FINE, FULL), (AWAY, FULL)])
def test_nothing_else_is(waits: Waits, task: Task, found: tuple[MigrationCheck, ...]) -> None:
    looks = Looks(found)
    with working_for(task):
        waits.until_possible(looks)
    assert looks.count == 1 and task.info().steps == ()


@pytest.mark.usefixtures("impatient")
def test_it_is_not_waited_for_ever(waits: Waits, task: Task) -> None:
    looks = Looks((AWAY,))
    with working_for(task):
        waits.until_possible(looks)
    assert looks.count > 2


def test_why_it_waits_is_shown_and_it_can_be_cancelled(
    waits: Waits, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_AGAIN", 6 * WITHIN)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            with working_for(task):
                waits.until_possible(Looks((AWAY,)))
        except TaskCancelled as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        info = task.info()
        while not any(each.waits == AWAY.text for each in info.steps):
            seen, info = info.version, task.news(info.version, WITHIN).info
            assert info.version > seen
    finally:
        task.cancel("alice")
        thread.join(WITHIN)
    assert len(ended) == 1, "it does not sleep meanwhile"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("start_after", [False, True])
def test_machine_that_was_to_run_there_runs_here_when_it_is_given_up(
    world: World, waits: Waits, service: MigrationService, monkeypatch: pytest.MonkeyPatch, start_after: bool
) -> None:
    give(world, "bob", *BOTH)
    looks = Looks((AWAY,), (FINE,))
    service._planner = SimpleNamespace(prepare=lambda *_: SimpleNamespace(plan=looks()))  # type: ignore[assignment]

    def migrate(*_: object) -> None:
        assert looks.count == 2
        raise MigrationFailed(name="web1", reason="QEMU does not like it.", node="n1")

    monkeypatch.setattr(service, "_migrate", migrate)
    wait = Waiting(node="n2", by="bob", start_after=start_after)
    error = world.error_of(world.run(lambda: service.wait("web1", wait)))
    assert isinstance(error, Failed) and "QEMU does not like it." in str(error)
    assert ("was started on node 'n1' again" in str(error)) == start_after
    state = world.hypervisor.state(world.record().uuid)
    assert state is not None and state.active == start_after
    assert world.record().waiting is None


def test_what_is_not_settled_is_not_started_here(world: World, waits: Waits) -> None:
    world.journal.register(SETTLE, lambda **_: None)

    def give_up() -> None:
        world.journal.add(0, "undo", SETTLE, {"ticket": {"name": "web1", "target": "n2"}})
        raise waits.give_up("web1", Waiting(node="n2", by="bob", start_after=True), Conflict(text="It is too late."))

    error = world.error_of(world.run(give_up))
    assert "It is too late. It could not be started on node 'n1' either: the migration is not" in str(error)
    state = world.hypervisor.state(world.record().uuid)
    assert state is not None and not state.active


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_is_not_known_yet_is_waited_for_again(world: World, waits: Waits, cancelled: bool) -> None:
    """As when its target dies in the middle: the machine stays, and its guest is off already."""
    wait = Waiting(node="n2", by="bob", start_after=True)

    def dies() -> None:
        with waits.at("web1", wait):
            if cancelled:
                current_task().cancel("bob")
            raise UndoIncomplete(text="n2 fell silent.", remains="it is settled later.")

    assert isinstance(world.error_of(world.run(dies)), UndoIncomplete)
    assert world.record().waiting == (None if cancelled else wait)
    with waits.at("web1"):
        pass
    assert world.record().waiting is None
