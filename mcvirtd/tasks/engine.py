"""Runs tasks, remembers them, and settles at the start what the last process left unfinished."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import msgspec

from mcvirt.errors import (
    Conflict,
    Failed,
    InternalError,
    McvirtError,
    NodeUnreachable,
    NotFound,
    TaskCancelled,
    UndoIncomplete,
)
from mcvirt.types.task import ENDED, TaskInfo, TaskNews, TaskState
from mcvirtd.auth.caller import SYSTEM
from mcvirtd.state.replication import noting_left_behind
from mcvirtd.state.store import Store
from mcvirtd.tasks.task import Task, working_for
from mcvirtd.tasks.transaction import Journal

log = logging.getLogger(__name__)
# An error may carry what JSON has no form for; that must not keep its task from ending.
_encode = msgspec.json.Encoder(enc_hook=str).encode

MOST_AT_ONCE = 64
LONGEST_WAIT = 30.0
SETTLING = "settle"
INTERRUPTED = "mcvirtd stopped while it was at work"
CLOSING = "the end of mcvirtd"


class _Kept(TaskNews, frozen=True, kw_only=True):
    """A task as the state file has it. *verdict* is what settling has found out so far, while not all is settled."""

    verdict: tuple[str, bool] | None = None


_decode = msgspec.json.Decoder(TaskNews).decode
_decode_kept = msgspec.json.Decoder(_Kept).decode


class Tasks:
    """All tasks of this node: those at work in memory, all of them in the state file."""

    def __init__(self, store: Store, journal: Journal, node: str, *, keep_days: float = 30) -> None:
        self._store = store
        self._journal = journal
        self._node = node
        self._keep = keep_days * 86400.0
        self._lock = threading.Lock()
        self._being_settled: set[str] = set()
        # At work, or over and not yet in the state file.
        self._active: dict[str, Task] = {}
        self._closed = False
        self._pool = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="task")

    def start(
        self,
        operation: str,
        target: str,
        user: str,
        work: Callable[[], bytes],
        ended: Callable[[Task, McvirtError | None], None],
    ) -> Task:
        """Run *work* as a task, after writing down that it begins.

        *work* returns the result in wire form. *ended* is called with the task and its error, or None, once the work
        is over and before anybody else is told. An exception that is not ours is logged, and becomes an InternalError
        that refers to the log.
        """
        task = Task(operation, target, user, self._node)
        with self._lock:
            if self._closed:
                raise NodeUnreachable(node=self._node, reason="mcvirtd is stopping.")
            self._active[task.id] = task
        try:
            self._store.execute(
                "INSERT INTO task VALUES (?, ?, ?, ?)",
                (task.id, task.state.value, time.time(), _encode(task.news(-1, 0))),
            )
            self._pool.submit(self._run, task, work, ended)
        except BaseException:
            self._forget(task)
            raise
        return task

    def _run(self, task: Task, work: Callable[[], bytes], ended: Callable[[Task, McvirtError | None], None]) -> None:
        error: McvirtError | None = None
        result = b"null"
        with working_for(task), noting_left_behind() as away:
            try:
                task.check()
                result = work()
            except McvirtError as raised:
                error = raised
            except BaseException:
                log.exception("task %s (%s of %s) failed", task.id, task.operation, task.target)
                error = InternalError(node=self._node, reference=task.id)
        task.away = tuple(sorted(away))
        conclusion = self._conclude(task, error, result)
        try:
            ended(task, error)
        except Exception:
            log.exception("what follows task %s failed", task.id)
        self._announce(task, conclusion)

    def _conclude(self, task: Task, error: McvirtError | None, result: bytes) -> TaskNews:
        if error is None:
            return task.conclusion(TaskState.DONE, result=result)
        remains = str(error.fields.get("remains", "")) if isinstance(error, UndoIncomplete) else ""
        # The work may have caught the error that told of it, and raised another.
        with suppress(McvirtError):
            remains = remains or "; ".join(self._journal.remaining(task.id))
        state = TaskState.CANCELLED if isinstance(error, TaskCancelled) else TaskState.FAILED
        return task.conclusion(TaskState.STUCK if remains else state, error=error.to_wire(), remains=remains)

    def _announce(self, task: Task, conclusion: TaskNews) -> None:
        # Stored before it is told: what a follower has seen is still so after a crash.
        try:
            self._save(conclusion)
        except McvirtError as problem:
            log.error("the end of task %s could not be stored: %s", task.id, problem)
            task.finish(conclusion)  # and it stays in memory until it can be
        else:
            task.finish(conclusion)
            self._forget(task)

    def _forget(self, task: Task) -> None:
        with self._lock:
            self._active.pop(task.id, None)

    def _save_ended(self) -> None:
        with self._lock:
            over = [task for task in self._active.values() if task.state in ENDED]
        for task in over:
            self._save(task.news(-1, 0))
            self._forget(task)

    def _save(self, news: TaskNews) -> None:
        self._store.execute(
            "UPDATE task SET state = ?, data = ? WHERE id = ?", (news.info.state.value, _encode(news), news.info.id)
        )

    def find(self, task_id: str) -> Task | None:
        """The task if it is at work, or its end could not be stored yet."""
        with self._lock:
            return self._active.get(task_id)

    def news(self, task_id: str, seen: int = -1, wait: float = 0.0) -> TaskNews:
        """What there is to know of a task, at work or over; NotFound if there is none."""
        task = self.find(task_id)
        if task is not None:
            return task.news(seen, max(0.0, min(wait, LONGEST_WAIT)))
        rows = self._store.query("SELECT data FROM task WHERE id = ?", (task_id,))
        if not rows:
            raise NotFound(kind="task", name=task_id, hint=" `mcvirt task list` shows all of them.")
        return _decode(rows[0][0])

    def failed(self, task_id: str) -> bool | None:
        """Whether a task has failed; None while it goes on. One that was cancelled has not."""
        state = self.news(task_id).info.state
        return None if state is TaskState.RUNNING else state in (TaskState.FAILED, TaskState.STUCK)

    def list(self, ended: bool = True) -> Sequence[TaskInfo]:
        """Tasks, the newest last."""
        with self._lock:
            active = {task.id: task.info() for task in self._active.values()}
        states = "" if ended else " WHERE state IN ('RUNNING', 'STUCK')"
        rows = self._store.query(f"SELECT id, data FROM task{states} ORDER BY started DESC LIMIT 1000")  # noqa: S608
        found = [active.get(task_id) or _decode(data).info for task_id, data in reversed(rows)]
        return found if ended else [info for info in found if info.state in (TaskState.RUNNING, TaskState.STUCK)]

    def cancel(self, task_id: str, by: str) -> None:
        """Ask a task to stop; Conflict if it is over."""
        task = self.find(task_id)
        state = self.news(task_id).info.state
        if task is None or state in ENDED:
            raise Conflict(text=f"Task {task_id} is over already ({state.value}); there is nothing to cancel.")
        task.cancel(by)

    def settle(self, only: Iterable[str] | None = None) -> Sequence[TaskInfo]:
        """Undo or finish what unfinished tasks of an earlier process left, and what is stuck; returns those tasks.

        Called at the start before anything is served, and again when something that was away is back. Several threads
        may do that at a time, each with *only* some of what is `left`; nothing is settled twice at once.
        """
        self._save_ended()
        return [info for task_id in (self.left() if only is None else only) for info in self._settle_alone(task_id)]

    def settle_alone(self) -> None:
        """Do of what is due that which needs nothing but this machine's kernel, whatever else is away."""
        for task_id in self._journal.due(alone=True):
            with self._settling_of(task_id) as mine:
                if mine and self.find(task_id) is None and not self._journal.at_work(task_id):
                    with working_for(Task(SETTLING, "", SYSTEM, self._node, task_id=task_id)):
                        for remains in self._journal.settle(task_id, alone=True):
                            log.warning("of operation %s is still due: %s", task_id, remains)

    def left(self) -> Sequence[str]:
        """The tasks that are not at work and have not ended, the newest first; then what short operations have left."""
        due = self._journal.due()
        unfinished = "SELECT id FROM task WHERE state IN ('RUNNING', 'STUCK') ORDER BY started DESC"
        rows = [str(task_id) for (task_id,) in self._store.query(unfinished)]
        # Short operations are no tasks with a row of their own, but may leave things due all the same.
        lost = [task_id for task_id in reversed(due) if task_id not in rows and not self._journal.at_work(task_id)]
        return [task_id for task_id in (*rows, *lost) if self.find(task_id) is None]

    @contextmanager
    def _settling_of(self, task_id: str) -> Iterator[bool]:
        """In the block nobody else settles the task; False if somebody does."""
        with self._lock:
            mine = task_id not in self._being_settled
            if mine:
                self._being_settled.add(task_id)
        try:
            yield mine
        finally:
            if mine:
                with self._lock:
                    self._being_settled.discard(task_id)

    def _settle_alone(self, task_id: str) -> Sequence[TaskInfo]:
        with self._settling_of(task_id) as mine:
            if not mine or self.find(task_id) is not None:
                return []
            # Read now: another thread may just have settled it.
            due = self._journal.due().get(task_id, [])
            unfinished = "SELECT data FROM task WHERE id = ? AND state IN ('RUNNING', 'STUCK')"
            for (data,) in self._store.query(unfinished, (task_id,)):
                return [self._settle_one(_decode_kept(data), due)]
            return self._settle_lost(task_id) if due and not self._journal.at_work(task_id) else []

    def _settle_lost(self, task_id: str) -> Sequence[TaskInfo]:
        task = Task(SETTLING, "", SYSTEM, self._node, task_id=task_id)
        info = task.info()
        with working_for(task):
            remains = self._journal.settle(task_id)
        if not remains:
            log.warning("what was left of operation %s has been settled", task_id)
            return []
        error = Failed(text="What an operation left could not be settled.").to_wire()
        stuck = msgspec.structs.replace(
            info, state=TaskState.STUCK, finished=datetime.now(UTC), error=error, remains="; ".join(remains)
        )
        self._store.execute(
            "REPLACE INTO task VALUES (?, ?, ?, ?)",
            (task_id, stuck.state.value, time.time(), _encode(_Kept(info=stuck, verdict=task.verdict))),
        )
        return [stuck]

    def _settle_one(self, kept: _Kept, directions: Sequence[str]) -> TaskInfo:
        info = kept.info
        task = Task("settle " + info.operation, info.target, info.user, self._node, task_id=info.id)
        task.verdict = kept.verdict
        with working_for(task):
            remains = self._journal.settle(info.id)
        was_stuck = info.state is TaskState.STUCK
        if remains:
            state, text = TaskState.STUCK, "; ".join(remains)
            what = _first_error(info) if was_stuck else f"{INTERRUPTED}, and not everything could be settled."
        elif task.verdict is not None:
            state = TaskState.DONE if task.verdict[1] else TaskState.FAILED
            before = _first_error(info) if was_stuck else INTERRUPTED
            before = f"{INTERRUPTED}." if before.startswith(INTERRUPTED) else before
            text, what = "", "" if task.verdict[1] else f"{before} {task.verdict[0]}"
        elif "redo" in directions:
            state, text, what = TaskState.DONE, "", ""
        elif was_stuck:
            state, text, what = TaskState.FAILED, "", f"{_first_error(info)} What remained of it has been undone since."
        else:
            state, text = TaskState.FAILED, ""
            what = f"{INTERRUPTED}; what was begun and not finished has been undone."
        error = Failed(text=what).to_wire() if what else None
        ended = msgspec.structs.replace(
            info, state=state, finished=datetime.now(UTC), error=error, remains=text, version=info.version + 1
        )
        self._save(_Kept(info=ended, verdict=task.verdict if remains else None))
        log.warning("task %s (%s of %s) settled: %s %s", info.id, info.operation, info.target, state.value, text)
        return ended

    def prune(self) -> None:
        """Forget tasks that ended longer ago than they are kept."""
        self._save_ended()
        self._store.execute(
            "DELETE FROM task WHERE state NOT IN ('RUNNING', 'STUCK') AND started < ?", (time.time() - self._keep,)
        )

    def close(self, within: float = 10.0) -> None:
        """Cancel what is at work and wait for it to unwind; what has not by then is settled at the next start."""
        with self._lock:
            self._closed = True
            active = list(self._active.values())
        for task in active:
            task.cancel(CLOSING)
        deadline = time.monotonic() + within
        for task in active:
            task.news(2**62, max(0.0, deadline - time.monotonic()))
        self._pool.shutdown(wait=all(task.state in ENDED for task in active), cancel_futures=True)


def _first_error(info: TaskInfo) -> str:
    error = info.error or {}
    fields = error.get("fields")
    text = fields.get("text") if isinstance(fields, dict) else None
    return str(text or error.get("text") or "It failed.")
