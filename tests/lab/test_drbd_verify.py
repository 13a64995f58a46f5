"""The two sides of replicated disks on the real kernel: compared, repaired, and interrupted."""

from __future__ import annotations

import re
import subprocess
from datetime import datetime

import pytest

from mcvirt.units import MIB
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.replicated import Disk, InBackground, can_replicate, slow

PASSED = 0
FAILED = 1
REFUSED = 3


@pytest.fixture
def drbd(cluster: Cluster) -> Cluster:
    """Two joined nodes that can replicate, with the storage backend vg on both."""
    return can_replicate(cluster)


def verify(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return node.run("mcvirt --yes verify " + " ".join(words), within=120)


def test_blocks_written_below_are_found_block_repaired_and_found_no_more(drbd: Cluster) -> None:
    first, second = drbd.nodes
    disk = Disk(drbd, "web1")
    first.install_guest(disk.volume)  # both sides alike, below
    second.install_guest(disk.volume)
    assert verify(first, "web1").returncode == PASSED

    wrong = disk.damage(second, 300, 5)
    found = verify(first, "web1")
    assert found.returncode == FAILED and f"({wrong} bytes) differ between node1 and node2" in found.stderr
    for node in drbd.nodes:
        refused = node.run("mcvirt start web1")
        assert refused.returncode == REFUSED and "differ" in refused.stderr, refused
        assert disk.state(node)["failed"]
    first.mcvirt("--yes", "resync", "web1", "--source-node", "node1", within=120)
    sent = _sent(first, disk)
    assert wrong <= sent <= 2 * wrong, "what was copied is not what differed"
    assert disk.sums()[0] == disk.sums()[1]
    assert verify(second, "web1").returncode == PASSED

    # The same while the guest runs, and writes.
    first.mcvirt("start", "web1", within=120)
    first.wait_for_guest(disk.volume, boots=1, within=60)
    wrong = disk.damage(second, 9000, 3)
    found = verify(second, "web1")
    assert found.returncode == FAILED and f"({wrong} bytes) differ" in found.stderr
    for node in drbd.nodes:
        refused = node.run("mcvirt migrate web1 --node node2 --online")
        assert refused.returncode == REFUSED and "differ" in refused.stderr, refused
    refused = first.run("mcvirt --yes resync web1 --source-node node2", within=120)
    assert refused.returncode == REFUSED and "runs on the other node" in refused.stderr
    first.mcvirt("resync", "web1", "--auto-determine", within=120)
    sent = _sent(first, disk)
    assert wrong <= sent < 2 * wrong + MIB, "not what differed, and some that the guest wrote"
    ticks = first.wait_for_guest(disk.volume, boots=1, within=60)
    assert verify(first, "web1").returncode == PASSED
    first.wait_for_guest(disk.volume, boots=1, beyond=ticks, within=60)
    results = [run["result"] for run in disk.runs(second)]
    assert results == ["clean", "differences", "clean", "differences", "clean"]
    first.mcvirt("stop", "web1")
    assert disk.sums()[0] == disk.sums()[1]


def _sent(node: Node, disk: Disk) -> int:
    """How many bytes its kernel has sent for the disk since the two sides met, which they do anew for a resync."""
    return int(re.findall(r"ns:(\d+)", _block(node, disk))[0]) * 1024


def _block(node: Node, disk: Disk) -> str:
    minor = disk.device.removeprefix("/dev/drbd")
    return node.succeed(f"grep -A1 '^ *{minor}:' /proc/drbd")


def test_whatever_comes_between_there_is_a_result_and_it_is_no_pass(drbd: Cluster) -> None:
    first, second = drbd.nodes
    disk = Disk(drbd, "web1")

    def begun() -> None:
        first.wait_until(f"drbdadm cstate {disk.resource} | grep -q Verify", within=30)

    with slow(disk):
        # Twice at once; and cancelled.
        going = InBackground(first, "mcvirt verify web1")
        begun()
        for node in drbd.nodes:
            again = verify(node, "web1")
            assert again.returncode == REFUSED and "verified already" in again.stderr, again
        (task,) = [task["id"] for task in first.json("task", "list") if task["state"] == "RUNNING"]
        first.mcvirt("task", "cancel", task)
        assert "cancelled" in going.wait().stderr
        first.succeed(f"drbdadm cstate {disk.resource} | grep -qx Connected")

        # The link is lost.
        going = InBackground(first, "mcvirt verify web1")
        begun()
        second.cut()
        lost = going.wait()
        assert lost.returncode != PASSED and "interrupted" in lost.stderr and "lost" in lost.stderr, lost
        away = verify(first, "web1")
        assert away.returncode == REFUSED and "not connected" in away.stderr
        second.heal()
        disk.wait_good()
        drbd.wait_together(within=60)

        # Somebody ends it with drbdsetup.
        going = InBackground(first, "mcvirt verify web1")
        begun()
        first.succeed(f"drbdadm -- --start=0 --stop=8 verify {disk.resource}")
        assert "before the whole disk was read" in going.wait().stderr

        # The other node loses its power.
        going = InBackground(first, "mcvirt verify web1")
        begun()
        second.power_off()
        lost = going.wait()
        assert lost.returncode != PASSED and "interrupted" in lost.stderr, lost
        second.boot()
    disk.wait_good()
    drbd.wait_together(within=90)
    first.wait_until(lambda: len(disk.runs(first)) == 4, within=60, what="all of them on record")
    assert {run["result"] for run in disk.runs(first)} == {"interrupted"}
    assert not disk.state(first)["failed"]
    # From the first block on, and not from where the last one was interrupted.
    wrong = disk.damage(second, 0, 1)
    found = verify(first, "web1")
    assert found.returncode == FAILED and f"({wrong} bytes)" in found.stderr
    # One that somebody else begins is not missed either.
    first.mcvirt("--yes", "resync", "web1", "--source-node", "node1", within=120)
    disk.damage(second, 77, 2)
    first.succeed(f"drbdadm -- --start=0 verify {disk.resource}")
    first.wait_until(lambda: disk.state(first)["failed"], within=60, what="what was found by hand is marked")


def test_what_a_guest_reads_meanwhile_is_not_taken_for_read(drbd: Cluster) -> None:
    first, second = drbd.nodes
    disk = Disk(drbd, "web1")
    for node in drbd.nodes:
        node.install_guest(disk.volume)
    first.mcvirt("start", "web1", within=120)
    ticks = first.wait_for_guest(disk.volume, boots=1, within=60)
    size = int(first.succeed(f"blockdev --getsize64 {disk.device}"))
    all_of_it = f"dd if={disk.device} of=/dev/null bs=1M iflag=direct status=none"

    # Cut short, while more is read through the device than it has.
    with slow(disk):
        before = _read(first, disk), _read(second, disk)
        going = InBackground(first, "mcvirt verify web1")
        first.wait_until(f"drbdadm cstate {disk.resource} | grep -q Verify", within=30)
        first.succeed(all_of_it)
        first.run(f"drbdadm -- --start=0 --stop=8 verify {disk.resource}")  # it may say that this took too long
        ended = going.wait()
    assert ended.returncode != PASSED and "before the whole disk was read" in ended.stderr, ended
    assert _read(first, disk) - before[0] > size > _read(second, disk) - before[1]
    assert (disk.runs(second)[-1]["result"], disk.state(second)["failed"]) == ("interrupted", False)

    # And whole, with the guest and somebody else at work on it.
    going = InBackground(first, "mcvirt verify web1")
    first.succeed(all_of_it)
    done = going.wait()
    assert done.returncode == PASSED, done
    assert disk.runs(second)[-1]["result"] == "clean"
    first.wait_for_guest(disk.volume, boots=1, beyond=ticks, within=60)


def _read(node: Node, disk: Disk) -> int:
    """The kernel's counter of bytes that were read."""
    return int(re.findall(r"dr:(\d+)", _block(node, disk))[0]) * 1024


def test_all_of_them_some_at_a_time_and_by_themselves(drbd: Cluster) -> None:
    first, second = drbd.nodes
    disks = [Disk(drbd, f"web{number}") for number in (1, 2, 3)]
    assert verify(first, "--all").stdout.count("completed without out-of-sync blocks") == 3
    wrong = disks[1].damage(first, 50, 4)
    found = verify(second, "--all")
    assert found.returncode == FAILED and disks[1].id in found.stderr and f"({wrong} bytes)" in found.stderr
    assert found.stderr.count("differ between") == 1 and found.stderr.count("completed") == 2

    second.succeed(f"drbdadm disconnect {disks[2].resource}")
    # By the clock of the node that does it, which has a quarter of a minute at least to be told.
    hour, seconds = first.succeed("date -d '+75 seconds' '+%H:%M %s'").split()
    moment = int(seconds) // 60 * 60
    first.succeed(f"mcvirt verify --schedule 'daily {hour}' --concurrency 1 --rate 50MiB")
    assert int(first.succeed("date +%s")) < moment, "the schedule was set too late for this"

    def scheduled() -> list[tuple[str, str]]:
        return [(run["by"], run["result"]) for disk in disks for run in disk.runs(second)[-1:]]

    wanted = [("schedule", "clean"), ("schedule", "differences"), ("schedule", "skipped")]
    first.wait_until(lambda: scheduled() == wanted, within=75 + 90, what=f"{wanted}")
    for disk in disks:
        (run,) = [run for run in disk.runs(second) if run["by"] == "schedule"]
        assert datetime.fromisoformat(run["started"]).timestamp() >= moment, "not before its moment"
    skipped = disks[2].runs(first)[-1]
    assert "not connected" in skipped["reason"]
    first.mcvirt("verify", "--schedule", "off")


@pytest.mark.long
def test_one_that_is_short_several_at_once_and_one_whose_client_goes_away(drbd: Cluster) -> None:
    first, second = drbd.nodes
    tiny, *others = [Disk(drbd, name, size) for name, size in (("tiny", "4MiB"), ("web1", "64MiB"), ("web2", "64MiB"))]
    # It is over before anybody could look whether it has begun.
    assert verify(first, "tiny").returncode == PASSED
    wrong = tiny.damage(second, 1023, 1)
    found = verify(second, "tiny")
    assert found.returncode == FAILED and f"({wrong} bytes) differ" in found.stderr, found
    first.mcvirt("resync", "tiny", "--yes", "--source-node", "node1", within=120)
    for node in drbd.nodes:
        assert verify(node, "tiny").returncode == PASSED
    assert [run["result"] for run in tiny.runs(second)] == ["clean", "differences", "clean", "clean"]

    # Ctrl-C ends the client; the comparing goes on, and so does a second one at the same time.
    with slow(others[0], "4M"), slow(others[1], "4M"):
        going = InBackground(first, "mcvirt verify --all")
        both = "test $(drbdsetup events2 --now | grep -c replication:VerifyS) -eq 2"
        first.wait_until(both, within=30)
        first.succeed("pkill -INT -f 'bin/mcvirt verif[y] --all'")
        left = going.wait()
        assert left.returncode != PASSED and "goes on" in left.stdout + left.stderr, left
        first.succeed(both)
        (task,) = [task["id"] for task in second.json("task", "list") if task["state"] == "RUNNING"]
        watched = second.run(f"mcvirt task watch {task}", within=120)
    assert watched.returncode == PASSED, watched
    for disk in others:
        assert [run["result"] for run in disk.runs(second)] == ["clean"]
