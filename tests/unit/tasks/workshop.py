"""Things that are made and unmade, with everything that tasks need around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mcvirt.errors import Conflict, McvirtError
from mcvirtd.state.records import NetworkRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.engine import Tasks
from mcvirtd.tasks.task import Task
from mcvirtd.tasks.transaction import Journal


class Workshop:
    """`things` is the world outside of the state: files, say. It stays when the process "dies"."""

    def __init__(self, directory: Path, things: set[str] | None = None) -> None:
        self.things = set() if things is None else things
        self.log: list[str] = []
        self.stuck: set[str] = set()
        self.store = Store(directory / "state.db")
        self.journal = Journal(self.store)
        self.tasks = Tasks(self.store, self.journal, "n1")
        self.journal.register("remove", self.remove)
        self.journal.register("finish", self.finish)

    def make(self, name: str) -> None:
        self.log.append(f"make {name}")
        self.things.add(name)

    def remove(self, name: str) -> None:
        self.log.append(f"remove {name}")
        if name in self.stuck:
            raise Conflict(text=f"{name} is stuck.")
        self.things.discard(name)

    def finish(self, name: str) -> None:
        self.log.append(f"finish {name}")
        if name in self.stuck:
            raise Conflict(text=f"{name} can't be finished.")
        self.things.add(name)

    def due(self) -> list[tuple[str, str]]:
        return [(str(a), str(b)) for a, b in self.store.query("SELECT direction, act FROM journal ORDER BY seq")]

    def networks(self) -> set[str]:
        return set(self.store.all(NetworkRecord))

    def start(self, work: Callable[[], bytes], ended: Callable[[Task, McvirtError | None], None] | None = None) -> Task:
        return self.tasks.start("thing.make", "web1", "bob", work, ended or (lambda task, error: None))

    def close(self) -> None:
        self.tasks.close(10)
        self.store.close()


def network(name: str) -> NetworkRecord:
    return NetworkRecord(name=name, interface="br0")
