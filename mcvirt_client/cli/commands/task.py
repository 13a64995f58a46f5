"""task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcvirt_client.cli.output import GREEN, RED, YELLOW
from mcvirt_client.cli.parser import Command, Group, Parser

if TYPE_CHECKING:
    from mcvirt.types.task import TaskInfo
    from mcvirt_client.cli.context import Context

COLOURS = {"DONE": GREEN, "FAILED": RED, "STUCK": RED, "CANCELLED": YELLOW}


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("--running", action="store_true", help="only those that are not over")


def _list(context: Context) -> None:
    tasks = context.client.tasks.list(not context.args.running)
    context.out.value(tasks, lambda: _table(context, tasks))


def _table(context: Context, tasks: tuple[TaskInfo, ...]) -> str:
    return context.out.table(
        ("ID", "State", "Operation", "Target", "User", "Node", "Started", "Detail"),
        [
            (
                task.id,
                task.state.value,
                task.operation,
                task.target,
                task.user,
                task.node,
                task.started.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                _detail(task),
            )
            for task in tasks
        ],
        {"State": COLOURS},
    )


def _detail(task: TaskInfo) -> str:
    from mcvirt_client.cli.progress import describe

    if task.remains:
        return task.remains
    if task.error is not None:
        from mcvirt.errors import from_wire

        return str(from_wire(task.error))
    unfinished = [step for step in task.steps if not step.finished]
    return describe(unfinished[-1]) if unfinished and task.state.value == "RUNNING" else ""


def _id(parser: Parser) -> None:
    parser.argument("task", metavar="ID", live="task", help="the task, as `mcvirt task list` shows it")


def _watch(context: Context) -> None:
    task = context.args.task
    client = context.client
    client.follower.wait = True
    result = client.follower.follow(task)
    context.done(f"Task {task} is done", {"task": task, "result": result})


def _cancel(context: Context) -> None:
    task = context.args.task
    context.client.tasks.cancel(task)
    context.done(f"Task {task} was asked to stop, and undoes what it has begun", {"cancelled": task})


def _clear(context: Context) -> None:
    from mcvirt.errors import Conflict

    cancelled = []
    running = [task for task in context.client.tasks.list(False) if task.state.value == "RUNNING"]
    if running:
        named = ", ".join(f"{task.operation} {task.target}".rstrip() for task in running)
        context.confirm(f"Cancel {named}?")
    for task in running:
        try:
            context.client.tasks.cancel(task.id)
        except Conflict:
            continue  # it has ended meanwhile
        cancelled.append(task.id)
    text = "\n".join(f"Running task cancelled: {task}" for task in cancelled) or "No running tasks"
    context.done(text, {"cancelled": cancelled})


ID = "680c2852"

COMMANDS = {
    "task": Group(
        "Tasks: everything that takes a while",
        {
            "list": Command(
                "List tasks, one's own or, for superusers, all",
                _list,
                _list_arguments,
                examples=("mcvirt task list", "mcvirt task list --running"),
            ),
            "watch": Command("Wait for a task, and end as it ends", _watch, _id, examples=(f"mcvirt task watch {ID}",)),
            "cancel": Command(
                "Ask a task to stop; it undoes what it has begun", _cancel, _id, examples=(f"mcvirt task cancel {ID}",)
            ),
        },
    ),
    "clear-method-lock": Command(
        "Cancel the tasks that are running",
        _clear,
        description="One's own, or for superusers everybody's. `mcvirt task cancel` cancels a single one.",
        examples=("mcvirt clear-method-lock",),
    ),
}
