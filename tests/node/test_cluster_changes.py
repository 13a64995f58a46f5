"""Each of three nodes killed and cut off in turn while changes go on: no acknowledged change is ever missing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.node import witness
from tests.node.cluster_fixture import ClusterNodes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")

WITHIN = 60.0
until = partial(witness.until, within=WITHIN)
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    with ClusterNodes(tmp_path_factory.mktemp("changes"), 3, simulate=True) as made:
        until(
            lambda: all(row["status"] != "Unreachable" for node in made for row in node.json("info")), "all connected"
        )
        yield made


def info(cluster: ClusterNodes, asked: int) -> dict[str, Any]:
    return {row["name"]: row for row in cluster[asked].json("info")}


def change(cluster: ClusterNodes, on: int) -> tuple[int, str]:
    """Try to make a user; the exit status and the name."""
    name = f"user{next(_numbers)}"
    return cluster[on].mcvirt("user", "create", name, "--generate-password", check=False).returncode, name


def users(cluster: ClusterNodes, asked: int) -> set[str]:
    return {row["name"] for row in cluster[asked].json("user", "list")}


def promote(cluster: ClusterNodes, on: int) -> None:
    until(lambda: cluster[on].mcvirt("cluster", "promote", check=False).returncode in (0, 6), f"node{on} leads")


def leader(cluster: ClusterNodes, asked: int) -> str:
    return str(next(name for name, row in info(cluster, asked).items() if row["leader"]))


def together(cluster: ClusterNodes) -> bool:
    views = [info(cluster, number) for number in cluster.nodes]
    revisions = {row["revision"] for view in views for row in view.values()}
    there = {row["status"] for view in views for row in view.values()} == {"Local", "Connected"}
    return len(revisions) == 1 and there


def digests(cluster: ClusterNodes) -> set[str]:
    """What the state files themselves say, read from outside while the daemons do not run."""
    found = set()
    for node in cluster:
        node.stop_daemon()
        # In the node, should a disk of its own be mounted there.
        found.add(node.python(_DIGEST.format(path=node.state_dir / "state.db")).stdout)
    for node in cluster:
        node.start_daemon()
    return found


_DIGEST = """
import hashlib, sqlite3
db = sqlite3.connect("{path}")
rows = db.execute("SELECT kind, key, data FROM record ORDER BY kind, key").fetchall()
revision = db.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()
assert len(rows) > 3
print(hashlib.sha256(repr((revision, rows)).encode()).hexdigest())
"""


def through(cluster: ClusterNodes, number: int, away: Callable[[], None], back: Callable[[], None]) -> None:
    """Take a node away, change things without it, let it come back, and look at all of them."""
    others = [other for other in cluster.nodes if other != number]
    led = leader(cluster, others[0]) == f"node{number}"
    acknowledged = set()
    status, name = change(cluster, others[0])
    assert status == 0
    acknowledged.add(name)
    away()
    until(lambda: info(cluster, others[0])[f"node{number}"]["status"] == "Unreachable", f"node{number} is missed")
    if led:
        assert change(cluster, others[0])[0] == 5
        promote(cluster, others[0])
    for other in others:
        status, name = change(cluster, other)
        assert status == 6, "done, but a node was away"
        acknowledged.add(name)
    back()
    until(lambda: together(cluster), "all are at the same revision")
    status, name = change(cluster, number)
    assert status == 0
    acknowledged.add(name)
    for asked in cluster.nodes:
        assert acknowledged <= users(cluster, asked)
        assert cluster[asked].json("cluster", "conflicts") == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed(cluster: ClusterNodes, number: int) -> None:
    through(cluster, number, cluster[number].kill_daemon, cluster[number].start_daemon)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_cut_off(cluster: ClusterNodes, number: int) -> None:
    through(cluster, number, lambda: cluster.cut(number), lambda: cluster.heal(number))


def test_promotion_is_refused_while_the_leader_lives(cluster: ClusterNodes) -> None:
    led = leader(cluster, 1)
    for number, node in cluster.nodes.items():
        if f"node{number}" != led:
            result = node.mcvirt("cluster", "promote", check=False)
            assert result.returncode == 3
            assert f"Node '{led}' leads the cluster and is alive" in result.stderr


def test_leader_moves_while_a_member_is_away(cluster: ClusterNodes) -> None:
    led = leader(cluster, 1)
    number = int(led.removeprefix("node"))
    away = next(other for other in cluster.nodes if other != number)
    cluster[away].kill_daemon()
    until(lambda: info(cluster, number)[f"node{away}"]["status"] == "Unreachable", "it is missed")
    new = f"10.77.0.{number + 20}"
    cluster[number].host.run(["ip", "address", "add", f"{new}/24", "dev", "eth0"])
    assert cluster[number].mcvirt("node", "--set-ip-address", new, check=False).returncode == 6
    cluster[away].start_daemon()
    until(lambda: together(cluster), "all are at the same revision")
    assert info(cluster, away)[led]["address"] == new
    assert change(cluster, away)[0] == 0


def test_the_same_everywhere_in_the_end(cluster: ClusterNodes) -> None:
    until(lambda: together(cluster), "all are at the same revision")
    assert len(digests(cluster)) == 1
