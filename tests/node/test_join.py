"""Nodes join and leave: real daemons, real TLS, each node in a network namespace of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from tests.node.cluster_fixture import ClusterNodes
from tests.node.mcvirt_node import McvirtNode

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
T = TypeVar("T")
PASSWORD = "correct horse battery"


@pytest.fixture
def blank(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ClusterNodes]:
    """Blank nodes that have their addresses; as many as the test's parameter says, or three."""
    count = getattr(request, "param", 3)
    with ClusterNodes(tmp_path, count, simulate=True, formed=False) as made:
        for number in made.nodes:
            made[number].mcvirt("node", "--set-ip-address", made.address(number))
        yield made


def until(condition: Callable[[], T], within: float = 10.0) -> T:
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.05)
    return value


def string(node: McvirtNode) -> str:
    return node.mcvirt("cluster", "get-connect-string").stdout.strip()


def join(member: McvirtNode, node: McvirtNode) -> None:
    result = member.mcvirt("cluster", "add-node", "--connect-string", string(node))
    assert result.stderr.endswith(f"Successfully added node {node.name}\n"), result.stderr


def refused(member: McvirtNode, text: str, *flags: str, status: int = 3) -> str:
    result = member.mcvirt("cluster", "add-node", "--connect-string", text, *flags, check=False)
    assert result.returncode == status, result
    return result.stderr + result.stdout


def members(node: McvirtNode) -> dict[str, str]:
    return {each["name"]: each["status"] for each in node.json("info")}


def whole(*nodes: McvirtNode) -> None:
    """All of these, and no others, are members, and know the same."""
    names = {node.name for node in nodes}

    def same() -> bool:
        infos = [node.json("info") for node in nodes]
        return all(
            {each["name"] for each in info} == names
            and all(each["status"] in ("Local", "Connected") and each["lag"] == 0 for each in info)
            for info in infos
        )

    until(same)


def is_blank(node: McvirtNode) -> bool:
    return members(node) == {node.name: "Local"} and node.json("info")[0]["warnings"] == []


def kept(node: McvirtNode) -> set[str]:
    """The files in the node's state directory, once none is being written."""
    root = node.state_dir
    until(lambda: not list(root.rglob(".*.new")))
    return {
        str(path.relative_to(root)) for path in root.rglob("*") if path.name not in ("state.db-wal", "state.db-shm")
    }


def make_user(node: McvirtNode, name: str) -> None:
    path = node.directory / "password"
    path.write_text(PASSWORD + "\n")
    node.mcvirt("user", "create", name, "--user-password-file", str(path))


def logs_in(node: McvirtNode, name: str) -> bool:
    path = node.directory / "password"
    path.write_text(PASSWORD + "\n")
    return not node.mcvirt("-U", name, "--password-file", str(path), "whoami", check=False).returncode


# --- joining ------------------------------------------------------------------------------------------------------


def test_three_nodes_become_one_cluster(blank: ClusterNodes) -> None:
    one, two, three = blank
    make_user(one, "alice")
    join(one, two)
    # Any member takes nodes in, also one that does not lead.
    join(two, three)
    whole(one, two, three)
    assert logs_in(three, "alice")
    make_user(three, "bob")
    assert logs_in(two, "bob")
    two.mcvirt("network", "create", "lan", "--interface", "br0")
    assert [network["name"] for network in three.json("network", "list")] == ["lan"]
    for node in blank:
        assert not {name for name in kept(node) if name.startswith(("pki.next", "pki.before"))}
        assert oct((node.state_dir / "pki" / "ca.key").stat().st_mode)[-3:] == "600"
        node.stop_daemon()
        node.start_daemon()
    whole(one, two, three)
    assert logs_in(two, "alice")


_ASKS = """
import select, sys
from mcvirt_client import Client
kept = Client.connect()
asked = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    with Client.connect() as fresh:
        fresh.nodes.list()
    kept.go_on()  # ends the connection, and keeps the CA that was read in the beginning
    kept.nodes.list()
    asked += 1
    if asked == 1:
        print("asks", flush=True)
print(asked)
"""


