"""What a node that is gone said last of its side, against what this one has seen since."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from mcvirt.types.drbd import ResourceState
from mcvirt.types.vm import DiskDriver, StorageType
from mcvirtd.drbd.last_words import LastWords
from mcvirtd.drbd.reader import Reader
from mcvirtd.state.records import DiskRecord, Replica

NAME = "mcvirt-hd-1"
DISK = DiskRecord(
    id="hd-1",
    volume=NAME,
    backend="fast",
    size=1 << 30,
    driver=DiskDriver.VIRTIO,
    storage_type=StorageType.DRBD,
    nodes=("n1", "n2"),
    replica=Replica(minor=4, port=7792, secret="s" * 32),
)
USED = ResourceState(name=NAME, role="Primary", connection="Connected", replication="Established", disk="UpToDate")
ALONE = ResourceState(name=NAME, role="Primary", connection="Connecting", disk="UpToDate")
CONNECTED = (
    f"change connection name:{NAME} connection:Connected role:Primary",
    f"change peer-device name:{NAME} replication:Established peer-disk:UpToDate out-of-sync:0",
)
LOST = (
    f"change connection name:{NAME} connection:Connecting role:Unknown",
    f"change peer-device name:{NAME} replication:Off peer-disk:DUnknown",
)


class Told:
    """This node is n1. *clock* is what it reads."""

    def __init__(self) -> None:
        self.clock = 100.0
        self.said: dict[str, ResourceState] = {}
        self.at: float | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        for line in (
            f"exists resource name:{NAME} role:Secondary suspended:no",
            f"exists connection name:{NAME} connection:Connecting role:Unknown",
            f"exists device name:{NAME} minor:4 disk:UpToDate size:1024",
            f"exists peer-device name:{NAME} replication:Off peer-disk:DUnknown out-of-sync:0",
            "exists -",
        ):
            self._lines.put(line)
        self.reader = Reader(self._events)
        self.words = LastWords(
            node="n1",
            reader=self.reader,
            said=lambda node: self.said if node == "n2" else {},
            heard=lambda node: self.at if node == "n2" else None,
            clock=lambda: self.clock,
        )

    def _events(self, heard: Callable[[str], None], stop: threading.Event) -> int:
        while not stop.is_set():
            try:
                heard(self._lines.get(timeout=0.05))
            except queue.Empty:
                continue
        return 0

    def see(self, *lines: str, connected: bool) -> None:
        for line in lines:
            self._lines.put(line)
        self.reader.wait(NAME, lambda state: state is not None and state.connected is connected, 10.0)

    def hear(self, state: ResourceState) -> None:
        self.said, self.at = {NAME: state}, self.clock

    def ahead(self) -> str:
        return self.words.ahead(DISK)


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    made.reader.start()
    made.see(connected=False)
    yield made
    made.reader.stop()


def test_who_said_nothing_has_nothing(told: Told) -> None:
    assert told.ahead() == ""


def test_who_went_on_alone_may_have_written_more(told: Told) -> None:
    told.hear(ALONE)
    assert "node 'n2' said last" in told.ahead()
    assert "--ignore-drbd" in told.ahead()


@pytest.mark.parametrize("word", [USED, ResourceState(name=NAME, role="Secondary", connection="Connecting")])
def test_who_was_connected_or_did_not_write_has_nothing_more(told: Told, word: ResourceState) -> None:
    told.hear(word)
    assert told.ahead() == ""


def test_who_was_met_since_has_nothing_more(told: Told) -> None:
    told.hear(ALONE)
    told.clock += 5
    told.see(*CONNECTED, connected=True)
    assert told.ahead() == ""
    told.clock += 5
    told.see(*LOST, connected=False)
    assert told.ahead() == ""


def test_that_the_link_is_missed_here_later_is_no_meeting(told: Told) -> None:
    told.see(*CONNECTED, connected=True)
    told.clock += 5
    told.hear(ALONE)  # it has noticed first
    told.clock += 3
    told.see(*LOST, connected=False)
    assert "node 'n2' said last" in told.ahead()
