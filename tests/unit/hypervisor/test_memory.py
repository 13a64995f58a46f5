"""What the hypervisor keeps in memory: states, consoles, news of devices, and the choice of an accelerator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec
import pytest

from mcvirt.errors import DeadlinePassed, LibvirtFailed, LibvirtUnreachable
from mcvirtd.hypervisor import words
from mcvirtd.hypervisor.accelerator import choose, cpu_has_it, device_trouble
from mcvirtd.hypervisor.console import BUFFER_LIMIT, Console, console_on
from mcvirtd.hypervisor.devices import DeviceNews
from mcvirtd.hypervisor.keeper import Keeper, Link
from mcvirtd.hypervisor.pool import MOST_IDLE, Lost, Pool
from mcvirtd.hypervisor.states import DomainState, DomainStates

ONE = DomainState(uuid="1", name="one", condition="running", id=7)
OFF = msgspec.structs.replace(ONE, condition="stopped", id=None)


def test_waiting_for_a_state_ends_when_it_comes() -> None:
    states = DomainStates()
    threading.Timer(0.05, states.put, ("1", ONE)).start()
    assert states.wait_for("1", lambda state: state is not None and state.running, 10)
    assert not states.wait_for("1", lambda state: state is None, 0.01)


def test_closing_wakes_who_waits() -> None:
    states = DomainStates()
    threading.Timer(0.05, states.close).start()
    assert not states.wait_for("1", lambda state: state is not None, 30)


def test_subscribers_hear_every_change_in_order_even_after_one_fails() -> None:
    states = DomainStates()
    heard: list[tuple[str, DomainState | None]] = []
    done = threading.Event()

    def fail(uuid: str, state: DomainState | None) -> None:
        raise ValueError("this subscriber is broken")

    def note(uuid: str, state: DomainState | None) -> None:
        heard.append((uuid, state))
        if len(heard) == 4:
            done.set()

    states.subscribe(fail)
    states.subscribe(note)
    states.put("1", ONE)
    states.put("1", ONE)  # no change
    states.put("1", OFF)
    states.replace({"2": msgspec.structs.replace(ONE, uuid="2")})
    assert done.wait(10)
    assert heard == [("1", ONE), ("1", OFF), ("1", None), ("2", msgspec.structs.replace(ONE, uuid="2"))]
    states.close()


def test_a_snapshot_does_not_change() -> None:
    states = DomainStates()
    states.put("1", ONE)
    before = states.all()
    states.put("1", None)
    assert dict(before) == {"1": ONE} and dict(states.all()) == {}


def test_a_console_keeps_the_newest_and_ends_once_read() -> None:
    hung_up = []
    console = Console(send=len, hang_up=lambda: hung_up.append(True))
    console.feed(b"old")
    console.feed(b"x" * BUFFER_LIMIT)
    console.end()
    assert not console.ended
    assert console.read(0) == b"x" * BUFFER_LIMIT
    assert console.ended and console.read(30) == b""
    console.close()
    console.close()
    assert hung_up == [True]


class _Wire:
    """The other end of a console, without a hypervisor."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.calls: list[str] = []
        self.sent = b""

    def listen(self, heard: Callable[[bool], None]) -> None:
        self.heard = heard

    def deafen(self) -> None:
        self.calls.append("deafen")

    def receive(self) -> bytes | None:
        return self.waiting.pop(0) if self.waiting else None

    def send(self, data: bytes) -> int:
        self.sent += data[:2]
        return len(data[:2])

    def end(self) -> None:
        self.calls.append("end")


def test_a_console_listens_until_its_stream_is_over_and_hangs_up_once() -> None:
    wire = _Wire()
    console = console_on(wire)
    wire.waiting = [b"one ", b"two"]
    wire.heard(False)
    assert console.read(0) == b"one two" and wire.calls == []
    console.write(b"typed")
    assert wire.sent == b"typed"
    wire.waiting = [b"last", b""]
    wire.heard(False)
    assert wire.calls == ["deafen"]
    assert console.read(0) == b"last" and console.ended
    console.close()
    console.close()
    assert wire.calls == ["deafen", "end"]


