from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt.errors import Conflict, StateNotWritable, StateRefused
from mcvirtd.state.records import RECORDS, GroupRecord, NetworkRecord, Record, SettingsRecord, UserRecord, VmRecord
from mcvirtd.state.store import Change, Store


def user(name: str, **fields: Any) -> UserRecord:
    return UserRecord(name=name, password_hash="x", **fields)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.db")
    yield made
    made.close()


def put(store: Store, *records: Record) -> None:
    with store.change() as change:
        for record in records:
            change.put(record)


# --- one door -----------------------------------------------------------------------------------------------------


def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    bob = user("bob", superuser=True, permissions=("A",), vm_permissions={"web1": ("B", "C")})
    put(store, bob, NetworkRecord(name="lan", interface="br0"))
    with store.change() as change:
        change.delete(NetworkRecord, "lan")
    store.close()
    again = Store(tmp_path / "state.db")
    assert again.get(UserRecord, "bob") == bob
    assert again.get(NetworkRecord, "lan") is None
    assert again.revision == 2
    again.close()


def test_a_change_is_seen_whole_and_only_when_it_is_stored(store: Store) -> None:
    with store.change() as change:
        change.put(user("ann"))
        change.put(user("bob"))
        assert change.get(UserRecord, "ann") == user("ann")
        assert store.get(UserRecord, "ann") is None
        assert store.revision == 0
    assert set(store.all(UserRecord)) == {"ann", "bob"}
    assert store.revision == 1


def test_a_block_that_fails_changes_nothing(store: Store) -> None:
    put(store, user("ann"))
    with pytest.raises(ValueError, match="stop"), store.change() as change:
        change.put(user("bob"))
        change.delete(UserRecord, "ann")
        change.execute("INSERT INTO session VALUES ('s', 'x')")
        raise ValueError("stop")
    assert (set(store.all(UserRecord)), store.revision) == ({"ann"}, 1)
    assert store.query("SELECT * FROM session") == []


def test_a_statement_that_fails_takes_the_records_with_it(store: Store) -> None:
    with pytest.raises(StateNotWritable), store.change() as change:
        change.put(user("bob"))
        change.execute("INSERT INTO session VALUES ('s', 'x')")
        change.execute("INSERT INTO session VALUES ('s', 'x')")
    assert (dict(store.all(UserRecord)), store.revision, store.query("SELECT * FROM session")) == ({}, 0, [])
    put(store, user("bob"))
    assert store.revision == 1


@pytest.mark.parametrize("value", [2**80, object(), "\ud800"])
def test_a_value_that_no_table_takes_harms_nothing_after_it(store: Store, value: object) -> None:
    with pytest.raises((StateNotWritable, OverflowError, UnicodeEncodeError)), store.change() as change:
        change.put(user("ann"))
        change.execute("INSERT INTO audit (time, user, target, data) VALUES (1, 'x', 'y', ?)", (value,))
    put(store, user("bob"))
    assert set(store.all(UserRecord)) == {"bob"}


def test_reads_through_a_change_see_what_it_has_put_so_far(store: Store) -> None:
    put(store, user("ann"), user("bob"))
    with store.change() as change:
        change.delete(UserRecord, "ann")
        change.edit(UserRecord, "bob", superuser=True)
        change.put(user("cat"))
        assert change.get(UserRecord, "ann") is None
        assert change.all(UserRecord) == {"bob": user("bob", superuser=True), "cat": user("cat")}
        change.put(user("ann", superuser=True))
        assert set(change.all(UserRecord)) == {"ann", "bob", "cat"}
    assert store.get(UserRecord, "ann") == user("ann", superuser=True)


def test_what_was_deleted_meanwhile_is_not_edited(store: Store) -> None:
    with pytest.raises(Conflict, match="user 'bob' was deleted"), store.change() as change:
        change.edit(UserRecord, "bob", superuser=True)


@pytest.mark.parametrize(
    "record",
    [
        VmRecord(name="web1", id="i", uuid="u", memory="much", cpu_count=1, nodes=()),  # type: ignore[arg-type]
        SettingsRecord(autostart_interval=None),  # type: ignore[arg-type]
        UserRecord(name="bob", password_hash="x", permissions="AB"),  # type: ignore[arg-type]
    ],
)
def test_what_could_not_be_read_back_is_not_stored(store: Store, record: Record) -> None:
    with pytest.raises(msgspec.ValidationError), store.change() as change:
        change.put(record)
    assert store.revision == 0


def test_a_snapshot_does_not_change(store: Store) -> None:
    put(store, user("ann"))
    before = store.all(UserRecord)
    put(store, user("bob"))
    assert set(before) == {"ann"}
    with pytest.raises(TypeError):
        before["x"] = user("x")  # type: ignore[index]


