"""Creating, changing, starting and deleting machines when a step fails: whatever it was, nothing is left half done."""

from __future__ import annotations

import threading

import pytest

from mcvirt.errors import (
    BadArgument,
    Busy,
    Conflict,
    Failed,
    LibvirtFailed,
    LibvirtUnreachable,
    McvirtError,
    NoSpaceLeft,
    NotFound,
    SeveralReasons,
    TaskCancelled,
    UndoIncomplete,
    VmIncomplete,
    VmLocked,
)
from mcvirt.types.task import TaskState
from mcvirt.types.vm import DiskDriver, DiskSpec, Flag, Machine, PowerState, VmSpec
from mcvirtd.hypervisor.xml.domain import domain_xml
from mcvirtd.state.records import DiskRecord, VmRecord
from tests.unit.storage.world import Standstill
from tests.unit.vm.world import MIB, World

NO_SPACE = NoSpaceLeft(action="create", path="it")
BROKEN = LibvirtFailed(action="do that", reason="it is broken.")
AWAY = LibvirtUnreachable(node="n1", uri="simulate:", reason="it went.")


def disk(size: int = 4 * MIB, driver: DiskDriver | None = None) -> DiskSpec:
    return DiskSpec(size=size, driver=driver)


# --- creation -------------------------------------------------------------------------------------------------------


def test_whole_machine(world: World) -> None:
    assert world.create(disks=2, networks=("lan", "dmz", "lan")) is None
    world.assert_whole()
    assert world.vms.info("web1").warnings == () and world.record().unfinished == ()


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("done", [False, True])
def test_failed_disk_leaves_nothing_and_the_machine_stays(world: World, failing: int, done: bool) -> None:
    original = world.volumes.create
    calls = []

    def create(name: str, size: int, **more: object) -> int:
        calls.append(name)
        if len(calls) == failing:
            world.volumes.fail_next("create", NO_SPACE, done=done)
        return original(name, size, **more)  # type: ignore[arg-type]

    world.volumes.create = create  # type: ignore[method-assign]
    error = world.create(disks=2)
    assert isinstance(error, VmIncomplete) and "space" in str(error)
    world.assert_whole()
    info = world.vms.info("web1")
    assert info.node == "n1" and len(info.disks) == failing - 1 and info.adapters == ()
    assert "disk 2 (8 MiB), a network adapter on 'lan'" in info.warnings[0]
    # The repair may be of another size and network.
    missing = tuple(disk() for _ in range(3 - failing))
    assert world.update(add_disks=missing, add_networks=("dmz",)) is None
    assert world.vms.info("web1").warnings == ()


@pytest.mark.parametrize("error", [BROKEN, AWAY])
def test_failed_registration_leaves_a_machine_to_register(world: World, error: McvirtError) -> None:
    world.hypervisor.fail_next("define", error)
    assert isinstance(world.create(), VmIncomplete)
    world.assert_whole()
    assert world.record().node is None and world.vms.info("web1").state is PowerState.UNKNOWN
    assert world.error_of(world.run(lambda: world.vms.register("web1"))) is None
    world.assert_whole()


def test_what_cannot_be_undone_now_is_undone_later(world: World) -> None:
    world.hypervisor.fail_next("define", AWAY)
    world.hypervisor.fail_next("undefine", AWAY)
    assert isinstance(world.create(), VmIncomplete)
    assert world.tasks.list()[-1].state is TaskState.STUCK
    # Somebody registers it before the undoing is tried again: then there is nothing to undo any more.
    assert world.error_of(world.run(lambda: world.vms.register("web1"))) is None
    world.tasks.settle()
    world.assert_whole()
    assert world.record().node == "n1"


@pytest.mark.parametrize("verb", ["create", "define"])
def test_cancelled_creation_leaves_nothing(world: World, verb: str) -> None:
    stop = Standstill(world.volumes, "create", done=True) if verb == "create" else None
    spec = VmSpec(name="web1", memory=64 * MIB, cpu_count=1, disks=(disk(),), networks=("lan",))
    task = world.tasks.start("t", "web1", "root", lambda: (world.vms.create(spec), b"null")[1], lambda *_: None)
    if stop is not None:
        assert stop.reached.wait(20)
        task.cancel("alice")
        stop.release()
    else:
        task.cancel("alice")
    info = task.news(2**62, 20).info
    assert isinstance(world.error_of(info), TaskCancelled), info.error
    assert info.state is TaskState.CANCELLED and world.records() == {}
    world.assert_whole()


