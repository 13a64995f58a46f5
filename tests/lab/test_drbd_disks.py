"""Replicated hard drives on two real kernels: from their making to their end, and what dies in the middle of it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable

import pytest

from mcvirt.units import MIB
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


def equal(cluster: Cluster) -> bool:
    """Whether both kernels have all resources connected, with all data on both sides."""
    return all(
        facts["device"]["disk"] == facts["peer-device"]["peer-disk"] == "UpToDate"
        and facts["peer-device"]["out-of-sync"] == "0"
        for node in cluster.nodes
        for facts in node.drbd().values()
    )


def role(node: Node, resource: str) -> str:
    return node.drbd()[resource]["resource"]["role"]


def roles(cluster: Cluster) -> list[set[str]]:
    return [{facts["resource"]["role"] for facts in node.drbd().values()} for node in cluster.nodes]


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


def assert_bare(cluster: Cluster, name: str) -> None:
    """The machine is seen from both nodes, has no disk, and nothing of one is left anywhere."""
    for node in cluster.nodes:
        assert name in [row["name"] for row in node.json("list")], node
    assert cluster[2].json("info", name)["disks"] == []
    no_orphans(cluster)


def test_life(ready: Cluster) -> None:
    first, second = ready.nodes
    assert create(first, "web1").returncode == 0
    assert equal(ready)
    assert roles(ready) == [{"Secondary"}, {"Secondary"}]
    (name,) = first.drbd()
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

    # One more, for the guest that runs, and back. What the second node says comes late: the other kernel is connected
    # after this one has said that both sides are equal, and what it says of itself then is from before that.
    second.delay(500)
    second.mcvirt("hard-drive", "create", "8MiB", *DRBD)
    assert equal(ready)
    second.heal()
    (more,) = (disk["id"] for disk in first.json("hard-drive", "list") if disk["vm"] is None)
    second.mcvirt("hard-drive", "attach", more, "web1")
    assert role(second, f"mcvirt-{more}") == "Primary"
    second.mcvirt("hard-drive", "detach", more)
    assert role(second, f"mcvirt-{more}") == "Secondary"
    second.mcvirt("hard-drive", "delete", more, "--yes")
    second.mcvirt("stop", "web1")
    assert roles(ready) == [{"Secondary"}, {"Secondary"}]
    second.mcvirt("delete", "web1", "--yes")
    assert orphans(ready) == []
    assert [node.drbd() for node in ready.nodes] == [{}, {}]


def test_what_fails_or_dies_in_the_middle(ready: Cluster) -> None:
    first, second = ready.nodes
    # A step that fails: all is undone at once.
    for number, program, word in ((2, "lvcreate", "drbd-meta"), (2, "drbdadm", "create-md"), (1, "drbdadm", "up")):
        name = f"fails-{program}-{number}-{word}"
        trouble(ready[number], program, word, "fail")
        done = create(first, name)
        calm(ready)
        assert done.returncode == 1, done.stderr
        assert "made to fail" in done.stderr
        assert f"mcvirt update {name}" in done.stderr
        assert orphans(ready) == []
        assert_bare(ready, name)

    # A daemon that is killed while the other node's leg is being made: the one where the task runs, or the other one.
    # Undone when it is back. (Where its own leg was whole already, its death would be no failure.)
    for number in (1, 2):
        name = f"dies-{number}"
        trouble(second, "drbdadm", "up", "wait")
        end = in_background(lambda name=name: create(first, name))  # type: ignore[misc]
        reached(second)
        kill(ready[number])
        calm(ready)
        assert end().returncode != 0
        ready.wait_together()
        assert_bare(ready, name)

    # A link that is cut: undone when it is healed.
    trouble(second, "drbdadm", "up", "wait")
    end = in_background(lambda: create(first, "web1"))
    reached(second)
    second.cut()
    assert end().returncode == 1
    calm(ready)
    second.heal()
    ready.wait_together()
    assert_bare(ready, "web1")

    # The machine is repaired as if nothing had been.
    second.mcvirt("update", "web1", "--add-disk", "16MiB", *DRBD)
    assert equal(ready)
    assert roles(ready) == [{"Secondary"}, {"Secondary"}]

    # Growing and deleting are finished.
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
    first.wait_until(lambda: "web1" not in [row["name"] for row in first.json("list")], what="the machine is gone")
    assert [node.drbd() for node in ready.nodes] == [{}, {}]
