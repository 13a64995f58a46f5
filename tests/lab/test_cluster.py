"""Nodes that have been joined, as they are installed: what one node does not survive, the cluster does."""

from __future__ import annotations

from tests.lab.cluster import Cluster
from tests.lab.stories import machine, storage


def test_a_machine_on_lvm_is_seen_from_both(cluster: Cluster) -> None:
    first, second = cluster.nodes
    storage(first, "thick")
    device = machine(second, "tiny")
    second.mcvirt("start", "tiny")
    second.wait_for_guest(device, boots=1, beyond=10)
    for node in cluster.nodes:
        rows = [(row["name"], row["state"], row["node"]) for row in node.json("list")]
        assert rows == [("tiny", "RUNNING", "node2")], node
    assert first.lvs() == {} and first.virsh("list", "--all", "--name") == ""
    # A command is carried out where the machine is, whoever is asked.
    first.mcvirt("shutdown", "tiny", "--wait")
    assert second.virsh("domstate", "tiny") == "shut off"
    written = second.written(device)
    assert written.whole and written.ahead <= 1 and written.restarts in ((1,), ())


def test_every_test_begins_where_they_had_just_joined(cluster: Cluster) -> None:
    assert cluster[1].json("list") == [] and cluster[1].json("storage", "list") == []
    revision = cluster.info()["node1"]["revision"]
    cluster[1].mcvirt("user", "create", "alice", "--generate-password")
    cluster[2].power_off()
    cluster.revert()
    cluster.wait_together()
    assert cluster.info()["node1"]["revision"] == revision
    cluster[2].cut()
    cluster.revert()
    assert {row["status"] for row in cluster.info(2).values()} == {"Local", "Connected"}
