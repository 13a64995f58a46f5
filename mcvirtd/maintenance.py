"""What the daemon does now and then, without being asked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import msgspec

log = logging.getLogger(__name__)


class Chore(msgspec.Struct):
    """*work* is done every *seconds*, the first time after *first*; beside the chores of other *lane*s."""

    name: str
    seconds: float
    work: Callable[[], object]
    first: float = 0.0
    due: float = 0.0
    lane: str = ""


class Maintenance:
    """Does chores when they are due, in one thread for each lane: what hangs keeps only its own lane waiting.

    A chore that fails is logged, and done again when next due.
    """

    def __init__(self, chores: list[Chore], clock: Callable[[], float] = time.monotonic) -> None:
        self._chores = chores
        self._clock = clock
        self._changed = threading.Condition()
        self._hurried: set[str] = set()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"maintenance {lane}".strip(), daemon=True)
            for lane in sorted({chore.lane for chore in chores})
        ]

    def start(self) -> None:
        """Begin."""
        now = self._clock()
        for chore in self._chores:
            chore.due = now + chore.first
        for thread in self._threads:
            thread.start()

    def hurry(self, *names: str) -> None:
        """Something has happened that these chores wait for: do them now, and once more if they are just being done."""
        with self._changed:
            self._hurried.update(names)
            self._changed.notify_all()

    def stop(self, within: float = 5.0) -> None:
        """End; a chore that is being done is waited for."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        until = time.monotonic() + within
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))

    def _run(self, lane: str) -> None:
        chores = [chore for chore in self._chores if chore.lane == lane]
        names = {chore.name for chore in chores}
        while True:
            with self._changed:
                if self._stopped:
                    return
                now = self._clock()
                due = [chore for chore in chores if chore.due <= now or chore.name in self._hurried]
                if not due:
                    self._changed.wait(min(chore.due for chore in chores) - now)
                    continue
                self._hurried -= names
                for chore in due:
                    chore.due = now + chore.seconds
            for chore in due:
                try:
                    chore.work()
                except Exception:
                    log.exception("the chore '%s' failed", chore.name)
