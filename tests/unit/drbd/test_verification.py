"""Verifying and resynchronising, with a kernel that says what the real one said."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from mcvirt.errors import (
    BadArgument,
    CommandFailed,
    Conflict,
    DeadlinePassed,
    Failed,
    McvirtError,
    NodeUnreachable,
    StateNotWritable,
    TaskCancelled,
    VerificationFailed,
    VmNotFound,
)
from mcvirt.types.storage import VolumeFormat
from mcvirt.types.task import TaskInfo
from mcvirt.types.verification import Resynced
from mcvirt.types.vm import DiskDriver, StorageType
from mcvirtd.auth.caller import SYSTEM, Caller, called_by, current_caller
from mcvirtd.drbd import comparing, schedule
from mcvirtd.drbd.comparing import Comparison, ending
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.resyncing import RECONNECT, Copied, Resync, copied
from mcvirtd.drbd.status import GAP, READ_WRAPS, Event, Progress
from mcvirtd.drbd.verification_service import VerificationService
from mcvirtd.drbd.verifications import ACT, Verifications, difference, remedy
from mcvirtd.drbd.verifying import UNLIMIT, Verifier
from mcvirtd.drbd.watch import Watch
from mcvirtd.state.records import DiskRecord, DrbdRecord, Replica, VerificationRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import Task, working_for
from mcvirtd.tasks.transaction import Journal
from tests.unit.drbd import recorded
from tests.unit.drbd.recorded import Kernel, events, existing, renamed

R = TypeVar("R")
KIB = 1024
SIZE = 16384 * KIB
IDS = [f"hd-0123456789abcdef0{n}-0123456789abcdef012345" for n in range(4)]
SOON = 10.0


# --- what the events say ------------------------------------------------------------------------------------------


def test_the_end_of_a_clean_verification_and_of_one_with_differences() -> None:
    assert ending(events(recorded.CLEAN)) == comparing.Ending(whole=True)
    assert ending(events(recorded.DIFFERENT)) == comparing.Ending(whole=True, out_of_sync=12 * KIB)
    assert ending(events(recorded.CLEAN)[:1]) is None


def test_what_cuts_a_verification_off_is_no_end_of_it() -> None:
    reasons = {}
    for window in (recorded.CUT, recorded.DISCONNECTED, recorded.PEER_DISK_FAILED, recorded.PEER_LOST_POWER):
        ended = ending(events(window))
        assert ended is not None
        reasons[window] = (ended.whole, ended.reason)
    assert reasons[recorded.CUT] == (False, "the connection to the other side was lost (NetworkFailure).")
    assert reasons[recorded.PEER_LOST_POWER] == reasons[recorded.CUT]
    assert reasons[recorded.PEER_DISK_FAILED] == (False, "the disk of the other side became Failed.")


def test_the_end_of_a_resync_is_when_the_copying_ends() -> None:
    assert copied(events(recorded.REPAIRED)) == Copied(0)
    assert copied(events(recorded.REPAIRED)[:-3]) is None
    assert copied(events(recorded.CLEAN)) is None


# --- a node -------------------------------------------------------------------------------------------------------


class Errands:
    """Another node that answers as it is told to."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.callers: list[Caller] = []

    def run(
        self, node: str, operation: str, arguments: dict[str, Any], heard: Callable[[TaskInfo], None]
    ) -> msgspec.Raw:
        self.asked.append((node, operation, arguments))
        self.callers.append(current_caller())
        answer = self.answers[operation]
        if isinstance(answer, Exception):
            raise answer
        return msgspec.Raw(msgspec.json.encode(answer))


class World:
    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "state.db")
        self.journal = Journal(self.store)
        self.locks = Locks()
        self.kernel = Kernel()
        self.reader = Reader(self.kernel.source)
        self.now = datetime(2027, 3, 10, 12, 0).astimezone()  # noon where the test runs
        self.seconds = 0.0
        self.errands = Errands()
        self.verifications = Verifications(self.store, self.journal, "n1", lambda: self.now)
        comparison = Comparison(self.kernel, self.reader, clock=lambda: self.seconds, look_every=0.05)
        self.verifier = Verifier(
            kernel=self.kernel,
            reader=self.reader,
            verifications=self.verifications,
            journal=self.journal,
            locks=self.locks,
            read_there=lambda disk: None if self.kernel.silent() else self.kernel.read_there,
            comparison=comparison,
            settle_within=0.5,
        )
        self.service = VerificationService(
            store=self.store,
            node="n1",
            reader=self.reader,
            verifier=self.verifier,
            verifications=self.verifications,
            resync=Resync(
                kernel=self.kernel,
                reader=self.reader,
                verifications=self.verifications,
                journal=self.journal,
                locks=self.locks,
                clock=lambda: self.seconds,
                look_every=0.05,
            ),
            errands=self.errands,
            clock=lambda: self.now,
        )
        self.reader.start()

    def furnish(self, *roles: str, node: str | None = "n1", out_of_sync: int = 0) -> World:
        """One disk of web1 for each role."""
        with self.store.change() as change:
            change.put(VmRecord(name="web1", id="vm-1", uuid="u", memory=1, cpu_count=1, nodes=("n1", "n2"), node=node))
            for number, _ in enumerate(roles or ("Secondary",)):
                change.put(disk_record(number))
        for number, role in enumerate(roles or ("Secondary",)):
            self.kernel.say(*existing(self.resource(number), number + 1, out_of_sync, role))
        self.kernel.say("exists -")
        assert self.reader.wait_alive(SOON)
        return self

    def resource(self, number: int = 0) -> str:
        return f"mcvirt-{IDS[number]}"

    def says(self, verb: str, window: tuple[str, str, str], number: int = 0) -> None:
        self.kernel.follows[verb] = renamed(window, self.resource(number))

    def record(self, number: int = 0) -> VerificationRecord:
        return self.store.get(VerificationRecord, IDS[number]) or VerificationRecord(disk=IDS[number])

    def close(self) -> None:
        self.reader.stop()
        self.store.close()


