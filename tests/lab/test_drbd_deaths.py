"""Replicated disks that are made, grown and deleted, verified and copied while a node, a daemon or the link dies.

Of each case three things are begun, and held at a step each; then something dies. Whatever that is, each of them has
happened as a whole on both nodes afterwards, or not at all, and nothing is left behind: asked of LVM, the kernels and
the files of both nodes. All of it is long (`make test-lab LONG=1`); test_drbd_disks.py has a sample that is always
told.

What a node does that comes back is the same whether its mcvirtd was killed or its power failed, except for what it has
not written yet: so power fails where a program has just done its work, which nobody has heard of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mcvirt.units import MIB
from tests.lab.cluster import Cluster
from tests.lab.replicated import Disk, InBackground, can_replicate, slow
from tests.lab.steps import DELETING, GROWING, MAKING, Step
from tests.lab.trouble import arm, calm, untidy, wait_tidy

PREPARED = "prepared"
CREATE = "mcvirt create new --memory 32 --cpu-count 1 --disk-size 16MiB --storage-type Drbd --storage-backend vg"
GROW = "mcvirt update big --increase-disk 16MiB --disk-id 1"
DELETE = "mcvirt delete old --yes"
SOFT_DEATHS = ("daemon", "other daemon", "link")
DEATHS = (*SOFT_DEATHS, "power of the other node", "power of the node where it is done")


# Each step with each death of a program or the link, and of the others each a few times.
ROWS = tuple(
    (MAKING[row % len(MAKING)], GROWING[row % len(GROWING)], DELETING[row % len(DELETING)])
    for row in range(max(map(len, (MAKING, GROWING, DELETING))))
)
POWER_ROWS = (5, 9)


def cases() -> list[Any]:
    found = []
    for row, steps in enumerate(ROWS):
        for death in DEATHS if row in POWER_ROWS else SOFT_DEATHS:
            words = "+".join(f"{step.program} {step.word} {step.what} {step.node}" for step in steps)
            found.append(pytest.param(steps, death, id=f"{row}: {death} at {words}"))
    return found


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


def strike(cluster: Cluster, death: str) -> None:
    """Something dies; what was held goes on, as far as it is there still."""
    first, second = cluster.nodes
    match death:
        case "power of the other node":
            second.power_off()
        case "power of the node where it is done":
            first.power_off()
        case "link":
            second.cut()
        case "other daemon":
            second.kill()
        case "daemon":
            first.kill()
    for node in cluster.nodes:
        if node.machine.is_on:
            node.succeed("rm -f /run/trouble")


def recover(cluster: Cluster, death: str) -> None:
    """What was cut off or has no power is there again."""
    for node in cluster.nodes:
        if not node.machine.is_on:
            node.boot()
    if death == "link":
        cluster[2].heal()
    cluster.wait_together(within=90)


@pytest.mark.long
@pytest.mark.parametrize(("steps", "death"), cases())
def test_at_each_step_of_making_growing_and_deleting(
    disks: tuple[Disk, Disk], steps: Sequence[Step], death: str
) -> None:
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
    strike(cluster, death)
    made, grown, deleted = (each.wait() for each in going)
    recover(cluster, death)

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
        said = fails(cluster, step, big.resource, GROW)
        if step.program == "lvextend":
            # It is as long as it was, and the next time is as if nothing had been.
            assert big.state(cluster[2])["legs"][0]["state"]["size"] == size, step
            cluster[1].succeed(GROW, within=120)
        else:  # both volumes are longer: it is finished by itself
            assert "as soon as it can be" in said, step
        wait_tidy(cluster)
        assert big.state(cluster[2])["legs"][0]["state"]["size"] == size + 16 * MIB, step
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


@pytest.mark.long
@pytest.mark.parametrize("death", DEATHS)
def test_while_disks_are_compared_and_copied(disks: tuple[Disk, Disk], death: str) -> None:
    compared, copied = disks
    cluster = compared.cluster
    first, second = cluster.nodes
    wrong = copied.damage(second, 256, 2048)
    assert f"({wrong} bytes) differ" in first.fail("mcvirt verify big", within=120)
    with slow(compared), slow(copied, "1M"):
        verifying = InBackground(first, "mcvirt verify old")
        copying = InBackground(first, "mcvirt --yes resync big --source-node node1")
        first.wait_until(f"drbdadm cstate {compared.resource} | grep -qx VerifyS", within=30)
        first.wait_until(f"drbdadm cstate {copied.resource} | grep -qx SyncSource", within=30)
        strike(cluster, death)
        verified = verifying.wait()
        recover(cluster, death)
        resynced = copying.wait()  # it waits for a link that is cut for long: the kernels go on when that is back
    # Each has a result: the one that was interrupted is no pass, and no failure either.
    for node in cluster.nodes:
        node.wait_until(lambda node=node: compared.runs(node), what="there is a result on record")  # type: ignore[misc]
    (run,) = compared.runs(second)
    assert run["result"] in ("clean", "interrupted"), run
    if verified.returncode == 0:
        assert run["result"] == "clean"
    assert not compared.state(second)["failed"]
    # The kernels go on with what was being copied, and it is good when that is over.
    wait_tidy(cluster)
    assert len(set(copied.sums())) == 1
    first.wait_until("mcvirt verify --all", within=120)
    for node in cluster.nodes:
        assert not any(disk["failed"] for disk in node.json("drbd", "list"))
    # A client whose node died has no answer; else it was done, or it is said that it goes on by itself, or who is gone.
    if resynced.returncode not in (0, 255):
        assert any(word in resynced.stderr for word in ("by itself", "mcvirtd", "can't be reached")), vars(resynced)
