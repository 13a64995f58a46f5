"""Replicated hard drives that go along with their machine, on two kernels that are wired together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt.errors import CommandFailed, Conflict, McvirtError, NodeUnreachable
from mcvirtd.drbd import rejoining as rejoining_module
from mcvirtd.drbd.guard import Guard
from mcvirtd.drbd.rejoining import Rejoining
from mcvirtd.drbd.roles import Roles
from mcvirtd.drbd.windows import Windows
from mcvirtd.host.leases import Leases
from mcvirtd.migration import replicated as module
from mcvirtd.migration.replicas import ArrivingReplicas
from mcvirtd.migration.replicated import ReplicatedDisks
from mcvirtd.migration.ticket import Ticket
from mcvirtd.state.records import DiskRecord, VerificationRecord
from tests.unit.drbd.kernels import Kernel
from tests.unit.drbd.test_disks import make
from tests.unit.drbd.world import Pair


class Meeting:
    """As `Discarding` does: this side takes what the other has, whatever both have."""

    def __init__(self, kernels: dict[str, Kernel]) -> None:
        self._kernels = kernels
        self.given_way: list[str] = []

    def begin(self, disk: DiskRecord, state: Any, other: str) -> None:
        self.given_way.append(next(name for name in disk.nodes if name != other))
        for kernel in self._kernels.values():
            kernel.connect(state.name)


class Side:
    """What a node has for it."""

    def __init__(self, pair: Pair, node: str, directory: Path) -> None:
        kernel = self.kernel = pair.kernels[node]
        self.leases = Leases(directory / f"windows-{node}")
        self.windows = Windows(directory / f"windows-{node}", kernel, lambda _: None)
        self.guard = Guard(self.leases, kernel)
        self.roles = Roles(
            store=pair.store, node=node, legs=pair.legs[node], states=kernel, reachable=lambda _: True
        )
        self.meeting = Meeting(pair.kernels)
        meeting: Any = self.meeting
        self.rejoining = Rejoining(node=node, kernel=kernel, states=kernel, discarding=meeting)


class Way:
    """The disk of web1, on its way from n1 to n2. *away*: n2 can't be asked."""

    def __init__(self, pair: Pair, directory: Path) -> None:
        self.pair = pair
        make(pair)
        self.here, self.there = (Side(pair, node, directory) for node in ("n1", "n2"))
        self.arriving = ArrivingReplicas(
            legs=pair.legs["n2"],
            states=self.there.kernel,
            roles=self.there.roles,
            windows=self.there.windows,
            rejoining=self.there.rejoining,
        )
        self.disks = ReplicatedDisks(
            store=pair.store,
            states=self.here.kernel,
            roles=self.here.roles,
            windows=self.here.windows,
            rejoining=self.here.rejoining,
            ask=self.ask,
        )
        self.away = False
        self.asked: list[str] = []
        self.name = f"mcvirt-{self.disk.id}"

    @property
    def disk(self) -> DiskRecord:
        (disk,) = self.pair.store.all(DiskRecord).values()
        return disk

    def ticket(self, *, online: bool = True, target: str = "n2") -> Ticket:
        return Ticket(name="web1", uuid="u", source="n1", target=target, online=online, copied=(), by="bob", begun=0)

    def ask(self, node: str, operation: str, within: float = 1.0, **arguments: Any) -> msgspec.Raw:
        assert node == "n2" and arguments["name"] == "web1"
        if self.away:
            raise NodeUnreachable(node=node, reason="it is said to be away.")
        self.asked.append(operation)
        acts = {"open_disks": self.arriving.open, "use_disks": self.arriving.use, "keep_disks": self.arriving.keep}
        if operation == "rejoin_disk":
            self.arriving.rejoin(self.disk)
        else:
            acts[operation]([self.disk])
        return msgspec.Raw(b"null")

    def start(self) -> None:
        """The guest runs here."""
        self.here.roles.promote(self.disk)
        self.here.kernel.open.add(self.name)

    def prepare(self) -> None:
        self.disks.prepare([self.disk], self.ticket())

    def roles(self) -> list[str]:
        return [side.kernel.resources[self.name].role for side in (self.here, self.there)]

    def allowed(self) -> list[bool]:
        return [self.name in side.kernel.two_allowed for side in (self.here, self.there)]

    def die(self) -> None:
        """Nothing of this process goes on."""
        self.disks._stop_renewing("web1")
        for thread in threading.enumerate():
            if thread.name == "windows":
                thread.join(20)

    def sweep(self) -> None:
        """Nobody renews anything any more, for some seconds."""
        for side in (self.here, self.there):
            for name in side.leases.names():
                side.leases.end(name)
        for _ in range(3):
            for side in (self.here, self.there):
                side.guard.sweep()

    def check(self, **how: Any) -> str:
        return " ".join(self.disks.check([self.disk], self.ticket(**how)))


