"""Split brains on the real kernel: shown at once on both nodes, discarded by nobody, resolved by choice, taken back.

Three of them, of which one comes about with a guest that runs and one outlives both daemons; MCVIRT_LAB_SPLITS=10 makes
as many as that. How long each node took to show it, after its kernel's own message, is in the lab's time table.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import cache
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.replicated import Disk, InBackground, can_replicate

SPLITS = int(os.environ.get("MCVIRT_LAB_SPLITS", "3"))
NO_CHOICE, REFUSED = 2, 3
KIB = 1024


@pytest.fixture
def disk(cluster: Cluster) -> Disk:
    """Of a machine with the guest that counts, which does not run."""
    made = Disk(can_replicate(cluster), "web1", size="16MiB", machine="pc")
    made.install_guest()
    made.wait_good()
    return made


def test_what_splits_is_shown_at_once_and_loses_nothing_without_a_choice(disk: Disk) -> None:
    for number in range(SPLITS):
        if number == 1:
            split_with_a_guest(disk, number)
        else:
            split_by_hand(disk, number)
        before = disk.sums()
        assert before[0] != before[1]
        if number == 2:
            restart_both(disk.cluster)
        nothing_happens(disk, before)
        keep, lose = reversed(disk.cluster.nodes) if number % 2 == 0 else disk.cluster.nodes
        resolve_and_undo(disk, keep, lose, before)


def nothing_happens(disk: Disk, before: list[str]) -> None:
    """Nobody starts it, and nothing of either side goes, whatever is done short of a choice."""
    for node in disk.cluster.nodes:
        refused = node.run("mcvirt start web1")
        assert refused.returncode == REFUSED and "split" in refused.stderr, refused
        assert node.run("mcvirt --yes drbd split-brain resolve web1").returncode == NO_CHOICE
        # The kernel may be told to look again: it sees the same.
        node.run(f"drbdadm connect {disk.resource}")
    for node in disk.cluster.nodes:
        node.wait_until(f"test $(drbdadm cstate {disk.resource}) != Connected", within=30)
        assert shown(disk, node)
    assert disk.sums() == before


def resolve_and_undo(disk: Disk, keep: Node, lose: Node, before: list[str]) -> None:
    """The one goes on, the other's data can be had again, and so can then the first one's."""
    kept, lost = (before[node.machine.number - 1] for node in (keep, lose))
    words = ("--yes", "drbd", "split-brain")
    lose.mcvirt(*words, "resolve", "--keep", keep.name, "web1", within=180)
    assert disk.sums() == [kept, kept]
    assert [name for name in lose.lvs() if "aside" in name] and not [name for name in keep.lvs() if "aside" in name]
    for node in disk.cluster.nodes:
        node.wait_until(lambda node=node: not shown(disk, node), what="it is not split any more")  # type: ignore[misc]
    keep.mcvirt(*words, "resolve", "--undo", "web1", within=180)
    assert disk.sums() == [lost, lost]
    lose.mcvirt(*words, "resolve", "--undo", "web1", within=180)
    assert disk.sums() == [kept, kept]
    keep.mcvirt(*words, "forget", "web1", within=60)
    assert not [name for node in disk.cluster.nodes for name in node.lvs() if "aside" in name]


def shown(disk: Disk, node: Node) -> bool:
    """Whether `show`, `list` and `drbd list` of a node all say so; they must agree."""
    found = [each["split"] for each in node.json("drbd", "split-brain", "show") if each["disk"] == disk.id]
    split = any(found)
    assert ("split brain" in node.mcvirt("info", disk.vm).lower()) == split
    assert any((leg["state"] or {}).get("split_brain", False) for leg in disk.state(node)["legs"]) == split
    return split


# --- how they come about ----------------------------------------------------------------------------------------------


def split_by_hand(disk: Disk, number: int) -> None:
    """Both sides are written to without each other; then they meet."""
    first, second = disk.cluster.nodes
    first.succeed(f"drbdadm disconnect {disk.resource}")
    for node, blocks in ((first, 4), (second, 3)):
        write(disk, node, blocks, number)
    with watched(disk, number):
        for node in (second, first):
            node.run(f"drbdadm connect {disk.resource}")
    (split,) = first.json("drbd", "split-brain", "show")
    assert {side["node"]: side["written"] for side in split["sides"]} == {"node1": 256 * KIB, "node2": 192 * KIB}


def split_with_a_guest(disk: Disk, number: int) -> None:
    """A guest runs, its node is cut off, and somebody writes on the other one; the guest runs on."""
    first, second = disk.cluster.nodes
    first.mcvirt("start", "web1", within=120)
    ticks = first.wait_for_guest(disk.volume, boots=1)
    second.cut()
    second.wait_until(f"drbdadm cstate {disk.resource} | grep -qx WFConnection", within=60)
    ticks = first.wait_for_guest(disk.volume, boots=1, beyond=ticks, within=60)
    write(disk, second, 3, number)
    with watched(disk, number):
        second.heal()
    ticks = first.wait_for_guest(disk.volume, boots=1, beyond=ticks, within=60)
    disk.cluster.wait_together()
    for node in disk.cluster.nodes:
        refused = node.run("mcvirt --yes drbd split-brain resolve --keep node2 web1", within=60)
        assert refused.returncode == REFUSED and "runs on node 'node1'" in refused.stderr, refused
    first.wait_for_guest(disk.volume, boots=1, beyond=ticks)
    first.mcvirt("stop", "web1")
    assert first.written(disk.volume).whole
    first.wait_until(lambda: disk.role(first) == "Secondary", what="nobody is Primary")


def write(disk: Disk, node: Node, blocks: int, seed: int) -> None:
    """Write so many blocks of 64 KiB of noise on a side that is alone."""
    node.succeed(f"drbdadm primary --force {disk.resource}", within=60)
    node.succeed(
        f"dd if=/dev/urandom of={disk.device} bs=64k count={blocks} seek={64 + 8 * seed} oflag=direct status=none"
    )
    # udev looks into a device after each writer.
    node.wait_until(f"drbdadm secondary {disk.resource}", within=10)


def restart_both(cluster: Cluster) -> None:
    """Kill both daemons, and wait until they are back."""
    for node in cluster.nodes:
        node.succeed("systemctl kill --kill-who=main --signal=KILL mcvirtd && systemctl start mcvirtd")
    cluster.wait_together(within=60)


# --- how soon they are shown ------------------------------------------------------------------------------------------

# It runs before the split, so that what is measured is mcvirtd and not the start of a program. The kernel's messages
# have a clock of their own, which a message of ours is compared with.
_WATCH = """
import json, pathlib, re, subprocess, time
from mcvirt_client import Client

