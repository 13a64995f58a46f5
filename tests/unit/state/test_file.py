"""State files that can't be used: refused with a reason, and left byte for byte as they are."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from mcvirt.errors import StateRefused
from mcvirtd.state.records import UserRecord
from mcvirtd.state.store import Store

USERS = [f"user{number:03}" for number in range(200)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "state.db"
    store = Store(path)
    with store.change() as change:
        for name in USERS:
            change.put(UserRecord(name=name, password_hash="h" * 90))
    store.close()
    return path.read_bytes()


def contents(directory: Path) -> dict[str, bytes]:
    # An empty -shm is where SQLite keeps locks, and no content.
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.endswith("-shm")}


def refused(path: Path) -> StateRefused:
    before = contents(path.parent)
    with pytest.raises(StateRefused) as caught:
        Store(path)
    assert contents(path.parent) == before
    assert str(path) in str(caught.value)
    return caught.value


def edited(good: bytes, path: Path, *statements: str) -> Path:
    path.write_bytes(good)
    db = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()
    return path


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda good: b"", id="empty"),
        pytest.param(lambda good: b"S", id="one byte"),
        pytest.param(lambda good: good[:15], id="15 bytes"),
        pytest.param(lambda good: good[:16], id="magic only"),
        pytest.param(lambda good: good[:100], id="header only"),
        pytest.param(lambda good: good[:4096], id="one page"),
        pytest.param(lambda good: good[: len(good) // 2], id="half"),
        pytest.param(lambda good: good[:-1], id="all but a byte"),
        pytest.param(lambda good: good[:-4096], id="all but a page"),
        pytest.param(lambda good: b"\0" * len(good), id="zeros"),
        pytest.param(lambda good: random.Random(1).randbytes(len(good)), id="random"),
        pytest.param(lambda good: good[:16] + random.Random(2).randbytes(len(good) - 16), id="random after the magic"),
        pytest.param(lambda good: good[:4096] + b"\0" * (len(good) - 4096), id="zeros after the first page"),
        pytest.param(lambda good: b'{"version": 22}', id="JSON"),
        pytest.param(lambda good: good[4096:], id="without its first page"),
    ],
)
def test_damaged_files(tmp_path: Path, good: bytes, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(damage(good))
    assert "backup" in str(refused(path))


def test_any_damage_is_refused_or_harmless_and_never_another_error(tmp_path: Path, good: bytes) -> None:
    chance = random.Random(7)
    outcomes = {"refused": 0, "opened": 0}
    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.choice((1, 4, 64))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path = tmp_path / "state.db"
        path.write_bytes(data)
        try:
            Store(path).close()
            outcomes["opened"] += 1
        except StateRefused:
            outcomes["refused"] += 1
            assert path.read_bytes() == data
        for left in tmp_path.iterdir():
            left.unlink()
    assert outcomes["refused"] > 20, outcomes


def test_a_newer_file_says_so(tmp_path: Path, good: bytes) -> None:
    path = edited(good, tmp_path / "state.db", "PRAGMA user_version = 99")
    error = refused(path)
    assert "newer mcvirtd (version 99" in str(error)
    assert "Install that version" in error.hint


def test_a_newer_file_left_by_a_crash_is_left_alone_with_its_log(tmp_path: Path, good: bytes) -> None:
    running, crashed = tmp_path / "running", tmp_path / "crashed"
    running.mkdir()
    crashed.mkdir()
    (running / "state.db").write_bytes(good)
    db = sqlite3.connect(running / "state.db", isolation_level=None)
    db.execute("PRAGMA user_version = 99")
    db.execute("UPDATE record SET revision = 5")
    for name in ("state.db", "state.db-wal"):
        shutil.copy(running / name, crashed / name)
    db.close()
    assert len((crashed / "state.db-wal").read_bytes()) > 0
    assert "newer mcvirtd" in str(refused(crashed / "state.db"))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("INSERT INTO record VALUES ('gadget', 'x', 1, '{}')", "unknown kind gadget"),
        ("UPDATE record SET data = '{' WHERE key = 'user007'", "user 'user007' (revision 1) in it can't be read"),
        ("UPDATE record SET data = '{}' WHERE key = 'user007'", "missing required field"),
        ("UPDATE record SET data = 5 WHERE key = 'user007'", "'user007'"),
        ("UPDATE record SET data = x'ff00' WHERE key = 'user007'", "'user007'"),
        ("UPDATE record SET key = 'zed' WHERE key = 'user007'", "its key is another one"),
        ("UPDATE record SET data = json_set(data, '$.later', 1) WHERE key = 'user007'", "unknown field `later`"),
        ("DELETE FROM meta", "damaged"),
        ("UPDATE meta SET value = 'x'", "damaged"),
        ("DROP TABLE record", "damaged"),
        ("DROP TABLE meta", "damaged"),
    ],
)
def test_content_that_can_not_be_read_is_named(tmp_path: Path, good: bytes, statement: str, said: str) -> None:
    assert said in str(refused(edited(good, tmp_path / "state.db", statement)))


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 0", "CREATE TABLE theirs (x)"])
def test_a_database_of_somebody_else_is_not_made_ours(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "state.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE songs (title)")
    db.execute(statement)
    db.commit()
    db.close()
    assert "not a state file" in str(refused(path))


def test_a_log_whose_file_is_gone_is_not_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "state.db-wal").write_bytes(b"the newest changes")
    assert "newest changes" in str(refused(tmp_path / "state.db"))


@pytest.mark.parametrize("kind", ["directory", "link to nowhere", "no directory"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "state.db"
    if kind == "directory":
        path.mkdir()
    elif kind == "link to nowhere":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path = tmp_path / "missing" / "state.db"
    with pytest.raises(StateRefused) as caught:
        Store(path)
    assert str(path) in str(caught.value)
    assert "[Errno" not in str(caught.value)


def test_what_a_crash_at_the_first_start_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "state.db.4711.new").write_bytes(b"half a file")
    (tmp_path / "state.db.4711.new-journal").write_bytes(b"half a journal")
    Store(tmp_path / "state.db").close()
    assert [path.name for path in tmp_path.iterdir()] == ["state.db"]


def test_a_refused_file_is_not_kept_locked(tmp_path: Path, good: bytes) -> None:
    path = edited(good, tmp_path / "state.db", "DELETE FROM meta")
    refused(path)
    db = sqlite3.connect(path, isolation_level=None, timeout=0)
    db.execute("INSERT INTO meta VALUES ('revision', '1')")
    db.close()
    store = Store(path)
    assert set(store.all(UserRecord)) == set(USERS)
    store.close()
