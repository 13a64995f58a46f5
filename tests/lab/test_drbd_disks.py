"""Replicated hard drives on two real kernels: from their making to their end, and what dies in the middle of it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable

import pytest

from mcvirt.units import MIB
from mcvirtd.drbd.status import Picture, ResourceState, parse
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.trouble import arm, calm, no_orphans, orphans, reached, trouble

DRBD = ("--storage-type", "Drbd")
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def ready(cluster: Cluster) -> Cluster:
    """DRBD is enabled, and both nodes have a thin pool for it."""
    cluster.lab.each(lambda node: node.succeed("lvcreate -qq -y -L 512M -T vg0/pool"))
    cluster[1].mcvirt("drbd", "enable")
    cluster[1].mcvirt("storage", "create", "store", "--type", "Lvm", "--vg", "vg0", "--thin-pool", "pool")
    arm(cluster)
    return cluster


def create(node: Node, name: str) -> Done:
    words = "--memory 32 --cpu-count 1 --machine pc --disk-size 16MiB --storage-type Drbd"
    return node.run(f"mcvirt create {name} {words}", within=120)


def kernel(node: Node) -> dict[str, ResourceState]:
    """The resources as the node's kernel has them."""
    picture = Picture()
    for line in node.drbd_events():
        if (event := parse(line)) is not None:
            picture.apply(event)
    return {name: state for name in picture.names() if (state := picture.state(name)) is not None}


def roles(cluster: Cluster) -> list[set[str]]:
    return [{state.role for state in kernel(node).values()} for node in cluster.nodes]


def in_background(act: Callable[[], Done]) -> Callable[[], Done]:
    """Begin; what is returned waits for the end."""
    done: list[Done] = []
    thread = threading.Thread(target=lambda: done.append(act()))
    thread.start()

    def end() -> Done:
        thread.join()
        return done[0]

    return end


def kill(node: Node) -> None:
    node.succeed("systemctl kill --kill-who=main --signal=KILL mcvirtd")


def assert_to_be_repaired(cluster: Cluster, name: str) -> None:
    """The machine is seen from both nodes, has no disk, gets one by `update`, and goes again without a trace."""
    for node in cluster.nodes:
        assert name in [row["name"] for row in node.json("list")], node
        assert node.json("info", name)["disks"] == [], node
    cluster[1].mcvirt("update", name, "--add-disk", "16MiB", *DRBD)
    assert all(state.both_good and not state.out_of_sync for node in cluster.nodes for state in kernel(node).values())
    assert roles(cluster) == [{"Secondary"}, {"Secondary"}]
    cluster[1].mcvirt("delete", name, "--yes", within=120)
    assert orphans(cluster) == []


def test_life(ready: Cluster) -> None:
    first, second = ready.nodes
    assert create(first, "web1").returncode == 0
    assert roles(ready) == [{"Secondary"}, {"Secondary"}]
    (name,) = kernel(first)
    first.succeed(f"drbdadm primary {name}")
    first.install_guest("/dev/drbd1")
    first.succeed(f"drbdadm secondary {name}")

    # Primary while it runs, wherever it was asked for, and longer for the guest that runs.
    second.mcvirt("start", "web1")
    assert roles(ready) == [{"Primary"}, {"Secondary"}]
    first.wait_for_guest("/dev/drbd1", boots=1, beyond=2)
    first.mcvirt("update", "web1", "--increase-disk", "16MiB", "--disk-id", "1")
    for node in ready.nodes:
        assert int(node.succeed("cat /sys/block/drbd1/size")) * 512 == 32 * MIB
    assert "32 MiB" in first.virsh("domblkinfo", "web1", "vda", "--human").replace(".000", "")
    # A guest that ends by itself gives it up.
    first.virsh("destroy", "web1")
    first.wait_until(lambda: roles(ready) == [{"Secondary"}, {"Secondary"}], what="nobody is Primary")

    # The other node runs it with the same data.
    first.mcvirt("unregister", "web1")
    second.mcvirt("register", "web1")
    second.mcvirt("start", "web1")
    assert roles(ready) == [{"Secondary"}, {"Primary"}]
    second.wait_for_guest("/dev/drbd1", boots=2, beyond=2)

    # One more, for the guest that runs, and back.
    second.mcvirt("hard-drive", "create", "8MiB", *DRBD)
    (more,) = (disk["id"] for disk in first.json("hard-drive", "list") if disk["vm"] is None)
    second.mcvirt("hard-drive", "attach", more, "web1")
    assert kernel(second)[f"mcvirt-{more}"].role == "Primary"
    second.mcvirt("hard-drive", "detach", more)
    assert kernel(second)[f"mcvirt-{more}"].role == "Secondary"
    second.mcvirt("hard-drive", "delete", more, "--yes")
    second.mcvirt("stop", "web1")
    assert roles(ready) == [{"Secondary"}, {"Secondary"}]
    second.mcvirt("delete", "web1", "--yes")
    assert orphans(ready) == []
    assert [kernel(node) for node in ready.nodes] == [{}, {}]


