"""Long work as it crosses the wire."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any

import msgspec


class TaskState(str, Enum):
    """Where a task is. STUCK: it ended, or its daemon died, and something that it began could not be undone."""

    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    STUCK = "STUCK"


ENDED = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED, TaskState.STUCK})


class TaskRef(msgspec.Struct, frozen=True):
    """What a task's caller gets at once."""

    task: str


class StepInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One named step: *done* of *total* in *unit* ("B" for bytes), where amounts are known.

    *waits* is why it does not go on just now, in a sentence; "" while it does.
    """

    name: str
    done: int = 0
    total: int | None = None
    unit: str = ""
    finished: bool = False
    waits: str = ""


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A task as `mcvirt task list` shows it. *version* grows with every change of it."""

    id: str
    operation: str
    target: str
    user: str
    node: str
    state: TaskState
    started: datetime
    finished: datetime | None = None
    steps: tuple[StepInfo, ...] = ()
    version: int = 0
    error: dict[str, Any] | None = None
    remains: str = ""


class TaskNews(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower sees: the task, and its result once it is done (in wire form).

    *away* are the nodes without which it has made changes.
    """

    info: TaskInfo
    result: msgspec.Raw = msgspec.Raw(b"null")
    away: tuple[str, ...] = ()
