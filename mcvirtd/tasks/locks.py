"""Locks on single objects ("vm:web1", "disk:hd-..."), owned by tasks.

A task takes all that it needs at once, in sorted order, so two tasks never wait for each other. When a task ends,
however it ends, its locks are gone. There is no lock for the whole cluster, and nobody waits for a person with one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mcvirt.errors import Busy
from mcvirtd.tasks.task import Task, current_task

WAIT = 15.0


class Locks:
    """All locks of this node."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders: dict[str, tuple[Task, int]] = {}

    @contextmanager
    def hold(self, *objects: str, within: float = WAIT) -> Iterator[None]:
        """Hold *objects* for the block; raises Busy, with the task that has one, after *within* seconds.

        A task may hold an object several times over. Cancelling a task that waits ends the waiting.
        """
        task = current_task()
        wanted = sorted(set(objects))
        deadline = time.monotonic() + within
        held: list[str] = []
        try:
            for name in wanted:
                self._take(task, name, deadline)
                held.append(name)
            yield
        finally:
            with self._changed:
                for name in held:
                    self._release(name)
                self._changed.notify_all()

    def _take(self, task: Task, name: str, deadline: float) -> None:
        with self._changed:
            while True:
                holder = self._holders.get(name)
                if holder is None or holder[0] is task:
                    self._holders[name] = (task, 1 if holder is None else holder[1] + 1)
                    return
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Busy(object=_words(name), task=holder[0].id, operation=holder[0].operation)
                # A cancelled task must not sit out its deadline: look again now and then.
                self._changed.wait(min(left, 0.25))
                task.check()

    def _release(self, name: str) -> None:
        task, count = self._holders[name]
        if count > 1:
            self._holders[name] = (task, count - 1)
        else:
            del self._holders[name]

    def holder(self, name: str) -> Task | None:
        """The task that holds the object now, if any."""
        with self._changed:
            found = self._holders.get(name)
            return found[0] if found else None


def _words(name: str) -> str:
    kind, _, key = name.partition(":")
    words = {"vm": "Virtual machine", "disk": "Hard drive", "backend": "Storage backend", "iso": "ISO"}
    return f"{words.get(kind, kind.capitalize())} '{key}'"