def test_a_refusal_and_a_silence_are_told_apart() -> None:
    news = DeviceNews()
    since = news.heard("1")
    with pytest.raises(DeadlinePassed):
        news.wait_until_gone("1", "disk vdb", lambda: True, since, 0.05)
    threading.Timer(0.05, news.note, ("1",), {"refused": True}).start()
    with pytest.raises(LibvirtFailed, match="disk vdb"):
        news.wait_until_gone("1", "disk vdb", lambda: True, since, 10)
    answers = iter([True, False])
    threading.Timer(0.05, news.note, ("1",)).start()
    news.wait_until_gone("1", "disk vdb", lambda: next(answers), news.heard("1"), 10)


class _Flaky(Keeper):
    """Fails to connect twice, then connects; ``cut`` breaks what there is."""

    def __init__(self) -> None:
        super().__init__("test:///", "n1")
        self.opened: list[Link] = []
        self.failures = 2
        self.dropped: list[Link] = []

    def _open(self) -> Link:
        if self.failures:
            self.failures -= 1
            raise Lost("nobody is there.")
        self.opened.append(Link(object(), Pool(object, lambda conn: None, lambda conn: True)))
        return self.opened[-1]

    def _read(self, link: Link, uuid: str) -> None:
        self._states.put(uuid, msgspec.structs.replace(ONE, uuid=uuid))

    def _read_all(self, link: Link) -> None:
        self._states.put("reviewed", msgspec.structs.replace(ONE, uuid="reviewed"))

    def _drop(self, link: Link) -> None:
        self.dropped.append(link)


def test_a_connection_is_kept_and_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcvirtd.hypervisor.keeper.FIRST_RETRY", 0.01)
    keeper = _Flaky()
    with pytest.raises(LibvirtUnreachable):
        keeper._live()
    assert not keeper.connect(10)
    assert keeper.wait_connected(10)
    keeper._touch(keeper._live(), "9")
    assert keeper.wait_for("9", lambda state: state is not None, 10)
    first = keeper._live()
    keeper._note_lost(first, "the cable was cut.")
    assert not keeper.connected or keeper._live() is not first
    assert keeper.wait_connected(10) and keeper._live() is not first
    assert keeper.state("9") is not None  # what was known stays known
    keeper.close()
    assert keeper.dropped == keeper.opened and len(keeper.opened) == 2
    with pytest.raises(LibvirtUnreachable, match="given up"):
        keeper._live()


def test_a_guest_that_leaves_is_looked_at_when_it_has_left() -> None:
    keeper = _Flaky()
    keeper.failures = 0
    assert keeper.connect(10)
    link = keeper._live()
    keeper._touch(link, "leaves", after=600.0)
    keeper._touch(link, "stays", after=0.3)
    assert keeper.wait_for("stays", lambda state: state is not None, 10)
    assert keeper.state("leaves") is None
    keeper._touch(link, "leaves")  # it has gone
    keeper._touch(link, "leaves", after=600.0)
    assert keeper.wait_for("leaves", lambda state: state is not None, 10)
    keeper.close()


def test_a_guest_that_arrives_is_looked_at_when_it_goes_on() -> None:
    keeper = _Flaky()
    keeper.failures = 0
    assert keeper.connect(10)
    link = keeper._live()
    keeper._states.put("comes", msgspec.structs.replace(ONE, uuid="comes", condition="paused", id=7))
    keeper._heard(link, "comes", words.DEFINED, 0)
    assert link.touched["comes"] > time.monotonic() + 1
    keeper._heard(link, "new", words.DEFINED, 0)
    assert keeper.wait_for("new", lambda state: state is not None, 10)
    assert keeper.state("comes") is not None and keeper.state("comes").condition == "paused"  # type: ignore[union-attr]
    keeper._heard(link, "comes", 4, 1)  # resumed
    assert keeper.wait_for("comes", lambda state: state is not None and state.condition == ONE.condition, 1.5)
    keeper.close()


