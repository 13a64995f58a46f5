from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mcvirt.errors import StateRefused
from mcvirtd.state import schema
from mcvirtd.state.records import UserRecord
from mcvirtd.state.store import Store

BOB = UserRecord(name="bob", password_hash="x")


def rename_bob(db: sqlite3.Connection) -> None:
    db.execute("UPDATE record SET key = 'rob', data = json_set(data, '$.name', 'rob') WHERE key = 'bob'")


def add_note(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE note (text TEXT)")
    db.execute("INSERT INTO note SELECT 'was ' || key FROM record")


def fails_half_way(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE half (x)")
    db.execute("DELETE FROM record")
    raise sqlite3.OperationalError("disk I/O error")


class PowerLoss(BaseException):
    pass


def loses_power(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE half (x)")
    db.execute("DELETE FROM record")
    raise PowerLoss


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of the first version, with a record in it."""
    store = Store(tmp_path / "state.db", upgrades=schema.UPGRADES[:1])
    with store.change() as change:
        change.put(BOB)
    store.close()
    return tmp_path / "state.db"


def version(path: Path) -> int:
    db = sqlite3.connect(path)
    (found,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(found)


def tables(path: Path) -> set[str]:
    db = sqlite3.connect(path)
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    db.close()
    return found


def test_an_old_file_is_lifted_in_order_and_once(old: Path) -> None:
    upgrades = (*schema.UPGRADES[:1], rename_bob, add_note)
    store = Store(old, upgrades=upgrades)
    assert set(store.all(UserRecord)) == {"rob"}
    assert store.query("SELECT text FROM note") == [("was rob",)]
    store.close()
    assert version(old) == 3
    store = Store(old, upgrades=upgrades)
    assert store.query("SELECT text FROM note") == [("was rob",)]
    store.close()


def test_a_new_file_is_made_in_the_newest_version(tmp_path: Path) -> None:
    Store(tmp_path / "state.db", upgrades=(*schema.UPGRADES[:1], add_note)).close()
    assert version(tmp_path / "state.db") == 2
    Store(tmp_path / "now.db").close()
    assert version(tmp_path / "now.db") == len(schema.UPGRADES)


def test_an_upgrade_that_fails_leaves_the_version_before_it(old: Path) -> None:
    with pytest.raises(StateRefused, match="disk I/O error"):
        Store(old, upgrades=(*schema.UPGRADES[:1], rename_bob, fails_half_way, add_note))
    assert version(old) == 2
    assert {"half", "note"}.isdisjoint(tables(old))
    store = Store(old, upgrades=(*schema.UPGRADES[:1], rename_bob, add_note))
    assert set(store.all(UserRecord)) == {"rob"}
    store.close()


def test_a_crash_in_the_middle_of_an_upgrade_leaves_the_version_before_it(old: Path) -> None:
    with pytest.raises(PowerLoss):
        Store(old, upgrades=(*schema.UPGRADES[:1], rename_bob, loses_power))
    assert version(old) == 2
    assert "half" not in tables(old)
    store = Store(old, upgrades=(*schema.UPGRADES[:1], rename_bob))
    assert set(store.all(UserRecord)) == {"rob"}
    store.close()


def test_a_first_start_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(StateRefused):
        Store(tmp_path / "state.db", upgrades=(*schema.UPGRADES[:1], fails_half_way))
    assert list(tmp_path.iterdir()) == []


def test_going_back_to_an_older_mcvirtd_is_refused(old: Path) -> None:
    Store(old, upgrades=(*schema.UPGRADES[:1], add_note)).close()
    with pytest.raises(StateRefused, match="newer mcvirtd"):
        Store(old, upgrades=schema.UPGRADES[:1])
    assert version(old) == 2
