"""A configuration that is larger than a message: to a node that joins, and to one that was away for long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import pytest

from tests.node import witness
from tests.node.cluster_fixture import ClusterNodes
from tests.node.mcvirt_node import McvirtNode

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
WITHIN = 30.0
until = partial(witness.until, within=WITHIN)
NEWCOMER, SNAPSHOT, BACKLOG = "a part for a newcomer", "a part of a snapshot", "a part of a backlog"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    directory = tmp_path_factory.mktemp("large")
    with ClusterNodes(directory, 2, simulate=True, formed=False, module="tests.node.small_parts") as made:
        for number in made.nodes:
            made[number].mcvirt("node", "--set-ip-address", made.address(number))
        yield made


def put(node: McvirtNode, prefix: str, count: int) -> None:
    """So many groups."""
    node.python(
        "from mcvirt_client import Client\n"
        "with Client.connect() as client:\n"
        f"    for number in range({count}): client.groups.create(f'{prefix}{{number}}')\n"
    )


def groups(node: McvirtNode) -> set[str]:
    return {row["name"] for row in node.json("group", "list")}


def even(cluster: ClusterNodes) -> bool:
    rows = [row for node in cluster for row in node.json("info")]
    return len(rows) == 4 and all(row["lag"] == 0 and row["status"] != "Unreachable" for row in rows)


def said(node: McvirtNode, text: str) -> int:
    return node.log_path.read_text().count(text)


def test_a_node_that_joins(cluster: ClusterNodes) -> None:
    put(cluster[1], "first", 60)
    string = cluster[2].mcvirt("cluster", "get-connect-string").stdout.strip()
    cluster[1].mcvirt("cluster", "add-node", "--connect-string", string)
    until(lambda: even(cluster), "node2 is in")
    assert said(cluster[2], NEWCOMER) >= 2
    assert groups(cluster[2]) == groups(cluster[1]) and "first59" in groups(cluster[2])


@pytest.mark.parametrize(("changes", "by"), [(15, BACKLOG), (40, SNAPSHOT)])
def test_a_node_that_was_away(cluster: ClusterNodes, changes: int, by: str) -> None:
    """15 changes are still in the log of the other node, of 40 the first are not."""
    before = said(cluster[1], by)
    cluster[2].kill_daemon()
    put(cluster[1], f"a{changes}-", changes)
    cluster[2].start_daemon()
    until(lambda: even(cluster), "node2 has caught up")
    assert said(cluster[1], by) - before >= 2
    assert groups(cluster[2]) == groups(cluster[1])
    assert cluster[2].json("cluster", "conflicts") == []
    for node in cluster:
        assert "Traceback" not in node.log_path.read_text()