@pytest.fixture
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    monkeypatch.setattr(rejoining_module, "MEETS_WITHIN", 0.05)
    monkeypatch.setattr(module, "RENEW_EVERY", 0.02)
    pair = Pair(tmp_path)
    made = Way(pair, tmp_path)
    yield made
    made.die()
    pair.tasks.close()
    pair.store.close()


def test_nothing_stands_against_equal_sides_at_rest(way: Way) -> None:
    assert way.check() == "" and way.check(online=False) == ""
    way.start()
    assert way.check() == "" and way.arriving.problem(way.disk) == ""


def test_the_other_leg_must_be_there(way: Way) -> None:
    assert "is on the nodes n1 and n2 only" in way.check(target="n3")


@pytest.mark.parametrize(
    "fields",
    [
        {"connection": "Connecting", "replication": "Off"},
        {"connection": "StandAlone", "split_brain": True},
        {"disk": "Inconsistent"},
        {"peer_disk": "Outdated"},
        {"replication": "VerifyS"},
        {"replication": "SyncSource"},
    ],
)
def test_sides_that_are_not_equal_and_at_rest_stay(way: Way, fields: dict[str, Any]) -> None:
    way.here.kernel.put(way.name, **fields)
    assert f"hard drive {way.disk.id} can't be migrated: it" in way.check()
    way.there.kernel.put(way.name, **fields)
    assert way.arriving.problem(way.disk)
    with pytest.raises(Conflict):
        way.arriving.open([way.disk])
    assert way.allowed() == [False, False]


def test_a_failed_verification_stands_against_it(way: Way) -> None:
    with way.pair.store.change() as change:
        change.put(VerificationRecord(disk=way.disk.id, failed=True, out_of_sync=4096))
    assert "differ in 4 KiB" in way.check()


def test_a_disk_that_is_being_deleted_stays(way: Way) -> None:
    with way.pair.store.change() as change:
        change.edit(DiskRecord, way.disk.id, deleting=True)
    assert "is being deleted" in way.check()


def test_offline_needs_no_window(way: Way) -> None:
    way.here.roles.promote(way.disk)
    ticket = way.ticket(online=False)
    way.disks.prepare([way.disk], ticket)
    way.disks.switch([way.disk], ticket)
    assert way.roles() == ["Secondary", "Secondary"] and way.asked == [] and way.allowed() == [False, False]
    way.disks.finish([way.disk], ticket)


def test_online_both_may_write_until_the_guest_has_gone(way: Way) -> None:
    way.start()
    way.prepare()
    assert way.roles() == ["Primary", "Primary"] and way.allowed() == [True, True]
    assert way.disks.broken([way.disk]) == ""
    way.here.kernel.open.clear()
    way.there.kernel.open.add(way.name)
    way.disks.switch([way.disk], way.ticket())
    assert way.roles() == ["Secondary", "Primary"] and way.allowed() == [True, True]
    way.disks.finish([way.disk], way.ticket())
    assert way.allowed() == [False, True]
    way.arriving.settle_in([way.disk])
    way.disks.part([way.disk], way.ticket())
    assert way.allowed() == [False, False] and not way.there.meeting.given_way
    for _ in range(2):  # as often as anybody likes
        way.disks.finish([way.disk], way.ticket())
        way.arriving.settle_in([way.disk])
        way.disks.part([way.disk], way.ticket())
    assert way.roles() == ["Secondary", "Primary"]


def test_what_is_broken_off_is_as_before(way: Way) -> None:
    way.start()
    way.prepare()
    for _ in range(2):
        way.arriving.give_up([way.disk])
        way.disks.abandon([way.disk], way.ticket())
        way.disks.mend([way.disk], way.ticket())
        assert way.roles() == ["Primary", "Secondary"] and way.allowed() == [False, False]
    assert "rejoin_disk" not in way.asked


