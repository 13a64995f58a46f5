"""What `mcvirt info` says of another node is what that node's own kernel and libvirt say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mcvirtd.host import facts
from tests.node import witness
from tests.node.cluster_fixture import ClusterNodes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces and libvirtd")
WITHIN = 60.0
until = partial(witness.until, within=WITHIN)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, capabilities: Path) -> Iterator[ClusterNodes]:
    with ClusterNodes(tmp_path_factory.mktemp("info"), 2, capabilities=capabilities) as made:
        yield made


def node2(cluster: ClusterNodes) -> dict[str, Any]:
    """What node 1 says of node 2."""
    return next(row for row in cluster[1].json("info") if row["name"] == "node2")


def test_memory_and_processors_are_those_of_the_node(cluster: ClusterNodes) -> None:
    until(lambda: node2(cluster)["cpu_percent"] is not None, "node 2 has measured itself")
    row, memory = node2(cluster), facts.memory()
    assert (row["memory"], row["cpu_count"]) == (memory.total, facts.cpu_count())
    assert 0 < row["memory_used"] < memory.total and 0 <= row["cpu_percent"] <= 100
    assert f"libvirt {row['libvirt']}" in cluster[2].virsh("version", "--daemon")


def test_what_is_measured_changes(cluster: ClusterNodes) -> None:
    """Memory that something on the node takes is missed a moment later."""
    taken = 1024 * 1024 * 1024
    before = node2(cluster)["memory_used"]
    process = cluster[2].host.popen(["python3", "-c", f"import sys; a = b'x' * {taken}; sys.stdin.read()"], stdin=-1)
    try:
        until(lambda: node2(cluster)["memory_used"] - before > taken // 2, "node 2 has less memory")
    finally:
        process.kill()
        process.communicate()


def test_its_libvirt_says_what_runs(cluster: ClusterNodes) -> None:
    cluster[2].mcvirt("create", "web2", "--memory", "64", "--cpu-count", "1")
    try:
        until(lambda: (node2(cluster)["vms"], node2(cluster)["vms_running"]) == (1, 0), "it is known of")
        cluster[1].mcvirt("start", "web2")
        until(lambda: node2(cluster)["vms_running"] == 1, "it is known that it runs")
        # Not mcvirt's doing: only libvirt can tell.
        cluster[2].virsh("destroy", "web2")
        until(lambda: node2(cluster)["vms_running"] == 0, "it is known that it does not run")
    finally:
        cluster[1].mcvirt("stop", "web2", check=False)
        cluster[1].mcvirt("delete", "web2", "--yes")
