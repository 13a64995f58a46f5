"""One side of a machine's replicated disks moves to a third node while the guest writes, also of a dead node."""

from __future__ import annotations

import json

import pytest

from tests.lab.cluster import Cluster
from tests.lab.replaced import MOVE, Moved
from tests.lab.replicated import can_replicate

REFUSED = 3


@pytest.fixture
def three(cluster3: Cluster) -> Cluster:
    """Three nodes that can replicate, with the storage backend vg on all."""
    return can_replicate(cluster3)


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
