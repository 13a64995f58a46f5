"""Doing several things so that a failure, or a crash, leaves none of them half done.

    with journal.transaction() as tx:
        tx.undo("volume.delete", backend=backend.name, volume=volume)      # durable before the act
        volumes.create(volume, size)
        with tx.commit() as change:                                        # all or nothing, journal included
            change.put(record)

An undo is the name of a registered act and its arguments, not a function: so it can be run by the next process when
this one dies. It is journalled *before* the act, and so every act must accept that the thing was never made. Leaving
by an exception runs the undos, newest first; one that fails is kept in the journal, the others still run, and the
original error stays the error. `redo` is the other direction: what is journalled so is finished after a crash rather
than undone, for work that has no way back (deleting).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from mcvirt.errors import ChangeUnknown, LeaderUnreachable, McvirtError, UndoIncomplete
from mcvirtd.state.store import Change, Store
from mcvirtd.tasks.task import current_task

log = logging.getLogger(__name__)
Act = Callable[..., None]


class Journal:
    """The acts that undo or finish things, and the durable list of those that are still due."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._acts: dict[str, Act] = {}
        self._alone: set[str] = set()
        self._lock = threading.Lock()
        self._adding = threading.Lock()
        self._scopes = 0
        self._open: Counter[str] = Counter()

    def register(self, name: str, act: Act, *, alone: bool = False) -> None:
        """Make *act* known under *name*. It takes JSON values, and may be run twice or for what was never made.

        *alone*: it needs this machine's kernel and nothing else: no records, no libvirt and no other node.
        """
        if name in self._acts:
            raise ValueError(f"there are two acts called {name}")
        self._acts[name] = act
        if alone:
            self._alone.add(name)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction of the current task; undone unless it is committed or kept."""
        task = current_task().id
        with self._lock:
            self._scopes += 1
            tx = Transaction(self, self._scopes)
            self._open[task] += 1
        try:
            yield from self._within(tx)
        finally:
            with self._lock:
                self._open[task] -= 1
                if not self._open[task]:
                    del self._open[task]

    def _within(self, tx: Transaction) -> Iterator[Transaction]:
        try:
            yield tx
            if not tx.closed:
                raise RuntimeError("a transaction ended without commit() or keep()")
        except BaseException as error:
            if tx.closed:
                raise
            if isinstance(error, ChangeUnknown | LeaderUnreachable) and tx.committing:
                # The change may yet turn out to stand: what is due stays due, and is settled when that is known.
                tx.closed = True
                raise UndoIncomplete(text=str(error), remains="what it began is settled then.") from error
            remains = tx.roll_back()
            if remains:
                raise UndoIncomplete(text=_sentence(error), remains="; ".join(remains)) from error
            raise

    def add(self, scope: int, direction: str, act: str, arguments: dict[str, Any]) -> int:
        """Write down that *act* is due; returns the entry's number once it is on disk."""
        if act not in self._acts:
            raise ValueError(f"there is no act called {act}")
        task = current_task().id
        with self._adding:  # a task may have several threads
            self._store.execute(
                "INSERT INTO journal (task, scope, direction, act, arguments) VALUES (?, ?, ?, ?, ?)",
                (task, scope, direction, act, msgspec.json.encode(arguments)),
            )
            return int(self._store.query("SELECT max(seq) FROM journal WHERE task = ?", (task,))[0][0])

    def add_to(self, change: Change, direction: str, act: str, arguments: dict[str, Any]) -> None:
        """The same for one that is due if, and as soon as, *change* stands."""
        if act not in self._acts:
            raise ValueError(f"there is no act called {act}")
        change.execute(
            "INSERT INTO journal (task, scope, direction, act, arguments) VALUES (?, ?, ?, ?, ?)",
            (current_task().id, 0, direction, act, msgspec.json.encode(arguments)),
        )

    def amend(self, seq: int, arguments: dict[str, Any]) -> None:
        """What is due as entry *seq* is due with other arguments now."""
        self._store.execute("UPDATE journal SET arguments = ? WHERE seq = ?", (msgspec.json.encode(arguments), seq))

    def forget(self, seq: int) -> None:
        """An entry is no longer due."""
        self._store.execute("DELETE FROM journal WHERE seq = ?", (seq,))

    def run(self, act: str, arguments: dict[str, Any]) -> None:
        """Run a registered act."""
        self._acts[act](**arguments)

    def settle(self, task: str, *, alone: bool = False) -> list[str]:
        """Do what is still due for *task*; returns sentences of what could not be done.

        First what undoes, the newest of it first; then what finishes, in the order in which it was begun. With *alone*
        only those acts that need nothing else.
        """
        rows = self._store.query(
            "SELECT seq, direction, act, arguments FROM journal WHERE task = ? ORDER BY seq", (task,)
        )
        rows = [row for row in rows if not alone or row[2] in self._alone]
        undo = [row for row in reversed(rows) if row[1] == "undo"]
        redo = [row for row in rows if row[1] != "undo"]
        remains = []
        for seq, _, act, arguments in (*undo, *redo):
            try:
                self.run(act, msgspec.json.decode(arguments))
                self.forget(seq)
            except McvirtError as error:
                remains.append(f"{act}: {error}")
            except Exception as error:
                log.exception("act %s of task %s failed", act, task)
                remains.append(f"{act}: {type(error).__name__}")
        return remains

    def keep_open(self) -> Callable[[], None]:
        """What is due for the current task is not for others to do, until the result is called, or the process ends."""
        task = current_task().id
        with self._lock:
            self._open[task] += 1

        def close() -> None:
            with self._lock:
                self._open[task] -= 1
                if self._open[task] <= 0:
                    del self._open[task]

        return close

    def at_work(self, task: str) -> bool:
        """Whether a transaction of *task* is open in this process: then what is due is not for others to do."""
        with self._lock:
            return self._open[task] > 0

    def remaining(self, task: str) -> list[str]:
        """The acts that are still due for *task*."""
        rows = self._store.query("SELECT act FROM journal WHERE task = ? ORDER BY seq", (task,))
        return [str(act) for (act,) in rows]

    def withdraw(self, act: str, **arguments: Any) -> None:
        """What is due of *act* with these arguments (and perhaps more) is no longer wanted."""
        for seq, text in self._store.query("SELECT seq, arguments FROM journal WHERE act = ?", (act,)):
            given = msgspec.json.decode(text)
            if all(given.get(name) == value for name, value in arguments.items()):
                self.forget(seq)

    def due_of(self, act: str) -> list[tuple[str, dict[str, Any]]]:
        """The tasks for which *act* is due, and with what arguments."""
        rows = self._store.query("SELECT task, arguments FROM journal WHERE act = ? ORDER BY seq", (act,))
        return [(str(task), msgspec.json.decode(arguments)) for task, arguments in rows]

    def due(self, *, alone: bool = False) -> dict[str, list[str]]:
        """Task to the directions of its entries that are still due; with *alone* of those that need nothing else."""
        found: dict[str, list[str]] = {}
        for task, direction, act in self._store.query("SELECT task, direction, act FROM journal ORDER BY seq"):
            if not alone or act in self._alone:
                found.setdefault(task, []).append(direction)
        return found