def test_creation_cancelled_while_it_registers_leaves_nothing(world: World) -> None:
    spec = VmSpec(name="web1", memory=64 * MIB, cpu_count=1, disks=(), networks=("lan",))
    seen = threading.Event()
    started = threading.Event()

    def work() -> bytes:
        started.wait(20)
        world.vms.create(spec)
        return b"null"

    task = world.tasks.start("t", "web1", "root", work, lambda *_: None)

    # The last change before the registration is the one that adds the adapter: cancel in it.
    def watch(change: object) -> None:
        vm = world.store.get(VmRecord, "web1")
        if vm is not None and vm.adapters and not seen.is_set():
            seen.set()
            task.cancel("alice")

    world.store.subscribe(watch)
    started.set()
    info = task.news(2**62, 20).info
    assert seen.is_set() and isinstance(world.error_of(info), TaskCancelled), info.error
    assert world.records() == {}
    world.assert_whole()


def test_ide_has_three_places(world: World) -> None:
    disks = tuple(disk(driver=DiskDriver.IDE) for _ in range(4))
    spec = VmSpec(name="web1", memory=64 * MIB, cpu_count=1, disks=disks)
    assert isinstance(world.error_of(world.run(lambda: world.vms.create(spec))), BadArgument)
    assert world.records() == {} and world.volumes.names() == []


# --- change ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(
    ("verb", "error"),
    [("define", BROKEN), ("define", AWAY), ("volume", NO_SPACE)],
)
def test_failed_change_changes_nothing(world: World, running: bool, verb: str, error: McvirtError) -> None:
    world.create()
    if running:
        world.start()
    before, definition = world.records(), world.definition()
    if verb == "volume":
        world.volumes.fail_next("create", error)
    else:
        world.hypervisor.fail_next(verb, error)
    failed = world.update(memory=128 * MIB, add_disks=(disk(),), add_networks=("dmz",))
    assert type(failed) is type(error)
    assert world.records() == before and world.definition() == definition
    if not running:
        world.assert_whole()


def test_change_that_could_not_be_undone_is_undone_under_the_lock(world: World) -> None:
    world.create()
    definition = world.definition()
    world.hypervisor.fail_next("define", BROKEN)
    world.hypervisor.fail_next("define", AWAY)
    assert isinstance(world.update(memory=128 * MIB), UndoIncomplete)
    hold, held, done = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with world.locks.hold("vm:web1"):
            held.set()
            assert hold.wait(20)

    holder = threading.Thread(target=lambda: world.run(other))
    holder.start()
    assert held.wait(20)
    settler = threading.Thread(target=lambda: (world.tasks.settle(), done.set()))
    settler.start()
    assert not done.wait(0.3) and world.journal_rows() == [("vm.align", "undo")]
    hold.set()
    holder.join(20)
    assert done.wait(20)
    assert world.journal_rows() == [] and world.definition() == definition
    world.assert_whole()


def test_change_keeps_a_lock_that_was_set_meanwhile(world: World) -> None:
    world.create()
    stop = Standstill(world.volumes, "create", done=True)
    results: list[McvirtError | None] = []
    thread = threading.Thread(target=lambda: results.append(world.update(add_disks=(disk(),), memory=128 * MIB)))
    thread.start()
    assert stop.reached.wait(20)
    world.vms.set_lock("web1", True)
    stop.release()
    thread.join(20)
    assert results == [None]
    assert world.record().locked and world.record().memory == 128 * MIB
    assert isinstance(world.update(memory=64 * MIB), VmLocked)


