"""What the next process does for one that died: undo, or finish, and never leave half."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from mcvirt.types.task import TaskState
from mcvirtd.tasks.task import Task, current_task, working_for
from mcvirtd.tasks.transaction import Transaction
from tests.unit.tasks.workshop import Workshop, network


def die_in(shop: Workshop, at: str) -> str:
    """Run a task by hand up to a point, and lose the process there; returns the task's id."""
    task = Task("thing.make", "web1", "bob", "n1")
    shop.store.execute(
        "INSERT INTO task VALUES (?, ?, ?, ?)", (task.id, "RUNNING", time.time(), msgspec.json.encode(task.news(-1, 0)))
    )
    with working_for(task):
        tx = Transaction(shop.journal, 1)
        if at == "redo":
            for name in ("x", "y"):
                tx.redo("finish", name=name)
        else:
            for name in ("a", "b"):
                tx.undo("remove", name=name)
                shop.make(name)
        if at == "committed":
            with tx.commit() as change:
                change.put(network("lan"))
    # As after a kill: no roll back, no end.
    shop.store.close()
    return task.id


@pytest.mark.parametrize(
    ("at", "things", "state", "log"),
    [
        ("undo", set(), TaskState.FAILED, ["remove b", "remove a"]),
        ("redo", {"x", "y"}, TaskState.DONE, ["finish x", "finish y"]),
        ("committed", {"a", "b"}, TaskState.FAILED, []),
    ],
)
def test_a_dead_task_is_undone_or_finished(
    tmp_path: Path, at: str, things: set[str], state: TaskState, log: list[str]
) -> None:
    world: set[str] = set()
    task = die_in(Workshop(tmp_path, world), at)
    shop = Workshop(tmp_path, world)
    (info,) = shop.tasks.settle()
    assert (info.id, info.state, info.remains) == (task, state, "")
    assert (world, shop.log, shop.due()) == (things, log, [])
    assert shop.networks() == ({"lan"} if at == "committed" else set())
    assert shop.tasks.news(task).info == info
    assert (shop.tasks.settle(), shop.log) == ([], log)
    if state is TaskState.FAILED:
        assert "mcvirtd stopped while it was at work" in str(info.error)
    shop.close()


def test_what_one_try_to_settle_found_out_is_known_to_the_next(tmp_path: Path) -> None:
    def shop_that_notes(*stuck: str) -> Workshop:
        def note(name: str) -> None:
            shop.finish(name)
            task = current_task()
            task.conclude(" ".join((*(task.verdict or ())[:1], f"{name} was interrupted.")), done=False)

        shop = Workshop(tmp_path, set())
        shop.stuck = set(stuck)
        shop.journal.register("note", note)
        return shop

    shop = shop_that_notes()
    task = Task("thing.make", "web1", "bob", "n1")
    shop.store.execute(
        "INSERT INTO task VALUES (?, ?, ?, ?)", (task.id, "RUNNING", time.time(), msgspec.json.encode(task.news(-1, 0)))
    )
    with working_for(task):
        tx = Transaction(shop.journal, 1)
        for act, name in (("finish", "limit"), ("note", "x"), ("note", "y")):
            tx.redo(act, name=name)
    shop.store.close()
    for stuck in (("limit", "y"), ("limit",)):
        shop = shop_that_notes(*stuck)
        (info,) = shop.tasks.settle()
        assert (info.state, shop.tasks.news(task.id).info) == (TaskState.STUCK, info)
        shop.store.close()
    shop = shop_that_notes()
    (info,) = shop.tasks.settle()
    assert info.state is TaskState.FAILED
    assert info.error is not None
    assert info.error["text"] == "mcvirtd stopped while it was at work. x was interrupted. y was interrupted."
    shop.close()


@pytest.mark.parametrize(("at", "stuck"), [("undo", "a"), ("undo", "b"), ("redo", "x"), ("redo", "y")])
def test_what_can_not_be_settled_is_stuck_and_the_rest_is_done(tmp_path: Path, at: str, stuck: str) -> None:
    world: set[str] = set()
    task = die_in(Workshop(tmp_path, world), at)
    shop = Workshop(tmp_path, world)
    shop.stuck = {stuck}
    (info,) = shop.tasks.settle()
    assert (info.id, info.state) == (task, TaskState.STUCK)
    assert stuck in info.remains
    assert len(shop.due()) == 1
    assert world == ({stuck} if at == "undo" else {"x", "y"} - {stuck})
    shop.close()
    # It is tried again by each later process, and by this one when something is back.
    shop = Workshop(tmp_path, world)
    (info,) = shop.tasks.settle()
    assert info.state is (TaskState.FAILED if at == "undo" else TaskState.DONE)
    assert world == (set() if at == "undo" else {"x", "y"})
    assert shop.due() == []
    shop.close()


def test_undoing_comes_before_finishing(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    with working_for(Task("op", "x", "bob", "n1", task_id="t1")):
        for direction, name in (("undo", "1"), ("redo", "2"), ("undo", "3"), ("redo", "4")):
            shop.journal.add(1, direction, "remove" if direction == "undo" else "finish", {"name": name})
    assert shop.journal.settle("t1") == []
    assert shop.log == ["remove 3", "remove 1", "finish 2", "finish 4"]
    shop.close()


def test_an_act_that_nobody_knows_any_more_is_stuck(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    with working_for(Task("op", "x", "bob", "n1", task_id="t1")):
        shop.journal.add(1, "undo", "remove", {"name": "a"})
    shop.store.execute("UPDATE journal SET act = 'of a later version'")
    (info,) = shop.tasks.settle()
    assert (info.state, info.id) == (TaskState.STUCK, "t1")
    assert "of a later version" in info.remains
    shop.close()


WORKER = """
import sys
from pathlib import Path
from tests.unit.tasks.worker import Worker

Worker(Path(sys.argv[1])).run()
"""


def test_after_any_kill_there_is_all_of_a_thing_or_nothing(tmp_path: Path) -> None:
    from tests.unit.tasks.worker import Worker

    chance = random.Random(22)
    states: set[TaskState] = set()
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        # A moment chosen by chance is the point of it: there is nothing to wait for.
        time.sleep(chance.uniform(0.005, 0.15))
        child.send_signal(signal.SIGKILL)
        acknowledged = child.communicate(timeout=30)[0].split()
        worker = Worker(tmp_path)
        states |= {info.state for info in worker.tasks.settle()}
        assert worker.files() == worker.recorded()
        assert worker.store.query("SELECT * FROM journal") == []
        assert worker.tasks.list(ended=False) == []
        last = {name: word for word, _, name in (line.partition(":") for line in acknowledged)}
        there = worker.files()
        assert [name for name, word in last.items() if word == "made" and name not in there] == []
        assert [name for name, word in last.items() if word == "gone" and name in there] == []
        worker.close()
    assert states <= {TaskState.FAILED, TaskState.DONE}
