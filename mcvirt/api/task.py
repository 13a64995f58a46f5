"""Long work."""

from __future__ import annotations

from mcvirt.permissions import Access
from mcvirt.rpc.contract import NodeOfTask, remote
from mcvirt.types.task import TaskInfo, TaskNews


class TaskApi:
    """Tasks: everything that takes a while. One's own; all of them for superusers.

    A task on another node than the one that was called is TASK@NODE; any node follows and cancels it under that name.
    """

    object_id = "task"

    @remote(needs=Access.SELF, reads=True)
    def list(self, ended: bool = True) -> tuple[TaskInfo, ...]:
        """The tasks that the caller may see, the newest last; *ended* includes those that are over.

        Those of nodes that can't be reached are missing.
        """
        raise NotImplementedError

    @remote(needs=Access.SELF, runs_at=NodeOfTask("task"), reads=True)
    def follow(self, task: str, seen: int = -1, wait: float = 10.0) -> TaskNews:
        """The task, as soon as its version is above *seen*, or after *wait* seconds (30 at most)."""
        raise NotImplementedError

    @remote(needs=Access.SELF, runs_at=NodeOfTask("task"))
    def cancel(self, task: str) -> None:
        """Ask a task to stop; it undoes what it has begun. Refused for one that is over."""
        raise NotImplementedError