def test_failing_deletion_of_a_disk_leaves_it_detached(world: World) -> None:
    world.create()
    world.volumes.fail_next("delete", Failed(text="The disk can't be deleted."))
    assert isinstance(world.update(delete_disk=1, add_disks=(disk(),)), Failed)
    world.assert_whole()
    detached = [each for each in world.store.all(DiskRecord).values() if each.vm is None]
    assert len(detached) == 1 and world.vms.info("web1").disks[0].size == 4 * MIB
    world.run(lambda: world.drives.delete(detached[0].id))
    world.assert_whole()


@pytest.mark.parametrize("running", [False, True])
def test_grow(world: World, running: bool) -> None:
    world.create()
    if running:
        world.start()
        world.hypervisor.fail_next("resize_block", BROKEN)
        assert isinstance(world.update(grow_disk=1, grow_by=8 * MIB), LibvirtFailed)
        assert world.vms.info("web1").disks[0].size == 8 * MIB
    assert world.update(grow_disk=1, grow_by=8 * MIB) is None
    assert world.vms.info("web1").disks[0].size == world.volumes.size(world.volumes.names()[0]) == 16 * MIB
    world.assert_whole()


def test_growing_that_a_crash_interrupted_waits_for_libvirt(world: World) -> None:
    world.create()
    world.start()
    stop = Standstill(world.volumes, "grow", done=False)
    thread = threading.Thread(target=lambda: world.update(grow_disk=1, grow_by=8 * MIB))
    thread.start()
    assert stop.reached.wait(20)
    new = world.reborn()
    stop.release()
    thread.join(20)
    new.hypervisor.connected = False
    new.tasks.settle()
    # Whether the guest runs is not known: it could hold the volume, and has to be told.
    assert new.journal_rows() == [("disk.finish_grow", "redo")] and new.vms.info("web1").disks[0].size == 8 * MIB
    new.hypervisor.connected = True
    new.tasks.settle()
    assert new.vms.info("web1").disks[0].size == 16 * MIB
    new.assert_whole()
    new.tasks.close()
    new.store.close()


def test_adapter_named_twice_in_different_letters(world: World) -> None:
    world.create()
    (mac,) = world.record().adapters
    error = world.update(change_networks={mac.upper(): "dmz"}, remove_networks=(mac,))
    assert isinstance(error, BadArgument) and "named twice" in str(error)


def test_all_refusals_at_once(world: World) -> None:
    world.create()
    world.vms.set_lock("web1", True)
    error = world.update(memory=1, cpu_count=0, delete_disk=9, grow_disk=8, grow_by=512, iso="x.iso")
    assert isinstance(error, SeveralReasons) and error.fields["count"] == 6
    assert isinstance(world.update("nosuch", memory=1), NotFound)


def test_align_twice_is_as_once(world: World) -> None:
    world.create(disks=2)
    world.start()
    before = world.definition()
    calls: list[str] = []
    for verb in ("attach_device", "detach_device", "update_device"):
        setattr(world.hypervisor, verb, lambda *_, verb=verb, **__: calls.append(verb))
    for _ in range(2):
        world.domains.align(world.domains.machine("web1"))
    assert calls == [] and world.definition() == before


def test_machine_that_is_not_registered_can_be_changed_without_libvirt(world: World) -> None:
    world.create()
    world.run(lambda: world.vms.unregister("web1"))
    world.hypervisor.connected = False
    assert world.update(memory=128 * MIB, add_disks=(disk(),), add_flags=(Flag.WINDOWS,)) is None
    world.hypervisor.connected = True
    assert world.error_of(world.run(lambda: world.vms.register("web1"))) is None
    world.assert_whole()


# --- power ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["define", "start"])
def test_failed_start_leaves_the_drive_as_it_was(world: World, verb: str) -> None:
    world.create()
    world.start(iso="a.iso")
    world.stop()
    definition = world.definition()
    world.hypervisor.fail_next(verb, BROKEN)
    assert isinstance(world.start(iso="b.iso"), LibvirtFailed)
    assert world.record().iso == "a.iso" and world.definition() == definition
    assert world.start() is None and world.record().iso is None
    world.assert_whole()


