"""A configuration, or a backlog, that is larger than a message: in parts, and applied as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from mcvirt.errors import Failed, LeaderUnreachable
from mcvirtd.state import log, parts
from mcvirtd.state.order import Epoch, Message, Position
from mcvirtd.state.records import NodeRecord
from mcvirtd.state.replicate import REJOIN_TRIES
from tests.unit.replication.test_replicator import Cluster, Wire

SIZE = 1000


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(parts, "SIZE", SIZE)
    return Cluster(tmp_path, 2)


class Watched:
    """The messages of a member, by kind, and the size of the largest answer; *before* runs before each message."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        wire = cluster.members[name]._transport
        assert isinstance(wire, Wire)
        self.kinds: list[str] = []
        self.largest = 0
        self._ask = wire.ask_all
        wire.ask_all = self.ask_all  # type: ignore[method-assign]

    def before(self, kind: str) -> bool:
        """Whether the message arrives."""
        return True

    def ask_all(self, messages: Mapping[str, Message], within: float) -> dict[str, Message | None]:
        (kind,) = {str(message["kind"]) for message in messages.values()}
        self.kinds.append(kind)
        if not self.before(kind):
            return dict.fromkeys(messages)
        answers = self._ask(messages, within)
        self.largest = max(self.largest, *(len(msgspec.json.encode(answer)) for answer in answers.values()))
        return answers


def behind(cluster: Cluster, changes: int) -> None:
    """n2 is away for so many changes, and can be reached again."""
    cluster.wires.down.add("n2")
    for number in range(changes):
        cluster.put("n1", f"net{number}")
    cluster.wires.down.clear()


def follow(cluster: Cluster) -> bool:
    return cluster.members["n2"]._run(cluster.members["n2"].replica.rejoin("n1"))


def test_a_long_backlog_comes_in_parts(two: Cluster) -> None:
    behind(two, 300)
    watched = Watched(two, "n2")
    assert follow(two)
    two.assert_same()
    assert watched.kinds.count("entries") > REJOIN_TRIES  # a part of it is no try that was in vain
    assert "part" not in watched.kinds and watched.largest < 3 * SIZE


def test_who_is_too_far_behind_gets_the_configuration_in_parts(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "KEPT_ENTRIES", 5)
    behind(two, 100)
    watched = Watched(two, "n2")
    revisions = set()
    two.stores["n2"].subscribe(lambda change: revisions.add(two.stores["n2"].revision))
    assert follow(two)
    two.assert_same()
    assert watched.kinds.count("part") >= 4 and watched.largest < 3 * SIZE
    # One transaction: nothing of it was there before all of it was, and what comes after is being counted in.
    assert revisions == {two.stores["n1"].revision - 1, two.stores["n1"].revision}
    assert two.members["n1"].replica._offered._snapshot is None, "it is kept no longer than it is needed"


def test_changes_meanwhile_come_after_the_parts(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "KEPT_ENTRIES", 50)
    behind(two, 100)
    watched = Watched(two, "n2")
    names = iter(range(1000))

    def change(kind: str) -> bool:
        if kind == "part" and (number := next(names)) < 10:
            two.put("n1", f"meanwhile{number}")
        return True

    watched.before = change  # type: ignore[method-assign]
    assert follow(two)
    two.assert_same()
    assert "meanwhile3" in two.networks("n2")


def test_a_part_that_does_not_come_changes_nothing(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "KEPT_ENTRIES", 5)
    behind(two, 100)
    before = (two.stores["n2"].revision, two.networks("n2"))
    watched = Watched(two, "n2")
    watched.before = lambda kind: watched.kinds.count("part") < 3  # type: ignore[method-assign]
    with pytest.raises(LeaderUnreachable):
        follow(two)
    assert (two.stores["n2"].revision, two.networks("n2")) == before
    watched.before = lambda kind: True  # type: ignore[method-assign]
    assert follow(two)
    two.assert_same()


def test_another_snapshot_half_way_is_begun_anew(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "KEPT_ENTRIES", 5)
    behind(two, 100)
    watched = Watched(two, "n2")

    def forget(kind: str) -> bool:
        if watched.kinds.count("part") == 2:
            two.members["n1"].replica._offered = parts.Offered()  # as after a restart of the source
        return True

    watched.before = forget  # type: ignore[method-assign]
    assert follow(two)
    two.assert_same()
    assert watched.kinds.count("entries") > 2


def test_who_lacks_more_than_a_message_when_told_of_a_change_catches_up_by_itself(two: Cluster) -> None:
    behind(two, 50)
    # As if n1 had never found out that n2 was away.
    with two.stores["n1"]._lock:
        record = two.stores["n1"].get(NodeRecord, "n2")
        assert record is not None
        two.stores["n1"]._records["node"]["n2"] = msgspec.structs.replace(record, away=False)
    watched = Watched(two, "n1")
    assert two.put("n1", "last") == {"n2"}
    assert watched.kinds == ["append"]
    assert follow(two)
    assert two.networks("n1") == two.networks("n2")


def test_only_the_snapshot_that_is_kept_is_handed_out(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        two.put("n1", f"net{number}")
    kept = two.members["n1"].log
    offered = parts.Offered()
    first = offered.begin(kept)
    assert (len(first["snapshot"].content), first["size"]) == (SIZE, len(kept.snapshot()))
    position = first["snapshot"].position
    assert offered.part(position, -1) == {}
    assert offered.part(Position(Epoch(1, "n9"), position.revision), SIZE) == {}
    two.put("n1", "later")
    assert offered.begin(kept)["snapshot"].position == position, "who comes later gets the same one"
    assert len(offered.part(position, SIZE)["part"]) == SIZE
    last = offered.part(position, first["size"] - 1)
    assert len(last["part"]) == 1 and offered.part(position, 0) == {}
    monkeypatch.setattr(parts, "SIZE", 1 << 20)
    whole = offered.begin(kept)
    assert "size" not in whole and whole["snapshot"].content == kept.snapshot()


def test_what_is_no_part_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts.Found("ab", 5)
    assert found.missing
    assert not any(found.add(wrong) for wrong in (None, "", 5, ["c"]))
    assert found.add("cde") and not found.missing and found.text == "abcde"
    monkeypatch.setattr(parts, "MOST", 4)
    with pytest.raises(Failed, match="does not end"):
        parts.Found("abcd", 9).add("e")


def test_the_parts_of_a_text_are_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SIZE", 3)
    assert parts.split("abcdefgh") == ["abc", "def", "gh"]
    assert parts.split("") == [""]
