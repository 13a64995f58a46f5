"""Following tasks: the other half of every operation that takes a while."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mcvirt.errors import DeadlinePassed, Failed, TaskCancelled, from_wire

# The types of tasks are imported when one is followed: most commands of the command line follow none.
if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from mcvirt.api.task import TaskApi
    from mcvirt.rpc.contract import Operation
    from mcvirt.types.task import TaskInfo, TaskRef

    # Called with every news of a followed task; the last one has a state of `mcvirt.types.task.ENDED`.
    Progress = Callable[[TaskInfo], None]

POLL = 10.0


class Detached(Exception):
    """The task *ref* goes on, and nobody waits for it here.

    *asked*: that was wanted beforehand (no waiting); otherwise somebody interrupted the waiting.
    """

    def __init__(self, ref: TaskRef, *, asked: bool = True) -> None:
        super().__init__(ref.task)
        self.ref = ref
        self.asked = asked


class Follower:
    """Waits for tasks with long polls, and gives their results or raises their errors.

    *wait* False raises Detached instead of waiting. *timeout* (seconds) raises DeadlinePassed, and the task goes on.
    *interrupted* is called with the task's ID when the waiting is interrupted by Ctrl-C; it may raise Detached, or
    return to wait on. Without it the KeyboardInterrupt goes up, and the task goes on. *away* collects the nodes without
    which tasks have made changes.
    """

    def __init__(self, tasks: Callable[[], TaskApi]) -> None:
        self._tasks = tasks
        self.progress: Progress | None = None
        self.wait = True
        self.timeout: float | None = None
        self.away: set[str] = set()
        self.interrupted: Callable[[str], None] | None = None

    def __call__(self, task: str, operation: Operation) -> msgspec.Raw:  # noqa: ARG002 - what make_client calls
        if not self.wait:
            from mcvirt.types.task import TaskRef

            raise Detached(TaskRef(task))
        return self.follow(task)

    def follow(self, task: str) -> msgspec.Raw:
        """The result of *task* in wire form once it is done; raises its error if it failed or was cancelled."""
        from mcvirt.types.task import ENDED

        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        seen = -1
        while True:
            left = POLL if deadline is None else deadline - time.monotonic()
            try:
                news = self._tasks().follow(task, seen, max(0.0, min(POLL, left)))
            except KeyboardInterrupt:
                if self.interrupted is None:
                    raise
                self.interrupted(task)
                continue
            seen = news.info.version
            if self.progress is not None:
                self.progress(news.info)
            if news.info.state in ENDED:
                self.away.update(news.away)
                _raise_error(news.info)
                return news.result
            if left <= 0:
                raise DeadlinePassed(
                    what=f"The end of task {task} ({news.info.operation} {news.info.target})",
                    seconds=f"{self.timeout:g}",
                    why=f"it is still at work, and goes on. `mcvirt task watch {task}` waits for it.",
                )


def _raise_error(info: TaskInfo) -> None:
    from mcvirt.types.task import TaskState

    if info.error is not None:
        raise from_wire(info.error)
    if info.state is TaskState.CANCELLED:
        raise TaskCancelled(by="")
    if info.state is not TaskState.DONE:
        what = f"Task {info.id} ({info.operation} {info.target})"
        raise Failed(text=f"{what} ended as {info.state.value}. {info.remains}")
