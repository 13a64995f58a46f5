"""What the last process, or a task that got stuck, left unfinished: settled as soon as it can be."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from mcvirt.errors import from_wire
from mcvirt.types.task import ENDED
from mcvirtd.auth.audit import Audit
from mcvirtd.auth.caller import Caller
from mcvirtd.tasks.engine import Tasks

log = logging.getLogger(__name__)

WAIT = 10.0
"""How long a timer waits for what it has begun to settle; what takes longer goes on, and keeps nothing else waiting."""
_MOST_AT_ONCE = 8


class Settling:
    """*caught_up* brings the records to where the cluster's are, and says whether that was possible."""

    def __init__(
        self, *, tasks: Tasks, audit: Audit, caught_up: Callable[[], bool], libvirt_answers: Callable[[], bool]
    ) -> None:
        self._tasks = tasks
        self._audit = audit
        self._caught_up = caught_up
        self._libvirt_answers = libvirt_answers
        self._catching_up = threading.Lock()
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._settled = False

    def settle(self) -> None:
        """Settle all that is left, once the records are the cluster's; what needs only this machine at once."""
        self._tasks.settle_alone()
        if not self._know():
            log.warning("what was left unfinished is settled when this node has caught up with the cluster")
            return
        self._settle(None)
        self._settled = True

    def settle_stuck(self) -> None:
        """The same where something is left, each task apart from the others; for a timer."""
        self._tasks.settle_alone()
        left = self._tasks.left()
        if self._libvirt_answers() and (left or not self._settled) and self._know():
            self._settle_each(left)
            self._settled = True

    def settle_of(self, tasks: Collection[str]) -> None:
        """The same of these tasks only."""
        if self._libvirt_answers() and self._know():
            self._settle_each(tasks)

    def _know(self) -> bool:
        # What an undo finds in the records must be what the cluster has: a change whose answer was lost may stand.
        with self._catching_up:
            return self._caught_up()

    def _settle_each(self, tasks: Collection[str]) -> None:
        deadline = time.monotonic() + WAIT
        for thread in [thread for task in tasks if (thread := self._begin(task)) is not None]:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _begin(self, task: str) -> threading.Thread | None:
        """The thread that settles the task; None if there is one already, or too many that do not end."""
        with self._lock:
            self._threads = {task: thread for task, thread in self._threads.items() if thread.is_alive()}
            if task in self._threads or len(self._threads) >= _MOST_AT_ONCE:
                return None
            thread = threading.Thread(target=self._settle_apart, args=(task,), name=f"settle-{task}", daemon=True)
            self._threads[task] = thread
            thread.start()
        return thread

    def _settle_apart(self, task: str) -> None:
        try:
            self._settle([task])
        except Exception:
            log.exception("what is left of task %s could not be settled", task)

    def _settle(self, tasks: Collection[str] | None) -> None:
        for task in self._tasks.settle(tasks):
            if task.state in ENDED:
                error = None if task.error is None else from_wire(task.error)
                self._audit.record(Caller(user=task.user), task.operation, task.target, error, task.id)
