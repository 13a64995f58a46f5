"""The replicator on real state files: three members in one process, their messages passed by hand."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt.errors import (
    ChangeUnknown,
    Conflict,
    LeaderAlive,
    LeaderUnreachable,
    NoMajority,
    PromotionUnconfirmed,
    StaleChange,
    StateNotWritable,
)
from mcvirtd.state.order import Message
from mcvirtd.state.records import ClusterRecord, NetworkRecord, NodeRecord, SettingsRecord
from mcvirtd.state.replication import Replicator, going_on_without, noting_left_behind
from mcvirtd.state.store import Store


class Wires:
    """Carries messages between the members of a test, as JSON."""

    def __init__(self) -> None:
        self.members: dict[str, Replicator] = {}
        self.cut: set[frozenset[str]] = set()
        self.down: set[str] = set()

    def open(self, one: str, other: str) -> bool:
        return not {one, other} & self.down and frozenset((one, other)) not in self.cut


class Wire:
    def __init__(self, wires: Wires, name: str) -> None:
        self.wires, self.name = wires, name

    def ask_all(self, messages: Mapping[str, Message], within: float) -> dict[str, Message | None]:
        answers: dict[str, Message | None] = {}
        for member, message in messages.items():
            answers[member] = None
            if self.wires.open(self.name, member):
                sent = msgspec.json.decode(msgspec.json.encode(message))
                answer = self.wires.members[member].handle(self.name, sent)
                answers[member] = msgspec.json.decode(msgspec.json.encode(answer))
        return answers

    def silent(self) -> Sequence[str]:
        return [name for name in self.wires.members if name != self.name and not self.wires.open(self.name, name)]


class Cluster:
    def __init__(self, directory: Path, size: int) -> None:
        self.wires = Wires()
        self.stores: dict[str, Store] = {}
        self.directory = directory
        for number in range(1, size + 1):
            self.make(f"n{number}")
        first = self.members["n1"]
        with self.stores["n1"].change() as change:
            change.put(SettingsRecord())
            change.put(ClusterRecord(id="c", leader="n1"))
            change.put(NodeRecord(name="n1", id="1"))
        for name in list(self.members)[1:]:
            with self.stores["n1"].change() as change:
                change.put(NodeRecord(name=name, id=name, away=True))
            self.members[name].log.become(first.log.whole(), first.log.promised())
            assert self.members[name]._run(self.members[name].replica.rejoin("n1"))

    def make(self, name: str) -> Replicator:
        store = Store(self.directory / f"{name}.db")
        replicator = Replicator(name, store, Wire(self.wires, name))
        store.replicate_with(replicator)
        self.stores[name] = store
        self.wires.members[name] = replicator
        return replicator

    @property
    def members(self) -> dict[str, Replicator]:
        return self.wires.members

    def put(self, on: str, name: str) -> set[str]:
        with noting_left_behind() as away, self.stores[on].change() as change:
            if change.get(NetworkRecord, name) is not None:
                raise Conflict(text="there already")
            change.put(NetworkRecord(name=name, interface="br0"))
        return away

    def networks(self, on: str) -> set[str]:
        return set(self.stores[on].all(NetworkRecord))

    def heal(self) -> None:
        self.wires.cut.clear()
        self.wires.down.clear()
        for name, member in self.members.items():
            for other, them in self.members.items():
                if other != name:
                    member.observe(other, msgspec.json.decode(msgspec.json.encode(them.facts())))
        for member in self.members.values():
            if not member.replica.is_leader:
                assert member._run(member.replica.rejoin(member.replica.leader))

    def assert_same(self) -> None:
        snapshots = {name: member.log.snapshot() for name, member in self.members.items()}
        positions = {member.replica.position() for member in self.members.values()}
        assert len(positions) == 1, positions
        contents = [sorted(str(each) for each in msgspec.json.decode(text)["puts"]) for text in snapshots.values()]
        assert all(content == contents[0] for content in contents)
        assert not any(record.away for record in self.stores["n1"].all(NodeRecord).values())


@pytest.fixture
def three(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, 3)


@pytest.fixture
def two(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, 2)


def test_a_change_on_any_member_is_on_all(three: Cluster) -> None:
    for number, name in enumerate(("n1", "n2", "n3", "n1", "n3"), 1):
        assert three.put(name, f"net{number}") == set()
        assert all(three.networks(each) == three.networks("n1") for each in three.members)
    assert len(three.networks("n2")) == 5
    three.assert_same()


def test_statements_of_a_change_are_stored_with_it_where_it_was_made(three: Cluster) -> None:
    with three.stores["n2"].change() as change:
        change.put(NetworkRecord(name="lan", interface="br0"))
        change.execute("INSERT INTO meta VALUES ('mark', 'here')")
    marks = {name: store.query("SELECT value FROM meta WHERE name = 'mark'") for name, store in three.stores.items()}
    assert marks == {"n1": [], "n2": [("here",)], "n3": []}


def test_a_refused_change_changes_nothing_and_gives_the_turn_back(three: Cluster) -> None:
    three.put("n2", "lan")
    with pytest.raises(Conflict):
        three.put("n3", "lan")
    three.put("n1", "after")
    three.assert_same()


def test_changes_at_once_on_all_members_get_one_order(three: Cluster) -> None:
    errors: list[BaseException] = []

    def many(name: str) -> None:
        try:
            for number in range(8):
                three.put(name, f"{name}-{number}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=many, args=(name,)) for name in three.members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert len(three.networks("n1")) == 24
    three.assert_same()


def test_a_follower_that_is_off_is_marked_away_and_catches_up(two: Cluster) -> None:
    two.wires.down.add("n2")
    assert two.put("n1", "lan") == {"n2"}
    assert two.put("n1", "wan") == {"n2"}
    with pytest.raises(LeaderUnreachable):
        two.put("n2", "other")
    two.heal()
    two.assert_same()
    assert two.networks("n2") == {"lan", "wan"}
    assert two.put("n1", "dmz") == set()


def test_a_leader_without_majority_refuses(three: Cluster) -> None:
    three.wires.down |= {"n2", "n3"}
    revision = three.stores["n1"].revision
    with pytest.raises(NoMajority):
        three.put("n1", "lan")
    assert three.stores["n1"].revision == revision
    three.heal()
    three.put("n1", "lan")
    three.assert_same()


def test_an_operators_word_makes_a_leader_go_on_alone(three: Cluster) -> None:
    three.wires.down |= {"n2", "n3"}
    with going_on_without(["n3"]), pytest.raises(NoMajority):
        three.put("n1", "lan")  # one of the two that count
    with going_on_without(["n2", "n3"]):
        assert three.put("n1", "lan") == {"n2", "n3"}
    with pytest.raises(NoMajority):
        three.put("n1", "wan")  # the word is for one change
    three.heal()
    three.assert_same()
    assert three.networks("n3") == {"lan"}


def test_an_operators_word_replaces_a_leader_that_is_gone(two: Cluster) -> None:
    replaced: list[str] = []
    two.members["n2"].replaced = replaced.append
    with going_on_without(["n1"]):
        two.put("n2", "lan")
        assert replaced == [], "the leader lives"
        two.wires.down.add("n1")
        assert two.put("n2", "wan") == {"n1"}
    assert replaced == ["n1"]
    two.heal()
    two.assert_same()
    assert two.networks("n1") == {"lan", "wan"}


def test_an_operators_word_does_not_replace_a_leader_that_another_member_reaches(three: Cluster) -> None:
    three.wires.cut.add(frozenset(("n1", "n2")))
    with going_on_without(["n1"]), pytest.raises(LeaderAlive):
        three.put("n2", "lan")


def test_one_of_three_goes_on_by_an_operators_word(three: Cluster) -> None:
    three.wires.down |= {"n1", "n3"}
    with going_on_without(["n1", "n3"]):
        assert three.put("n2", "lan") == {"n1", "n3"}
        three.put("n2", "wan")
    three.heal()
    three.assert_same()
    assert three.networks("n1") == {"lan", "wan"}


def test_an_operators_word_about_the_leader_is_none_about_others_that_are_silent(tmp_path: Path) -> None:
    five = Cluster(tmp_path, 5)
    five.wires.down.add("n1")
    five.wires.cut |= {frozenset(("n5", other)) for other in ("n2", "n3", "n4")}
    n5 = five.members["n5"]
    before = (n5.replica.position(), n5.log.promised())
    with going_on_without(["n1"]), pytest.raises(NoMajority) as caught:
        five.put("n5", "lan")
    assert (caught.value.heard, caught.value.members) == (1, 4)  # type: ignore[attr-defined]
    assert (n5.replica.position(), n5.log.promised()) == before, "nothing was promised"
    five.members["n2"].promote(confirmed=False)
    five.put("n3", "wan")
    five.heal()
    five.assert_same()
    assert all(member.replica.leader == "n2" for member in five.members.values())
    assert five.networks("n5") == {"wan"}
    assert not any(member.log.conflicts() for member in five.members.values())


def test_an_operators_word_replaces_a_leader_where_most_of_the_others_agree(tmp_path: Path) -> None:
    four = Cluster(tmp_path, 4)
    four.wires.down |= {"n1", "n4"}
    with going_on_without(["n1"]):  # two of four are no majority; of the three that count they are
        assert four.put("n3", "lan") == {"n1", "n4"}
    four.heal()
    four.assert_same()
    assert four.networks("n4") == {"lan"}


def test_who_answers_but_does_not_promise_does_not_agree(three: Cluster) -> None:
    three.wires.down.add("n1")
    position = three.members["n3"].replica.position()
    answer = three.members["n2"].handle

    def without_a_promise(sender: str, message: Message) -> Message:
        return answer(sender, message) if message["kind"] == "status" else {"error": {"name": "Failed", "fields": {}}}

    three.members["n2"].handle = without_a_promise  # type: ignore[method-assign]
    with going_on_without(["n1"]), pytest.raises(NoMajority):
        three.put("n3", "lan")
    assert three.members["n3"].replica.position() == position


def test_promotion_is_refused_while_the_leader_lives(three: Cluster) -> None:
    with pytest.raises(LeaderAlive):
        three.members["n2"].promote(confirmed=True)
    three.wires.cut.add(frozenset(("n1", "n2")))
    with pytest.raises(LeaderAlive, match="node 'n3' reaches it"):
        three.members["n2"].promote(confirmed=True)


def test_promotion_by_a_majority_keeps_everything(three: Cluster) -> None:
    three.put("n1", "lan")
    three.wires.down.add("n1")
    assert three.members["n3"].promote(confirmed=False) == ("n1",)
    assert three.put("n2", "wan") == {"n1"}
    three.heal()
    three.assert_same()
    assert three.stores["n1"].get(ClusterRecord, "cluster").leader == "n3"  # type: ignore[union-attr]
    assert three.put("n1", "dmz") == set()
    assert three.members["n1"].log.conflicts() == []


def test_with_two_members_promotion_needs_a_word_and_the_old_leader_keeps_aside_what_it_had_alone(two: Cluster) -> None:
    two.wires.cut.add(frozenset(("n1", "n2")))
    two.put("n1", "alone")
    with pytest.raises(PromotionUnconfirmed, match="yes-the-leader-is-off n1"):
        two.members["n2"].promote(confirmed=False)
    two.members["n2"].promote(confirmed=True)
    two.put("n2", "lan")
    two.heal()
    two.assert_same()
    assert two.networks("n1") == {"lan"}
    kept = [conflict for conflict in two.members["n1"].log.conflicts() if "alone" in conflict.data]
    assert kept and kept[0].epoch.leader == "n1"
    log = two.members["n1"].log
    shown = [conflict.id for conflict in log.conflicts()]
    assert log.clear_conflicts([*shown[1:], 10_000]) == len(shown) - 1
    assert [conflict.id for conflict in log.conflicts()] == shown[:1]


def test_a_planned_promotion_takes_over_from_a_leader_that_lives(three: Cluster) -> None:
    three.put("n1", "lan")
    assert three.members["n2"].promote(confirmed=False, planned=True) == ()
    assert three.members["n2"].replica.is_leader and not three.members["n1"].replica.is_leader
    three.put("n1", "wan")
    three.assert_same()
    assert three.networks("n3") == {"lan", "wan"} and not three.members["n1"].log.conflicts()


def test_a_planned_promotion_needs_the_leader(three: Cluster) -> None:
    three.wires.down.add("n1")
    with pytest.raises(LeaderUnreachable):
        three.members["n2"].promote(confirmed=False, planned=True)


def test_everything_survives_a_restart(three: Cluster) -> None:
    three.put("n2", "lan")
    three.wires.down.add("n3")
    three.put("n1", "wan")
    for name in list(three.members):
        three.stores[name].close()
        three.make(name)
    assert three.members["n1"].replica.is_leader and not three.members["n2"].replica.is_leader
    three.heal()
    three.assert_same()
    assert three.networks("n3") == {"lan", "wan"}


def test_a_leader_that_dies_between_storing_and_telling_leaves_the_caller_with_unknown(three: Cluster) -> None:
    wire = three.members["n2"]._transport
    asked = wire.ask_all

    def lose(messages: Mapping[str, Message], within: float) -> dict[str, Message | None]:
        answers = asked(messages, within)
        if any(message["kind"] == "turn.commit" for message in messages.values()):
            return dict.fromkeys(answers)
        return answers

    wire.ask_all = lose  # type: ignore[method-assign]
    with pytest.raises(ChangeUnknown):
        three.put("n2", "lan")
    wire.ask_all = asked  # type: ignore[method-assign]
    three.heal()
    assert three.networks("n3") == {"lan"}
    three.assert_same()


def test_a_member_that_fails_to_answer_is_none_that_answered(three: Cluster) -> None:
    """Neither catching up nor promoting trips over an error, or over a member that does not know who asks."""
    three.wires.down.add("n1")
    three.members["n2"].handle = lambda sender, message: {"error": {"name": "Failed", "fields": {}}}  # type: ignore[method-assign]
    with pytest.raises(PromotionUnconfirmed):
        three.members["n3"].promote(confirmed=False)
    three.members["n2"].handle = lambda sender, message: {"stranger": True}  # type: ignore[method-assign]
    with pytest.raises(PromotionUnconfirmed):
        three.members["n3"].promote(confirmed=False)
    with pytest.raises(LeaderUnreachable):
        three.members["n3"]._run(three.members["n3"].replica.catch_up("n2"))


def test_no_change_is_made_without_a_turn(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcvirtd.state.replication.TURN_WITHIN", 0.05)
    turn = two.members["n1"]._turns.take(1.0)
    revision = two.stores["n1"].revision
    with pytest.raises(StaleChange):
        two.put("n1", "lan")
    two.wires.down.add("n1")
    held = two.members["n2"]._turns.take(1.0)
    with pytest.raises(StaleChange):
        two.members["n2"].promote(confirmed=True)
    two.members["n2"]._turns.give(held)
    two.members["n1"]._turns.give(turn)
    assert two.stores["n1"].revision == revision


def nominate(cluster: Cluster, name: str) -> None:
    """*name* dies between the promises of the others and the first change of its epoch."""
    promoting = cluster.members[name].replica.promote(confirmed=False)
    ask = next(promoting)
    while True:
        answers = cluster.members[name]._transport.ask_all(ask.messages, ask.within)
        if any(message["kind"] == "promise" for message in ask.messages.values()):
            promoting.close()
            return
        ask = promoting.send(answers)


def test_a_leader_that_dies_before_its_epoch_begins_leads_when_it_is_back(three: Cluster) -> None:
    three.put("n1", "lan")
    three.wires.down.add("n1")
    nominate(three, "n2")
    three.wires.down.clear()
    for name, member in three.members.items():
        for other, them in three.members.items():
            if other != name:
                member.observe(other, msgspec.json.decode(msgspec.json.encode(them.facts())))
    assert three.members["n2"].replica.is_nominated
    assert not any(member.replica.is_leader for member in three.members.values())
    three.members["n2"].start()
    deadline = time.monotonic() + 10
    while not three.members["n2"].replica.is_leader:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    three.members["n2"].stop()
    three.heal()
    three.put("n3", "wan")
    three.assert_same()


def test_another_leads_where_one_dies_before_its_epoch_begins(three: Cluster) -> None:
    three.wires.down.add("n1")
    nominate(three, "n2")
    three.wires.down = {"n2"}
    three.members["n3"].promote(confirmed=False)
    three.wires.down.clear()
    three.heal()
    assert three.put("n2", "lan") == set()
    three.assert_same()


def test_a_leader_of_which_this_member_has_not_heard_is_asked_for_too(three: Cluster) -> None:
    three.wires.down.add("n3")
    three.members["n2"].promote(confirmed=False, planned=True)
    three.wires.down.clear()
    with pytest.raises(LeaderAlive, match="'n2'"):
        three.members["n3"].promote(confirmed=False)


def test_a_member_that_can_not_store_is_away_and_says_why(three: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, change: Any, revision: int, *, everything: bool) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    for made_on in ("n1", "n2", "n3"):
        monkeypatch.setattr(three.stores["n3"], "_write", full.__get__(three.stores["n3"]))
        if made_on == "n3":
            with pytest.raises(ChangeUnknown, match="the cluster has it, but node 'n3' itself has not"):
                three.put(made_on, made_on)
        else:
            assert three.put(made_on, made_on) == {"n3"}
        assert "disk is full" in three.members["n3"].trouble
        three.members["n3"].observe("n2", {"promised": (9, "n9"), "position": ((1, "n1"), 5)})
        monkeypatch.undo()
        assert three.networks("n1") >= {made_on}
        three.heal()
        three.assert_same()
        assert three.networks("n3") >= {made_on}


def test_a_leader_that_can_not_note_who_is_away_does_not_call_the_change_failed(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = three.members["n1"].log.append
    appended: list[Any] = []

    def once(entry: Any) -> None:
        if appended:
            raise StateNotWritable(path="state.db", reason="the disk is full.")
        appended.append(entry)
        append(entry)

    three.wires.down.add("n3")
    monkeypatch.setattr(three.members["n1"]._transport, "silent", tuple)
    monkeypatch.setattr(three.members["n1"].log, "append", once)
    with pytest.raises(ChangeUnknown, match=r"node 'n3' did not store it\..*disk is full"):
        three.put("n1", "lan")
    monkeypatch.undo()
    three.heal()
    assert three.networks("n2") == three.networks("n1") == {"lan"}
    three.put("n2", "wan")
    three.heal()
    three.assert_same()