@pytest.mark.parametrize("verb", ["two_primaries True", "primary"])
@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_step_that_fails_is_undone(way: Way, verb: str, node: str) -> None:
    way.start()
    way.pair.kernels[node].fail_next(verb, CommandFailed(program="drbdadm", status=9, output="no"))
    if (verb, node) != ("primary", "n1"):  # which is Primary already
        with pytest.raises(McvirtError):
            way.prepare()
    way.arriving.give_up([way.disk])
    way.disks.abandon([way.disk], way.ticket())
    assert way.roles() == ["Primary", "Secondary"] and way.allowed() == [False, False]


def test_windows_are_renewed_on_both_nodes(way: Way) -> None:
    way.start()
    way.prepare()
    for side in (way.here, way.there):
        with side.leases.held(way.name):
            side.leases.take(way.name, 1.0)
    until(lambda: min(side.leases.left(way.name) for side in (way.here, way.there)) > 5.0)
    way.arriving.give_up([way.disk])
    way.disks.abandon([way.disk], way.ticket())
    assert way.here.leases.names() == []


def test_a_node_that_is_cut_off_renews_nothing(way: Way) -> None:
    way.start()
    way.prepare()
    way.away = True
    until(lambda: way.here.leases.left(way.name) < module.LEASE - 0.2)
    way.die()
    way.sweep()
    assert way.roles() == ["Primary", "Secondary"] and way.allowed() == [False, False]


def test_who_dies_leaves_it_to_the_guard_and_to_the_next_process(way: Way, tmp_path: Path) -> None:
    way.start()
    way.prepare()
    way.die()
    way.sweep()
    assert way.roles() == ["Primary", "Secondary"] and way.allowed() == [False, False]
    way.arriving.give_up([way.disk])
    way.disks.abandon([way.disk], way.ticket())
    assert way.roles() == ["Primary", "Secondary"]


def test_a_link_that_is_lost_is_told_and_mended(way: Way) -> None:
    way.start()
    way.prepare()
    way.pair.wires.cut = True
    way.here.kernel.disconnect(way.name)
    way.there.kernel.disconnect(way.name)
    assert "have lost each other" in way.disks.broken([way.disk])
    way.arriving.give_up([way.disk])
    way.disks.abandon([way.disk], way.ticket())
    way.pair.wires.cut = False
    way.disks.mend([way.disk], way.ticket())
    assert way.there.meeting.given_way == ["n2"] and not way.here.meeting.given_way
    assert way.here.kernel.resources[way.name].both_good
    assert way.roles() == ["Primary", "Secondary"]


def test_the_side_that_was_left_gives_way(way: Way) -> None:
    way.start()
    way.prepare()
    for kernel in way.pair.kernels.values():
        kernel.disconnect(way.name)
    way.here.kernel.open.clear()
    way.there.kernel.written[way.name] = 8192
    way.disks.switch([way.disk], way.ticket())
    way.disks.finish([way.disk], way.ticket())
    way.disks.part([way.disk], way.ticket())
    assert way.here.meeting.given_way == ["n1"] and way.roles() == ["Secondary", "Primary"]


def test_a_side_that_has_written_alone_never_gives_way(way: Way) -> None:
    way.start()
    way.prepare()
    for kernel in way.pair.kernels.values():
        kernel.disconnect(way.name)
        kernel.written[way.name] = 4096
    way.arriving.give_up([way.disk])
    way.disks.abandon([way.disk], way.ticket())
    way.disks.mend([way.disk], way.ticket())
    assert not way.there.meeting.given_way and not way.here.kernel.resources[way.name].connected


def test_a_primary_is_wanted_only_in_a_window(way: Way) -> None:
    with pytest.raises(Conflict):
        way.arriving.use([way.disk])
    assert way.roles() == ["Secondary", "Secondary"]


def until(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_windows_close_by_themselves_once_nothing_is_on_its_way(way: Way) -> None:
    """Whether anybody can say yet where the guest is or not: a libvirtd may be away for long."""
    way.start()
    way.prepare()
    renewing = [thread for thread in threading.enumerate() if thread.name == "windows"]
    assert renewing
    way.disks.let_go([way.disk], way.ticket())
    for thread in renewing:
        thread.join(20)
        assert not thread.is_alive()
    way.sweep()
    assert way.allowed() == [False, False] and way.roles() == ["Primary", "Secondary"]
