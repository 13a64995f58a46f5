"""The reader, fed with what the real kernel said."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcvirt.errors import CommandFailed, DeadlinePassed, TaskCancelled
from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.status import GAP

LINES = Path(__file__).with_name("golden").joinpath("events-node1.txt").read_text().splitlines()
NAME = "mcvirt-hd-t1"
SOON = 10.0


class Kernel:
    """Says what it is told to; "end" ends the program, "fail" lets it fail."""

    def __init__(self) -> None:
        self.lines: queue.Queue[str] = queue.Queue()
        self.starts = 0

    def __call__(self, heard: Callable[[str], None], stop: threading.Event) -> int:
        self.starts += 1
        while not stop.is_set():
            try:
                line = self.lines.get(timeout=0.05)
            except queue.Empty:
                continue
            if line == "end":
                return 20
            if line == "fail":
                raise CommandFailed(program="drbdsetup", status=20, output="no.")
            heard(line)
        return 0

    def say(self, *lines: str) -> None:
        for line in lines:
            self.lines.put(line)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def reader(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.setattr("mcvirtd.drbd.reader.AGAIN_AFTER", (0.0,))
    made = Reader(kernel)
    made.start()
    yield made
    made.stop()


def good(state: ResourceState | None) -> bool:
    return state is not None and state.both_good


def test_a_device_that_has_grown_is_as_long_as_it_is_though_no_event_says_so(kernel: Kernel) -> None:
    sizes = {7: 0}
    reader = Reader(kernel, device_size=lambda minor: sizes[minor])
    reader.start()
    kernel.say(f"exists resource name:{NAME} role:Secondary suspended:no")
    kernel.say(f"exists device name:{NAME} volume:0 minor:7 disk:UpToDate size:1024", "exists -")
    assert reader.wait_alive(SOON)
    for size, told in ((0, 1024**2), (4 * 1024**2, 4 * 1024**2)):  # one that the kernel does not list has none there
        sizes[7] = size
        state = reader.state(NAME)
        assert state is not None and state.size == told
    assert reader.all()[NAME].size == 1024**2
    kernel.say(f"change resource name:{NAME} role:Primary suspended:no")  # for what it says of, all is looked at
    reader.wait(NAME, lambda state: state is not None and state.role == "Primary", SOON)
    assert reader.all()[NAME].size == 4 * 1024**2
    sizes[7] = 8 * 1024**2
    reader.measure_sizes()
    assert reader.all()[NAME].size == 8 * 1024**2
    reader.stop()


def test_nothing_is_known_before_all_that_exists_was_told(kernel: Kernel, reader: Reader) -> None:
    kernel.say(f"exists resource name:{NAME} role:Secondary suspended:no")
    with pytest.raises(DeadlinePassed, match="can't be read"):
        reader.wait(NAME, lambda state: True, within=0.1)
    assert not reader.alive
    kernel.say("exists -")
    assert reader.wait_alive(SOON)
    assert reader.wait(NAME, lambda state: state is not None, within=SOON).role == "Secondary"


def test_one_who_waits_is_woken_by_the_event(kernel: Kernel, reader: Reader) -> None:
    kernel.say(*LINES)
    assert reader.wait(NAME, good, within=SOON).size == 64 * 1024**2


def test_a_deadline_says_what_it_saw(kernel: Kernel, reader: Reader) -> None:
    kernel.say(*LINES[:2])
    reader.wait(NAME, lambda state: state is not None, within=SOON)
    with pytest.raises(DeadlinePassed, match="Secondary here with the data Diskless; the connection is StandAlone"):
        reader.wait(NAME, good, within=0.05)
    with pytest.raises(DeadlinePassed, match="no such resource"):
        reader.wait("mcvirt-hd-2", good, within=0.05)


def test_cancelling_ends_the_wait(kernel: Kernel, reader: Reader) -> None:
    kernel.say("exists -")
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(TaskCancelled):
        reader.wait(NAME, good, within=SOON, cancel=cancel)


def test_a_verification_that_is_over_before_anyone_looks_is_seen(kernel: Kernel, reader: Reader) -> None:
    kernel.say(*LINES[:14])
    reader.wait(NAME, good, within=SOON)
    with reader.follow(NAME) as followed:
        kernel.say(*LINES[14:18])
        reader.wait(NAME, lambda state: state is not None and not state.checking, within=SOON)
        words = followed.wait(
            lambda events: [event.fields.get("replication") for event in events][-2:] == ["VerifyS", "Established"],
            within=SOON,
        )
    assert [event.fields.get("role") for event in words][:2] == ["Primary", "Secondary"]
    kernel.say(LINES[18])
    with pytest.raises(DeadlinePassed, match="what was seen last is 'change peer-device"):
        followed.wait(lambda events: False, within=0.05)


def test_a_program_that_ends_is_started_again_and_the_pause_is_not_hidden(kernel: Kernel, reader: Reader) -> None:
    kernel.say(*LINES[:14])
    reader.wait(NAME, good, within=SOON)
    with reader.follow(NAME) as followed:
        kernel.say("end", "fail", f"exists resource name:{NAME} role:Primary suspended:no", "exists -")
        assert reader.wait(NAME, lambda state: state is not None and state.role == "Primary", within=SOON)
        assert [event.verb for event in followed.events] == [GAP]
    assert kernel.starts == 3


def test_a_resource_that_went_during_a_pause_is_gone(kernel: Kernel, reader: Reader) -> None:
    kernel.say(*LINES[:14])
    reader.wait(NAME, good, within=SOON)
    kernel.say("end", "exists -")
    reader.wait(NAME, lambda state: state is None, within=SOON)
    assert dict(reader.all()) == {}


def test_subscribers_are_told_each_event_with_the_state_after_it(kernel: Kernel, reader: Reader) -> None:
    heard: queue.Queue[tuple[str, str]] = queue.Queue()

    def broken(*_: object) -> None:
        raise ValueError("on purpose")

    reader.subscribe(broken)
    end = reader.subscribe(lambda event, state: heard.put((event.verb, state.role if state else "none")))
    kernel.say("exists -", *LINES[1:3])
    assert heard.get(timeout=SOON) == ("create", "Secondary")
    assert heard.get(timeout=SOON) == ("create", "Secondary")
    end()
    kernel.say(f"destroy resource name:{NAME}")
    reader.wait(NAME, lambda state: state is None, within=SOON)
    assert heard.empty()


def test_a_split_that_is_known_from_elsewhere_is_told_once_and_not_lost_to_an_event_at_the_same_time(
    kernel: Kernel,
) -> None:
    reader = Reader(kernel)
    heard: queue.Queue[tuple[str, bool]] = queue.Queue()
    reader.subscribe(lambda event, state: heard.put((event.helper, state is not None and state.split_brain)))
    reader.start()
    try:
        kernel.say(f"exists resource name:{NAME} role:Primary suspended:no", "exists -")
        reader.wait(NAME, lambda state: state is not None, within=SOON)
        made, go = threading.Event(), threading.Event()
        state_of = reader._picture.state

        def held_up(resource: str) -> ResourceState | None:
            state = state_of(resource)
            if not made.is_set():
                made.set()
                go.wait(SOON)
            return state

        reader._picture.state = held_up  # type: ignore[method-assign]
        kernel.say(f"change resource name:{NAME} role:Secondary")
        assert made.wait(SOON)
        other = threading.Thread(target=lambda: [reader.split(NAME), reader.split(NAME)])
        other.start()
        other.join(0.2)
        go.set()
        other.join(SOON)
        state = reader.wait(NAME, lambda state: state is not None and state.role == "Secondary", within=SOON)
        assert state.split_brain
        assert [heard.get(timeout=SOON) for _ in range(3)] == [("", False), ("", False), ("split-brain", True)]
        assert heard.empty()
        assert reader.split("mcvirt-nobody")
        assert reader.state("mcvirt-nobody") is None
        kernel.say(
            f"create connection name:{NAME} connection:Connected role:Secondary",
            f"create peer-device name:{NAME} replication:Established peer-disk:UpToDate",
        )
        reader.wait(NAME, lambda state: state is not None and state.connected, within=SOON)
        assert not reader.split(NAME)
        assert not reader.wait(NAME, lambda state: state is not None, within=SOON).split_brain
    finally:
        reader.stop()


def test_a_split_from_before_is_remembered(kernel: Kernel) -> None:
    reader = Reader(kernel, split=lambda: [NAME])
    reader.start()
    try:
        kernel.say(f"exists resource name:{NAME} role:Primary suspended:no", "exists -")
        assert reader.wait(NAME, lambda state: state is not None, within=SOON).split_brain
    finally:
        reader.stop()
