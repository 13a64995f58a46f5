"""The state file's tables and the numbered upgrades that lift older files.

`user_version` in the file counts the upgrades that it has had. Each is applied in one SQLite transaction together with
the new number, so a crash leaves either the old file or the new one. A file with a higher number than ours was written
by a newer mcvirtd and is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

Upgrade = Callable[[sqlite3.Connection], None]


def _first(db: sqlite3.Connection) -> None:
    for statement in (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, revision INTEGER NOT NULL, data BLOB NOT NULL, "
        "PRIMARY KEY (kind, key)) WITHOUT ROWID",
        "CREATE TABLE task (id TEXT PRIMARY KEY, state TEXT NOT NULL, started REAL NOT NULL, data BLOB NOT NULL) "
        "WITHOUT ROWID",
        "CREATE INDEX task_by_start ON task (started)",
        "CREATE TABLE journal (seq INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, scope INTEGER NOT NULL, "
        "direction TEXT NOT NULL, act TEXT NOT NULL, arguments BLOB NOT NULL)",
        "CREATE INDEX journal_by_task ON journal (task)",
        "CREATE TABLE session (id TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, user TEXT NOT NULL, "
        "target TEXT NOT NULL, data BLOB NOT NULL)",
        "CREATE INDEX audit_by_time ON audit (time)",
    ):
        db.execute(statement)
    db.execute("INSERT INTO meta VALUES ('revision', '0')")


def _second(db: sqlite3.Connection) -> None:
    """The cluster: the log of changes, its epochs, and what a replaced leader had alone."""
    for statement in (
        "CREATE TABLE change (revision INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, leader TEXT NOT NULL, "
        "before_epoch INTEGER NOT NULL, before_leader TEXT NOT NULL, data TEXT NOT NULL)",
        "CREATE TABLE epoch (number INTEGER NOT NULL, leader TEXT NOT NULL, first INTEGER NOT NULL, "
        "PRIMARY KEY (number, leader)) WITHOUT ROWID",
        "CREATE TABLE conflict (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, epoch INTEGER NOT NULL, "
        "leader TEXT NOT NULL, revision INTEGER NOT NULL, data TEXT NOT NULL)",
    ):
        db.execute(statement)


UPGRADES: Sequence[Upgrade] = (_first, _second)


def upgrade(db: sqlite3.Connection, upgrades: Sequence[Upgrade] = UPGRADES) -> int:
    """Apply what *db* lacks of *upgrades*; returns the version it had.

    The caller has seen that it is not newer.
    """
    (before,) = db.execute("PRAGMA user_version").fetchone()
    for number in range(int(before), len(upgrades)):
        db.execute("BEGIN IMMEDIATE")
        try:
            upgrades[number](db)
            db.execute(f"PRAGMA user_version = {number + 1}")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
    return int(before)
