"""Machines of a dead node go on elsewhere, and the node that comes back gives them up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node.cluster_fixture import ClusterNodes
from tests.node.mcvirt_node import VOLUMES, McvirtNode
from tests.node.test_cluster_changes import promote, until
from tests.node.test_cluster_places import connected

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")

NEW = ["--memory", "32", "--cpu-count", "1", "--disk-size", "4", "--storage-backend", "common"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, capabilities: Path) -> Iterator[ClusterNodes]:
    directory = tmp_path_factory.mktemp("failover")
    with ClusterNodes(directory, 3, capabilities=capabilities) as made:
        common = directory / "common"
        common.mkdir()
        for node in made:
            node.host.run(["mount", "--bind", str(common), VOLUMES])
        connected(made)
        made[1].mcvirt("storage", "create", "common", "--type", "File", "--shared", "--path", VOLUMES)
        made[1].mcvirt("create", "web1", *NEW)
        made[1].mcvirt("update", "web1", "--autostart-on-boot")
        made[1].mcvirt("start", "web1")
        made[3].mcvirt("create", "web3", *NEW)
        made[3].mcvirt("start", "web3")
        yield made


def no_way_between(cluster: ClusterNodes, one: int, other: int, *, way: bool = False) -> None:
    """What the two send each other gets lost, without a word; or arrives again."""
    for number, there in ((one, other), (other, one)):
        mac = f"02:77:00:00:00:{there if way else 0xEE:02x}"
        neighbour = [cluster.address(there), "lladdr", mac, "dev", "eth0", "nud", "permanent"]
        cluster[number].host.run(["ip", "neighbour", "replace", *neighbour])


def status(cluster: ClusterNodes, asked: int, about: int) -> str:
    return str(next(row["status"] for row in cluster[asked].json("info") if row["name"] == f"node{about}"))


def failover(cluster: ClusterNodes, on: int, *words: str) -> tuple[int, str]:
    result = cluster[on].mcvirt("failover", *words, check=False)
    return result.returncode, " ".join(result.stderr.split())


def domains(node: McvirtNode, *which: str) -> list[str]:
    return node.virsh("list", "--name", *which).split()


def test_refused_while_its_node_lives(cluster: ClusterNodes) -> None:
    code, said = failover(cluster, 2, "web1", "--yes-node-is-off", "node1")
    assert code == 3
    assert "that node is on: node 'node2' reaches it (it answers)." in said
    cluster[1].kill_daemon()
    until(lambda: status(cluster, 2, 1) == "Unreachable", "node1 is missed")
    code, said = failover(cluster, 2, "web1", "--yes-node-is-off", "node1")
    assert code == 3
    assert "its machine is on, though its mcvirtd does not answer" in said, "a crashed daemon is no dead node"
    cluster[1].start_daemon()
    connected(cluster)


def test_refused_while_only_another_member_reaches_it(cluster: ClusterNodes) -> None:
    no_way_between(cluster, 1, 2)
    until(lambda: status(cluster, 2, 1) == "Unreachable", "node2 misses node1")
    code, said = failover(cluster, 2, "web1", "--yes-node-is-off", "node1")
    assert code == 3
    assert "node 'node3' reaches it" in said
    no_way_between(cluster, 1, 2, way=True)
    connected(cluster)


def test_a_dead_nodes_machine_goes_on_and_is_given_up(cluster: ClusterNodes) -> None:
    node1 = cluster[1]
    cluster.cut(1)
    node1.kill_daemon()
    node1.virsh("destroy", "web1")
    until(lambda: status(cluster, 2, 1) == "Unreachable", "node1 is missed")
    code, said = failover(cluster, 2, "web1", "--yes-node-is-off", "node1")
    assert code == 5
    assert "`mcvirt cluster promote`" in said, "node1 led"
    promote(cluster, 3)
    until(lambda: failover(cluster, 2, "web1")[0] == 3, "node2 knows the leader")
    assert "--yes-node-is-off node1" in failover(cluster, 2, "web1")[1]
    assert failover(cluster, 2, "web1", "--yes-node-is-off", "node3")[0] == 3
    assert failover(cluster, 2, "web1", "--yes-node-is-off", "node1", "--start")[0] == 6
    assert domains(cluster[2]) == ["web1"]
    entry: dict[str, Any] = cluster[2].json("audit", "list")[-1]
    assert (entry["operation"], entry["target"], entry["user"]) == ("vm.failover", "web1", "root")
    assert "owner_is_off node1" in entry["detail"]

    node1.start_daemon()  # it still can't reach the others, believes that it leads, and has web1 to start
    until(lambda: any("not started by themselves: web1" in text for text in _warnings(cluster, 1)), "it waits")
    assert domains(node1) == []
    cluster.heal(1)
    connected(cluster)
    until(lambda: domains(node1, "--all") == [], "node1 gives web1 up")
    assert node1.json("info", "web1")["node"] == "node2"
    assert _warnings(cluster, 1) == []
    assert domains(cluster[2]) == ["web1"]


def _warnings(cluster: ClusterNodes, number: int) -> list[str]:
    rows = cluster[number].json("info")
    return list(next(row["warnings"] for row in rows if row["name"] == f"node{number}"))


def test_a_machine_that_still_ran_is_told_of_and_not_touched(cluster: ClusterNodes) -> None:
    cluster.cut(3)
    until(lambda: status(cluster, 2, 3) == "Unreachable", "node3 is missed")
    promote(cluster, 2)  # node3 led by now
    assert failover(cluster, 2, "web3", "--yes-node-is-off", "node3")[0] == 6
    cluster.heal(3)
    connected(cluster)
    until(lambda: any("'web3' runs here, although" in text for text in _warnings(cluster, 3)), "node3 says so")
    assert domains(cluster[3]) == ["web3"]
    until(
        lambda: any("runs on node 'node3' as well" in text for text in cluster[2].json("info", "web3")["warnings"]),
        "and node2 does",
    )
    cluster[3].virsh("destroy", "web3")
    until(lambda: domains(cluster[3], "--all") == [], "it is given up")
    until(lambda: _warnings(cluster, 3) == [], "all is well")
    cluster[1].mcvirt("start", "web3")
    assert "web3" in domains(cluster[2])


def test_autostart_does_not_wait_for_what_only_this_node_has(cluster: ClusterNodes) -> None:
    own = cluster[1].volumes.parent / "own"
    own.mkdir()
    there = f"{Path(VOLUMES).parent}/own"
    cluster[1].mcvirt("storage", "create", "own", "--type", "File", "--node", "node1", there)
    new = [*NEW[:-1], "own"]
    cluster[1].mcvirt("create", "local1", *new)
    cluster[1].mcvirt("update", "local1", "--autostart-on-boot")
    cluster.cut(1)
    cluster[1].kill_daemon()
    cluster[1].start_daemon()
    until(lambda: domains(cluster[1]) == ["local1"], "local1 is started")
    cluster.heal(1)
    connected(cluster)