def disk_record(number: int, **fields: Any) -> DiskRecord:
    made = DiskRecord(
        id=IDS[number],
        volume=f"mcvirt-{IDS[number]}",
        backend="pool",
        size=SIZE,
        driver=DiskDriver.VIRTIO,
        storage_type=StorageType.DRBD,
        nodes=("n1", "n2"),
        format=VolumeFormat.RAW,
        vm="web1",
        slot=number + 1,
        replica=Replica(minor=number + 1, port=7789 + number, secret="s" * 32),
    )
    return msgspec.structs.replace(made, **fields)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def act(call: Callable[[], R], task: Task | None = None) -> R:
    with working_for(task or Task("verification.verify", "web1", "alice", "n1")), called_by(Caller(user="alice")):
        return call()


def error(call: Callable[[], object], task: Task | None = None) -> McvirtError:
    with pytest.raises(McvirtError) as raised:
        act(call, task)
    return raised.value


def in_background(call: Callable[[], object], task: Task) -> tuple[threading.Thread, list[McvirtError | object]]:
    found: list[McvirtError | object] = []

    def run() -> None:
        try:
            found.append(act(call, task))
        except McvirtError as raised:
            found.append(raised)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


# --- verifying ----------------------------------------------------------------------------------------------------


def test_a_clean_verification_is_recorded_and_passes(world: World) -> None:
    world.furnish().says("verify", recorded.CLEAN)
    (passed,) = act(lambda: world.service.verify("web1"))
    assert (passed.result, passed.disk, passed.vm, passed.slot, passed.by) == ("clean", IDS[0], "web1", 1, "alice")
    assert world.kernel.commands == [f"verify {world.resource()}"]
    assert not world.record().failed and world.record().runs[0].result == "clean"
    assert difference(world.store, disk_record(0)) == ""
    assert world.journal.due() == {}


def test_differences_are_counted_raised_recorded_and_block_the_machine(world: World) -> None:
    world.furnish().says("verify", recorded.DIFFERENT)
    raised = error(lambda: world.service.verify("web1"))
    assert isinstance(raised, VerificationFailed) and "12 KiB (12288 bytes) differ between n1 and n2" in str(raised)
    assert IDS[0] in str(raised)
    assert (world.record().failed, world.record().out_of_sync) == (True, 12 * KIB)
    assert "12 KiB" in difference(world.store, disk_record(0))


def test_what_is_to_be_done_is_true_of_a_hard_drive_that_no_machine_has() -> None:
    disk = disk_record(0)
    assert remedy(disk, "resync NAME --source-node NODE", "copies") == (
        "`mcvirt resync web1 --source-node NODE` copies."
    )
    said = remedy(msgspec.structs.replace(disk, vm=None, slot=None), "resync NAME", "copies")
    assert said == f"`mcvirt resync {disk.id}` copies."


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (recorded.CUT, "was lost (NetworkFailure)"),
        (recorded.PEER_DISK_FAILED, "other side became Failed"),
        (recorded.PEER_LOST_POWER, "was lost (NetworkFailure)"),
    ],
)
@pytest.mark.parametrize("failed", [True, False])
def test_an_interrupted_verification_neither_passes_nor_fails(
    world: World, window: tuple[str, str, str], reason: str, failed: bool
) -> None:
    world.furnish().says("verify", window)
    world.verifications.mark(IDS[0], 4096 if failed else 0)
    raised = error(lambda: world.service.verify("web1"))
    assert isinstance(raised, VerificationFailed) and "interrupted" in str(raised) and reason in str(raised)
    assert (world.record().failed, world.record().runs[-1].result) == (failed, "interrupted")


def test_one_that_somebody_ended_early_has_not_passed(world: World) -> None:
    world.furnish().says("verify", recorded.CLEAN)
    world.kernel.reads = 4 * KIB**2
    raised = error(lambda: world.service.verify("web1"))
    assert "before the whole disk was read" in str(raised)


def test_what_a_guest_reads_is_not_what_the_verification_has_read(world: World) -> None:
    world.furnish("Primary").says("verify", recorded.CLEAN)
    verify = world.kernel.verify

    def ended_early(name: str) -> None:
        world.kernel.read += 2 * SIZE
        world.kernel.reads = 4 * KIB**2
        verify(name)

    world.kernel.verify = ended_early  # type: ignore[method-assign]
    raised = error(lambda: world.service.verify("web1"))
    assert f"({4 * KIB**2} of {SIZE} bytes " in str(raised)


def test_what_a_guest_on_the_other_side_reads_counts_as_little(world: World) -> None:
    world.furnish("Primary").says("verify", recorded.CLEAN)
    other = f"change connection name:{world.resource()} conn-name:peer role:Primary"
    world.kernel.follows["verify"].insert(1, other)
    assert "both sides were Primary meanwhile (0 of" in str(error(lambda: world.service.verify("web1")))
    world.kernel.say(f"change resource name:{world.resource()} role:Secondary")
    world.reader.wait(world.resource(), lambda now: now is not None and now.role == "Secondary", SOON)
    world.kernel.read_there = 0
    act(lambda: world.service.verify("web1"))
    assert [run.result for run in world.record().runs] == ["interrupted", "clean"]


