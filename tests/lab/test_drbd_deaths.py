"""Replicated disks that are made, grown and deleted, verified and copied while a node, a daemon or the link dies.

Of each case several things are begun, and held at a step each; then something dies. Whatever that is, each of those
that make, grow and delete has happened as a whole on both nodes afterwards, or not at all, and nothing is left behind:
asked of LVM, the kernels and the files of both nodes. A verification has the result that it came to, or was
interrupted; what was to be copied is, or can be copied again. All of it is long (`make test-lab LONG=1`);
test_drbd_disks.py has a sample that is always told.

What a node does that comes back is the same whether its mcvirtd was killed or its power failed, except for what it has
not written yet. So in each row of steps power fails too, of either node in turn; and of both, one at a time, in two
rows where programs have just done their work, which nobody has heard of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from mcvirt.units import MIB
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.replicated import Disk, InBackground, can_replicate, slow
from tests.lab.steps import (
    COMPARING,
    CONNECTING,
    COPYING_ALL,
    CUTTING_OFF,
    DELETING,
    GROWING,
    MAKING,
    RENEWING,
    STOPPING,
    Step,
)
from tests.lab.trouble import arm, calm, due, untidy, wait_tidy

AWAY = 6
PREPARED = "prepared"
CREATE = "mcvirt create new --memory 32 --cpu-count 1 --disk-size 16MiB --storage-type Drbd --storage-backend vg"
GROW = "mcvirt update big --increase-disk 16MiB --disk-id 1"
DELETE = "mcvirt delete old --yes"
DAEMON, OTHER_DAEMON, LINK = SOFT_DEATHS = ("daemon", "other daemon", "link")
OTHER_POWER, POWER = POWER_DEATHS = ("power of the other node", "power of the node where it is done")
DEATHS = (*SOFT_DEATHS, *POWER_DEATHS)

# Each step with each death of a program or the link, and with one of the others at least.
ROWS = tuple(
    (MAKING[row % len(MAKING)], GROWING[row % len(GROWING)], DELETING[row % len(DELETING)])
    for row in range(max(map(len, (MAKING, GROWING, DELETING))))
)
BOTH_POWERS_ROWS = (5, 9)


def cases() -> list[Any]:
    found = []
    for row, steps in enumerate(ROWS):
        for death in DEATHS if row in BOTH_POWERS_ROWS else (*SOFT_DEATHS, POWER_DEATHS[row % 2]):
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


class Moment(NamedTuple):
    """Where the verification of one disk and the resync of another are held, or None: they are in the middle of it.

    With *ended* the kernel has compared all before something dies. Where nothing is held then, it has copied all as
    well, and both are recorded, or about to be, by this node: the other one's mcvirtd stands still.
    """

    verify: Step | None
    resync: Step | None
    deaths: Sequence[str]
    ended: bool = False

    @property
    def recording(self) -> bool:
        return self.ended and self.verify is None

    @property
    def copies(self) -> bool:
        """Whether that goes on by itself, for what the kernels know makes one side the newer one."""
        return self.resync not in (CUTTING_OFF, CUTTING_OFF.done, RENEWING, COPYING_ALL)

    def result(self, death: str) -> str:
        """What the verification comes to."""
        if self.recording:
            return "clean"
        if self.verify in (STOPPING, STOPPING.done) or death in (DAEMON, POWER):
            return "interrupted"
        return "clean" if self.ended or death == OTHER_DAEMON else "interrupted"


# Each step with two deaths at least, and each death with several steps.
MOMENTS = {
    "neither has begun": Moment(COMPARING, CUTTING_OFF, (DAEMON, LINK)),
    "is compared unheard, was cut off unheard": Moment(COMPARING.done, CUTTING_OFF.done, (DAEMON, POWER)),
    "was compared unheard, is to be ahead": Moment(COMPARING.done, RENEWING, (LINK, OTHER_POWER), ended=True),
    "is to be stopped, was put ahead unheard": Moment(STOPPING, RENEWING.done, (DAEMON, POWER)),
    "was stopped unheard, is to be connected": Moment(STOPPING.done, CONNECTING, (OTHER_DAEMON, LINK)),
    "is compared, was connected unheard": Moment(None, CONNECTING.done, (DAEMON, OTHER_POWER)),
    "is compared, is to be copied as a whole": Moment(None, COPYING_ALL, (LINK, POWER)),
    "is compared, is copied as a whole unheard": Moment(None, COPYING_ALL.done, (DAEMON, OTHER_POWER)),
    "is compared, is copied": Moment(None, None, DEATHS),
    "was compared, was copied, on record here at most": Moment(None, None, SOFT_DEATHS, ended=True),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("moment", "death"),
    [
        pytest.param(moment, death, id=f"{name}: {death}")
        for name, moment in MOMENTS.items()
        for death in moment.deaths
    ],
)
def test_while_disks_are_compared_and_copied(disks: tuple[Disk, Disk], moment: Moment, death: str) -> None:
    compared, copied = disks
    cluster = compared.cluster
    first, second = cluster.nodes
    wrong = copied.damage(second, 256, 2048)
    assert f"({wrong} bytes) differ" in first.fail("mcvirt verify big", within=120)
    with slow(compared, _rate(moment)), slow(copied, "256K"):
        verifying, copying = held(compared, copied, moment)
        strike(cluster, death)
        if moment.recording and death != OTHER_DAEMON:
            second.thaw()
        verified = verifying.wait()
        recover(cluster, death)
        # Nothing is left cut off, or waits for somebody.
        first.wait_until(f"drbdadm cstate {copied.resource} | grep -qxE 'Connected|.*Sync.*'", within=60)
    resynced = copying.wait()  # it waits for a link that is cut for long: the kernels go on when that is back
    if moment.verify == COMPARING and "drbdsetup" in verified.stderr:
        # Refused by the kernel, it was none, and nothing is on record.
        assert death in (LINK, OTHER_POWER) and verified.returncode == 1, verified
        assert not compared.runs(second)
    else:
        # Each has a result: the one that was interrupted is no pass, and no failure either.
        for node in cluster.nodes:
            node.wait_until(lambda node=node: compared.runs(node), what="there is a result on record")  # type: ignore[misc]
        (run,) = compared.runs(second)
        assert run["result"] == moment.result(death), run
        if verified.returncode in (0, AWAY):
            assert run["result"] == "clean"
        # Nor is the task done because that is on record now.
        if run["result"] != "clean":
            first.wait_until(lambda: verification(first)["state"] in ("FAILED", "CANCELLED"), what="it was not done")
    assert not compared.state(second)["failed"]
    goes_on = moment.copies or resynced.returncode in (0, AWAY) or "by itself" in resynced.stderr
    if not goes_on:
        # It was not begun, or not to the end: what differs is known to, until somebody has it copied again.
        assert copied.state(second)["failed"]
        first.wait_until(lambda: repaired(copied), within=90, what="it is copied")
    # The kernels go on with what was being copied, and it is good when that is over.
    wait_tidy(cluster)
    assert len(set(copied.sums())) == 1
    first.wait_until("mcvirt verify --all", within=120)
    for node in cluster.nodes:
        assert not any(disk["failed"] for disk in node.json("drbd", "list"))
    # A client whose node died has no answer; else it was done, perhaps without the other node's hearing of it, or it is
    # said that it goes on by itself, or who is gone, or what of DRBD could not be done.
    if resynced.returncode not in (0, AWAY, 255):
        words = ("by itself", "mcvirtd", "can't be reached", *(() if moment.copies else ("drbdadm", "drbdsetup")))
        assert any(word in resynced.stderr for word in words), vars(resynced)


def held(compared: Disk, copied: Disk, moment: Moment) -> tuple[InBackground, InBackground]:
    """One is verified, and the other one copied, up to that moment."""
    cluster = compared.cluster
    first, second = cluster.nodes
    whole = " --full" if moment.resync in (COPYING_ALL, COPYING_ALL.done) else ""
    for step, disk in ((moment.resync, copied), (moment.verify, compared)):
        if step is not None:
            step.arm(cluster, disk.resource)
    copying = InBackground(first, f"mcvirt --yes resync big --source-node node1{whole}")
    _wait_for(moment.resync, copied, "SyncSource")
    verifying = InBackground(first, "mcvirt verify old")
    if moment.verify in (STOPPING, STOPPING.done):
        _wait_for(None, compared, "VerifyS")
        first.mcvirt("task", "cancel", verification(first)["id"])
    _wait_for(moment.verify, compared, "VerifyS")
    if moment.recording:
        second.freeze()
        for disk in (compared, copied):
            for node in cluster.nodes:
                node.succeed(f"drbdadm disk-options --c-plan-ahead=0 --resync-rate=100M {disk.resource}")
        _wait_for(None, copied, "Connected")
    if moment.ended:
        _wait_for(None, compared, "Connected")
    if moment.recording:
        known = "its result is in the journal or on record"
        first.wait_until(lambda: '"clean"' in "".join(due(first)) or compared.runs(first), within=30, what=known)
    return verifying, copying


def verification(node: Node) -> dict[str, Any]:
    """The task of a node that verifies, or verified, the disk that is to be compared."""
    tasks = node.json("task", "list")
    (found,) = [task for task in tasks if (task["operation"], task["target"]) == ("verification.verify", "old")]
    return dict(found)


def _wait_for(step: Step | None, disk: Disk, connection: str) -> None:
    """Return when it is held, or is what *connection* says."""
    if step is not None:
        step.reached(disk.cluster, disk.resource)
    else:
        disk.cluster[1].wait_until(f"drbdadm cstate {disk.resource} | grep -qx {connection}", within=30)


def _rate(moment: Moment) -> str:
    """How fast the kernel may compare: it is to be at it, or to have ended, when something dies."""
    if moment.ended and not moment.recording:
        return "100M"
    return "256K" if moment.verify in (STOPPING, STOPPING.done) else "1M"


def repaired(disk: Disk) -> bool:
    """Whether a disk is as good as before; it is copied, if it can be now."""
    if disk.state(disk.cluster[1])["failed"]:
        disk.cluster[1].run(f"mcvirt --yes resync {disk.vm} --source-node node1", within=120)
        return False
    return True
