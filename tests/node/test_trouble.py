"""A state that can't be used, a full disk, two daemons, no libvirt: said in a sentence, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.node.attacker import Network
from tests.node.mcvirt_node import McvirtNode


def _contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mode)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _corrupt(state: Path) -> None:
    with (state / "state.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 8192)


def _truncate(state: Path) -> None:
    with (state / "state.db").open("r+b") as file:
        file.truncate(6000)


def _empty(state: Path) -> None:
    (state / "state.db").write_bytes(b"")


def _newer(state: Path) -> None:
    db = sqlite3.connect(state / "state.db")
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()


def _foreign(state: Path) -> None:
    (state / "state.db").unlink()
    db = sqlite3.connect(state / "state.db")
    db.execute("CREATE TABLE songs (title TEXT)")
    db.commit()
    db.close()


def _no_database(state: Path) -> None:
    (state / "state.db").write_bytes(b"root:x:0:0:root:/root:/bin/bash\n" * 100)


def _bad_record(state: Path) -> None:
    db = sqlite3.connect(state / "state.db")
    db.execute("UPDATE record SET data = ? WHERE kind = 'group'", (b'{"name": 5}',))
    db.commit()
    db.close()


def _other_name(state: Path) -> None:
    path = state / "node.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "elsewhere"}))


def _other_node(state: Path) -> None:
    path = state / "node.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id": "5a8d1d10-8c37-4a25-9d0f-6a3a7d5b3a11"}))


def _no_json(state: Path) -> None:
    (state / "node.json").write_bytes(b"\x00\xff")


def _keys(state: Path) -> list[Path]:
    found = sorted(state.rglob("*.key"))
    assert found
    return found


def _readable_key(state: Path) -> None:
    _keys(state)[0].chmod(0o644)


def _bad_key(state: Path) -> None:
    _keys(state)[-1].write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


def _directory_for_key(state: Path) -> None:
    key = _keys(state)[-1]
    key.unlink()
    key.mkdir()


TROUBLES = [
    _corrupt,
    _truncate,
    _empty,
    _newer,
    _foreign,
    _no_database,
    _bad_record,
    _other_name,
    _other_node,
    _no_json,
    _readable_key,
    _bad_key,
    _directory_for_key,
]


def test_a_second_daemon_on_the_same_state(sim_node: McvirtNode) -> None:
    first = sim_node._daemon
    said_before = len(sim_node.log_path.read_text())
    sim_node.start_daemon(wait=False)
    status = sim_node.wait_daemon()
    sim_node._daemon = first
    said = sim_node.log_path.read_text()[said_before:]
    assert status == 1 and "another mcvirtd is using it" in said and "Traceback" not in said
    assert sim_node.json("whoami")["user"] == "root"  # the first one's token and address are still the ones published
    sim_node.mcvirt("network", "create", "lan", "--interface", "br0")


def test_a_full_disk(sim_node: McvirtNode) -> None:
    state = sim_node.state_dir
    sim_node.stop_daemon()
    sim_node.host.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=711", "tmpfs", str(state)])
    network = Network(sim_node)
    try:
        sim_node.start_daemon()
        seen_from_here = Path(f"/proc/{sim_node.host.pid}/root{state}")
        with network.wire() as wire:
            wire.call("user", "create", "alice", "a password of alice")
            _fill(seen_from_here / "fill")
            created: list[str] = []
            reply: dict[str, object] = {}
            for number in range(300):  # what SQLite's log has room for already is still written
                reply = wire.call("network", "create", f"net{number}", "br0")
                if "error" in reply:
                    break
                created.append(f"net{number}")
            assert reply["error"]["name"] == "StateNotWritable", reply  # type: ignore[index]
            text = reply["error"]["text"]  # type: ignore[index]
            assert "Nothing was changed" in text and "full" in text and str(state) in text
            revision = wire.call("node", "list")["ok"][0]["revision"]
            _fill(seen_from_here / "rest")
            for call in (
                ("network", "create", "other", "br0"),
                ("user", "create", "bob", "a password of bob"),
                ("group", "create", "ops"),
                ("node", "set_autostart_interval", 33),
                ("vm", "create", {"name": "web1", "memory": 2**28, "cpu_count": 1}),
                ("auth", "login", "alice", "a password of alice"),
            ):
                answer = wire.call(*call)
                assert answer.get("error", {}).get("name") == "StateNotWritable", (call, answer)
            assert {each["name"] for each in wire.call("network", "list")["ok"]} == set(created)
            assert wire.call("vm", "list")["ok"] == []
            assert wire.call("node", "list")["ok"][0]["revision"] == revision
            ran = sim_node.mcvirt("group", "create", "ops", check=False)
            assert ran.returncode == 1 and ran.stderr.startswith("Error: ") and ran.stderr.count("\n") == 1
            (seen_from_here / "fill").unlink()
            (seen_from_here / "rest").unlink()
            assert "ok" in wire.call("group", "create", "ops")
            assert "ok" in wire.call("auth", "login", "alice", "a password of alice")
        sim_node.stop_daemon()
        sim_node.start_daemon()
        assert len(sim_node.json("network", "list")) == len(created)
    finally:
        network.close()
        if sim_node._daemon is not None:
            sim_node.stop_daemon()
        sim_node.host.run(["umount", str(state)])
        sim_node.start_daemon()
    assert "Traceback" not in sim_node.log_path.read_text()


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue


def test_libvirt_comes_later_than_the_daemon(node: McvirtNode) -> None:
    node.mcvirt("create", "web1", "--memory", "64MiB", "--cpu-count", "1")
    node.stop_daemon()
    node.host.stop_libvirtd()
    try:
        node.start_daemon()
        (row,) = node.json("list")
        assert (row["name"], row["state"]) == ("web1", "UNKNOWN")
        refused = node.mcvirt("start", "web1", check=False)
        assert refused.returncode == 5 and "libvirt" in refused.stderr, refused
        refused = node.mcvirt("create", "web2", "--memory", "64MiB", "--cpu-count", "1", check=False)
        assert refused.returncode == 5, refused
        assert [each["name"] for each in node.json("list")] == ["web1"]
    finally:
        node.host.start_libvirtd()
    deadline = time.monotonic() + 30
    while node.json("list")[0]["state"] == "UNKNOWN":
        assert time.monotonic() < deadline, "the daemon does not find libvirt again"
    node.mcvirt("start", "web1")
    node.mcvirt("stop", "web1")
    assert "Traceback" not in node.log_path.read_text()


@pytest.fixture(scope="module")
def good_state(sim_node: McvirtNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of a state in which there is something to lose; the daemon of the node is not running."""
    sim_node.mcvirt("user", "create", "alice", "--generate-password")
    sim_node.stop_daemon()
    copy = tmp_path_factory.mktemp("good") / "state"
    shutil.copytree(sim_node.state_dir, copy)
    yield copy
    shutil.rmtree(sim_node.state_dir)
    shutil.copytree(copy, sim_node.state_dir)
    sim_node.start_daemon()


@pytest.mark.parametrize("spoil", TROUBLES, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_state_that_cannot_be_used(sim_node: McvirtNode, good_state: Path, spoil: Callable[[Path], None]) -> None:
    shutil.rmtree(sim_node.state_dir)
    shutil.copytree(good_state, sim_node.state_dir)
    spoil(sim_node.state_dir)
    before = _contents(sim_node.state_dir)
    said_before = len(sim_node.log_path.read_text())
    sim_node.start_daemon(wait=False)
    status = sim_node.wait_daemon()
    said = sim_node.log_path.read_text()[said_before:]
    assert 0 < status < 10, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("mcvirtd: ")]
    assert len(lines) == 1 and len(lines[0]) < 600, said
    assert str(sim_node.state_dir) in lines[0]
    assert _contents(sim_node.state_dir) == before
    assert not (sim_node.run_dir / "endpoint.json").exists()
