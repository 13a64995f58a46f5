"""Replicated disks where one node lacks room, a number, storage or power, at any step: nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.replicated import Disk, InBackground, can_replicate
from tests.lab.trouble import arm, calm, no_orphans, orphans, reached, trouble

FAILED, REFUSED = 1, 3
FILL = "/usr/sbin/lvcreate -qq -y -Wn -Zn -l 100%FREE -n filler vg0"
CREATE = "mcvirt create {} --memory 32 --cpu-count 1 --disk-size 16MiB --storage-type Drbd --storage-backend vg"


@pytest.fixture
def ready(cluster: Cluster) -> Cluster:
    """DRBD is enabled, both nodes have thick storage for it, and trouble can be made."""
    arm(can_replicate(cluster))
    return cluster


def create(node: Node, name: str) -> InBackground:
    return InBackground(node, CREATE.format(name))


def machines(node: Node) -> list[str]:
    return [row["name"] for row in node.json("list")]


def nothing_of_a_disk(cluster: Cluster, name: str) -> None:
    """The machine is seen from both nodes, has no disk, and nothing of one is left anywhere."""
    for node in cluster.nodes:
        assert name in machines(node), node
    assert cluster[2].json("info", name)["disks"] == []
    no_orphans(cluster)


@pytest.mark.long
def test_what_one_node_has_not(ready: Cluster) -> None:
    first, second = ready.nodes
    # Known before: refused, and nothing is made at all.
    second.succeed(FILL)
    refused = create(first, "web1").wait()
    assert refused.returncode == REFUSED and "node2" in refused.stderr, refused
    assert machines(first) == [] and orphans(ready) == []
    second.succeed("/usr/sbin/lvremove -qq -y vg0/filler")

    # Numbers that something else has are left out.
    second.succeed("systemd-run -q --collect --unit=port nc -lk 7789")
    first.succeed("drbdsetup new-resource strange && drbdsetup new-minor strange 1 0")
    disk = Disk(ready, "web0", size="16MiB")
    assert (disk.device, disk.state(second)["port"]) == ("/dev/drbd2", 7790)
    second.succeed("systemctl stop port")
    first.succeed("drbdsetup down strange")

    # Not known before: it is there when all is checked, and gone when it is wanted.
    def taken(name: str, program: str, word: str, take: Callable[[], object]) -> None:
        trouble(second, program, word, "wait")
        making = create(first, name)
        reached(second)
        take()
        calm(ready)
        done = making.wait()
        assert done.returncode == 1 and f"mcvirt update {name}" in done.stderr, done
        nothing_of_a_disk(ready, name)

    taken("space", "lvcreate", "drbd-raw", lambda: second.succeed(FILL))
    second.succeed("/usr/sbin/lvremove -qq -y vg0/filler")
    minor = "drbdsetup new-resource strange && drbdsetup new-minor strange 1 0"
    taken("minor", "drbdadm", "up", lambda: second.succeed(minor))
    second.succeed("drbdsetup down strange")
    taken("port", "drbdadm", "create-md", lambda: second.succeed("systemd-run -q --collect --unit=port nc -lk 7789"))
    second.succeed("systemctl stop port")
    newest = "lvs --noheadings -O lv_time -o lv_full_name -S 'lv_name=~drbd-meta$' vg0"
    taken("storage", "drbdadm", "create-md", lambda: second.fail_disk(second.succeed(newest).split()[-1]))
    # All of that has taken nothing from the one there was, and what is wanted now is made.
    second.mcvirt("update", "port", "--add-disk", "16MiB", "--storage-type", "Drbd", "--storage-backend", "vg")
    disk.wait_good()


@pytest.mark.long
def test_a_side_whose_storage_fails(ready: Cluster) -> None:
    first, second = ready.nodes
    disk = Disk(ready, "web1", size="16MiB", machine="pc")
    disk.install_guest()
    first.mcvirt("start", "web1", within=120)
    volume = disk.volume.removeprefix("/dev/")
    # The guest goes on with the side that is left, whichever that is.
    for broken, left in ((second, first), (first, second)):
        broken.fail_disk(volume)
        broken.wait_until(f"drbdadm dstate {disk.resource} | grep -q ^Diskless/", within=60)
        ticks = left.wait_for_guest(disk.volume, boots=1, within=60)
        left.wait_for_guest(disk.volume, boots=1, beyond=ticks, within=60)
        for node in ready.nodes:
            said = f"its data on node '{broken.name}' is Diskless"
            node.wait_until(lambda node=node, said=said: said in warning(node), what=said)  # type: ignore[misc]
        assert first.run("mcvirt verify web1").returncode == REFUSED
        if broken is first:
            first.mcvirt("stop", "web1")
            refused = first.run("mcvirt start web1")
            assert refused.returncode == REFUSED and "Diskless" in refused.stderr, refused
            # Attached while it fails still, it is given up again, or refused by DRBD; both are said.
            failing = left.run("mcvirt drbd attach web1", within=120)
            assert failing.returncode == FAILED, failing
            assert "fails on that node" in failing.stderr or "drbdadm" in failing.stderr, failing
        broken.repair_disk(volume)
        attached = left.mcvirt("drbd", "attach", "web1", within=120)
        assert f"Attached {disk.id} on {broken.name}" in attached
        disk.wait_good()
    again = second.run("mcvirt drbd attach web1")
    assert again.returncode == REFUSED and "no side of it is down" in again.stderr, again
    first.mcvirt("start", "web1", within=120)
    first.wait_for_guest(disk.volume, boots=2, within=60)
    first.mcvirt("stop", "web1")
    assert first.written(disk.volume).whole
    assert len(set(disk.sums())) == 1


@pytest.mark.long
def test_what_a_node_has_lost_since_and_what_was_changed_by_hand(ready: Cluster) -> None:
    first, second = ready.nodes
    disk = Disk(ready, "web1", size="16MiB")
    lost_programs(disk)
    lost_module(disk)
    for change in (taken_down, cut_off, detached, broken_file, given_to_another, made_primary):
        change(disk)
        ready.wait_together()
        disk.wait_good()
        first.mcvirt("start", "web1", within=120)
        first.mcvirt("stop", "web1")
    # Nothing of it is left on one node: what there is on the other one is deleted all the same.
    second.succeed(f"drbdsetup down {disk.resource} && lvremove -qq -y {disk.volume}")
    second.succeed(f"rm /etc/drbd.d/{disk.resource}.res")
    refused = first.run("mcvirt start web1", within=120)
    assert refused.returncode == REFUSED and "not through DRBD" in refused.stderr, refused
    gone = first.run("mcvirt drbd attach web1", within=120)
    assert gone.returncode == FAILED and "on node 'node2'" in gone.stderr and "drbd-raw" in gone.stderr, gone
    first.mcvirt("delete", "web1", "--yes", within=120)
    assert orphans(ready) == []


def lost_programs(disk: Disk) -> None:
    first, second = disk.cluster.nodes
    away = "/usr/sbin/drbdadm /usr/sbin/drbdsetup /usr/local/sbin/drbdadm /usr/local/sbin/drbdsetup"
    second.succeed(f"mkdir /run/away; for each in {away}; do mv --backup=numbered $each /run/away; done")
    refused = create(first, "web2").wait()
    assert refused.returncode == REFUSED and "Node 'node2' can't replicate: drbd-utils" in refused.stderr, refused
    failed = first.run("mcvirt delete web1 --yes", within=120)
    assert failed.returncode not in (0, REFUSED) and "drbdsetup is not installed" in failed.stderr, failed
    assert machines(second) == ["web1"] and not first.json("hard-drive", "list")[0]["deleting"]
    second.succeed(
        "cd /run/away && mv drbdadm drbdsetup /usr/local/sbin && mv drbdadm.~1~ /usr/sbin/drbdadm && "
        "mv drbdsetup.~1~ /usr/sbin/drbdsetup"
    )
    disk.wait_good()


def lost_module(disk: Disk) -> None:
    """The kernel lets it go once the disk is taken down."""
    cluster = disk.cluster
    first, second = cluster.nodes
    second.succeed("echo 'install drbd /bin/false' > /etc/modprobe.d/lab.conf && systemctl stop mcvirtd")
    second.succeed(f"drbdsetup down {disk.resource} && rmmod drbd && systemctl start mcvirtd", within=120)
    cluster.wait_together()
    refused = create(first, "web2").wait()
    assert refused.returncode == REFUSED and "the kernel module drbd is not loaded" in refused.stderr, refused
    second.succeed("rm /etc/modprobe.d/lab.conf && modprobe drbd && systemctl restart mcvirtd", within=120)
    cluster.wait_together()
    disk.wait_good()


# --- by hand; each leaves it so that it can be used again -------------------------------------------------------------


def taken_down(disk: Disk) -> None:
    first, second = disk.cluster.nodes
    second.succeed(f"drbdadm down {disk.resource} && rm /etc/drbd.d/{disk.resource}.res && lvchange -an {disk.volume}")
    unusable(disk, "not through DRBD", "does not have its DRBD resource")
    assert "on node2" in first.mcvirt("drbd", "attach", "web1", "--node", "node2", within=120)


def cut_off(disk: Disk) -> None:
    first, second = disk.cluster.nodes
    first.succeed(f"drbdadm disconnect {disk.resource}")
    second.succeed(f"drbdadm disconnect {disk.resource}")
    unusable(disk, "not through DRBD", "its two sides are not connected")
    assert "on node1 and node2" in second.mcvirt("drbd", "attach", "web1", within=120)


def detached(disk: Disk) -> None:
    first, second = disk.cluster.nodes
    first.succeed(f"drbdadm detach {disk.resource}")
    unusable(disk, "Diskless", "its data on node 'node1' is Diskless")
    assert "on node1" in second.mcvirt("drbd", "attach", "web1", "--disk-id", "1", within=120)


def broken_file(disk: Disk) -> None:
    """drbdadm does nothing at all while one of the files is none."""
    first = disk.cluster[1]
    first.succeed(f"echo nonsense >> /etc/drbd.d/{disk.resource}.res")
    done = create(first, "web2").wait()
    assert done.returncode == FAILED and f"{disk.resource}.res" in done.stderr, done
    assert orphans(disk.cluster) == []
    first.mcvirt("delete", "web2", "--yes")
    first.succeed(f"drbdsetup down {disk.resource}")
    first.mcvirt("drbd", "attach", "web1", within=120)
    first.succeed(f"drbdadm sh-dev {disk.resource}")


def given_to_another(disk: Disk) -> None:
    """Somebody else's resource has its minor."""
    first = disk.cluster[1]
    minor = disk.device.removeprefix("/dev/drbd")
    first.succeed(f"drbdadm down {disk.resource}")
    first.succeed(f"drbdsetup new-resource strange && drbdsetup new-minor strange {minor} 0")
    refused = first.run("mcvirt start web1", within=120)
    assert refused.returncode not in (0, None) and "drbdadm" in refused.stderr, refused
    first.succeed("drbdsetup down strange")
    first.mcvirt("drbd", "attach", "web1", within=120)


def made_primary(disk: Disk) -> None:
    """Nobody needs that: it is taken back."""
    _, second = disk.cluster.nodes
    second.succeed(f"drbdadm primary {disk.resource}")
    second.wait_until(lambda: disk.role(second) == "Secondary", what="it is Secondary again")


def unusable(disk: Disk, refused: str, warned: str) -> None:
    """The machine can't be started on node1, and what is wrong is shown on both nodes, with what helps."""
    said = disk.cluster[1].run("mcvirt start web1", within=120)
    assert said.returncode == REFUSED and refused in said.stderr, said
    for node in disk.cluster.nodes:
        node.wait_until(lambda node=node: warned in warning(node), what=warned)  # type: ignore[misc]
        assert "mcvirt drbd attach web1" in warning(node)


def warning(node: Node) -> str:
    return " ".join(node.json("info", "web1")["warnings"])
