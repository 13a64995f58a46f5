"""Replicated disks that are made, grown and deleted while a step fails, or the daemon dies.

A step that fails leaves what there was before, on both nodes. Three things are begun, and held at a step each, when the
daemon dies: each of them has happened as a whole on both nodes afterwards, or not at all, and nothing is left behind:
asked of LVM, the kernels and the files of both nodes. All of it is long (`make test-lab LONG=1`); test_drbd_disks.py
has a sample that is always told.
"""

from __future__ import annotations

from typing import Any

import pytest

from mcvirt.units import MIB
from tests.lab.cluster import Cluster
from tests.lab.replicated import Disk, InBackground, can_replicate
from tests.lab.steps import DELETING, GROWING, MAKING, Step
from tests.lab.trouble import arm, calm, untidy, wait_tidy

PREPARED = "prepared"
CREATE = "mcvirt create new --memory 32 --cpu-count 1 --disk-size 16MiB --storage-type Drbd --storage-backend vg"
GROW = "mcvirt update big --increase-disk 16MiB --disk-id 1"
DELETE = "mcvirt delete old --yes"


@pytest.fixture(scope="module")
def prepared(labs: Any) -> Cluster:
    """Two nodes that can replicate, and of which the programs can be held."""
    cluster: Cluster = can_replicate(labs.joined())
    arm(cluster)
    return cluster


@pytest.fixture(scope="module")
def drives(prepared: Cluster) -> tuple[Disk, Disk]:
    """Those of two machines; ``revert(PREPARED)`` comes back to where there are only these."""
    old, big = (Disk(prepared, vm, size="16MiB") for vm in ("old", "big"))
    first = prepared[1]
    first.succeed(f"drbdadm primary {big.resource}")
    first.succeed(f"dd if=/dev/urandom of={big.device} bs=1M count=16 iflag=fullblock oflag=direct status=none")
    first.wait_until(f"drbdadm secondary {big.resource}", within=10)
    wait_tidy(prepared)
    prepared.lab.save(PREPARED)
    return old, big


@pytest.fixture
def disks(drives: tuple[Disk, Disk]) -> tuple[Disk, Disk]:
    """The one that is to go, and the one that is to grow."""
    drives[0].cluster.lab.revert(PREPARED)
    return drives


@pytest.mark.long
def test_the_daemon_dies_in_the_middle_of_making_growing_and_deleting(disks: tuple[Disk, Disk]) -> None:
    steps = (MAKING[8], GROWING[0], DELETING[8])
    old, big = disks
    cluster = old.cluster
    first, second = cluster.nodes
    content = head(big)
    # What is made is new: no word of it names it.
    named = tuple(zip(steps, ("", big.resource, old.resource), strict=True))
    for step, resource in named:
        step.arm(cluster, resource)
    going = [InBackground(first, command) for command in (CREATE, GROW, DELETE)]
    for step, resource in named:
        step.reached(cluster, resource)
    first.kill()
    calm(cluster)
    made, grown, deleted = (each.wait() for each in going)
    cluster.wait_together(within=90)

    names = [row["name"] for row in second.json("list")]
    if "old" in names:
        # What is deleted on one side only is listed until somebody has it deleted again; it may also be deleted by now.
        assert deleted.returncode != 0
        first.wait_until(lambda: gone(cluster, "old"), within=90, what="it is deleted")
    wait_tidy(cluster)
    for node in cluster.nodes:
        assert sorted(row["name"] for row in node.json("list")) in (["big"], ["big", "new"]), node
    drives = {drive["vm"]: drive for drive in second.json("hard-drive", "list")}
    assert drives["big"]["size"] in (16 * MIB, 32 * MIB)
    if grown.returncode == 0:
        assert drives["big"]["size"] == 32 * MIB
    if made.returncode == 0:
        assert "new" in drives
    # Nothing of what there was is lost, and both sides have the same, also where nobody has written anything yet.
    assert head(big) == content and len(set(content)) == 1
    first.mcvirt("verify", "--all", within=120)


def head(disk: Disk) -> list[str]:
    """What each side has in the part that it was made with."""
    return [
        node.succeed(f"dd if={disk.volume} bs=1M count=16 iflag=direct status=none | sha256sum")
        for node in disk.cluster.nodes
    ]


def gone(cluster: Cluster, vm: str) -> bool:
    """Whether a machine is gone; it is deleted, if it can be now."""
    if vm in [row["name"] for row in cluster[1].json("list")]:
        cluster[1].run(f"mcvirt delete {vm} --yes", within=120)
        return False
    return True


def fails(cluster: Cluster, step: Step, resource: str, command: str) -> str:
    """What a command says of which a step fails."""
    step.arm(cluster, resource, "fail")
    done = cluster[1].run(command, within=120)
    calm(cluster)
    assert done.returncode == 1 and "made to fail" in done.stderr, (step, done)
    return done.stderr


@pytest.mark.long
def test_whichever_step_of_making_fails_nothing_is_left(disks: tuple[Disk, Disk]) -> None:
    cluster = disks[0].cluster
    for step in MAKING:
        if step.what == "wait":
            assert "mcvirt update new" in fails(cluster, step, "", CREATE), step
            assert untidy(cluster) == [], step
            for node in cluster.nodes:
                assert node.json("info", "new")["disks"] == [], step
            cluster[2].mcvirt("delete", "new", "--yes")


@pytest.mark.long
def test_whichever_step_of_growing_fails_it_can_be_grown_again(disks: tuple[Disk, Disk]) -> None:
    _, big = disks
    cluster = big.cluster
    content = head(big)
    for step in GROWING:
        if step.what == "late" or "secondary" in step.word:
            continue
        size = big.state(cluster[1])["legs"][0]["state"]["size"]
        fails(cluster, step, big.resource, GROW)
        # It is as long as it was, and the next time is as if nothing had been.
        assert big.state(cluster[2])["legs"][0]["state"]["size"] == size, step
        cluster[1].succeed(GROW, within=120)
        wait_tidy(cluster)
    # A role that can't be given back at once is, a little later.
    Step(1, "drbdsetup", "?secondary?").arm(cluster, big.resource, "fail")
    cluster[1].succeed(GROW, within=120)
    assert big.role(cluster[1]) == "Primary"
    calm(cluster)
    wait_tidy(cluster)
    assert head(big) == content and len(set(content)) == 1


@pytest.mark.long
def test_whichever_step_of_deleting_fails_it_can_be_deleted_again(disks: tuple[Disk, Disk]) -> None:
    old, _ = disks
    cluster = old.cluster
    for step in DELETING:
        if step.what == "wait":
            fails(cluster, step, old.resource, DELETE)
            down = step.word.startswith("?down")
            (row,) = [row for row in cluster[2].json("hard-drive", "list") if row["vm"] == "old"]
            assert row["deleting"] == (not down), step
            if down:  # it is as it was
                wait_tidy(cluster)
            cluster[2].mcvirt("delete", "old", "--yes", within=120)
            assert untidy(cluster) == [], step
            old = Disk(cluster, "old", size="16MiB")
