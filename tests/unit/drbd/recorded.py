"""What the real kernel said (DRBD 8.4.11) while resources were verified, damaged, cut off and repaired; by time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd.status import Event, Picture, Progress, parse

LINES = Path(__file__).with_name("golden").joinpath("verify-node1.txt").read_text().splitlines()
SMALL, BIG = "mcvirt-small", "mcvirt-big"

CLEAN = ("01:42:45.9", "01:42:47.9", SMALL)
DIFFERENT = ("01:42:53.2", "01:42:54.9", SMALL)
REPAIRED = ("01:42:56.4", "01:43:02.0", SMALL)
CUT = ("01:43:10.3", "01:43:25.0", BIG)
DISCONNECTED = ("01:43:58.9", "01:44:13.1", BIG)
PEER_DISK_FAILED = ("01:47:12.4", "01:47:17.0", BIG)
PEER_LOST_POWER = ("01:47:27.7", "01:47:43.0", BIG)


def lines(begin: str, end: str, resource: str) -> list[str]:
    """The lines about *resource* between two times of the day."""
    return [line for line in LINES if begin <= line[11 : 11 + len(begin)] and line[11:] < end and resource in line]


def events(window: tuple[str, str, str]) -> list[Event]:
    found = [parse(line) for line in lines(*window)]
    assert found and all(found)
    return [event for event in found if event is not None]


def renamed(window: tuple[str, str, str], resource: str) -> list[str]:
    return [line.replace(window[2], resource) for line in lines(*window)]


def existing(resource: str, minor: int = 1, out_of_sync: int = 0, role: str = "Secondary") -> list[str]:
    """A resource that is connected and good on both sides, as it is first told of."""
    return [
        f"exists resource name:{resource} role:{role} suspended:no",
        f"exists connection name:{resource} conn-name:peer connection:Connected role:Secondary",
        f"exists device name:{resource} volume:0 minor:{minor} disk:UpToDate size:16384 read:0 written:0",
        f"exists peer-device name:{resource} volume:0 replication:Established peer-disk:UpToDate "
        f"out-of-sync:{out_of_sync}",
    ]


class Kernel:
    """Says what it is told to, when a command is given that is to be followed by it; writes commands down."""

    def __init__(self) -> None:
        self.said: queue.Queue[str] = queue.Queue()
        self.picture = Picture()
        self.commands: list[str] = []
        self.follows: dict[str, list[str]] = {}
        self.counting = True
        self.positions: dict[int, Progress] = {}
        self.failing: dict[str, Exception] = {}
        # What each side's disk has read; a verification reads all of the disk, unless somebody ends it.
        self.read = self.read_there = 100 * 1024
        self.reads = 16384 * 1024
        self.silent: Callable[[], bool] = lambda: False  # whether the other side does not say what it has read

    def source(self, heard: Callable[[str], None], stop: threading.Event) -> int:
        while not stop.is_set():
            try:
                line = self.said.get(timeout=0.02)
            except queue.Empty:
                continue
            if line == "end":
                return 20
            heard(line)
        return 0

    def say(self, *words: str) -> None:
        for line in words:
            self.said.put(line)
            if (event := parse(line)) is not None:
                self.picture.apply(event)

    def state(self, name: str) -> ResourceState | None:
        """As it is by all that was said, heard or not."""
        return self.picture.state(name)

    def _do(self, verb: str, name: str, note: str = "") -> None:
        self.commands.append(f"{verb} {name}{note}")
        if verb in self.failing:
            raise self.failing[verb]
        self.say(*self.follows.get(verb, []))

    def verify(self, name: str) -> None:
        self.read += self.reads
        self.read_there += self.reads
        self._do("verify", name)

    def stop_verify(self, name: str) -> None:
        self._do("stop_verify", name)

    def limit_rate(self, name: str, rate: int) -> None:
        self._do("limit_rate", name, f" {rate}")

    def unlimit_rate(self, name: str) -> None:
        self._do("unlimit_rate", name)

    def connect(self, name: str, *, discard_my_data: bool = False) -> None:
        self._do("connect", name, " discarding" if discard_my_data else "")

    def disconnect(self, name: str, *, force: bool = False) -> None:
        self._do("disconnect", name)

    def new_current_uuid(self, name: str, *, clear_bitmap: bool = False) -> None:
        self._do("new_current_uuid", name)

    def invalidate_remote(self, name: str) -> None:
        self._do("invalidate_remote", name)

    def progress(self) -> Mapping[int, Progress]:
        unmoved = {minor: Progress(out_of_sync=0, read=self.read) for minor in range(1, 5)} if self.counting else {}
        return {**unmoved, **self.positions}