now = lambda: time.clock_gettime(time.CLOCK_MONOTONIC)

def stamps(what):
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    return [float(found) for found in re.findall(r"(?m)^\\[\\s*([\\d.]+)\\].*" + what, said)]

with Client.connect() as client:
    before = len(stamps("Split-Brain detected"))
    client.drbd.list()
    pathlib.Path("/run/watching").touch()
    deadline = now() + 300
    while not any(drive.disk == {disk!r} and drive.split_brain for drive in client.drbd.list()):
        assert now() < deadline
        time.sleep(0.02)
    listed = now()
    assert any(drive.disk == {disk!r} and drive.split for drive in client.split_brain.show(None))
    showed = now()
mark = f"mark {{now()}}"
begun = now()
pathlib.Path("/dev/kmsg").write_text(mark + "\\n")
ahead = stamps(re.escape(mark))[-1] - begun
split = stamps("Split-Brain detected")[before]
print(json.dumps([listed - (split - ahead), showed - (split - ahead)]))
"""


@contextmanager
def watched(disk: Disk, number: int) -> Iterator[None]:
    """In the block they meet; both nodes are to show it, and how soon they did is noted."""
    nodes = disk.cluster.nodes
    for node in nodes:
        node.succeed("rm -f /run/watching")
    watching = [InBackground.python(node, _WATCH.format(disk=disk.id)) for node in nodes]
    for node in nodes:
        node.wait_until("test -e /run/watching", within=30)
    yield
    for node, each in zip(nodes, watching, strict=True):
        done = each.wait()
        assert done.returncode == 0, done
        listed, showed = json.loads(re.findall(r"\[.*\]", done.stdout)[-1])
        what = f"{node.name} lists split {number + 1}, and says how much is written {showed - listed:.1f} s later"
        cache.phases.append((what, listed))
