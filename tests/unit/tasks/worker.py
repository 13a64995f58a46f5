"""Makes and deletes things, each of two files and a record, until it is killed."""

from __future__ import annotations

from pathlib import Path

from mcvirtd.state.records import NetworkRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.engine import Tasks
from mcvirtd.tasks.transaction import Journal


class Worker:
    def __init__(self, directory: Path) -> None:
        self.place = directory / "things"
        self.place.mkdir(exist_ok=True)
        self.store = Store(directory / "state.db")
        self.journal = Journal(self.store)
        self.tasks = Tasks(self.store, self.journal, "n1")
        self.journal.register("remove", self.remove)
        self.journal.register("finish", self.finish)

    def files(self) -> set[str]:
        """The things of which there is any file."""
        return {path.name.partition(".")[0] for path in self.place.iterdir()}

    def recorded(self) -> set[str]:
        return set(self.store.all(NetworkRecord))

    def remove(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)

    def finish(self, name: str) -> None:
        self._remove_files(name)
        with self.store.change() as change:
            change.delete(NetworkRecord, name)

    def _remove_files(self, name: str) -> None:
        for part in ("one", "two"):
            (self.place / f"{name}.{part}").unlink(missing_ok=True)

    def make(self, name: str) -> bytes:
        with self.journal.transaction() as tx:
            for part in ("one", "two"):
                path = self.place / f"{name}.{part}"
                tx.undo("remove", path=str(path))
                path.write_text(name)
            with tx.commit() as change:
                change.put(NetworkRecord(name=name, interface="br0"))
        return b"1"

    def delete(self, name: str) -> bytes:
        with self.journal.transaction() as tx:
            tx.redo("finish", name=name)
            self._remove_files(name)
            with tx.commit() as change:
                change.delete(NetworkRecord, name)
        return b"1"

    def run(self) -> None:
        number = len(self.store.query("SELECT id FROM task"))
        print("ready", flush=True)
        while True:
            number += 1
            name = f"thing{number}"
            self._do(lambda name=name: self.make(name))
            print(f"made:{name}", flush=True)
            if number % 2:
                # Told to be gone only once it is; told to be there no longer from now on.
                print(f"deleting:{name}", flush=True)
                self._do(lambda name=name: self.delete(name))
                print(f"gone:{name}", flush=True)

    def _do(self, work: object) -> None:
        task = self.tasks.start("thing", "x", "bob", work, lambda task, error: None)  # type: ignore[arg-type]
        news = task.news(-1, 10)
        while news.info.finished is None:
            news = task.news(news.info.version, 10)
        assert news.info.error is None, news.info.error

    def close(self) -> None:
        self.tasks.close(10)
        self.store.close()
