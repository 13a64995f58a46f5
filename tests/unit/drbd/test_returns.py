"""That the other side of a resource is back is heard, and not looked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.returns import Returns
from mcvirtd.state.records import NodeRecord
from mcvirtd.state.store import Store
from tests.unit.drbd import recorded

NAME = "mcvirt-big"
SOON = 10.0


class World:
    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "state.db")
        self.kernel = recorded.Kernel()
        self.reader = Reader(self.kernel.source)
        self.calls = threading.Semaphore(0)
        Returns(store=self.store, reader=self.reader).attend = self.calls.release
        self.reader.start()
        self.kernel.say(*recorded.existing(NAME), "exists -")

    def attended(self) -> int:
        """How often since the last time, once the reader has heard all that was said."""
        self.kernel.say(f"change resource name:{NAME} role:Primary")
        self.reader.wait(NAME, lambda state: state is not None and state.role == "Primary", SOON)
        self.kernel.say(f"change resource name:{NAME} role:Secondary")
        self.reader.wait(NAME, lambda state: state is not None and state.role == "Secondary", SOON)
        count = 0
        while self.calls.acquire(blocking=False):
            count += 1
        return count


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.reader.stop()
    made.store.close()


def test_what_is_there_when_the_kernel_is_first_read_is_looked_at(world: World) -> None:
    assert world.attended() == 1
    assert world.attended() == 0


def test_the_other_side_goes_and_comes_back(world: World) -> None:
    world.attended()
    world.kernel.say(*recorded.lines(*recorded.CUT))
    assert world.attended() == 0
    # It counts as back only when it is known what it has.
    world.kernel.say(f"change connection name:{NAME} conn-name:peer connection:Connected role:Secondary")
    assert world.attended() == 0
    known = f"change peer-device name:{NAME} volume:0 replication:Established peer-disk:UpToDate"
    world.kernel.say(known, known)
    assert world.attended() == 1


def test_a_nodes_record_changes(world: World) -> None:
    world.attended()
    with world.store.change() as change:
        change.put(NodeRecord(name="n2", id="n2", address="10.0.0.9"))
    assert world.attended() == 1
