"""What the last process, or a task that got stuck, left unfinished: settled as soon as it can be."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mcvirt.errors import from_wire
from mcvirt.types.task import ENDED, TaskState
from mcvirtd.auth.audit import Audit
from mcvirtd.auth.caller import Caller
from mcvirtd.tasks.engine import Tasks

log = logging.getLogger(__name__)


class Settling:
    """*caught_up* brings the records to where the cluster's are, and says whether that was possible."""

    def __init__(
        self, *, tasks: Tasks, audit: Audit, caught_up: Callable[[], bool], libvirt_answers: Callable[[], bool]
    ) -> None:
        self._tasks = tasks
        self._audit = audit
        self._caught_up = caught_up
        self._libvirt_answers = libvirt_answers
        self._settled = False

    def settle(self) -> None:
        """Settle all that is left, once the records are the cluster's."""
        # What an undo finds in the records must be what the cluster has: a change whose answer was lost may stand.
        self._settled = self._caught_up()
        if not self._settled:
            log.warning("what was left unfinished is settled when this node has caught up with the cluster")
            return
        for task in self._tasks.settle():
            if task.state in ENDED:
                error = None if task.error is None else from_wire(task.error)
                self._audit.record(Caller(user=task.user), task.operation, task.target, error, task.id)

    def settle_stuck(self) -> None:
        """The same where something is left; for a timer."""
        stuck = any(task.state is TaskState.STUCK for task in self._tasks.list(ended=False))
        if self._libvirt_answers() and (stuck or not self._settled):
            self.settle()
