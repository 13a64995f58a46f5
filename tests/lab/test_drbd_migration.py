"""Machines on replicated disks that move between two real nodes, while their guests write and count."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.lab.cluster import Cluster
from tests.lab.moved import Events, Guest
from tests.lab.node import Node
from tests.lab.replicated import can_replicate

MIGRATIONS = 3
REFUSED = 3


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


@contextmanager
def slow(cluster: Cluster) -> Iterator[None]:
    """Let a migration take its time: there is little to send of a guest this small."""
    for node in cluster.nodes:
        node.succeed("modprobe sch_netem; tc qdisc replace dev eth1 root netem rate 800kbit limit 40")
    yield
    for node in cluster.nodes:
        node.run("tc qdisc del dev eth1 root")


def sends(node: Node) -> bool:
    """Whether some of the guest's memory has been sent."""
    found = re.search(r"Data processed:\s+([0-9.]+)", node.run("virsh domjobinfo web1").stdout)
    return found is not None and float(found[1]) > 0


def test_what_dies_in_the_middle(drbd: Cluster) -> None:
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

    def go(until: Callable[[Node], object]) -> tuple[Node, Node]:
        """Begin a migration, and return in the middle of it, with the node that has the guest, and the other one."""
        here, there = drbd[guest.settled()], drbd[3 - guest.settled()]
        here.mcvirt("migrate", "web1", "--node", there.name, "--online", "--no-wait", within=120)
        here.wait_until(lambda: until(here), what="the middle")
        return here, there

    def both(_: Node) -> bool:
        return [(one.role, one.open) for one in guest.seen()] == [("Primary", True)] * 2

    def goes_on(ticks: int) -> int:
        return guest.counts(drbd[guest.settled()], boots=1, beyond=ticks)

    # Either daemon. The guest may just have gone, or not: it runs once, and what it wrote is there.
    for role, until in ((0, sends), (1, both)):
        with slow(drbd):
            go(until)[role].kill()
            guest.wait_closed()
        ticks = goes_on(ticks)

    # The link: the two sides lose each other while both are Primary, and find each other again by themselves.
    with slow(drbd):
        go(both)
        second.cut()
        guest.wait_closed()
    second.heal()
    drbd.wait_together(within=60)
    ticks = goes_on(ticks)

    # DRBD's link alone: each kernel begins a past of its own, and the side without the guest gives its one up.
    with slow(drbd):
        _, there = go(both)
        there.succeed(f"drbdadm disconnect --force {guest.resource}")
        guest.wait_closed()
    ticks = goes_on(ticks)
    assert "Split-Brain detected, manually solved" in first.succeed("dmesg")
    told = first.mcvirt("task", "list")
    assert "have lost each other" in told, told

    # All is as it was before.
    here, there = drbd[guest.settled()], drbd[3 - guest.settled()]
    first.mcvirt("migrate", "web1", "--node", there.name, "--online", within=120)
    goes_on(ticks)
    first.mcvirt("stop", "web1")
    verified = first.run("mcvirt verify web1", within=120)
    assert verified.returncode == 0, verified

    # Not equal: nothing is begun either.
    second.succeed(
        f"dd if=/dev/urandom of={guest.volume} bs=4096 seek=3500 count=1 conv=notrunc oflag=direct status=none"
    )
    assert first.run("mcvirt verify web1", within=120).returncode == 1
    said = refused(second, "--node", here.name)
    assert f"Hard drive {guest.disk} can't be migrated" in said and "differ" in said, said