def test_the_other_side_may_say_a_moment_later_what_it_has_read(world: World) -> None:
    world.furnish("Primary").says("verify", recorded.CLEAN)
    silent = iter((False, True, True))
    world.kernel.silent = lambda: next(silent, False)
    act(lambda: world.service.verify("web1"))
    assert [run.result for run in world.record().runs] == ["clean"]
    assert next(silent, None) is None


def test_what_was_read_is_known_where_the_counter_begins_anew(world: World) -> None:
    world.furnish().says("verify", recorded.CLEAN)
    world.kernel.read = READ_WRAPS - 4 * KIB**2
    verify = world.kernel.verify

    def wrap(name: str) -> None:
        verify(name)
        world.kernel.read %= READ_WRAPS

    world.kernel.verify = wrap  # type: ignore[method-assign]
    act(lambda: world.service.verify("web1"))
    assert [run.result for run in world.record().runs] == ["clean"]


def test_a_disk_is_larger_than_the_counter_counts() -> None:
    read = comparing.Read()
    for look in range(11):
        read.saw((7 + look * READ_WRAPS // 4) % READ_WRAPS)
        read.saw(None)
    assert read.total == 10 * READ_WRAPS // 4


def test_a_counter_that_went_back_says_nothing_of_what_was_read_before() -> None:
    read = comparing.Read()
    for counter in (100 * KIB, SIZE, 0, 4 * KIB):
        read.saw(counter)
    assert read.total == 4 * KIB


def test_a_resource_that_was_taken_down_and_up_in_between_has_not_passed(world: World) -> None:
    world.furnish()
    first, *_, last = renamed(recorded.CLEAN, world.resource())
    up = recorded.existing(world.resource())
    world.kernel.follows = {"verify": [first, f"destroy resource name:{world.resource()}", *up, first, last]}
    raised = error(lambda: world.service.verify("web1"))
    assert "taken down" in str(raised)


def test_without_the_counter_nothing_has_passed(world: World) -> None:
    world.furnish().says("verify", recorded.CLEAN)
    world.kernel.counting = False
    assert "counters could not be read" in str(error(lambda: world.service.verify("web1")))


def test_differences_are_differences_however_little_was_read(world: World) -> None:
    world.furnish().says("verify", recorded.DIFFERENT)
    world.kernel.reads = 4 * KIB**2
    error(lambda: world.service.verify("web1"))
    assert (world.record().failed, world.record().out_of_sync) == (True, 12 * KIB)


def test_an_end_after_missed_events_is_an_end_only_if_it_still_went_on() -> None:
    first, *_, last = events(recorded.CLEAN)
    over, on = (
        Event(verb=GAP, kind="resource", resource=first.resource, fields={"replication": how, "out-of-sync": "0"})
        for how in ("Established", "VerifyS")
    )
    ended = ending([first, over, last])
    assert ended is not None and not ended.whole and "could not be read for a moment" in ended.reason
    assert ending([first, on]) is None
    assert ending([first, on, last]) == comparing.Ending(whole=True)


def test_cancelled_it_is_stopped_in_the_kernel_and_recorded_as_interrupted(world: World) -> None:
    world.furnish()
    first, last = renamed(recorded.DIFFERENT, world.resource())[0], renamed(recorded.DIFFERENT, world.resource())[-1]
    world.kernel.follows = {"verify": [first], "stop_verify": [last]}
    task = Task("verification.verify", "web1", "alice", "n1")
    thread, found = in_background(lambda: world.service.verify("web1"), task)
    world.reader.wait(world.resource(), lambda state: state is not None and state.checking, SOON)
    task.cancel("alice")
    thread.join(SOON)
    assert isinstance(found[0], TaskCancelled)
    assert world.kernel.commands[-1] == f"stop_verify {world.resource()}"
    run = world.record().runs[-1]
    assert (run.result, run.reason, run.out_of_sync) == ("interrupted", "it was cancelled.", 12 * KIB)


def test_drbdadm_loses_its_patience_and_the_kernel_does_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "BEGUN_WITHIN", 0.2)
    late = CommandFailed(program="drbdadm", status=20, output="did not terminate within 5 seconds")
    world.furnish().says("verify", recorded.CLEAN)
    verify = world.kernel.verify

    def begun(name: str) -> None:
        verify(name)
        raise late

    world.kernel.verify = begun  # type: ignore[method-assign]
    act(lambda: world.service.verify("web1"))
    assert [run.result for run in world.record().runs] == ["clean"]
    world.kernel.follows = {}
    assert isinstance(error(lambda: world.service.verify("web1")), VerificationFailed | CommandFailed)
    assert [run.result for run in world.record().runs] == ["clean"]
    # The same of the stop.
    first, last = renamed(recorded.CLEAN, world.resource())[0], renamed(recorded.CLEAN, world.resource())[-1]
    world.kernel.verify = verify  # type: ignore[method-assign]
    world.kernel.follows = {"verify": [first], "stop_verify": [last]}
    stop = world.kernel.stop_verify

    def stopped(name: str) -> None:
        stop(name)
        raise late

    world.kernel.stop_verify = stopped  # type: ignore[method-assign]
    task = Task("v", "web1", "alice", "n1")
    thread, found = in_background(lambda: world.service.verify("web1"), task)
    world.reader.wait(world.resource(), lambda state: state is not None and state.checking, SOON)
    task.cancel("bob")
    thread.join(SOON)
    assert isinstance(found[0], TaskCancelled)
    assert "could not be stopped" not in world.record().runs[-1].reason


@pytest.mark.parametrize("reads", [False, True], ids=["", "and a guest that reads"])
def test_one_that_does_not_go_on_is_not_waited_for_for_ever(world: World, reads: bool) -> None:
    world.furnish()
    world.kernel.reads = 0
    if reads:
        counter = itertools.count(0, KIB)
        looks = (Progress(out_of_sync=0, read=next(counter), left=SIZE, done=0.0) for _ in itertools.count())
        world.kernel.progress = lambda: {1: next(looks)}  # type: ignore[method-assign]
    first, *_, last = renamed(recorded.CLEAN, world.resource())
    world.kernel.follows = {"verify": [first], "stop_verify": [last]}
    thread, found = in_background(lambda: world.service.verify("web1"), Task("v", "web1", "alice", "n1"))
    world.reader.wait(world.resource(), lambda state: state is not None and state.checking, SOON)
    world.seconds += comparing.STALLED_AFTER + 1
    thread.join(SOON)
    assert isinstance(found[0], VerificationFailed) and "has not gone on for 600 s" in str(found[0])


def test_events_that_may_have_been_missed_are_no_pass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcvirtd.drbd.reader.AGAIN_AFTER", (0.0,))
    world.furnish()
    first = renamed(recorded.CLEAN, world.resource())[0]
    world.kernel.follows["verify"] = [first, "end", *existing(world.resource()), "exists -"]
    thread, found = in_background(lambda: world.service.verify("web1"), Task("v", "web1", "alice", "n1"))
    thread.join(SOON)
    assert isinstance(found[0], VerificationFailed) and "events could not be read for a moment" in str(found[0])


def test_events_are_missed_while_it_goes_on_and_its_end_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcvirtd.drbd.reader.AGAIN_AFTER", (0.0,))
    world.furnish()
    first, *_, last = renamed(recorded.CLEAN, world.resource())
    again = [line.replace("replication:Established", "replication:VerifyS") for line in existing(world.resource())]
    world.kernel.follows["verify"] = [first, "end", *again, "exists -"]
    thread, found = in_background(lambda: world.service.verify("web1"), Task("v", "web1", "alice", "n1"))
    world.reader.wait(world.resource(), lambda state: state is not None and state.checking, SOON)
    thread.join(0.3)
    assert thread.is_alive()
    world.kernel.say(last)
    thread.join(SOON)
    assert found[0][0].result == "clean"  # type: ignore[index]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("change connection name:{} connection:StandAlone role:Unknown", "not connected (StandAlone)"),
        ("change peer-device name:{} volume:0 replication:VerifyT", "being verified already"),
        ("change peer-device name:{} volume:0 replication:SyncSource peer-disk:Inconsistent", "made equal just now"),
        ("change device name:{} volume:0 minor:1 disk:Inconsistent", "not both sides have good data"),
        ("destroy resource name:{}", "not set up on this node"),
    ],
)
def test_what_cannot_be_verified_is_refused_and_nothing_begun(world: World, said: str, why: str) -> None:
    world.furnish()
    before = world.reader.state(world.resource())
    world.kernel.say(said.format(world.resource()))
    world.reader.wait(world.resource(), lambda state: state != before, SOON)
    raised = error(lambda: world.service.verify("web1"))
    assert isinstance(raised, Conflict) and why in str(raised)
    assert world.kernel.commands == [] and world.record().runs == () and world.journal.due() == {}