def test_a_change_of_nothing_is_no_revision(store: Store) -> None:
    with store.change():
        pass
    store.execute("INSERT INTO session VALUES ('s', 'x')")
    assert store.revision == 0


def test_changes_do_not_overlap(store: Store) -> None:
    put(store, SettingsRecord(autostart_interval=0))

    def count() -> None:
        for _ in range(25):
            with store.change() as change:
                settings = change.get(SettingsRecord, "cluster")
                assert settings is not None
                change.edit(SettingsRecord, "cluster", autostart_interval=settings.autostart_interval + 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert store.get(SettingsRecord, "cluster") == SettingsRecord(autostart_interval=100)
    assert store.revision == 101


def test_readers_never_see_a_newer_kind_beside_an_older_one(store: Store) -> None:
    stop = threading.Event()
    seen_apart: list[tuple[int, int]] = []

    def read() -> None:
        while not stop.is_set():
            # Read in the order in which they were made never to be apart: the group first, then the user.
            group, bob = store.get(GroupRecord, "g"), store.get(UserRecord, "bob")
            if group is not None and bob is not None and int(bob.password_hash) < int(group.id):
                seen_apart.append((int(group.id), int(bob.password_hash)))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        put(store, GroupRecord(name="g", id=str(number)), UserRecord(name="bob", password_hash=str(number)))
    stop.set()
    reader.join(10)
    assert seen_apart == []


def test_a_change_within_a_change_is_a_defect_and_nothing_of_either_is_stored(store: Store) -> None:
    with pytest.raises(RuntimeError, match="within a change"), store.change() as change:
        change.put(user("ann"))
        store.execute("INSERT INTO session VALUES ('s', 'x')")
    assert (dict(store.all(UserRecord)), store.query("SELECT * FROM session")) == ({}, [])
    put(store, user("bob"))


# --- subscribers --------------------------------------------------------------------------------------------------


def test_subscribers_are_told_in_order_what_is_true_already(store: Store) -> None:
    told: list[tuple[int, set[str]]] = []

    def note(change: Change) -> None:
        told.append((store.revision, {key for _, key in change.puts} & set(store.all(UserRecord))))

    store.subscribe(note)
    put(store, user("ann"))
    put(store, user("bob"), user("cat"))
    assert told == [(1, {"ann"}), (2, {"bob", "cat"})]


def test_subscribers_hear_nothing_of_what_failed(store: Store) -> None:
    told: list[Change] = []
    store.subscribe(told.append)
    with pytest.raises(StateNotWritable), store.change() as change:
        change.put(user("ann"))
        change.execute("NONSENSE")
    assert told == []


def test_a_subscriber_that_fails_fails_no_change_and_no_other(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Change] = []

    def fail(change: Change) -> None:
        raise ValueError("a defect")

    def change_more(change: Change) -> None:
        store.execute("INSERT INTO session VALUES ('s', 'x')")

    for each in (fail, change_more, told.append):
        store.subscribe(each)
    put(store, user("ann"))
    assert (set(store.all(UserRecord)), len(told)) == ({"ann"}, 1)
    assert store.query("SELECT * FROM session") == []
    assert "a subscriber of the state failed" in caplog.text


# --- the file -----------------------------------------------------------------------------------------------------


def test_only_root_can_read_the_file_and_what_is_beside_it(tmp_path: Path, store: Store) -> None:
    put(store, user("ann"))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600}


def test_a_file_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    Store(tmp_path / "state.db").close()
    (tmp_path / "state.db").chmod(0o644)
    store = Store(tmp_path / "state.db")
    put(store, user("ann"))
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.close()


def test_a_closed_store_refuses_in_our_words(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    put(store, user("ann"))
    store.close()
    with pytest.raises(StateNotWritable):
        put(store, user("bob"))
    with pytest.raises(StateRefused):
        store.query("SELECT 1")
    assert set(store.all(UserRecord)) == {"ann"}


def test_every_kind_of_record_is_a_value_that_knows_its_fields() -> None:
    assert len(RECORDS) >= 8
    for kind, cls in RECORDS.items():
        assert cls.kind == kind
        assert cls.__struct_config__.frozen
        assert cls.__struct_config__.forbid_unknown_fields


def test_the_file_is_written_before_the_change_returns(tmp_path: Path, store: Store) -> None:
    put(store, user("ann"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("state.db", "state.db-wal"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    db = sqlite3.connect(copy / "state.db")
    assert db.execute("SELECT key FROM record").fetchall() == [("ann",)]
    db.close()
