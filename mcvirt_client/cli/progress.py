"""Tasks as people see them: a bar on a terminal, nothing elsewhere, and what Ctrl-C means."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from mcvirt.errors import Conflict
from mcvirt.types.task import ENDED, TaskRef
from mcvirt_client.cli.output import about, cells, clean, terminal_width
from mcvirt_client.tasks import Detached

if TYPE_CHECKING:
    from mcvirt.types.task import StepInfo, TaskInfo
    from mcvirt_client.cli.output import Output
    from mcvirt_client.client import Client

BAR = 20
FIRST_GUESS_AFTER = 2.0


class Bars:
    """Shows the news of one task after another."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._terminal = out.stderr.isatty()
        self._shown = False
        self._pace = Pace()

    def __call__(self, info: TaskInfo) -> None:
        if not self._terminal:
            return
        write = self._out.stderr.write
        if self._shown:
            write("\r\x1b[K")
            self._shown = False
        if info.state not in ENDED:
            step = _current(info)
            if step is not None:
                room = (terminal_width(self._out.stderr, os.environ) or 80) - 1
                text = describe(step) + ("" if step.waits else self._pace.left(step, time.monotonic()))
                write(_cut(f"{info.target}: {text}" if info.target else text, room))
                self._shown = True
        self._out.stderr.flush()

    def amount(self, what: str, done: int, total: int) -> None:
        """Show work that is no task: *done* of *total* bytes."""
        if not self._terminal:
            return
        if done >= total:
            self._out.stderr.write("\r\x1b[K")
        else:
            room = (terminal_width(self._out.stderr, os.environ) or 80) - 1
            self._out.stderr.write("\r\x1b[K" + _cut(f"{what} {bar(done, total)} {_of(done, total, 'B')}", room))
        self._out.stderr.flush()


class Pace:
    """How fast a step goes on, since it was seen first."""

    def __init__(self) -> None:
        self._step = ""
        self._since = (0.0, 0)

    def left(self, step: StepInfo, now: float) -> str:
        """How long the step will still take, as words to put behind it; "" while that can't be said."""
        if step.name != self._step or step.done < self._since[1]:
            self._step, self._since = step.name, (now, step.done)
        begun, before = self._since
        if not step.total or step.done <= before or now - begun < FIRST_GUESS_AFTER:
            return ""
        seconds = int((step.total - step.done) * (now - begun) / (step.done - before))
        if seconds < 1:
            return ""
        return (
            f", {seconds // 3600} h {seconds % 3600 // 60} min left"
            if seconds >= 3600
            else (f", {seconds // 60} min left" if seconds >= 120 else f", {seconds} s left")
        )


def describe(step: StepInfo) -> str:
    """A step in a line, with its bar where amounts are known, and why it waits if it does."""
    if step.total:
        text = f"{step.name} {bar(step.done, step.total)} {_of(step.done, step.total, step.unit)}"
    elif step.done:
        text = f"{step.name} {about(step.done) if step.unit == 'B' else f'{step.done} {step.unit}'}".rstrip()
    else:
        text = f"{step.name} ..."
    return f"{text} (waits: {step.waits})" if step.waits else text


def bar(done: int, total: int) -> str:
    """How much of *total* is done, as a picture and in percent."""
    part = min(1.0, max(0.0, done / total)) if total else 1.0
    filled = int(part * BAR)
    return f"[{'#' * filled}{'.' * (BAR - filled)}] {int(part * 100):3d}%"


def _of(done: int, total: int, unit: str) -> str:
    if unit == "B":
        return f"{about(done)} of {about(total)}"
    return "" if unit == "%" else f"{done} of {total} {unit}".rstrip()


def _current(info: TaskInfo) -> StepInfo | None:
    for step in reversed(info.steps):
        if not step.finished:
            return step
    return info.steps[-1] if info.steps else None


def _cut(text: str, room: int) -> str:
    text = clean(text)
    while text and cells(text) > room:
        text = text[:-1]
    return text


def choose_on_interrupt(client: Client, task: str, out: Output) -> None:
    """Ctrl-C while a task is followed: cancel it and wait on, or raise Detached."""
    if sys.stdin is not None and sys.stdin.isatty() and out.stderr.isatty():
        out.stderr.write(f"\r\x1b[KTask {task} is at work: [d]etach and let it go on, [c]ancel it, or [w]ait on? ")
        out.stderr.flush()
        try:
            answer = sys.stdin.readline().strip().lower()
        except KeyboardInterrupt:
            answer = "d"
        if answer in ("c", "cancel"):
            out.say(f"Cancelling task {task}; what it has begun is undone.")
            try:
                client.tasks.cancel(task)
            except Conflict:
                pass  # it ended while the question stood there; how, is what the waiting will say
            return
        if answer in ("w", "wait"):
            return
    raise Detached(TaskRef(task), asked=False)
