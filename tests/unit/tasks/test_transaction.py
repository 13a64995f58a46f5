from __future__ import annotations

import pytest

from mcvirt.errors import Conflict, StateNotWritable, TaskCancelled, UndoIncomplete
from mcvirtd.tasks.task import Task, current_task, step, working_for
from tests.unit.tasks.workshop import Workshop, network


def test_what_is_committed_stays_and_nothing_is_due_any_more(shop: Workshop) -> None:
    with shop.journal.transaction() as tx:
        for name in ("a", "b"):
            tx.undo("remove", name=name)
            shop.make(name)
        assert shop.due() == [("undo", "remove")] * 2
        with tx.commit() as change:
            change.put(network("lan"))
    assert (shop.things, shop.networks(), shop.due()) == ({"a", "b"}, {"lan"}, [])


def test_a_failure_undoes_everything_the_newest_first_and_stays_the_error(shop: Workshop) -> None:
    with pytest.raises(Conflict, match=r"^no$"), shop.journal.transaction() as tx:
        for name in ("a", "b", "c"):
            tx.undo("remove", name=name)
            shop.make(name)
        raise Conflict(text="no")
    assert shop.log[3:] == ["remove c", "remove b", "remove a"]
    assert (shop.things, shop.due()) == (set(), [])


def test_an_undo_is_written_down_before_its_act(shop: Workshop) -> None:
    """The act fails: its undo runs all the same, for what may have been made by half."""
    with pytest.raises(ZeroDivisionError), shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        raise ZeroDivisionError
    assert shop.log == ["remove a"]


def test_an_undo_that_fails_is_kept_and_the_others_run(shop: Workshop) -> None:
    shop.stuck = {"b"}
    with pytest.raises(UndoIncomplete) as caught, shop.journal.transaction() as tx:
        for name in ("a", "b", "c"):
            tx.undo("remove", name=name)
            shop.make(name)
        raise Conflict(text="The first reason.")
    assert shop.log[3:] == ["remove c", "remove b", "remove a"]
    assert shop.things == {"b"}
    assert isinstance(caught.value.__cause__, Conflict)
    assert "The first reason." in str(caught.value)
    assert caught.value.remains == "remove: b is stuck."
    assert shop.due() == [("undo", "remove")]


def test_a_defect_in_an_undo_tells_no_more_than_its_kind(shop: Workshop) -> None:
    def defect() -> None:
        raise ValueError("the inside of things")

    shop.journal.register("defect", defect)
    with pytest.raises(UndoIncomplete) as caught, shop.journal.transaction() as tx:
        tx.undo("defect")
        tx.undo("remove", name="a")
        raise KeyError("secret")
    assert caught.value.remains == "defect: ValueError"
    assert "secret" not in str(caught.value)
    assert "inside" not in str(caught.value)


def test_a_commit_that_fails_undoes(shop: Workshop) -> None:
    with pytest.raises(ZeroDivisionError), shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        shop.make("a")
        with tx.commit() as change:
            change.put(network("lan"))
            raise ZeroDivisionError
    assert (shop.things, shop.networks(), shop.due()) == (set(), set(), [])


def test_records_and_journal_are_committed_together(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StateNotWritable), shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        shop.make("a")
        with tx.commit() as change:
            change.put(network("lan"))
            change.execute("NONSENSE")
    assert (shop.things, shop.networks(), shop.due()) == (set(), set(), [])


def test_after_the_commit_nothing_is_undone(shop: Workshop) -> None:
    with pytest.raises(ZeroDivisionError), shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        shop.make("a")
        with tx.commit() as change:
            change.put(network("lan"))
        raise ZeroDivisionError
    assert (shop.things, shop.networks()) == ({"a"}, {"lan"})


def test_a_subscriber_that_fails_does_not_undo_what_is_committed(shop: Workshop) -> None:
    def fail(_: object) -> None:
        raise ValueError("a defect")

    shop.store.subscribe(fail)
    with shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        shop.make("a")
        with tx.commit() as change:
            change.put(network("lan"))
    assert (shop.things, shop.networks(), shop.due()) == ({"a"}, {"lan"}, [])


def test_an_undo_that_can_not_be_crossed_out_is_done_all_the_same(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(seq: int) -> None:
        raise StateNotWritable(path="x", reason="full.")

    with pytest.raises(Conflict), shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        shop.make("a")
        monkeypatch.setattr(shop.journal, "forget", full)
        raise Conflict(text="no")
    monkeypatch.undo()
    assert shop.things == set()
    assert shop.due() == [("undo", "remove")]
    shop.tasks.settle()
    assert shop.due() == []


def test_keeping_is_a_commit_without_records(shop: Workshop) -> None:
    with shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        shop.make("a")
        tx.keep()
    assert (shop.things, shop.due()) == ({"a"}, [])


def test_a_transaction_that_nobody_ends_is_a_defect_and_undone(shop: Workshop) -> None:
    with pytest.raises(RuntimeError, match="without commit"), shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        shop.make("a")
    assert shop.things == set()


def test_nothing_is_begun_after_the_end(shop: Workshop) -> None:
    with shop.journal.transaction() as tx:
        tx.keep()
        for begin in (tx.undo, tx.redo):
            with pytest.raises(RuntimeError, match="is over"):
                begin("remove", name="a")
    assert shop.due() == []


def test_acts_must_be_known_beforehand(shop: Workshop) -> None:
    with pytest.raises(ValueError, match="no act called"), shop.journal.transaction() as tx:
        tx.undo("nothing")
    with pytest.raises(ValueError, match="two acts"):
        shop.journal.register("remove", shop.remove)


def test_what_has_no_way_back_is_left_by_a_failure_and_forgotten(shop: Workshop) -> None:
    with pytest.raises(Conflict), shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        tx.redo("finish", name="b")
        raise Conflict(text="no")
    assert shop.log == ["remove a"]
    assert shop.due() == []


def test_a_transaction_within_one_is_undone_with_its_own_and_the_outer_with_all(shop: Workshop) -> None:
    with pytest.raises(Conflict), shop.journal.transaction() as outer:
        outer.undo("remove", name="a")
        shop.make("a")
        with shop.journal.transaction() as inner:
            inner.undo("remove", name="b")
            shop.make("b")
            with inner.commit() as change:
                change.put(network("lan"))
        raise Conflict(text="no")
    assert (shop.things, shop.networks(), shop.due()) == ({"b"}, {"lan"}, [])


def test_a_cancellation_is_heard_before_the_next_act_and_not_while_undoing(shop: Workshop) -> None:
    task = Task("op", "x", "bob", "n1")

    def undo_with_steps(name: str) -> None:
        with step("undoing"):
            current_task().check()
            shop.remove(name)

    shop.journal.register("slow", undo_with_steps)
    with working_for(task), pytest.raises(TaskCancelled, match="by ann"), shop.journal.transaction() as tx:
        tx.undo("slow", name="a")
        shop.make("a")
        task.cancel("ann")
        tx.undo("slow", name="b")
        shop.make("b")
    assert (shop.things, shop.log) == (set(), ["make a", "remove a"])


def test_a_cancellation_after_the_last_act_is_too_late(shop: Workshop) -> None:
    task = Task("op", "x", "bob", "n1")
    with working_for(task), shop.journal.transaction() as tx:
        tx.undo("remove", name="a")
        shop.make("a")
        task.cancel("ann")
        with tx.commit() as change:
            change.put(network("lan"))
    assert shop.networks() == {"lan"}