def test_two_at_once_get_a_sentence(world: World) -> None:
    world.create()
    hold, held = threading.Event(), threading.Event()

    def other() -> None:
        with world.locks.hold("vm:web1"):
            held.set()
            hold.wait(20)

    thread = threading.Thread(target=lambda: world.run(other))
    thread.start()
    assert held.wait(20)
    with pytest.raises(Busy), world.locks.hold("vm:web1", within=0):
        pass
    world.vms.set_lock("web1", True)  # which waits for nobody
    hold.set()
    thread.join(20)


# --- deletion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_disks", [False, True])
@pytest.mark.parametrize("keep_config", [False, True])
def test_delete(world: World, keep_disks: bool, keep_config: bool) -> None:
    world.create(disks=2)
    assert world.delete(keep_disks=keep_disks, keep_config=keep_config) is None
    world.assert_whole()
    assert len(world.volumes.names()) == (2 if keep_disks else 0)
    assert set(world.store.all(VmRecord)) == ({"web1"} if keep_config else set())


def test_failed_deletion_goes_on_when_it_is_repeated(world: World) -> None:
    world.create(disks=2)
    world.hypervisor.fail_next("undefine", BROKEN)
    assert isinstance(world.delete(), LibvirtFailed)
    world.assert_whole()
    world.volumes.fail_next("delete", Failed(text="It can't be deleted."))
    assert isinstance(world.delete(), Failed)
    assert world.vms.info("web1").missing and len(world.volumes.names()) == 2
    assert world.start() is None  # which repairs it
    world.stop()
    assert world.delete() is None
    world.assert_whole()
    assert world.records() == {}


def interrupted_deletion(world: World) -> World:
    """The process after one that died while it deleted web1; libvirt is away."""
    world.create()
    stop = Standstill(world.volumes, "delete", done=False)
    thread = threading.Thread(target=world.delete)
    thread.start()
    assert stop.reached.wait(20)
    new = world.reborn()
    new.hypervisor.fail_next("undefine", AWAY)
    new.hypervisor.define(_definition(new))
    new.tasks.settle()
    assert [task.state for task in new.tasks.list()][-1] is TaskState.STUCK
    world.volumes.fail_next("delete", Failed(text="The process is dead."))
    stop.release()
    thread.join(20)
    return new


def _definition(world: World) -> str:
    return domain_xml(world.designs.design(world.domains.machine("web1")))


def test_interrupted_deletion_is_finished(world: World) -> None:
    new = interrupted_deletion(world)
    new.tasks.settle()
    assert new.records() == {}
    new.assert_whole()
    new.tasks.close()
    new.store.close()


def test_interrupted_deletion_is_not_finished_for_who_uses_the_machine_again(world: World) -> None:
    new = interrupted_deletion(world)
    assert new.start() is None
    new.tasks.settle()
    assert new.vms.info("web1").state is PowerState.RUNNING
    new.stop()
    new.tasks.settle()
    assert len(new.volumes.names()) == 1
    new.assert_whole()
    new.tasks.close()
    new.store.close()


def test_disks_that_are_kept_need_no_storage(world: World) -> None:
    world.create()
    world.volumes.faults = ["The volume group is away."]
    assert isinstance(world.delete(), Conflict)
    assert world.delete(keep_disks=True) is None


# --- views ----------------------------------------------------------------------------------------------------------


def test_warnings(world: World) -> None:
    world.create("bare1", disks=0, networks=())
    assert world.vms.info("bare1").warnings == (
        "The machine has no hard drives.",
        "The machine has no network adapters.",
    )
    world.create()
    world.hypervisor.connected = False
    info = world.vms.info("web1")
    assert info.state is PowerState.UNKNOWN and not info.missing and "does not answer" in info.warnings[0]
    world.hypervisor.connected = True
    world.hypervisor.undefine(world.record().uuid)
    info = world.vms.info("web1")
    assert info.missing and "mcvirt start web1" in info.warnings[0]
    assert [(row.name, row.missing) for row in world.vms.list()] == [("bare1", False), ("web1", True)]
    world.start()
    world.stop()
    world.run(lambda: world.vms.unregister("web1"))
    assert "mcvirt register web1" in world.vms.info("web1").warnings[0]
    assert world.record().machine is Machine.Q35
