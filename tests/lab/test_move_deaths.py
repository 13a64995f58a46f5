"""What dies in the middle of `mcvirt move`: one side of a machine's replicated disk goes from one node to a third.

The guest runs and writes on the node that has the machine all the time, and nothing that it wrote is lost. Afterwards
the disk has the sides that it had, or the new ones, as a whole, with nothing left anywhere else; and the command works
once more. All of it takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.lab.cluster import Cluster
from tests.lab.deaths import kill, link, power
from tests.lab.moved import due, slow
from tests.lab.node import Node
from tests.lab.replaced import MOVE, Moved
from tests.lab.replicated import can_replicate
from tests.lab.trouble import arm, calm, no_orphans, reached, trouble

if TYPE_CHECKING:
    from tests.lab.conftest import Labs

READY = "ready"
HERE, OLD, NEW = 1, 2, 3
"""The node that has the machine, the one that is to lose its side, and the one that gets it."""


class Step(NamedTuple):
    """Where it is held: a *program*, called with *word*, waits on a *node*; or, without one, the link is slow, so that
    the kernels copy for a while. With *changed* it is on its way to the new side for good."""

    node: int = HERE
    program: str = ""
    word: str = ""
    changed: bool = True


STEPS = {
    "making the new side": Step(NEW, "drbdadm", "create-md", changed=False),
    "changing over": Step(HERE, "drbdadm", "disconnect"),
    "copying": Step(),
}
DEATHS: dict[str, tuple[int, Callable[[Node], Callable[[], None]]]] = {
    "the daemon here": (HERE, kill),
    "the daemon there": (NEW, kill),
    "the power there": (NEW, power),
    "the link there": (NEW, link),
}
CASES = (
    ("making the new side", "the daemon here"),
    ("making the new side", "the power there"),
    ("changing over", "the daemon here"),
    ("changing over", "the link there"),
    ("copying", "the daemon here"),
    ("copying", "the daemon there"),
    ("copying", "the power there"),
)


@pytest.fixture(scope="module")
def ready(labs: Labs) -> Moved:
    """A guest that runs on the first of three nodes, with the other side of its disk on the second."""
    cluster = labs.joined()
    cluster.grow()
    moved = Moved(can_replicate(cluster), HERE, OLD)
    cluster[HERE].mcvirt("start", "web1", within=120)
    moved.counts(cluster[HERE])
    arm(cluster)
    cluster.lab.each(lambda node: node.succeed("sync"))  # what is not on the disk yet goes with the power
    cluster.lab.save(READY)
    return moved


@pytest.fixture
def replacing(ready: Moved) -> Cluster:
    """As it was when that had just begun to run."""
    ready.cluster.lab.revert(READY)
    ready.cluster.wait_together(within=90)
    return ready.cluster


@contextmanager
def held(moved: Moved, step: Step) -> Iterator[None]:
    """In the block its move to the third node is in the middle of *step*."""
    cluster = moved.cluster
    with ExitStack() as held:
        if step.program:
            trouble(cluster[step.node], step.program, step.word, "wait")
        else:
            held.enter_context(slow(cluster))
        cluster[HERE].succeed(MOVE.format("node2", "node3") + " --no-wait", within=120)
        if step.program:
            reached(cluster[step.node], step.program, step.word)
        else:
            cluster[HERE].wait_until(
                lambda: moved.replication(cluster[HERE]) == "SyncSource", what="the kernels copy", within=120
            )
        yield


@pytest.mark.long
@pytest.mark.parametrize(("step", "death"), CASES, ids=[", ".join(case) for case in CASES])
def test_it_has_both_sides_whatever_dies(ready: Moved, replacing: Cluster, step: str, death: str) -> None:
    cluster, here = replacing, replacing[HERE]
    dead, dies = DEATHS[death]
    ticks = ready.counts(here)
    with held(ready, STEPS[step]):
        lives_again = dies(cluster[dead])
        calm(cluster)
        if dies is not kill:  # else nobody would notice one that is back at once
            cluster.wait_status(HERE, "node3", "Unreachable", within=60)
        ticks = ready.counts(here, beyond=ticks)
    lives_again()
    cluster.wait_together(within=120)
    no_orphans(cluster, within=240)
    here.wait_until(lambda: not any(map(due, cluster.nodes)), what="no task goes on")

    is_there = ready.nodes() == ["node1", "node3"]
    assert is_there or not STEPS[step].changed
    ready.is_on(HERE, NEW if is_there else OLD)
    ticks = ready.counts(here, beyond=ticks)

    # What was undone is done the next time; what was done, can be taken back.
    source, destination = (NEW, OLD) if is_there else (OLD, NEW)
    here.succeed(MOVE.format(f"node{source}", f"node{destination}"), within=240)
    ready.is_on(HERE, destination)
    ready.counts(here, beyond=ticks)
    assert cluster.digests() == 1
    here.mcvirt("stop", "web1")
    assert len(set(ready.sums(HERE, destination))) == 1
