"""Machines with replicated disks whose node dies, or seems to: they go on with all that was written, never twice."""

from __future__ import annotations

import pytest

from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.replicated import Disk, can_replicate

AWAY, REFUSED, UNREACHABLE = 6, 3, 5
"""Exit statuses: done, but a member has not got it; refused; somebody is needed who does not answer."""


@pytest.fixture
def drbd(cluster: Cluster) -> Cluster:
    """Two joined nodes that can replicate."""
    return can_replicate(cluster)


def running(cluster: Cluster, vm: str) -> Disk:
    """The disk of a machine that runs on node1, and is to be started with it."""
    disk = Disk(cluster, vm, size="16MiB", machine="pc")
    disk.install_guest()
    first = cluster[1]
    first.mcvirt("update", vm, "--autostart-on-boot")
    first.mcvirt("start", vm, within=120)
    first.wait_for_guest(disk.volume, boots=1, beyond=5, within=60)
    return disk


def failover(node: Node, vm: str, *words: str) -> tuple[int, str]:
    done = node.run(f"mcvirt failover {vm} {' '.join(words)}", within=120)
    return done.returncode, " ".join(done.stderr.split())


def wait_missed(cluster: Cluster, *disks: Disk) -> None:
    """Return when node2 misses node1, and so does DRBD there, which takes some seconds longer to notice."""
    cluster.wait_status(2, "node1", "Unreachable")
    for disk in disks:
        cluster[2].wait_until(f"drbdadm cstate {disk.resource} | grep -qx WFConnection")


def starts(node: Node, vm: str) -> int:
    """How often a node has ever begun to run a machine, by QEMU's log."""
    return int(node.succeed(f"grep -c 'starting up' /var/log/libvirt/qemu/{vm}.log || true"))


def domains(node: Node) -> list[str]:
    return node.virsh("list", "--all", "--name").split()


def healthy(cluster: Cluster, vm: str) -> None:
    """Nobody has anything to warn of."""
    for node in cluster.nodes:
        node.wait_until(lambda node=node: warnings(node, vm) == [], what=f"all is well with {vm}")  # type: ignore[misc]
        assert [text for row in node.json("info") for text in row["warnings"]] == []


def warnings(node: Node, vm: str) -> list[str]:
    """What a node warns of about a machine, which has no network adapters."""
    return [text for text in node.json("info", vm)["warnings"] if "no network adapters" not in text]


@pytest.mark.long
def test_a_dead_nodes_machines_go_on_with_all_that_was_written_and_it_comes_home(drbd: Cluster) -> None:
    first, second = drbd.nodes
    disks = [running(drbd, vm) for vm in ("web1", "web2")]
    before = [first.written(disk.volume) for disk in disks]
    assert all(each.whole for each in before)

    # In the first seconds nobody has missed it yet, neither mcvirtd nor DRBD: both are waited for.
    first.power_off()
    code, said = failover(second, "web1")
    assert code == REFUSED and "Make sure that this node is off" in said
    code, said = failover(second, "web1", "--yes-node-is-off", "node1")
    assert code == UNREACHABLE and "promote" in said
    assert second.run("mcvirt cluster promote --yes-the-leader-is-off node1").returncode in (0, AWAY)
    for disk, was in zip(disks, before, strict=True):
        code, said = failover(second, disk.vm, "--yes-node-is-off", "node1", "--start")
        assert code == AWAY, said
        second.wait_for_guest(disk.volume, boots=2, beyond=2, within=60)
        now = second.written(disk.volume)
        assert now.after(was) and now.boots == 2, (was, now)

    # It knows of nothing, and was to start both.
    first.boot()
    drbd.wait_together(within=90)
    for disk in disks:
        disk.wait_good()
        assert [disk.role(node) for node in drbd.nodes] == ["Secondary", "Primary"]
        ticks = second.wait_for_guest(disk.volume, boots=2)
        second.wait_for_guest(disk.volume, boots=2, beyond=ticks)
        healthy(drbd, disk.vm)
        assert {node.json("info", disk.vm)["node"] for node in drbd.nodes} == {"node2"}
        assert starts(first, disk.vm) == 1 and starts(second, disk.vm) == 1
    first.wait_until(lambda: domains(first) == [], what="node1 gives them up")
    for disk in disks:
        first.mcvirt("stop", disk.vm)
        assert second.written(disk.volume).whole
        assert len(set(disk.sums())) == 1
    assert first.run("mcvirt verify --all", within=120).returncode == 0


@pytest.mark.long
def test_a_node_that_lives_or_has_newer_data_is_not_passed_over(drbd: Cluster) -> None:
    first, second = drbd.nodes
    disk = running(drbd, "web1")

    # Nobody answers, and nobody says that it is off.
    second.cut(silently=True)
    wait_missed(drbd, disk)
    code, said = failover(second, "web1")
    assert code == REFUSED and "Make sure that this node is off" in said
    ticks = first.wait_for_guest(disk.volume, boots=1, within=60)
    first.wait_for_guest(disk.volume, boots=1, beyond=ticks, within=60)
    second.heal()
    drbd.wait_together()
    disk.wait_good()
    healthy(drbd, "web1")

    # DRBD's link alone is cut: the other side learns that it is old, and the node is seen to live.
    port = disk.state(first)["port"]
    second.succeed(
        "nft add table inet lab && nft add chain inet lab in '{ type filter hook input priority 0; }' && "
        f"nft add rule inet lab in tcp dport {port} drop && nft add rule inet lab in tcp sport {port} drop"
    )
    second.wait_until(f"drbdadm dstate {disk.resource} | grep -q ^Outdated/", within=60)
    ticks = first.wait_for_guest(disk.volume, boots=1, within=60)
    ticks = first.wait_for_guest(disk.volume, boots=1, beyond=ticks, within=60)
    code, said = failover(second, "web1", "--yes-node-is-off", "node1")
    assert code == REFUSED and "that node is on" in said
    assert any("its data on node 'node2' is Outdated" in text for text in warnings(second, "web1"))

    # Now it dies, and only it has what was written since.
    before = first.written(disk.volume)
    first.power_off()
    wait_missed(drbd, disk)
    code, said = failover(second, "web1", "--yes-node-is-off", "node1")
    assert code == REFUSED and "Outdated" in said
    assert second.json("info", "web1")["node"] == "node1" and domains(second) == []

    second.succeed("nft delete table inet lab")
    first.boot()
    first.wait_for_guest(disk.volume, boots=2, beyond=2, within=90)
    drbd.wait_together(within=90)
    disk.wait_good()
    assert [disk.role(node) for node in drbd.nodes] == ["Primary", "Secondary"]
    second.mcvirt("stop", "web1")
    now = first.written(disk.volume)
    assert now.after(before) and now.boots == 2, (before, now)
    assert len(set(disk.sums())) == 1
    assert starts(first, "web1") == 2 and domains(second) == []
    healthy(drbd, "web1")