def test_a_step_that_fails_leaves_nothing_of_the_disk_and_the_machine_to_repair(ready: Cluster) -> None:
    for number, program, word in ((2, "lvcreate", "drbd-meta"), (2, "drbdadm", "create-md"), (1, "drbdadm", "up")):
        trouble(ready[number], program, word, "fail")
        done = create(ready[1], "web1")
        calm(ready)
        assert done.returncode == 1, done.stderr
        assert "made to fail" in done.stderr
        assert "mcvirt update web1" in done.stderr
        assert orphans(ready) == []
        assert_to_be_repaired(ready, "web1")


@pytest.mark.parametrize("number", [1, 2])
def test_a_daemon_that_is_killed_in_a_creation(ready: Cluster, number: int) -> None:
    slow = ready[3 - number]
    trouble(slow, "drbdadm", "up", "wait")
    end = in_background(lambda: create(ready[1], "web1"))
    reached(slow)
    kill(ready[number])
    calm(ready)
    assert end().returncode != 0
    ready.wait_together()
    no_orphans(ready)
    assert_to_be_repaired(ready, "web1")


def test_a_link_that_is_cut_in_a_creation(ready: Cluster) -> None:
    trouble(ready[2], "drbdadm", "up", "wait")
    end = in_background(lambda: create(ready[1], "web1"))
    reached(ready[2])
    ready[2].cut()
    assert end().returncode == 1
    calm(ready)
    ready[2].heal()
    ready.wait_together()
    no_orphans(ready)
    assert_to_be_repaired(ready, "web1")


def test_a_daemon_that_is_killed_in_a_growth_and_in_a_deletion(ready: Cluster) -> None:
    first, second = ready.nodes
    assert create(first, "web1").returncode == 0
    trouble(second, "lvextend", "drbd-raw", "wait")
    end = in_background(lambda: first.run("mcvirt update web1 --increase-disk 16MiB --disk-id 1", within=120))
    reached(second)
    kill(first)
    calm(ready)
    end()
    ready.wait_together()
    first.wait_until(lambda: first.json("hard-drive", "list")[0]["size"] == 32 * MIB, what="it has grown")
    for node in ready.nodes:
        assert int(node.succeed("cat /sys/block/drbd1/size")) * 512 == 32 * MIB
    assert roles(ready) == [{"Secondary"}, {"Secondary"}]
    no_orphans(ready)

    trouble(second, "lvremove", "drbd-raw", "wait")
    end = in_background(lambda: first.run("mcvirt delete web1 --yes", within=120))
    reached(second)
    kill(first)
    calm(ready)
    end()
    ready.wait_together()
    no_orphans(ready)
    first.wait_until(lambda: first.json("list") == [], what="the machine is gone")
    assert [kernel(node) for node in ready.nodes] == [{}, {}]