def test_one_that_is_just_becoming_good_is_waited_for(world: World) -> None:
    world.furnish().says("verify", recorded.CLEAN)
    change = f"change peer-device name:{world.resource()} volume:0"
    world.kernel.say(f"{change} peer-disk:Inconsistent")
    world.reader.wait(world.resource(), lambda state: state is not None and not state.both_good, SOON)
    world.verifier._settle_within = SOON
    thread, found = in_background(lambda: world.service.verify("web1"), Task("v", "web1", "alice", "n1"))
    thread.join(0.2)
    world.kernel.say(f"{change} peer-disk:UpToDate")
    thread.join(SOON)
    assert found[0][0].result == "clean"  # type: ignore[index]


def test_a_command_that_fails_is_told_and_nothing_is_recorded(world: World) -> None:
    world.furnish()
    world.kernel.failing["verify"] = CommandFailed(program="drbdadm", status=11, output="no.")
    assert "drbdadm failed" in str(error(lambda: world.service.verify("web1")))
    assert world.record().runs == () and world.journal.due() == {}


def test_several_disks_are_verified_and_the_bad_ones_named(world: World) -> None:
    world.furnish("Secondary", "Secondary", "Secondary")

    def verify(name: str) -> None:
        world.kernel.read += SIZE
        window = recorded.DIFFERENT if name == world.resource(1) else recorded.CLEAN
        world.kernel.say(*renamed(window, name))

    world.kernel.verify = verify  # type: ignore[method-assign]
    raised = error(world.service.verify_all)
    assert IDS[1] in str(raised) and IDS[0] not in str(raised)
    assert sorted(raised.passed) == [IDS[0], IDS[2]]
    assert [world.record(n).failed for n in range(3)] == [False, True, False]


def test_a_disk_of_a_machine_elsewhere_is_verified_there(world: World) -> None:
    world.furnish(node="n2")
    world.errands.answers["verification.verify_disk"] = NodeUnreachable(node="n2", reason="it is off.")
    assert "n2" in str(error(world.service.verify_all))
    assert world.errands.asked == [("n2", "verification.verify_disk", {"disk": IDS[0]})]
    assert world.kernel.commands == []


