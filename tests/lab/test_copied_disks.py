"""Machines with disks on LVM of one node that move to another one with them, while their guests write and count."""

from __future__ import annotations

import pytest

from tests.lab.cluster import Cluster
from tests.lab.moved import due, sends
from tests.lab.node import Node
from tests.lab.stories import machine, storage, volume

SIZE = 16
"""MiB of the disk, of which the guest has the first one."""
COPYING = ("--online", "--copy-storage")


class Travelling:
    """Machine web1 with the guest that counts, which runs on the first node; what else is on its disk is random."""

    def __init__(self, cluster: Cluster, kind: str) -> None:
        first, second = cluster.nodes
        self.cluster = cluster
        storage(first, kind, second)
        self.device = machine(first, "web1", f"{SIZE}MiB")
        rest = f"bs=1M seek=1 count={SIZE - 1} iflag=fullblock oflag=direct status=none"
        first.succeed(f"dd if=/dev/urandom of={self.device} {rest}")
        first.mcvirt("start", "web1", within=120)
        self.ticks = 0
        self.content = self.sum(first)

    def sum(self, node: Node) -> str:
        """What there is behind the guest's part, past all caches."""
        return node.succeed(f"dd if={self.device} bs=1M skip=1 iflag=direct status=none | sha256sum").split()[0]

    def runs_on(self, number: int) -> None:
        """It runs and counts on this node, with all that was ever written, and the other one has nothing of it."""
        node, other = self.cluster[number], self.cluster[3 - number]
        self.counts(node)
        assert self.sum(node) == self.content
        assert node.virsh("list", "--name") == "web1" and other.virsh("list", "--all", "--name") == ""
        assert volume(self.device) in node.lvs() and not self.volumes(other)
        for each in self.cluster.nodes:
            info = each.json("info", "web1")
            assert (info["node"], info["nodes"]) == (node.name, [node.name])
            assert not due(each)

    def counts(self, node: Node) -> None:
        """The guest has ticked on, has never been booted anew, and nothing that it wrote is lost or torn."""
        self.ticks = node.wait_for_guest(self.device, boots=1, beyond=self.ticks, within=60)
        found = node.written(self.device)
        assert found.whole, found

    @staticmethod
    def volumes(node: Node) -> list[str]:
        """The volumes that a node has for hard drives."""
        return [name for name in node.lvs() if "mcvirt-hd-" in name]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_it_goes_there_and_back_with_its_disk(cluster: Cluster, kind: str) -> None:
    travelling = Travelling(cluster, kind)
    travelling.runs_on(1)
    for on in (2, 1):
        # By the node that has it, and by the one that gets it.
        cluster[1].mcvirt("migrate", "web1", "--node", f"node{on}", *COPYING, within=240)
        travelling.runs_on(on)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_link_is_cut_in_the_middle(cluster: Cluster, kind: str) -> None:
    first, second = cluster.nodes
    travelling = Travelling(cluster, kind)
    travelling.counts(first)
    words = ("--node", "node2", *COPYING, "--bandwidth", "1MiB")
    first.mcvirt("migrate", "web1", *words, "--no-wait", within=120)
    first.wait_until(lambda: sends(first, "web1"), what="its disk is on its way")
    assert travelling.volumes(second) == [volume(travelling.device)]

    second.cut()
    cluster.wait_status(1, "node2", "Unreachable", within=60)
    travelling.counts(first)
    first.wait_until("! mcvirt task list --json | grep -q RUNNING", what="it has been given up")
    second.heal()
    cluster.wait_together(within=60)
    first.wait_until(lambda: not travelling.volumes(second), within=90, what="nothing is left on node2")
    first.wait_until(lambda: not any(map(due, cluster.nodes)), within=90, what="nothing is due")
    travelling.runs_on(1)

    # Nothing stands in the way of the next time.
    first.mcvirt("migrate", "web1", "--node", "node2", *COPYING, within=240)
    travelling.runs_on(2)
