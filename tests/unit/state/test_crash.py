"""The state file among real processes: kill -9, a second daemon, and a disk that is full."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcvirt.errors import StateNotWritable, StateRefused
from mcvirtd.state.records import GroupRecord, UserRecord
from mcvirtd.state.store import Store

WRITER = """
import sys
from pathlib import Path
from mcvirtd.state.records import GroupRecord, UserRecord
from mcvirtd.state.store import Store

store = Store(Path(sys.argv[1]))
print("open", flush=True)
number = store.revision
while True:
    number += 1
    with store.change() as change:
        # Two records and a row, which must never be apart; every other change deletes the one before.
        change.put(UserRecord(name="bob", password_hash=str(number), permissions=("x" * 200,) * 20))
        change.put(GroupRecord(name=f"g{number}", id=str(number)))
        if number % 2 == 0:
            change.delete(GroupRecord, f"g{number - 1}")
        change.execute("INSERT INTO session VALUES (?, ?)", (str(number), b"x"))
    print(number, flush=True)
"""

HOLDER = """
import sys, time
from pathlib import Path
from mcvirtd.state.store import Store

store = Store(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""

SMALL_FILES = """
import resource, signal, sys
from pathlib import Path
from mcvirt.errors import StateNotWritable
from mcvirtd.state.records import UserRecord
from mcvirtd.state.store import Store

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, resource.RLIM_INFINITY))
stored = 0
try:
    while stored < 10000:
        with store.change() as change:
            change.put(UserRecord(name=f"user{stored}", password_hash="x" * 20000))
        stored += 1
except StateNotWritable as error:
    assert set(store.all(UserRecord)) == {f"user{number}" for number in range(stored)}
    assert store.revision == stored
    print(stored, error, flush=True)
"""


def process(script: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def end(child: subprocess.Popen[str]) -> list[str]:
    """Kill it; returns the lines that it had written by then."""
    child.send_signal(signal.SIGKILL)
    output, _ = child.communicate(timeout=30)
    return output.splitlines()


def wait_for_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], 30)
    assert ready, "the other process said nothing"
    return child.stdout.readline().strip()


def test_what_was_acknowledged_before_a_kill_is_there_and_nothing_is_half(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    chance = random.Random(20)
    last = 0
    for _ in range(8):
        child = process(WRITER, path)
        assert wait_for_line(child) == "open"
        # A moment chosen by chance is the point of it: there is nothing to wait for.
        time.sleep(chance.uniform(0.001, 0.25))
        said = [int(line) for line in end(child)]
        acknowledged = said[-1] if said else last
        store = Store(path)
        # The last change may have been stored and not yet told.
        assert store.revision in (acknowledged, acknowledged + 1)
        last = store.revision
        if last:
            bob = store.get(UserRecord, "bob")
            assert bob is not None
            assert bob.password_hash == str(last)
            odd = {f"g{last}"} if last % 2 else set()
            assert set(store.all(GroupRecord)) == {f"g{number}" for number in range(2, last + 1, 2)} | odd
            rows = {int(name) for (name,) in store.query("SELECT id FROM session")}
            assert rows == set(range(1, last + 1))
        store.close()
    assert last > 8


def test_a_first_start_that_is_killed_can_be_done_again(tmp_path: Path) -> None:
    chance = random.Random(21)
    for number in range(6):
        directory = tmp_path / str(number)
        directory.mkdir()
        child = process(HOLDER, directory / "state.db")
        time.sleep(chance.uniform(0.05, 0.25))
        end(child)
        Store(directory / "state.db").close()
        assert [path.name for path in directory.iterdir()] == ["state.db"]


def test_a_second_process_is_refused_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcvirtd.state.file._PATIENCE", 0.2)
    path = tmp_path / "state.db"
    child = process(HOLDER, path)
    try:
        assert wait_for_line(child) == "open"
        with pytest.raises(StateRefused, match="another mcvirtd is using it"):
            Store(path)
    finally:
        end(child)
    store = Store(path)
    with store.change() as change:
        change.put(GroupRecord(name="g", id="1"))
    store.close()


def test_a_process_that_was_stopped_in_its_turn_makes_the_next_one_wait_for_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    child = process(HOLDER, path)
    assert wait_for_line(child) == "open"
    assert child.stdin is not None
    child.stdin.close()
    Store(path).close()
    child.wait(30)


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    child = process(SMALL_FILES, path)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    stored, _, sentence = output.partition(" ")
    assert "Nothing was changed" in sentence
    assert int(stored) > 0
    store = Store(path)
    assert len(store.all(UserRecord)) == int(stored)
    store.close()


@pytest.fixture
def tiny() -> Iterator[Path]:
    """A file system of half a megabyte."""
    with tempfile.TemporaryDirectory() as directory:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", directory], capture_output=True, check=False
        )
        if made.returncode != 0:
            pytest.skip("no file system can be mounted here")
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "-l", directory], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_full_disk_refuses_changes_and_loses_nothing(tiny: Path) -> None:
    path = tiny / "state.db"
    store = Store(path)
    stored = 0
    with pytest.raises(StateNotWritable) as caught:
        while stored < 1000:
            with store.change() as change:
                change.put(UserRecord(name=f"user{stored}", password_hash="x" * 20000))
            stored += 1
    assert "full" in str(caught.value)
    assert stored > 0
    kept = {f"user{number}" for number in range(stored)}
    assert (set(store.all(UserRecord)), store.revision) == (kept, stored)
    with pytest.raises(StateNotWritable), store.change() as change:
        change.put(UserRecord(name="more", password_hash="x" * 20000))
    store.close()
    again = Store(path)
    assert (set(again.all(UserRecord)), again.revision) == (kept, stored)
    with pytest.raises(StateNotWritable), again.change() as change:
        change.put(UserRecord(name="more", password_hash="x" * 20000))
    # With room again it goes on, without a restart.
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny)], check=True)
    with again.change() as change:
        change.put(UserRecord(name="more", password_hash="x" * 20000))
    assert set(again.all(UserRecord)) == {*kept, "more"}
    again.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_first_start_on_a_full_disk_leaves_nothing_and_says_why(tiny: Path) -> None:
    filler = tiny / "filler"
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, b"x" * 4096)
    os.close(descriptor)
    with pytest.raises(StateRefused) as caught:
        Store(tiny / "state.db")
    assert "space" in str(caught.value)
    assert [path.name for path in tiny.iterdir()] == ["filler"]
    filler.unlink()
    Store(tiny / "state.db").close()