def test_what_the_cluster_cannot_take_in_is_kept_and_recorded_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.furnish().says("verify", recorded.DIFFERENT)
    apply = world.store.apply

    def refuse(*args: Any, **kwargs: Any) -> None:
        if args[0].puts:
            raise StateNotWritable(path="x", reason="full.")
        apply(*args, **kwargs)

    monkeypatch.setattr(world.store, "apply", refuse)
    task = Task("verification.verify", "web1", "alice", "n1")
    error(lambda: world.service.verify("web1"), task)
    assert not world.record().failed and world.journal.remaining(task.id) == [ACT]
    monkeypatch.undo()
    assert world.journal.settle(task.id) == []
    assert (world.record().failed, world.record().out_of_sync) == (True, 12 * KIB)


def limited(world: World) -> None:
    with world.store.change() as change:
        change.put(DrbdRecord(verify_schedule="daily 03:00", verify_rate=8 * 1024**2))


def test_a_result_is_recorded_also_where_the_rate_cannot_be_set_back(world: World) -> None:
    world.furnish().says("verify", recorded.DIFFERENT)
    limited(world)
    world.kernel.failing["unlimit_rate"] = CommandFailed(program="drbdadm", status=10, output="no.")
    task = Task("verification.verify_due", "", "root", "n1")
    act(lambda: world.service._verify([disk_record(0)], "schedule"), task)
    assert (world.record().failed, [run.result for run in world.record().runs]) == (True, ["differences"])
    assert world.journal.remaining(task.id) == [UNLIMIT]
    world.kernel.failing.clear()
    assert act(lambda: world.journal.settle(task.id)) == []
    assert world.kernel.commands[-1] == f"unlimit_rate {world.resource()}"


def test_a_limited_rate_does_not_outlive_mcvirtd(world: World) -> None:
    world.furnish()
    limited(world)

    def die(name: str) -> None:
        raise KeyboardInterrupt

    task = Task("verification.verify_due", "", "root", "n1")
    world.kernel.limit_rate = lambda name, rate: die(name)  # type: ignore[method-assign]
    world.kernel.unlimit_rate = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        act(lambda: world.verifier.verify(disk_record(0), "schedule", 8 * 1024**2, lambda done: None), task)
    del world.kernel.unlimit_rate
    assert world.journal.remaining(task.id) == [UNLIMIT]
    assert act(lambda: world.journal.settle(task.id)) == []
    assert world.kernel.commands == [f"unlimit_rate {world.resource()}"]


def test_a_rate_is_set_back_whatever_the_connection_is_and_before_anything_is_read(world: World) -> None:
    world.furnish()
    world.kernel.say(f"change connection name:{world.resource()} connection:StandAlone role:Unknown")
    world.reader.wait(world.resource(), lambda state: state is not None and state.connection == "StandAlone", SOON)
    world.reader.stop()
    world.reader._complete = False
    task = Task("verification.verify_due", "", "root", "n1")
    act(lambda: world.journal.add(0, "redo", UNLIMIT, {"disk": IDS[0]}), task)
    assert act(lambda: world.journal.settle(task.id, alone=True)) == []
    assert world.kernel.commands == [f"unlimit_rate {world.resource()}"]
    assert world.journal.due() == {}


def test_one_that_mcvirtd_did_not_survive_was_interrupted(world: World) -> None:
    world.furnish()
    task = Task("verification.verify", "web1", "alice", "n1")
    act(lambda: world.verifications.begin(IDS[0], "alice"), task)
    assert world.journal.settle(task.id) == [] and world.journal.settle(task.id) == []
    assert [run.result for run in world.record().runs] == ["interrupted"]


def test_a_task_is_not_done_because_its_verifications_are_on_record_at_last(world: World) -> None:
    world.furnish("Secondary", "Secondary")
    task = Task("verification.verify", "web1", "alice", "n1")
    began = [act(lambda disk=disk: world.verifications.begin(disk, "alice"), task) for disk in IDS[:2]]  # type: ignore[misc]
    passed = msgspec.structs.replace(began[1].run, result="clean", reason="")
    world.journal.amend(began[1].entry, {"disk": IDS[1], "run": msgspec.to_builtins(passed)})
    settling = Task("settle verification.verify", "web1", "alice", "n1", task_id=task.id)
    assert act(lambda: world.journal.settle(task.id), settling) == []
    assert [[run.result for run in world.record(number).runs] for number in (0, 1)] == [["interrupted"], ["clean"]]
    assert settling.verdict == (
        f"The verification of hard drive {IDS[0]} was interrupted: mcvirtd was stopped while it went on. "
        f"The verification of hard drive {IDS[1]} passed, which is on record.",
        False,
    )


# --- resynchronising ----------------------------------------------------------------------------------------------


def test_marked_blocks_of_a_stopped_machine_are_copied_from_the_side_that_is_named(world: World) -> None:
    world.furnish(out_of_sync=12)
    world.verifications.mark(IDS[0], 12 * KIB)
    world.says("connect", recorded.REPAIRED)
    (done,) = act(lambda: world.service.resync("web1", "n1"))
    assert (done.copied, done.source) == (12 * KIB, "n1")
    name = world.resource()
    assert world.kernel.commands == [f"disconnect {name}", f"new_current_uuid {name}", f"connect {name}"]
    assert not world.record().failed and world.journal.due() == {}


def test_the_side_where_the_machine_runs_is_found_by_itself(world: World) -> None:
    world.furnish("Primary", out_of_sync=12).says("connect", recorded.REPAIRED)
    (done,) = act(lambda: world.service.resync("web1"))
    assert done.source == "n1"
    assert world.kernel.commands == [f"disconnect {world.resource()}", f"connect {world.resource()}"]


def test_without_a_machine_that_runs_nobody_guesses_the_good_side(world: World) -> None:
    world.furnish(out_of_sync=12)
    raised = error(lambda: world.service.resync("web1"))
    assert isinstance(raised, Conflict) and "--source-node: n1 or n2" in str(raised)
    assert world.kernel.commands == []


