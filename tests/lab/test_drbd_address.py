"""A node gets another cluster address, and its replicated hard drives go with it."""

from __future__ import annotations

from tests.lab.cluster import Cluster
from tests.lab.node import Node

NEW = "10.9.0.101"


def uses(node: Node, resource: str, address: str) -> None:
    """Wait until the node's kernel uses an address for the resource, and has both sides equal."""
    node.wait_until(f"drbdsetup show {resource} | grep -q 'address.*ipv4 {address}:'", within=60)
    node.wait_until(f"drbdadm cstate {resource} | grep -qx Connected", within=60)
    node.wait_until(f"drbdadm dstate {resource} | grep -qx UpToDate/UpToDate", within=60)


def test_the_disks_move_with_the_node_also_where_the_other_one_is_away(cluster: Cluster) -> None:
    first, second = cluster.nodes
    old = first.address
    first.mcvirt("drbd", "enable", within=120)
    first.mcvirt(
        *("storage", "create", "vg", "--type", "Lvm", "--volume-group-name", "vg0"),
        *("--node", "node1", "--node", "node2"),
    )
    first.mcvirt(
        *("create", "web1", "--memory", "32", "--cpu-count", "1", "--machine", "pc", "--disk-size", "16MiB"),
        *("--storage-type", "Drbd", "--storage-backend", "vg"),
        within=120,
    )
    (resource,) = first.drbd()
    first.succeed(f"drbdadm primary {resource}")
    first.install_guest("/dev/drbd1")
    first.succeed(f"drbdadm secondary {resource}")
    first.mcvirt("start", "web1", within=120)
    ticks = first.wait_for_guest("/dev/drbd1", boots=1)

    # While the guest runs, and the old address is there still.
    first.succeed(f"ip address add {NEW}/24 dev eth1")
    first.mcvirt("node", "--set-ip-address", NEW)
    for node in cluster.nodes:
        uses(node, resource, NEW)
        assert f"{NEW}:" in node.succeed(f"cat /etc/drbd.d/{resource}.res")
    ticks = first.wait_for_guest("/dev/drbd1", boots=1, beyond=ticks)

    # While the other node's mcvirtd is away: its side comes along when it has caught up.
    second.succeed("systemctl stop mcvirtd")
    cluster.wait_status(1, "node2", "Unreachable")
    first.run(f"mcvirt node --set-ip-address {old}")  # it says that node2 has not got this
    first.wait_until(f"drbdsetup show {resource} | grep -q 'address.*ipv4 {old}:'", within=60)
    ticks = first.wait_for_guest("/dev/drbd1", boots=1, beyond=ticks)
    second.succeed("systemctl start mcvirtd")
    for node in cluster.nodes:
        uses(node, resource, old)
    first.succeed(f"ip address del {NEW}/24 dev eth1")
    cluster.wait_together(within=60)
    first.wait_for_guest("/dev/drbd1", boots=1, beyond=ticks)
    first.mcvirt("stop", "web1")
    assert "completed without out-of-sync blocks" in first.mcvirt("verify", "web1", within=120)