class Transaction:
    """See the module. Used only by `with journal.transaction() as tx`."""

    def __init__(self, journal: Journal, scope: int) -> None:
        self._journal = journal
        self._scope = scope
        self._entries: list[tuple[int, str, str, dict[str, Any]]] = []
        self.closed = False
        self.committing = False

    def undo(self, act: str, **arguments: Any) -> None:
        """The next line is undone by *act* if the transaction is not committed."""
        self._must_be_open()
        current_task().check()
        self._entries.append((self._journal.add(self._scope, "undo", act, arguments), "undo", act, arguments))

    def redo(self, act: str, **arguments: Any) -> int:
        """After a crash, *act* finishes what the next lines do; a failure that is none leaves things as they are.

        The result is for `Journal.amend`.
        """
        self._must_be_open()
        due = self._journal.add(self._scope, "redo", act, arguments)
        self._entries.append((due, "redo", act, arguments))
        return due

    @contextmanager
    def commit(self) -> Iterator[Change]:
        """The change that makes it all true; when it is stored, nothing is undone any more."""
        with self._journal._store.change() as change:
            yield change
            self._forget_all(change)
            self.committing = True
        self.closed = True

    @contextmanager
    def change(self) -> Iterator[Change]:
        """A change on the way: where it is not known whether it stands, all that is due stays due, for later."""
        with self._journal._store.change() as change:
            yield change
            self.committing = True
        self.committing = False

    def leave_due_if_unknown(self) -> None:
        """From here on a change of which it is not known whether it stands leaves all that is due, for later."""
        self.committing = True

    def leave_due(self) -> None:
        """It failed where it can't be left, and what was journalled is done later instead of undone."""
        self.closed = True

    def _must_be_open(self) -> None:
        if self.closed:
            raise RuntimeError("the transaction is over: nothing would undo this")

    def keep(self) -> None:
        """Like commit, where there is no record to change."""
        with self._journal._store.note() as change:
            self._forget_all(change)
        self.closed = True

    def _forget_all(self, change: Change) -> None:
        for seq, _, _, _ in self._entries:
            change.execute("DELETE FROM journal WHERE seq = ?", (seq,))

    def roll_back(self) -> list[str]:
        """Run the undos, newest first; returns sentences of those that failed, which stay in the journal."""
        self.closed = True
        remains = []
        with current_task().shielded():
            for seq, direction, act, arguments in reversed(self._entries):
                try:
                    if direction == "undo":
                        self._journal.run(act, arguments)
                except McvirtError as error:
                    log.error("undo %s %s failed: %s", act, arguments, error)
                    remains.append(f"{act}: {error}")
                except Exception as error:
                    log.exception("undo %s failed", act)
                    remains.append(f"{act}: {type(error).__name__}")
                else:
                    self._forget(seq, act)
        return remains

    def _forget(self, seq: int, act: str) -> None:
        try:
            self._journal.forget(seq)
        except McvirtError as error:
            # It is done. That it is written down as due costs no more than doing it once again, later.
            log.error("undo %s is done, and could not be crossed out: %s", act, error)


def _sentence(error: BaseException) -> str:
    return str(error) if isinstance(error, McvirtError) else f"An internal error ({type(error).__name__})."