def test_who_asks_a_node_while_its_keys_are_exchanged_is_answered(blank: ClusterNodes) -> None:
    one, two, _ = blank
    asking = two.host.popen(
        [sys.executable, "-c", _ASKS],
        env={**os.environ, **two.client_env()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with asking:
        assert asking.stdout and asking.stdout.readline() == "asks\n"
        for _ in range(3):
            join(one, two)
            one.mcvirt("cluster", "remove-node", "--node", "node2")
            until(lambda: is_blank(two))
        said, error = asking.communicate("", timeout=30)
    assert asking.returncode == 0, error
    assert int(said) > 20


def test_dry_run_changes_nothing_and_leaves_the_string_good(blank: ClusterNodes) -> None:
    one, two, _ = blank
    text = string(two)
    before = kept(two)
    result = one.mcvirt("cluster", "add-node", "--connect-string", text, "--dry-run")
    assert "Reachability" in result.stdout and "FAILED" not in result.stdout
    assert is_blank(one) and is_blank(two) and kept(two) == before
    assert one.json("cluster", "add-node", "--connect-string", text)["joined"] is True


def test_a_string_is_good_once_and_the_newest_one_only(blank: ClusterNodes) -> None:
    one, two, three = blank
    old, new = string(two), string(two)
    assert "a newer one was made" in refused(one, old)
    one.mcvirt("cluster", "add-node", "--connect-string", new)
    assert "is a member of this cluster already" in refused(one, new)
    # A third node holds the string against a key that the node no longer has.
    assert "not the one that was meant" in refused(three, new, status=5)
    whole(one, two)
    assert "in a cluster with others" in two.mcvirt("cluster", "get-connect-string", check=False).stderr


def test_a_node_does_not_join_itself_or_with_nonsense(blank: ClusterNodes) -> None:
    one, two, _ = blank
    assert "of this node, 'node1', itself" in refused(one, string(one))
    text = string(two)
    for wrong in (text[:-5], text + "AAAA", "mcvirt-", "hello"):
        assert "can't be used" in refused(one, wrong)
    assert is_blank(one) and is_blank(two)


def test_another_node_at_the_address_gets_no_secret(blank: ClusterNodes) -> None:
    """The pin is checked before anything is sent."""
    one, two, _ = blank
    text = string(two).removeprefix("mcvirt-")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[6:]
    content = json.loads(raw)
    content["address"] = blank.address(3)
    data = json.dumps(content).encode()
    check = hashlib.sha256(b"mcvirt connect string" + data).digest()[:6]
    false = "mcvirt-" + base64.urlsafe_b64encode(check + data).decode().rstrip("=")
    assert "not the one that was meant" in refused(one, false, status=5)
    assert "connect string" not in blank[3].log_path.read_text()


def test_an_expired_string_is_refused(blank: ClusterNodes) -> None:
    one, two, _ = blank
    text = string(two)
    two.stop_daemon()
    with sqlite3.connect(two.state_dir / "state.db") as db:
        ((value,),) = db.execute("SELECT value FROM meta WHERE name = 'join'").fetchall()
        db.execute(
            "UPDATE meta SET value = ? WHERE name = 'join'", (json.dumps({**json.loads(value), "expires": 1.0}),)
        )
    db.close()
    two.start_daemon()
    assert "has expired" in refused(one, text)
    join(one, two)


def test_all_that_stands_against_a_node_is_told_at_once(blank: ClusterNodes) -> None:
    one, two, three = blank
    join(one, two)
    three.mcvirt("storage", "create", "own", "--type", "File", "--path", "/simulated/own")
    three.mcvirt("create", "web9", "--memory", "32", "--cpu-count", "1", "--disk-size", "8MiB")
    text = string(three)
    said = refused(one, text)
    for part in ("virtual machines: web9", "hard drives", "deleted there first: own"):
        assert part in said, said
    assert "FAILED" in refused(one, text, "--dry-run")
    assert set(members(one)) == {"node1", "node2"} and set(members(three)) == {"node3"}
    three.mcvirt("delete", "web9")
    three.mcvirt("storage", "delete", "own")
    one.mcvirt("cluster", "add-node", "--connect-string", text)
    whole(one, two, three)


def test_a_node_that_can_not_be_reached_is_told_so(blank: ClusterNodes) -> None:
    one, two, _ = blank
    text = string(two)
    blank.cut(2)
    began = time.monotonic()
    assert "can't be reached" in refused(one, text, status=5)
    assert time.monotonic() - began < 12
    blank.heal(2)
    one.mcvirt("cluster", "add-node", "--connect-string", text)
    whole(one, two)


def test_two_nodes_join_at_once(blank: ClusterNodes) -> None:
    one, two, three = blank
    texts = [string(two), string(three)]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda text: one.mcvirt("cluster", "add-node", "--connect-string", text), texts))
    assert len(done) == 2
    whole(one, two, three)


