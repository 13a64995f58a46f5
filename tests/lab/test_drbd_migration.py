"""Machines on replicated disks that move between two real nodes, while their guests write and count."""

from __future__ import annotations

import re

import pytest

from tests.lab.cluster import Cluster
from tests.lab.moved import Events, Guest, slow
from tests.lab.node import Node
from tests.lab.replicated import can_replicate

MIGRATIONS = 3
DEADLINE = 40
"""Seconds, of which QEMU's start on the other node takes some. Given many more, QEMU slows a guest down until its
memory can be sent."""
ROUNDS = 2
FAILED, REFUSED = 1, 3


@pytest.fixture
def drbd(cluster: Cluster) -> Cluster:
    """Two joined nodes that can replicate, with the storage backend vg on both."""
    return can_replicate(cluster)


def refused(node: Node, *words: str) -> str:
    done = node.run("mcvirt migrate web1 " + " ".join(words), within=120)
    assert done.returncode == REFUSED, done
    return done.stderr


def test_back_and_forth_under_writes(drbd: Cluster) -> None:
    first, second = drbd.nodes
    guest = Guest.create(drbd)
    events = Events(drbd)

    # Stopped; and started where it comes to.
    first.mcvirt("migrate", "web1", "--node", "node2", within=120)
    assert [one.role for one in guest.seen()] == ["Secondary", "Secondary"]
    assert first.json("info", "web1")["node"] == "node2"
    first.mcvirt("migrate", "web1", "--node", "node1", "--start-after-migration", within=120)
    ticks = guest.counts(first, boots=1)
    assert "is running" in refused(first, "--node", "node2")
    plan = second.json("migrate", "web1", "--node", "node2", "--online", "--dry-run", within=120)
    assert any(guest.disk in step for step in plan["steps"]), plan

    on = 1
    for number in range(MIGRATIONS):
        there = drbd[3 - on]
        drbd[1 + number // 2 % 2].mcvirt("migrate", "web1", "--node", there.name, "--online", within=120)
        on = 3 - on
        assert guest.rests() == on and drbd[3 - on].virsh("list", "--all", "--name") == ""
        assert there.json("info", "web1")["last_migration"]["downtime"] is not None
        ticks = guest.counts(there, boots=1, beyond=ticks)
    assert events.other_than_connected() == []


def test_sides_that_are_not_equal_or_lose_each_other(drbd: Cluster) -> None:
    first, second = drbd.nodes
    guest = Guest.create(drbd)
    first.mcvirt("start", "web1", within=120)
    ticks = guest.counts(first, boots=1)

    # Not connected: nothing is begun.
    second.succeed(f"drbdadm disconnect {guest.resource}")
    assert "not connected and up to date" in refused(first, "--node", "node2", "--online")
    assert not any(one.open for one in guest.seen())
    second.succeed(f"drbdadm connect {guest.resource}")
    first.wait_until(guest.rests, what="both sides are good")

    def both() -> bool:
        return [(one.role, one.open) for one in guest.seen()] == [("Primary", True)] * 2

    # DRBD's link alone: each kernel begins a past of its own, and the side without the guest gives its one up.
    with slow(drbd):
        first.mcvirt("migrate", "web1", "--node", "node2", "--online", "--no-wait", within=120)
        first.wait_until(both, what="both sides are Primary")
        second.succeed(f"drbdadm disconnect --force {guest.resource}")
        guest.wait_closed()
    assert guest.settled() == 1
    ticks = guest.counts(first, boots=1, beyond=ticks)
    assert "Split-Brain detected, manually solved" in first.succeed("dmesg")
    told = first.mcvirt("task", "list")
    assert "have lost each other" in told, told

    # All is as it was before.
    first.mcvirt("migrate", "web1", "--node", "node2", "--online", within=120)
    guest.counts(second, boots=1, beyond=ticks)
    first.mcvirt("stop", "web1")
    verified = first.run("mcvirt verify web1", within=120)
    assert verified.returncode == 0, verified

    # Not equal: nothing is begun either.
    second.succeed(
        f"dd if=/dev/urandom of={guest.volume} bs=4096 seek=3500 count=1 conv=notrunc oflag=direct status=none"
    )
    assert first.run("mcvirt verify web1", within=120).returncode == 1
    for node in drbd.nodes:
        said = refused(node, "--node", "node1")
        assert f"Hard drive {guest.disk} can't be migrated" in said and "differ" in said, said


@pytest.mark.long
def test_guest_that_changes_its_memory_faster_than_it_can_be_sent(drbd: Cluster) -> None:
    """It stays where it is when the deadline has passed, and goes as soon as it may stand still for longer."""
    first, second = drbd.nodes
    guest = Guest.create(drbd, greedy=True)
    first.mcvirt("start", "web1", within=120)
    ticks = guest.counts(first, boots=1)
    events = Events(drbd)

    words = ("--node", "node2", "--online", "--max-downtime", "1", "--deadline", str(DEADLINE))
    with slow(drbd):
        task = first.mcvirt("migrate", "web1", *words, "--no-wait", within=120).strip()
        # All of it has been sent, and what was changed meanwhile.
        first.wait_until(lambda: rounds(first, "web1") >= ROUNDS, within=DEADLINE, what="it is sent again")
        watched = first.run(f"mcvirt task watch {task}", within=120)
        guest.wait_closed()
    assert watched.returncode == FAILED, watched
    assert f"within {DEADLINE} s" in watched.stderr and "on node 'node1' as before" in watched.stderr, watched
    assert guest.settled() == 1
    ticks = guest.counts(first, boots=1, beyond=ticks)
    assert second.virsh("list", "--all", "--name") == ""

    first.mcvirt("migrate", "web1", "--node", "node2", "--online", "--max-downtime", "60000", within=180)
    assert guest.settled() == 2
    guest.counts(second, boots=1, beyond=ticks)
    assert events.other_than_connected() == []
    first.mcvirt("stop", "web1")
    first.mcvirt("verify", "web1", within=120)


def rounds(node: Node, name: str) -> int:
    """How often its memory has been gone through."""
    found = re.search(r"Iteration:\s+([0-9]+)", node.run(f"virsh domjobinfo {name}").stdout)
    return int(found[1]) if found is not None else 0
