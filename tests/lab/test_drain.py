"""A node with machines on replicated disks is emptied, and filled again, while a guest writes and counts."""

from __future__ import annotations

from tests.lab.cluster import Cluster
from tests.lab.moved import Guest
from tests.lab.replicated import can_replicate


def test_node_is_emptied_and_filled_again(cluster: Cluster) -> None:
    guest = Guest.create(can_replicate(cluster))
    first, second = cluster.nodes
    words = ("--memory", "32", "--cpu-count", "1", "--machine", "pc", "--disk-size", "8MiB")
    first.mcvirt("create", "off1", *words, "--storage-type", "Drbd", "--storage-backend", "vg", within=120)
    first.mcvirt("start", "web1", within=60)
    ticks = guest.counts(first, boots=1, beyond=2)
    plan = second.json("node", "drain", "node1", "--dry-run")
    assert {(move["name"], move["target"], move["online"]) for move in plan["moves"]} == {
        ("web1", "node2", True),
        ("off1", "node2", False),
    }

    second.mcvirt("node", "drain", "node1", within=240)
    assert guest.settled() == 2
    assert guest.counts(second, boots=1, beyond=2) > ticks
    assert {row["name"]: row["node"] for row in first.json("list")} == {"web1": "node2", "off1": "node2"}
    (row,) = [row for row in second.json("info") if row["name"] == "node1"]
    assert "off1, web1." in " ".join(row["warnings"])

    first.mcvirt("node", "drain", "node1", "--return", within=240)
    assert guest.settled() == 1
    guest.counts(first, boots=1, beyond=2)
    assert {row["name"]: row["node"] for row in second.json("list")} == {"web1": "node1", "off1": "node1"}