def test_the_whole_disk_is_copied_where_that_is_asked_for_or_nothing_better_known(world: World) -> None:
    world.furnish().says("invalidate_remote", recorded.REPAIRED)
    assert "no block of it is known to differ" in str(error(lambda: world.service.resync("web1", "n1")))
    (done,) = act(lambda: world.service.resync("web1", "n1", full=True))
    assert done.copied == SIZE and world.kernel.commands == [f"invalidate_remote {world.resource()}"]
    world.kernel.commands.clear()
    world.kernel.say(*(line.replace("exists ", "change ", 1) for line in existing(world.resource())))
    world.verifications.mark(IDS[0], 8 * KIB)  # the kernel does not know which blocks any more
    (done,) = act(lambda: world.service.resync("web1", "n1"))
    assert done.copied == SIZE and not world.record().failed


def test_data_that_a_machine_uses_are_not_overwritten(world: World) -> None:
    world.furnish(out_of_sync=12)
    world.kernel.say(f"change connection name:{world.resource()} role:Primary")
    world.reader.wait(world.resource(), lambda state: state is not None and state.peer_role == "Primary", SOON)
    raised = error(lambda: world.service.resync("web1", "n1"))
    assert isinstance(raised, Conflict) and "runs on the other node" in str(raised)


def test_a_connection_that_could_not_be_made_again_is_made_afterwards(world: World) -> None:
    world.furnish(out_of_sync=12)
    world.kernel.failing["new_current_uuid"] = CommandFailed(program="drbdsetup", status=11, output="no.")
    world.kernel.follows["disconnect"] = renamed(recorded.REPAIRED, world.resource())[:7]

    def wait_for_it(name: str, *, force: bool = False) -> None:
        world.kernel._do("disconnect", name)
        world.reader.wait(name, lambda state: state is not None and state.connection == "StandAlone", SOON)

    world.kernel.disconnect = wait_for_it  # type: ignore[method-assign]
    error(lambda: world.service.resync("web1", "n1"))
    assert world.kernel.commands[-1] == f"connect {world.resource()}"
    assert world.journal.due() == {}


def test_a_resync_that_does_not_begin_ends_with_a_reason(world: World) -> None:
    world.furnish(out_of_sync=12)
    thread, found = in_background(lambda: world.service.resync("web1", "n1"), Task("r", "web1", "alice", "n1"))
    while f"connect {world.resource()}" not in world.kernel.commands:
        thread.join(0.01)
    world.seconds += 91
    thread.join(SOON)
    assert isinstance(found[0], DeadlinePassed) and "goes on by itself" in str(found[0])


def test_another_node_with_the_good_data_does_the_copying(world: World) -> None:
    world.furnish(out_of_sync=12)
    world.errands.answers["verification.copy_from"] = Failed(text="no.")
    error(lambda: world.service.resync("web1", "n2"))
    assert world.errands.asked[0][:2] == ("n2", "verification.copy_from")
    assert isinstance(error(lambda: world.service.resync("web1", "n3")), BadArgument)


def test_a_hard_drive_that_no_machine_has_is_verified_and_repaired_by_its_id(world: World) -> None:
    world.furnish("Secondary", "Secondary", out_of_sync=12)
    with world.store.change() as change:
        change.edit(DiskRecord, IDS[0], vm=None, slot=None)
    assert [state.disk for state in world.service.states(IDS[0])] == [IDS[0]]
    assert "--source-node: n1 or n2" in str(error(lambda: world.service.resync(IDS[0])))
    world.says("connect", recorded.REPAIRED)
    (done,) = act(lambda: world.service.resync(IDS[0], "n1"))
    assert (done.disk, done.copied) == (IDS[0], 12 * KIB)
    world.says("verify", recorded.CLEAN)
    assert [passed.disk for passed in act(lambda: world.service.verify(IDS[0]))] == [IDS[0]]


def test_what_is_no_machine_and_no_replicated_hard_drive_is_refused(world: World) -> None:
    world.furnish("Secondary", "Secondary")
    with world.store.change() as change:
        change.put(disk_record(0, replica=None, vm=None, slot=None))
    assert "is not replicated" in str(error(lambda: world.service.verify(IDS[0])))
    assert isinstance(error(lambda: world.service.verify("web9")), VmNotFound)
    assert f"There is no hard drive called '{IDS[2]}'." in str(error(lambda: world.service.verify(IDS[2])))


def test_what_a_growth_has_left_is_copied_from_where_the_machine_is_by_now(world: World) -> None:
    world.furnish(out_of_sync=12)
    world.says("connect", recorded.REPAIRED)
    disk = disk_record(0)
    world.kernel.say(f"change connection name:{world.resource()} role:Primary")
    world.reader.wait(world.resource(), lambda state: state is not None and state.peer_role == "Primary", SOON)
    world.errands.answers["verification.copy_from"] = Resynced(disk=disk.id, source="n2", copied=12 * KIB)
    act(lambda: world.service.level(disk))
    asked = {"disk": disk.id, "source": "n2", "full": False, "known_only": True}
    assert world.errands.asked == [("n2", "verification.copy_from", asked)]
    assert world.errands.callers == [Caller(user=SYSTEM, root=True)] and world.kernel.commands == []
    world.kernel.say(f"change connection name:{world.resource()} role:Secondary")
    world.reader.wait(world.resource(), lambda state: state is not None and state.peer_role == "Secondary", SOON)
    act(lambda: world.service.level(disk))
    assert len(world.errands.asked) == 1 and world.kernel.commands[-1] == f"connect {world.resource()}"