def test_one_string_used_twice_at_once_makes_one_member(blank: ClusterNodes) -> None:
    one, two, three = blank
    text = string(three)

    with ThreadPoolExecutor(2) as pool:
        words = ("cluster", "add-node", "--connect-string", text)
        results = list(pool.map(lambda node: node.mcvirt(*words, check=False), (one, two)))
    assert sorted(result.returncode == 0 for result in results) == [False, True], results
    (winner,) = [node for node in (one, two) if "node3" in members(node)]
    (other,) = [node for node in (one, two) if node is not winner]
    whole(winner, three)
    assert is_blank(other)


# --- leaving ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [2], indirect=True)
def test_join_and_leave_ten_times_leaves_nothing_behind(blank: ClusterNodes) -> None:
    one, two = blank
    make_user(one, "alice")
    one.mcvirt("network", "create", "lan", "--interface", "br0")
    before = kept(two)
    secret = next(line for line in _hashes(one))
    for _ in range(10):
        join(one, two)
        whole(one, two)
        assert logs_in(two, "alice")
        one.mcvirt("cluster", "remove-node", "--node", "node2")
        assert is_blank(two) and is_blank(one)
        assert two.json("user", "list") == [] and two.json("network", "list") == []
        assert kept(two) == before
    two.stop_daemon()
    assert secret not in (two.state_dir / "state.db").read_bytes()
    two.start_daemon()
    assert set(two.json("group", "list")[0]) and not logs_in(two, "alice")


def _hashes(node: McvirtNode) -> list[bytes]:
    """The password hashes in a node's state."""
    found = set()
    for name in ("state.db", "state.db-wal"):
        path = node.state_dir / name
        if path.exists():
            found |= set(re.findall(rb'"password_hash":"([^"]+)"', path.read_bytes()))
    assert found
    return sorted(found)


def test_the_leader_can_be_removed_too(blank: ClusterNodes) -> None:
    one, two, three = blank
    join(one, two)
    join(one, three)
    whole(one, two, three)
    two.mcvirt("cluster", "remove-node", "--node", "node1")
    whole(two, three)
    assert is_blank(one)
    make_user(three, "carol")
    assert logs_in(two, "carol")
    join(three, one)
    whole(one, two, three)
    assert logs_in(one, "carol")


def test_a_node_with_something_on_it_is_not_removed(blank: ClusterNodes) -> None:
    one, two, _ = blank
    join(one, two)
    whole(one, two)
    two.mcvirt("storage", "create", "own", "--type", "File", "--path", "/simulated/own", "--node", "node2", check=False)
    if not two.json("storage", "list"):
        pytest.skip("a backend on one node can't be made this way")
    two.mcvirt("create", "web1", "--memory", "32", "--cpu-count", "1", "--disk-size", "8MiB")
    result = one.mcvirt("cluster", "remove-node", "--node", "node2", check=False)
    assert result.returncode == 3
    for part in (
        "virtual machines: web1",
        "hard drives that are there only",
        "storage backends that are there only: own",
    ):
        assert part in result.stderr
    assert "itself" in two.mcvirt("cluster", "remove-node", "--node", "node2", check=False).stderr
    whole(one, two)


def test_a_dead_node_is_removed_and_finds_itself_a_stranger(blank: ClusterNodes) -> None:
    one, two, three = blank
    join(one, two)
    join(one, three)
    whole(one, two, three)
    three.mcvirt("create", "web3", "--memory", "32", "--cpu-count", "1")
    three.kill_daemon()
    until(lambda: members(one)["node3"] == "Unreachable")
    plain = one.mcvirt("cluster", "remove-node", "--node", "node3", check=False)
    assert plain.returncode in (3, 5)
    assert "answers" in one.mcvirt("cluster", "remove-node", "--node", "node2", "--force", "--yes", check=False).stderr
    assert one.mcvirt("cluster", "remove-node", "--node", "node3", "--force", check=False).returncode == 2
    one.mcvirt("cluster", "remove-node", "--node", "node3", "--force", "--yes")
    whole(one, two)
    three.start_daemon()
    until(lambda: members(three)["node3"] == "Removed")
    assert "was removed" in three.json("info")[[n["name"] for n in three.json("info")].index("node3")]["warnings"][0]
    assert "was removed" in three.mcvirt("start", "web3", check=False).stderr
    assert "was removed" in three.mcvirt("network", "create", "x1", "--interface", "br0", check=False).stderr
    # Not even a restart makes it forget.
    three.stop_daemon()
    three.start_daemon()
    assert members(three)["node3"] == "Removed"
    three.mcvirt("cluster", "reset")
    assert is_blank(three) and three.json("list") == []
    join(two, three)
    whole(one, two, three)


def test_a_member_can_not_be_reset(blank: ClusterNodes) -> None:
    one, two, _ = blank
    join(one, two)
    assert "was not removed" in one.mcvirt("cluster", "reset", check=False).stderr
