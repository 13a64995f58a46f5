"""A task: named steps with amounts, cancelled between them, followed by any number of watchers."""

from __future__ import annotations

import contextvars
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from mcvirt.errors import TaskCancelled
from mcvirt.types.task import ENDED, StepInfo, TaskInfo, TaskNews, TaskState

# Watchers are told of progress at most this often; a copy reports every piece.
_PROGRESS_INTERVAL = 0.2


class Progress:
    """How far one step is."""

    def __init__(self, task: Task, index: int) -> None:
        self._task = task
        self._index = index
        self._told = 0.0
        self._waits = ""

    def at(self, done: int) -> None:
        """Report the amount that is done by now; raises TaskCancelled if the task was cancelled."""
        self._task.check()
        now = time.monotonic()
        if now - self._told >= _PROGRESS_INTERVAL:
            self._told = now
            self._task._set_step(self._index, done=done)

    def waits(self, why: str) -> None:
        """Say why it does not go on just now, in a sentence; "" when it does."""
        if why != self._waits:
            self._waits = why
            self._task._set_step(self._index, waits=why)


class Task:
    """One operation in progress. *user* is who asked for it, *target* what it is for.

    *away*, once it is over, are the nodes without which it has made changes.
    """

    def __init__(self, operation: str, target: str, user: str, node: str, *, task_id: str | None = None) -> None:
        self.id = task_id or secrets.token_hex(4)
        self.operation = operation
        self.target = target
        self.user = user
        self.cancelled = threading.Event()
        self.cancelled_by = ""
        self.away: tuple[str, ...] = ()
        # What settling found out, and whether that is what had been asked for: where neither "undone" nor "finished" is
        # known beforehand.
        self.verdict: tuple[str, bool] | None = None
        self._shielded = 0
        self._node = node
        self._state = TaskState.RUNNING
        self._started = datetime.now(UTC)
        self._finished: datetime | None = None
        self._steps: list[StepInfo] = []
        self._version = 0
        self._error: dict[str, Any] | None = None
        self._remains = ""
        self._result = b"null"
        self._changed = threading.Condition()

    @property
    def state(self) -> TaskState:
        """Where the task is."""
        return self._state

    def check(self) -> None:
        """Raise TaskCancelled if somebody has cancelled the task, unless what is running now must be finished."""
        if self.cancelled.is_set() and not self._shielded:
            raise TaskCancelled(by=f" by {self.cancelled_by}" if self.cancelled_by else "")

    def conclude(self, sentence: str, *, done: bool) -> None:
        """For acts that settle: what they found, and whether the task has done what it was to do."""
        self.verdict = (sentence, done)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """In the block a cancellation is not heard: for undoing, and for what must not be left half done."""
        self._shielded += 1
        try:
            yield
        finally:
            self._shielded -= 1

    def cancel(self, by: str) -> None:
        """Ask the task to stop at the next step or report of progress."""
        self.cancelled_by = by
        self.cancelled.set()

    @contextmanager
    def step(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Progress]:
        """One named step of the work, *total* *unit*s long where that is known."""
        self.check()
        with self._changed:
            index = len(self._steps)
            self._steps.append(StepInfo(name=name, total=total, unit=unit))
            self._bump()
        yield Progress(self, index)
        self._set_step(index, finished=True, waits="", **({} if total is None else {"done": total}))

    def _set_step(self, index: int, **fields: Any) -> None:
        with self._changed:
            self._steps[index] = msgspec.structs.replace(self._steps[index], **fields)
            self._bump()

    def _bump(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def conclusion(
        self, state: TaskState, *, result: bytes = b"null", error: dict[str, Any] | None = None, remains: str = ""
    ) -> TaskNews:
        """What there will be to know once the task is over; nobody is told before `finish`."""
        now = self.info()
        info = msgspec.structs.replace(
            now, state=state, finished=datetime.now(UTC), error=error, remains=remains, version=now.version + 1
        )
        return TaskNews(info=info, result=msgspec.Raw(result), away=self.away)

    def finish(self, conclusion: TaskNews) -> None:
        """The task is over; watchers are told."""
        with self._changed:
            self._state = conclusion.info.state
            self._finished = conclusion.info.finished
            self._result = bytes(conclusion.result)
            self._error = conclusion.info.error
            self._remains = conclusion.info.remains
            self._bump()

    def info(self) -> TaskInfo:
        """The task as it is now."""
        with self._changed:
            return TaskInfo(
                id=self.id,
                operation=self.operation,
                target=self.target,
                user=self.user,
                node=self._node,
                state=self._state,
                started=self._started,
                finished=self._finished,
                steps=tuple(self._steps),
                version=self._version,
                error=self._error,
                remains=self._remains,
            )

    def news(self, seen: int, wait: float) -> TaskNews:
        """The task once its version is above *seen*, or it is over, or *wait* seconds have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > seen or self._state in ENDED, timeout=wait)
            return TaskNews(info=self.info(), result=msgspec.Raw(self._result), away=self.away)


_current: contextvars.ContextVar[Task | None] = contextvars.ContextVar("task", default=None)


def current_task() -> Task:
    """The task that this thread works for; outside of one, a task of its own that nobody follows."""
    task = _current.get()
    if task is None:
        task = Task("(direct)", "", "", "")
        _current.set(task)
    return task


@contextmanager
def working_for(task: Task) -> Iterator[None]:
    """In the block this thread works for *task*."""
    token = _current.set(task)
    try:
        yield
    finally:
        _current.reset(token)


def step(name: str, total: int | None = None, unit: str = "") -> Any:
    """`with step("Copying disk", total=size, unit="B") as progress:` in the current task."""
    return current_task().step(name, total, unit)