def test_what_no_event_tells_is_found_by_review(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcvirtd.hypervisor.keeper.FIRST_REVIEW", 0.01)
    keeper = _Flaky()
    keeper.failures = 0
    assert keeper.connect(10)
    assert keeper.wait_for("reviewed", lambda state: state is not None, 10)
    keeper.close()


class _Connections:
    """Makes numbers for connections; ``gate`` holds the making back."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.ended: list[int] = []
        self.dead: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.trouble: str | None = None
        self.pool = Pool(self.make, self.ended.append, lambda conn: conn not in self.dead)

    def make(self) -> int:
        self.gate.wait(10)
        if self.trouble:
            raise Lost(self.trouble)
        self.made.append(len(self.made))
        return self.made[-1]


def test_a_connection_is_never_shared_and_used_again() -> None:
    connections = _Connections()
    first, second = connections.pool.take(), connections.pool.take()
    assert first != second
    connections.pool.give(first)
    assert connections.pool.take() == first
    connections.dead.add(second)
    connections.pool.give(second)
    assert connections.ended == [second]
    more = [connections.pool.take() for _ in range(MOST_IDLE + 1)]
    for conn in more:
        connections.pool.give(conn)
    assert len(connections.ended) == 2 and len(connections.made) == MOST_IDLE + 3


def test_who_waits_for_a_connection_is_told_why_there_is_none() -> None:
    connections = _Connections()
    connections.trouble = "nobody is there."
    with pytest.raises(Lost, match="nobody"):
        connections.pool.take()
    connections.trouble = None
    connections.gate.clear()
    threading.Timer(0.05, connections.pool.abandon, ("libvirtd stopped answering.",)).start()
    with pytest.raises(Lost, match="stopped"):
        connections.pool.take()
    with pytest.raises(Lost, match="stopped"):
        connections.pool.take()
    connections.gate.set()


def test_a_connection_made_too_late_is_ended() -> None:
    connections = _Connections()
    connections.pool.give(connections.pool.take())
    held = connections.pool.take()
    connections.pool.abandon("over.")
    connections.pool.give(held)
    assert connections.ended == [held]


@pytest.mark.parametrize(
    ("setting", "trouble", "cpu", "known", "choice", "word"),
    [
        ("auto", None, True, True, "kvm", "offer"),
        ("auto", "there is no /dev/kvm", True, True, "tcg", "no /dev/kvm"),
        ("auto", None, False, True, "tcg", "hardware virtualisation"),
        ("auto", None, True, False, "tcg", "libvirt"),
        ("tcg", None, True, True, "tcg", "settings"),
        ("kvm", None, False, True, "kvm", "although"),
    ],
)
def test_kvm_is_taken_only_where_guests_run_with_it(
    setting: str, trouble: str | None, cpu: bool, known: bool, choice: str, word: str
) -> None:
    found = choose(setting, device_trouble=trouble, cpu_has_it=cpu, libvirt_knows_it=lambda: known)
    assert found[0] == choice and word in found[1]


def test_the_words_stand_for_libvirts_numbers() -> None:
    libvirt = pytest.importorskip("libvirt")
    reasons = {
        "RUNNING_MIGRATED": "migrated",
        "PAUSED_USER": "paused",
        "PAUSED_MIGRATION": "migrating",
        "PAUSED_IOERROR": "disk error",
        "PAUSED_STARTING_UP": "starting",
        "PAUSED_POSTCOPY_FAILED": "migration failed",
        "SHUTOFF_SHUTDOWN": "shut down",
        "SHUTOFF_DESTROYED": "destroyed",
        "SHUTOFF_CRASHED": "crashed",
        "SHUTOFF_MIGRATED": "migrated",
        "SHUTOFF_SAVED": "saved",
        "SHUTOFF_FAILED": "failed to start",
        "SHUTOFF_DAEMON": "lost while libvirtd was away",
    }
    for name in ("RUNNING", "BLOCKED", "PAUSED", "SHUTDOWN", "SHUTOFF", "CRASHED", "PMSUSPENDED"):
        assert getattr(libvirt, f"VIR_DOMAIN_{name}") == getattr(words, name)
    assert {
        (getattr(words, name.split("_")[0]), getattr(libvirt, f"VIR_DOMAIN_{name}")): word
        for name, word in reasons.items()
    } == words.REASONS
    assert words.LEAVES == (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED)
    assert libvirt.VIR_DOMAIN_EVENT_DEFINED == words.DEFINED


def test_the_processor_is_asked_for_whole_words() -> None:
    assert cpu_has_it("flags\t\t: fpu vmx sse\n")
    assert cpu_has_it("flags\t\t: fpu svm\n")
    assert not cpu_has_it("flags\t\t: fpu vmxnet osvw\nvmx flags\t: vnmi\n")
    assert device_trouble("/nowhere/kvm") == "there is no /nowhere/kvm"