def test_what_is_known_to_differ_is_copied_and_nothing_else(world: World) -> None:
    """Where a verification has found differences that the kernels do not know any more, all would have to be copied."""
    world.furnish()
    with world.store.change() as change:
        change.put(VerificationRecord(disk=IDS[0], failed=True, out_of_sync=12 * KIB))
    raised = error(lambda: world.service.copy_from(IDS[0], "n1", known_only=True))
    assert isinstance(raised, Conflict) and world.kernel.commands == []


# --- by the schedule ----------------------------------------------------------------------------------------------


def test_what_is_due_is_verified_once_and_slowly(world: World) -> None:
    world.furnish().says("verify", recorded.CLEAN)
    assert act(world.service.verify_due) == ()
    act(lambda: world.service.set_schedule("Daily  03:00", 2, 8 * 1024**2))
    assert world.store.get(DrbdRecord, "drbd") == DrbdRecord(
        verify_schedule="daily 03:00", verify_since=world.now, verify_concurrency=2, verify_rate=8 * 1024**2
    )
    assert act(world.service.verify_due) == ()
    world.now = world.now.replace(day=11, hour=3)
    (run,) = act(world.service.verify_due)
    assert (run.by, run.result) == ("schedule", "clean")
    name = world.resource()
    assert world.kernel.commands == [f"limit_rate {name} {8 * 1024**2}", f"verify {name}", f"unlimit_rate {name}"]
    assert world.service.due() == []
    world.now = world.now.replace(day=12, hour=4)
    assert [disk.id for disk in world.service.due()] == [IDS[0]]


def test_a_schedule_begins_with_its_next_moment(world: World) -> None:
    world.furnish()
    act(lambda: world.service.set_schedule("wednesday 03:00"))  # as it is, at noon
    assert world.service.due() == []
    world.now += timedelta(days=6)
    assert world.service.due() == []
    act(lambda: world.service.set_schedule("tuesday 03:00"))  # as it is
    assert world.service.due() == []
    world.now += timedelta(days=7, hours=-9)
    assert [disk.id for disk in world.service.due()] == [IDS[0]]
    # What is said again, or beside it, takes nothing back that is due.
    act(lambda: world.service.set_schedule("Tuesday 03:00", rate=8 * 1024**2))
    assert [disk.id for disk in world.service.due()] == [IDS[0]]
    # Off for a while, it begins anew.
    act(lambda: world.service.set_schedule("off"))
    act(lambda: world.service.set_schedule("tuesday 03:00"))
    assert world.service.due() == []


def test_a_new_disk_is_verified_at_the_next_moment(world: World) -> None:
    world.furnish("Secondary", "Secondary")
    act(lambda: world.service.set_schedule("daily 03:00"))
    world.now += timedelta(days=1)
    with world.store.change() as change:
        change.put(disk_record(1, made=world.now - timedelta(minutes=1)))
    assert [disk.id for disk in world.service.due()] == [IDS[0]]
    world.now += timedelta(hours=15)
    assert [disk.id for disk in world.service.due()] == IDS[:2]


def test_a_moment_that_passed_while_mcvirtd_was_away_is_made_up_for_once(world: World) -> None:
    world.furnish().says("verify", recorded.CLEAN)
    act(lambda: world.service.set_schedule("daily 03:00"))
    world.now += timedelta(days=3)
    (run,) = act(world.service.verify_due)
    assert run.result == "clean" and world.service.due() == []


def test_what_an_older_mcvirtd_recorded_holds_since_ever(world: World) -> None:
    world.furnish()
    older = msgspec.json.decode(b'{"name": "drbd", "verify_schedule": "daily 03:00"}', type=DrbdRecord)
    with world.store.change() as change:
        change.put(older)
    assert (older.verify_since, disk_record(0).made) == (None, None)
    assert [disk.id for disk in world.service.due()] == [IDS[0]]


def test_what_is_due_and_cannot_be_verified_is_skipped_with_the_reason(world: World) -> None:
    world.furnish()
    world.kernel.say(f"change connection name:{world.resource()} connection:Connecting role:Unknown")
    world.reader.wait(world.resource(), lambda state: state is not None and not state.connected, SOON)
    act(lambda: world.service.set_schedule("daily"))
    world.now += timedelta(days=1)
    (run,) = act(world.service.verify_due)
    assert run.result == "skipped" and "not connected (Connecting)" in run.reason
    assert world.service.due() == [] and not world.record().failed


def test_other_nodes_disks_are_not_this_ones_to_verify(world: World) -> None:
    world.furnish(node="n2")
    act(lambda: world.service.set_schedule("daily"))
    world.now += timedelta(days=1)
    assert world.service.due() == []


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("daily 03:00", "2027-03-10T03:00"),
        ("daily 12:01", "2027-03-09T12:01"),
        ("sunday", "2027-03-07T03:00"),
        ("wednesday 12:00", "2027-03-10T12:00"),
        ("wednesday 13:00", "2027-03-03T13:00"),
        ("weekly 23:30", "2027-03-07T23:30"),
        ("monthly", "2027-03-01T03:00"),
    ],
)
def test_the_last_moment_of_a_schedule(text: str, moment: str) -> None:
    plan = schedule.parse(text)
    now = datetime(2027, 3, 10, 12, 0).astimezone()
    assert plan is not None and plan.last(now).isoformat()[:16] == moment


