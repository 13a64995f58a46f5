"""Waiting for a guest to shut down: who may have it, and what is taken for being off."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mcvirt.errors import Conflict, NotPermitted
from mcvirt.permissions import Permission
from mcvirt.types.migration import Waiting
from mcvirtd.auth.rights import Rights
from mcvirtd.migration.service import MigrationService
from mcvirtd.migration.waiting import Waits
from mcvirtd.state.records import UserRecord
from mcvirtd.tasks.task import Task, working_for
from tests.unit.vm.world import World

ANY: Any = None  # not looked at here
BOTH = (Permission.MIGRATE_VM.value, Permission.CHANGE_VM_POWER_STATE.value)
WITHIN = 10.0


@pytest.fixture
def waits(world: World) -> Waits:
    world.create()
    return Waits(world.ground, Rights(world.store), lambda: False)


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
