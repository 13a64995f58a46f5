"""What dies in the middle of the migration of a stopped machine on a replicated disk.

Such a migration runs no program but where the machine is to be started, so libvirt is held, as it writes or deletes the
definition of the domain. Whatever dies, the machine is on one node afterwards, and the other one has nothing of it. It
is off as it was, or runs where it was to be started; both sides of its disk are good, what its guest has written is
there, and nothing is due. All of it takes long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.lab import definitions
from tests.lab.cluster import Cluster
from tests.lab.deaths import DEATHS, HERE, THERE, Death, link
from tests.lab.moved import Guest, due
from tests.lab.node import Node
from tests.lab.replicated import can_replicate
from tests.lab.trouble import arm, calm, no_orphans, reached, trouble

if TYPE_CHECKING:
    from tests.lab.conftest import Labs

READY = "ready"


class Step(NamedTuple):
    """Where a migration is held on one of the nodes: libvirt with the definition, or a command of DRBD's with *word*.

    With *starts* the machine is to run afterwards; *gone* says that it is on the other node by then, on record.
    """

    node: int
    word: str = ""
    starts: bool = False
    gone: bool = False

    def hold(self, node: Node) -> None:
        """From now on it is held there."""
        if self.word:
            trouble(node, "drbdsetup", self.word, "wait")
        else:
            definitions.hold(node)

    def reached(self, node: Node) -> None:
        """Return when it is."""
        if self.word:
            reached(node, "drbdsetup")
        else:
            definitions.held(node)


STEPS = {
    "defining it there": Step(THERE),
    "defining it there, to be started": Step(THERE, starts=True),
    "undefining it here": Step(HERE, gone=True),
    "undefining it here, to be started": Step(HERE, starts=True, gone=True),
    "starting it there": Step(THERE, "?primary?", starts=True, gone=True),
}
CHOSEN = ("the daemon here", "the daemon there", "the power here", "the power there", "the link")


@pytest.fixture(scope="module")
def ready(labs: Labs) -> Guest:
    """A machine on the first of two nodes whose guest has run once, and is off; libvirt and DRBD can be held."""
    cluster = can_replicate(labs.joined())
    guest = Guest.create(cluster)
    first = cluster[1]
    first.mcvirt("start", guest.name, within=120)
    guest.counts(first, boots=1)
    first.mcvirt("stop", guest.name)
    arm(cluster)
    cluster.lab.each(definitions.set_apart)
    cluster.lab.each(lambda node: node.succeed("sync"))  # what is not on the disk yet goes with the power
    cluster.lab.save(READY)
    return guest


@pytest.fixture
def moving(ready: Guest) -> Cluster:
    """As it was when that was made."""
    ready.cluster.lab.revert(READY)
    ready.cluster.wait_together(within=60)
    return ready.cluster


def dies(guest: Guest, step: Step, death: Death) -> None:
    """The migration dies there, and what holds afterwards is looked at."""
    cluster = guest.cluster
    nodes = cluster.nodes
    here, there = nodes[HERE], nodes[THERE]
    step.hold(nodes[step.node])
    words = ("--start-after-migration",) if step.starts else ()
    here.mcvirt("migrate", guest.name, "--node", there.name, "--no-wait", *words, within=120)
    step.reached(nodes[step.node])
    lives_again = death.of(nodes[death.node])
    calm(cluster)
    for node in nodes:
        if node.machine.is_on:
            definitions.let_go(node)
    if death.of is link:  # nobody would notice one that is back at once
        cluster.wait_status(1, there.name, "Unreachable", within=60)
    lives_again()
    cluster.wait_together(within=120)

    on = settled(guest)
    assert on == 1 + THERE or not step.gone
    runs = [one.runs for one in guest.seen()]
    assert runs == [False, step.starts and on == 1 + THERE]
    if not any(runs):
        cluster[on].mcvirt("start", guest.name, within=120)
    guest.counts(cluster[on], boots=2)
    no_orphans(cluster)
    cluster[on].mcvirt("stop", guest.name)
    cluster[1].mcvirt("verify", guest.name, within=120)  # both sides have the same


def settled(guest: Guest) -> int:
    """On which node the machine is, once it is on one, by libvirt and by the records, and nothing is due."""
    nodes, found = guest.cluster.nodes, []

    def settled() -> bool:
        seen = guest.seen()
        assert not all(one.runs for one in seen), seen
        has = [guest.name in node.virsh("list", "--all", "--name").split() for node in nodes]
        found[:] = [number for number, there in enumerate(has, 1) if there]
        return (
            len(found) == 1
            and all(one.good and not one.open and (one.role == "Primary") == one.runs for one in seen)
            and not any(one.runs and not there for one, there in zip(seen, has, strict=True))
            and not any(map(due, nodes))
        )

    nodes[HERE].wait_until(settled, within=240, what="it is on one node, and all is good")
    for node in nodes:
        assert node.json("info", guest.name)["node"] == f"node{found[0]}"
    return found[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "death"), [pytest.param(step, death, id=f"{step}, {death}") for step in STEPS for death in CHOSEN]
)
def test_it_is_on_one_node_whatever_dies(ready: Guest, moving: Cluster, step: str, death: str) -> None:
    dies(ready, STEPS[step], DEATHS[death])
