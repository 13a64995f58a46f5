"""Tasks as their callers see them: the contract TaskApi."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mcvirt.api.task import TaskApi
from mcvirt.errors import NotFound
from mcvirt.names import printable
from mcvirt.types.task import TaskInfo, TaskNews
from mcvirtd.auth.caller import Caller, current_caller
from mcvirtd.auth.rights import Rights
from mcvirtd.tasks.engine import LONGEST_WAIT, Tasks

Elsewhere = Callable[[Caller, bool], Sequence[TaskInfo]]


class TaskService(TaskApi):
    """One's own tasks; all of them for superusers."""

    def __init__(self, *, tasks: Tasks, rights: Rights, elsewhere: Elsewhere | None = None) -> None:
        """*elsewhere* gives the tasks of other nodes that a caller may see."""
        self._elsewhere = elsewhere
        self._tasks = tasks
        self._rights = rights

    def list(self, ended: bool = True) -> tuple[TaskInfo, ...]:
        """The tasks that the caller may see, the newest last."""
        caller = current_caller()
        here = self.here(caller, ended)
        elsewhere = self._elsewhere(caller, ended) if self._elsewhere is not None else ()
        return tuple(sorted((*here, *elsewhere), key=lambda task: task.started)) if elsewhere else here

    def here(self, caller: Caller, ended: bool) -> tuple[TaskInfo, ...]:
        """The tasks of this node that *caller* may see, the newest last."""
        return tuple(task for task in self._tasks.list(ended) if self._may_see(caller, task))

    def follow(self, task: str, seen: int = -1, wait: float = 10.0) -> TaskNews:
        """The task, as soon as its version is above *seen*, or after *wait* seconds."""
        task = self._checked(task)
        # Written so that NaN waits for nothing.
        return self._tasks.news(task, seen, min(wait, LONGEST_WAIT) if wait > 0 else 0.0)

    def cancel(self, task: str) -> None:
        """Ask a task to stop."""
        task = self._checked(task)
        self._tasks.cancel(task, current_caller().user)

    def _checked(self, named: str) -> str:
        # The call has come to the node that is named behind the @.
        task = named.partition("@")[0]
        # Somebody else's task is answered like none, so that nobody learns of it by asking.
        try:
            info = self._tasks.news(task).info
        except NotFound:
            raise _no_task(named) from None
        if not self._may_see(current_caller(), info):
            raise _no_task(named)
        return task

    def _may_see(self, caller: Caller, task: TaskInfo) -> bool:
        return task.user == caller.user or self._rights.is_superuser(caller)


def _no_task(task: str) -> NotFound:
    return NotFound(kind="task", name=printable(task), hint=" `mcvirt task list` shows all of them.")
