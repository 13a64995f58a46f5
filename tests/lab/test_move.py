"""One side of a machine's replicated disks moves to a third node while the guest writes, also of a dead node."""

from __future__ import annotations

import json

import pytest

from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.trouble import no_orphans

REFUSED = 3
MOVE = "mcvirt move --source-node {} --destination-node {} web1"


@pytest.fixture
def three(cluster3: Cluster) -> Cluster:
    """Three nodes that can replicate, with the storage backend vg on all."""
    first = cluster3[1]
    first.mcvirt("drbd", "enable", within=120)
    nodes = [word for node in cluster3.nodes for word in ("--node", node.name)]
    first.mcvirt(*("storage", "create", "vg", "--type", "Lvm", "--volume-group-name", "vg0"), *nodes)
    return cluster3


class Moved:
    """Machine web1 with a replicated disk on two of three nodes, and the guest that writes numbered records on it."""

    def __init__(self, cluster: Cluster, one: int, other: int, size: str = "16MiB") -> None:
        self.cluster = cluster
        first = cluster[one]
        first.mcvirt(
            *("create", "web1", "--memory", "64", "--cpu-count", "1", "--machine", "pc", "--disk-size", size),
            *("--storage-type", "Drbd", "--storage-backend", "vg"),
            *("--nodes", f"node{one}", "--nodes", f"node{other}"),
            within=120,
        )
        (found,) = first.json("hard-drive", "list")
        self.disk: str = found["id"]
        self.resource = f"mcvirt-{self.disk}"
        self.device = first.succeed(f"drbdadm sh-dev {self.resource}").strip()
        self.volume = f"/dev/vg0/{found['volume']}-drbd-raw"
        first.succeed(f"drbdadm primary {self.resource}")
        first.install_guest(self.device)
        first.wait_until(f"drbdadm secondary {self.resource}", within=10)

    def counts(self, node: Node, *, boots: int = 1, beyond: int = 0) -> int:
        """Its ticks, once it has ticked on; nothing that it wrote is lost or torn."""
        ticks = node.wait_for_guest(self.device, boots=boots, beyond=beyond, within=60)
        found = node.written(self.device)
        assert found.whole, found
        return ticks

    def nodes(self, asked: int = 1) -> list[str]:
        """The nodes that it is on, by the records."""
        (found,) = self.cluster[asked].json("hard-drive", "list")
        return list(found["nodes"])

    def wait_good(self, *numbers: int, within: float = 90.0) -> None:
        """Return when the kernels of these nodes have both sides connected, good and at rest."""
        for number in numbers:
            node = self.cluster[number]
            node.wait_until(f"drbdadm cstate {self.resource} | grep -qx Connected", within=within)
            node.wait_until(f"drbdadm dstate {self.resource} | grep -qx UpToDate/UpToDate", within=within)

    def sums(self, *numbers: int) -> list[str]:
        """What the sides on these nodes hold, past all caches, after the guest was stopped."""
        command = f"dd if={self.volume} bs=1M iflag=direct status=none | sha256sum"
        return [self.cluster[number].succeed(command).split()[0] for number in numbers]

    def is_on(self, *numbers: int) -> None:
        """It is on these two nodes, connected and good, the same on both, and nothing of it is anywhere else."""
        assert self.nodes() == [f"node{number}" for number in sorted(numbers)]
        assert sorted(self.cluster[1].json("info", "web1")["nodes"]) == self.nodes()
        self.wait_good(*numbers)
        no_orphans(self.cluster)
        for node in self.cluster.nodes:
            has = node.machine.number in numbers
            assert bool(self.has(node)) == has, (node, self.has(node))

    def has(self, node: Node) -> list[str]:
        """What a node has of the disk: volumes, file, resource."""
        said = node.succeed(
            "lvs --noheadings -o lv_name; ls /etc/drbd.d; drbdsetup events2 --now | grep -o 'name:mcvirt[^ ]*' || true"
        )
        return [word for word in said.split() if self.disk in word]


def test_a_side_moves_under_writes_and_nodes_are_chosen(three: Cluster) -> None:
    first, second, third = three.nodes
    words = ("create", "web1", "--memory", "64", "--cpu-count", "1", "--disk-size", "8MiB", "--storage-type", "Drbd")
    done = first.run(" ".join(["mcvirt", *words]))
    assert done.returncode == REFUSED and "--nodes" in done.stderr, done

    guest = Moved(three, 1, 3)
    guest.is_on(1, 3)
    first.mcvirt("start", "web1", within=120)
    ticks = guest.counts(first)
    done = first.run("mcvirt migrate web1 --node node2 --online")
    assert done.returncode == REFUSED and "node1 and node3" in done.stderr, done

    # What can't be, is refused, all of it at once, and nothing is begun.
    done = second.run(MOVE.format("node1", "node2"))
    assert done.returncode == REFUSED and "mcvirt migrate web1 --node node3" in done.stderr, done
    plan = json.loads(second.run(MOVE.format("node3", "node2") + " --dry-run --json", within=120).stdout)
    assert all(check["ok"] for check in plan["checks"]), plan
    guest.is_on(1, 3)

    # From a node that is none of both.
    second.succeed(MOVE.format("node3", "node2"), within=180)
    guest.is_on(1, 2)
    guest.counts(first, beyond=ticks)
    # It is a side like any other: the machine goes there, and back to none but the two.
    first.mcvirt("stop", "web1")
    assert len(set(guest.sums(1, 2))) == 1
    third.mcvirt("migrate", "web1", "--node", "node2", "--start-after-migration", within=180)
    guest.counts(second, boots=2)
    done = first.run("mcvirt migrate web1 --node node3 --online")
    assert done.returncode == REFUSED and "node1 and node2" in done.stderr, done
    first.mcvirt("stop", "web1")
    assert "completed without out-of-sync blocks" in second.mcvirt("verify", "web1", within=120)


@pytest.mark.long
def test_a_node_that_died_for_good_is_replaced(three: Cluster) -> None:
    first, second, third = three.nodes
    guest = Moved(three, 1, 3)
    first.mcvirt("start", "web1", within=120)
    ticks = guest.counts(first)
    third.power_off()
    three.wait_status(1, "node3", "Unreachable", within=60)
    ticks = guest.counts(first, beyond=ticks)
    done = first.run(MOVE.format("node3", "node2"), within=120)
    assert done.returncode == REFUSED and "--force" in done.stderr, done
    first.run(MOVE.format("node3", "node2") + " --force", within=240)  # it says that node3 has not got it
    assert guest.nodes() == ["node1", "node2"]
    guest.wait_good(1, 2)
    ticks = guest.counts(first, beyond=ticks)
    # It is back after all, with its disk: it deletes what it has, and brings nothing of it up.
    third.boot()
    three.wait_together(within=90)
    guest.is_on(1, 2)
    guest.counts(first, beyond=ticks)

    # Removed from the cluster before: the disk has one side, and gets another one.
    second.power_off()
    three.wait_status(1, "node2", "Unreachable", within=60)
    first.run("mcvirt cluster remove-node --node node2 --force --yes", within=120)
    ticks = guest.counts(first, beyond=ticks)
    assert guest.nodes() == ["node1"]
    first.succeed("mcvirt move --source-node node2 --destination-node node3 web1", within=240)
    assert guest.nodes() == ["node1", "node3"]
    guest.wait_good(1, 3)
    guest.counts(first, beyond=ticks)
    first.mcvirt("stop", "web1")
    assert len(set(guest.sums(1, 3))) == 1
