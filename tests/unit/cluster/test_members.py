"""Where other members are, by the records and by what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcvirtd.cluster.members import Members
from mcvirtd.state.records import NodeRecord
from mcvirtd.state.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.db")
    with made.change() as change:
        for number in (1, 2):
            change.put(NodeRecord(name=f"n{number}", id=f"n{number}", address=f"10.0.0.{number}"))
    yield made
    made.close()


def test_a_member_is_where_it_says_until_its_record_says_something_new(store: Store) -> None:
    members = Members(store, "n1")
    assert not members.note_address("n2", "10.0.0.2")
    assert members.note_address("n2", "10.0.0.9")
    assert not members.note_address("n2", "10.0.0.9")
    assert members.others()["n2"].address == "10.0.0.9"
    with store.change() as change:
        change.edit(NodeRecord, "n2", address="10.0.0.8")
    assert members.others()["n2"].address == "10.0.0.8"
    assert members.note_address("n2", "10.0.0.8")
    assert members.others()["n2"].address == "10.0.0.8"


@pytest.mark.parametrize("said", ["", "example.org", "10.0.0.9; rm"])
def test_what_is_no_address_is_not_gone_to(store: Store, said: str) -> None:
    members = Members(store, "n1")
    assert not members.note_address("n2", said)
    assert not members.note_address("n3", "10.0.0.9")
    assert members.others()["n2"].address == "10.0.0.2"
