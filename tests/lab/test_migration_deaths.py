"""What dies in the middle of an online migration of a machine on a replicated disk: every death at every step.

Whatever dies, the guest runs on one node afterwards, with both sides of its disk good, nothing that it wrote is lost,
and no node that lives allows two Primaries for longer than ten seconds. The whole matrix takes long; a sample of it is
always told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.lab.cache import took
from tests.lab.cluster import Cluster
from tests.lab.deaths import DEATHS, HERE, THERE, Death, power
from tests.lab.moved import Guest, sends, slow
from tests.lab.replicated import can_replicate
from tests.lab.trouble import arm, calm, reached, trouble

if TYPE_CHECKING:
    from tests.lab.conftest import Labs

READY = "ready"


class Step(NamedTuple):
    """Where a migration is held: a command of DRBD's with *word* waits on one of the nodes (the one that has the
    machine, or the other); or the link is slow, and it stands still (*paused*) for the rest, or not yet."""

    node: int = HERE
    word: str = ""
    paused: bool = False


STEPS = {
    "opening the window here": Step(HERE, "allow-two-primaries=yes"),
    "opening the window there": Step(THERE, "allow-two-primaries=yes"),
    "becoming Primary there": Step(THERE, "primary"),
    "sending": Step(),
    "switching over": Step(paused=True),
    "becoming Secondary here": Step(HERE, "secondary"),
    "closing the window here": Step(HERE, "allow-two-primaries=no"),
    "closing the window there": Step(THERE, "allow-two-primaries=no"),
}


SAMPLE = (("sending", "the daemon here"), ("becoming Secondary here", "the power there"))


@pytest.fixture(scope="module")
def ready(labs: Labs) -> Guest:
    """A guest that runs on the first of two nodes, on which programs can be held, and which starts by itself."""
    cluster = can_replicate(labs.joined())
    guest = Guest.create(cluster)
    cluster[1].mcvirt("update", guest.name, "--autostart-on-boot", within=120)
    cluster[1].mcvirt("start", guest.name, within=120)
    guest.counts(cluster[1], boots=1)
    arm(cluster)
    cluster.lab.each(lambda node: node.succeed("sync"))  # what is not on the disk yet goes with the power
    cluster.lab.save(READY)
    return guest


@pytest.fixture
def moving(ready: Guest) -> Cluster:
    """As it was when that had just begun to run."""
    ready.cluster.lab.revert(READY)
    ready.cluster.wait_together(within=60)
    return ready.cluster


@contextmanager
def held(guest: Guest, step: Step) -> Iterator[None]:
    """In the block its migration to the second node is in the middle of *step*."""
    nodes = guest.cluster.nodes
    with ExitStack() as held:
        here = nodes[HERE]
        if step.word:
            trouble(nodes[step.node], "drbdsetup", step.word, "wait")
        else:
            held.enter_context(slow(guest.cluster))
        words = ("--max-downtime", "60000") if step.paused else ()
        here.mcvirt("migrate", guest.name, "--node", nodes[THERE].name, "--online", "--no-wait", *words, within=120)
        if step.word:
            reached(nodes[step.node], "drbdsetup")
        elif step.paused:
            here.wait_until(lambda: "paused" in here.virsh("domstate", guest.name), what="the guest stands still")
        else:
            here.wait_until(lambda: sends(here, guest.name), what="its memory is on its way")
        yield


def dies(guest: Guest, step: Step, death: Death) -> None:
    """The migration dies there, and what holds afterwards is looked at."""
    cluster, dead = guest.cluster, guest.cluster.nodes[death.node]
    before = guest.counts(cluster[1], boots=1)
    with held(guest, step):
        begun = time.monotonic()
        lives_again = death.of(dead)
        calm(cluster)
        guest.wait_closed()
        took("no node allowed two Primaries any more", begun)
    lives_again()
    cluster.wait_together(within=120)
    on = guest.settled(within=240)
    # Who lost its power with the guest has booted it anew; nothing else does.
    seen = cluster[on].guest(guest.device)
    assert seen is not None and seen[0] in ((1, 2) if death.of is power else (1,)), seen
    guest.counts(cluster[on], boots=seen[0], beyond=before if seen[0] == 1 else 0)


def lines(pairs: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("step", "death"), pairs, ids=[f"{step}, {death}" for step, death in pairs])


@lines(list(SAMPLE))
def test_it_runs_once_whatever_dies(ready: Guest, moving: Cluster, step: str, death: str) -> None:
    dies(ready, STEPS[step], DEATHS[death])


@pytest.mark.long
@lines([(step, death) for step in STEPS for death in DEATHS if (step, death) not in SAMPLE])
def test_it_runs_once_whatever_dies_anywhere(ready: Guest, moving: Cluster, step: str, death: str) -> None:
    dies(ready, STEPS[step], DEATHS[death])