@pytest.fixture
def central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clocks are set on 2027-03-28 from 02:00 to 03:00, and on 2027-10-31 from 03:00 back to 02:00."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("central_europe")
@pytest.mark.parametrize(
    ("text", "now", "moment"),
    [
        ("saturday 03:00", "2027-10-30T03:00+02:00", "2027-10-30T03:00+02:00"),
        ("saturday 03:00", "2027-10-31T04:00+01:00", "2027-10-30T03:00+02:00"),
        ("monthly 03:00", "2027-11-30T12:00+01:00", "2027-11-01T03:00+01:00"),
        ("monthly 03:00", "2027-10-31T12:00+01:00", "2027-10-01T03:00+02:00"),
        # There is 02:30 twice, and the first one counts.
        ("daily 02:30", "2027-10-31T02:30+02:00", "2027-10-31T02:30+02:00"),
        ("daily 02:30", "2027-10-31T02:15+01:00", "2027-10-31T02:30+02:00"),
        ("daily 02:30", "2027-10-31T02:45+01:00", "2027-10-31T02:30+02:00"),
        # There is no 02:30: what counts is 03:30.
        ("daily 02:30", "2027-03-28T03:15+02:00", "2027-03-27T02:30+01:00"),
        ("daily 02:30", "2027-03-28T03:30+02:00", "2027-03-28T03:30+02:00"),
        ("saturday 03:00", "2027-03-28T03:30+02:00", "2027-03-27T03:00+01:00"),
    ],
)
def test_a_moment_is_told_by_the_clocks_of_its_own_day(text: str, now: str, moment: str) -> None:
    plan = schedule.parse(text)
    assert plan is not None
    for zone in (None, UTC):
        assert plan.last(datetime.fromisoformat(now).astimezone(zone)) == datetime.fromisoformat(moment)


@pytest.mark.usefixtures("central_europe")
def test_what_was_done_before_the_clocks_were_set_back_is_not_due_again(world: World) -> None:
    world.furnish().says("verify", recorded.CLEAN)
    world.now = datetime.fromisoformat("2027-10-29T12:00+02:00")
    act(lambda: world.service.set_schedule("saturday 03:00"))
    world.now = datetime.fromisoformat("2027-10-30T03:00:20+02:00")
    assert len(act(world.service.verify_due)) == 1
    world.now = datetime.fromisoformat("2027-10-31T12:00+01:00")
    assert world.service.due() == []


@pytest.mark.parametrize(
    "text", ["", "never", "daily 24:00", "sunday 3:00", "every sunday", "daily 03:00 x", "täglich"]
)
def test_a_schedule_that_is_none(text: str) -> None:
    with pytest.raises(BadArgument, match="sunday 03:00"):
        schedule.parse(text)


def test_settings_that_make_no_sense_are_refused(world: World) -> None:
    for fields in ({"concurrency": 0}, {"concurrency": 99}, {"rate": 5}, {"rate": -1}, {"schedule": "x"}):
        with pytest.raises(BadArgument):
            world.service.set_schedule(**fields)  # type: ignore[arg-type]
    assert world.store.get(DrbdRecord, "drbd") is None


# --- what the kernel says by itself -------------------------------------------------------------------------------


@pytest.fixture
def watch(world: World) -> Iterator[Watch]:
    made = Watch(store=world.store, reader=world.reader, verifications=world.verifications)
    made.start()
    yield made
    made.stop()


def marked(world: World, *, failed: bool) -> bool:
    changed = threading.Event()
    world.store.subscribe(lambda change: changed.set())
    while world.record().failed != failed:
        if not changed.wait(SOON):
            return False
        changed.clear()
    return True


@pytest.mark.usefixtures("watch")
def test_what_somebody_finds_by_hand_is_marked_and_what_is_copied_unmarked(world: World) -> None:
    world.furnish()
    world.kernel.say(*renamed(recorded.DIFFERENT, world.resource()))
    assert marked(world, failed=True) and world.record().out_of_sync == 12 * KIB
    assert world.record().runs == ()
    world.kernel.say(*renamed(recorded.REPAIRED, world.resource()))
    assert marked(world, failed=False)


@pytest.mark.usefixtures("watch")
def test_what_was_found_while_mcvirtd_was_away_is_marked(world: World) -> None:
    world.furnish(out_of_sync=8)
    assert marked(world, failed=True) and world.record().out_of_sync == 8 * KIB


def test_a_mark_that_cannot_be_recorded_is_recorded_later(
    world: World, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()
    mark = world.verifications.mark

    def refuse(disk: str, out_of_sync: int) -> None:
        tried.set()
        raise StateNotWritable(path="x", reason="full.")

    monkeypatch.setattr(world.verifications, "mark", refuse)
    world.furnish(out_of_sync=8)
    assert tried.wait(SOON)
    monkeypatch.setattr(world.verifications, "mark", mark)
    again = threading.Event()
    world.store.subscribe(lambda change: again.set())
    while not again.wait(0.05):  # it may not have noted yet that it failed
        watch.retry()
    assert world.record().failed


def test_a_side_cut_off_for_a_resync_is_connected_after_a_kill_although_nothing_is_read_when_mcvirtd_starts(
    world: World,
) -> None:
    world.furnish("Primary")
    name = world.resource()
    world.kernel.say(f"change connection name:{name} connection:StandAlone role:Unknown")
    world.reader.wait(name, lambda state: state is not None and state.connection == "StandAlone", SOON)
    task = Task("verification.resync", "web1", "alice", "n1")
    with working_for(task):
        world.journal.add(1, "undo", RECONNECT, {"resource": name})
    # The journal is settled before the reader is started.
    unread = Reader(world.kernel.source)
    later = Journal(world.store)
    Resync(kernel=world.kernel, reader=unread, verifications=world.verifications, journal=later, locks=world.locks)
    assert later.settle(task.id) and later.due()
    assert "connect" not in str(world.kernel.commands)
    assert world.journal.settle(task.id) == [] and world.journal.due() == {}
    assert f"connect {name}" in world.kernel.commands
