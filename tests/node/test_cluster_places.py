"""Networks and storage backends of a cluster: every node's part is looked at, and marked, from any node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.node.cluster_fixture import ClusterNodes, certificate
from tests.node.mcvirt_node import BRIDGE
from tests.node.test_cluster_changes import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    directory = tmp_path_factory.mktemp("places")
    with ClusterNodes(directory, 3, simulate=True, module="tests.node.real_places") as made:
        connected(made)
        yield made


def connected(cluster: ClusterNodes) -> None:
    def so() -> bool:
        views = [node.json("info") for node in cluster]
        lags = {row["revision"] for view in views for row in view}
        return len(lags) == 1 and all(row["status"] != "Unreachable" for view in views for row in view)

    until(so, "all connected, and at the same revision")


def refused(cluster: ClusterNodes, on: int, *argv: str) -> str:
    result = cluster[on].mcvirt(*argv, check=False)
    assert result.returncode not in (0, 6), result.stdout
    return result.stderr


def marks(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if entry.name.startswith(".mcvirt-"))


def places(cluster: ClusterNodes, name: str) -> list[Path]:
    """A directory of its own for each node."""
    made = [cluster.directory / f"{name}{number}" for number in cluster.nodes]
    for place in made:
        place.mkdir()
    return made


def on_each(made: list[Path]) -> list[str]:
    return [word for number, place in enumerate(made, 1) for word in ("--node", f"node{number}", str(place))]


def test_bridge_is_looked_for_on_every_node(cluster: ClusterNodes) -> None:
    cluster[2].mcvirt("network", "create", "lan", "--interface", BRIDGE)
    assert [row["name"] for row in cluster[3].json("network", "list")] == ["lan"]
    cluster[3].host.run(["ip", "link", "add", "only3", "type", "bridge"])
    said = refused(cluster, 3, "network", "create", "dmz", "--interface", "only3")
    assert "on node 'node1'" in said
    assert "on node 'node2'" in said
    assert "on node 'node3'" not in said
    assert [row["name"] for row in cluster[1].json("network", "list")] == ["lan"]


def test_own_and_other_nodes_reasons_are_told_together(cluster: ClusterNodes) -> None:
    said = refused(cluster, 1, "network", "create", "lan", "--interface", "nowhere0")
    assert "already" in said
    assert said.count("nowhere0") >= 3
    assert "on node 'node2'" in said


def test_network_is_refused_while_a_node_is_away(cluster: ClusterNodes) -> None:
    cluster[3].kill_daemon()
    until(lambda: any(row["status"] == "Unreachable" for row in cluster[1].json("info")), "node3 is missed")
    said = refused(cluster, 1, "network", "create", "wan", "--interface", BRIDGE)
    assert "node3" in said
    assert "can't be reached" in said
    cluster[3].start_daemon()
    connected(cluster)
    cluster[1].mcvirt("network", "create", "wan", "--interface", BRIDGE)


def test_backend_on_all_nodes(cluster: ClusterNodes) -> None:
    made = places(cluster, "all")
    cluster[2].mcvirt("storage", "create", "everywhere", "--type", "File", *on_each(made))
    (mark,) = marks(made[0])
    assert [marks(place) for place in made] == [[mark]] * 3
    rows = {row["name"]: row for row in cluster[3].json("storage", "list")}
    assert rows["everywhere"]["problem"] == ""
    cluster[3].mcvirt("storage", "delete", "everywhere")
    assert [marks(place) for place in made] == [[], [], []]


def test_fault_on_another_node_is_named_and_nothing_marked(cluster: ClusterNodes) -> None:
    made = places(cluster, "fault")
    made[1].rmdir()
    made[2].chmod(0o777)
    said = refused(cluster, 1, "storage", "create", "faulty", "--type", "File", *on_each(made))
    assert "on node 'node2'" in said
    assert "on node 'node3'" in said
    assert marks(made[0]) == []


def test_backend_is_refused_while_a_node_of_it_is_away(cluster: ClusterNodes) -> None:
    made = places(cluster, "away")
    cluster[3].kill_daemon()
    until(lambda: any(row["status"] == "Unreachable" for row in cluster[1].json("info")), "node3 is missed")
    said = refused(cluster, 1, "storage", "create", "unseen", "--type", "File", *on_each(made))
    assert "on node 'node3'" in said
    assert "can't be reached" in said
    assert marks(made[0]) == []
    cluster[3].start_daemon()
    connected(cluster)


def test_nodes_are_added_and_removed_through_any_node(cluster: ClusterNodes) -> None:
    made = places(cluster, "some")
    cluster[1].mcvirt("storage", "create", "some", "--type", "File", "--node", "node1", str(made[0]))
    assert [len(marks(place)) for place in made] == [1, 0, 0]
    cluster[2].mcvirt("storage", "add-node", "some", "--node", "node3", str(made[2]))
    assert [len(marks(place)) for place in made] == [1, 0, 1]
    said = refused(cluster, 1, "storage", "add-node", "some", "--node", "node2", str(made[0]))
    assert "another of its nodes" in said
    cluster[1].mcvirt("storage", "remove-node", "some", "--node", "node3")
    assert [len(marks(place)) for place in made] == [1, 0, 0]


def test_shared_backend_must_be_the_same_everywhere(cluster: ClusterNodes) -> None:
    made = places(cluster, "shared")
    same = ["--type", "File", "--shared"]
    said = refused(cluster, 1, "storage", "create", "split", *same, *on_each(made))
    assert "is shared, but" in said
    assert [marks(place) for place in made] == [[], [], []], "what was marked is undone"
    cluster[3].mcvirt("storage", "create", "common", *same, "--path", str(made[0]))
    assert len(marks(made[0])) == 1
    assert all(
        row["problem"] == "" for node in cluster for row in node.json("storage", "list") if row["name"] == "common"
    )
    cluster[2].mcvirt("storage", "delete", "common")
    assert marks(made[0]) == []


def test_going_on_without_failed_nodes(cluster: ClusterNodes) -> None:
    made = places(cluster, "left")
    for number in (1, 3):
        cluster[number].kill_daemon()
    names = ("node1", "node3")

    def missed() -> bool:
        return all(row["status"] == "Unreachable" for row in cluster[2].json("info") if row["name"] in names)

    until(missed, "node1 and node3 are missed")
    create = ["network", "create", "solo", "--interface", BRIDGE]
    assert cluster[2].mcvirt(*create, check=False).returncode != 0
    asked = cluster[2].mcvirt(*create, "--ignore-failed-nodes", check=False)
    assert asked.returncode == 2
    assert "do not answer: node1, node3" in asked.stderr
    go_on = ["--ignore-failed-nodes", "--accept-failed-nodes-warning"]
    assert cluster[2].mcvirt(*create, *go_on, check=False).returncode == 6
    left = ["storage", "create", "left", "--type", "File", *on_each(made), *go_on]
    assert cluster[2].mcvirt(*left, check=False).returncode == 6
    assert [len(marks(place)) for place in made] == [0, 1, 0]
    trail = cluster[2].json("audit", "list")
    assert [entry["target"] for entry in trail if entry["operation"] == "cluster.promote"] == ["node1"]
    assert "without node1 node3" in trail[-1]["detail"]
    assert "Only 1 of 3 nodes" in refused(cluster, 2, "user", "create", "nobody", "--generate-password")
    for number in (1, 3):
        cluster[number].start_daemon()
    connected(cluster)
    assert [row["name"] for row in cluster[1].json("network", "list") if row["name"] == "solo"]
    for number in (1, 3):
        cluster[2].mcvirt("storage", "add-node", "left", "--node", f"node{number}", str(made[number - 1]))
    assert [len(marks(place)) for place in made] == [1, 1, 1]


def test_machine_on_a_shared_backend_moves_to_another_node(cluster: ClusterNodes) -> None:
    made = places(cluster, "vms")
    common = ["--type", "File", "--shared", "--path", str(made[0])]
    cluster[1].mcvirt("storage", "create", "vms", *common, "--node", "node1", "--node", "node2")
    cluster[1].mcvirt("storage", "create", "own", "--type", "File", "--node", "node1", str(made[1]))
    new = ["--memory", "64", "--cpu-count", "1", "--disk-size", "4"]
    cluster[1].mcvirt("create", "fixed1", *new, "--storage-backend", "own")
    cluster[1].mcvirt("create", "moving1", *new, "--storage-backend", "vms", "--network", "lan")
    assert cluster[3].json("info", "fixed1")["nodes"] == ["node1"]
    assert cluster[3].json("info", "moving1")["nodes"] == ["node1", "node2"]
    assert "'node1'" in refused(cluster, 2, "register", "moving1")
    for name in ("fixed1", "moving1"):
        cluster[3].mcvirt("unregister", name)
    assert "can't run on node 'node3'" in refused(cluster, 3, "register", "moving1")
    assert "can't run on node 'node2'" in refused(cluster, 2, "register", "fixed1")
    cluster[2].mcvirt("register", "moving1")
    cluster[3].mcvirt("start", "moving1")
    row = next(row for row in cluster[1].json("list") if row["name"] == "moving1")
    assert row["node"] == "node2"
    assert cluster[1].json("info", "moving1")["node"] == "node2"
    cluster[1].mcvirt("stop", "moving1")
    cluster[1].mcvirt("delete", "moving1")
    assert not [entry for entry in made[0].iterdir() if entry.name.startswith("mcvirt-hd")]


def test_volumes_are_imported_and_machines_created_where_they_can_be(cluster: ClusterNodes) -> None:
    made = places(cluster, "routed")
    cluster[1].mcvirt("storage", "create", "only3", "--type", "File", "--node", "node3", str(made[2]))
    (made[2] / "old").write_bytes(b"\0" * 1024**2)
    assert cluster[1].json("hard-drive", "import", "old", "only3")["nodes"] == ["node3"]
    new = ["--memory", "64", "--cpu-count", "1", "--disk-size", "4", "--storage-backend", "only3"]
    said = refused(cluster, 1, "create", "both1", *new, "--nodes", "node3", "--nodes", "node2")
    assert "Node 'node2' could not run it: disk 1 would be on 'node3' only" in " ".join(said.split())
    cluster[1].mcvirt("create", "three1", *new, "--nodes", "node3")
    assert cluster[2].json("info", "three1")["node"] == "node3"


def test_address_of_a_member_is_changed(cluster: ClusterNodes) -> None:
    node = cluster[2]
    node.host.run(["ip", "address", "add", "10.99.0.2/32", "dev", "lo"])
    said = " ".join(refused(cluster, 2, "node", "--set-ip-address", "10.99.0.2").split())
    assert "node 'node1' does not find it there" in said
    assert "node 'node3' does not find it there" in said
    assert addresses(cluster) == {cluster.address(2)}
    new = "10.77.0.12"
    node.host.run(["ip", "address", "add", f"{new}/24", "dev", "eth0"])
    node.mcvirt("node", "--set-ip-address", new)
    until(lambda: addresses(cluster) == {new}, "all know it")
    knock = f"import socket; socket.create_connection(('{cluster.address(2)}', 9090), 5)"
    until(lambda: "refused" in cluster[1].python(knock, check=False).stderr, "nothing listens at the old one")
    connected(cluster)
    names = certificate(node).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert new in [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert node.mcvirt("network", "delete", "solo").returncode == 0
    assert cluster[1].json("info", "three1")["node"] == "node3"
    assert cluster[2].json("cluster", "conflicts", "--clear", "--node", "node1") == {"cleared": 0}


def addresses(cluster: ClusterNodes) -> set[str]:
    return {row["address"] for node in cluster for row in node.json("info") if row["name"] == "node2"}
