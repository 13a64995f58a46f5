"""kill -9 of either side in each step of leaving: the node is still a member, or it is gone and blank."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.node.cluster_fixture import ClusterNodes
from tests.node.mcvirt_node import McvirtNode
from tests.node.test_join import is_blank, join, kept, members, until, whole
from tests.node.test_join_crash import died, moments, plan

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
SETTLES_WITHIN = 45.0
REMOVE = ("cluster", "remove-node", "--node", "node2")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    directory = tmp_path_factory.mktemp("pair")
    with ClusterNodes(directory, 2, simulate=True, formed=False, module="tests.node.leave_crash_points") as made:
        for number in made.nodes:
            made[number].mcvirt("node", "--set-ip-address", made.address(number))
        yield made


def gone(one: McvirtNode, two: McvirtNode) -> bool:
    """Whether node2 has left, once both sides agree on it."""
    deadline = time.monotonic() + SETTLES_WITHIN
    while True:
        here, there = members(one), members(two)
        if here == {"node1": "Local"} and is_blank(one) and is_blank(two):
            return True
        if set(here) == set(there) == {"node1", "node2"} and {*here.values(), *there.values()} == {
            "Local",
            "Connected",
        }:
            whole(one, two)
            return False
        assert time.monotonic() < deadline, f"neither a member nor gone: {here}, {there}\n{two.log_tail(30)}"


@pytest.mark.parametrize("side", [1, 2])
def test_each_moment(pair: ClusterNodes, side: int) -> None:
    """node2 leads when it is told to leave: what happens then is all that happens otherwise, and more."""
    one, two = pair
    victim = pair[side]
    before = kept(two)

    def together() -> None:
        # What was interrupted is settled once the node is in contact with the cluster again.
        until(lambda: not [task for node in pair for task in node.json("task", "list", "--running")], SETTLES_WITHIN)
        join(two, one)
        whole(one, two)

    together()
    plan(victim, "count")
    one.mcvirt(*REMOVE)
    names = moments(victim)
    outcomes = {}
    for number, name in enumerate(names, 1):
        if name.startswith("after") and number < len(names):
            continue  # as good as before the next one, or as before the other side does something
        together()
        plan(victim, str(number))
        one.mcvirt(*REMOVE, check=False)
        killed = any(line.startswith("killed") for line in moments(victim)) and died(victim)
        assert killed, f"it did not die at moment {number} ({name})"
        victim.start_daemon()
        where = f"{victim.name} at moment {number} of {len(names)}, {name}"
        try:
            left = gone(one, two)
        except AssertionError as error:
            raise AssertionError(f"after kill -9 of {where}: {error}") from error
        outcomes[f"{number} {name}"] = left
        if not left:
            one.mcvirt(*REMOVE)
        assert is_blank(one) and is_blank(two), where
        assert kept(two) == before, where
    print(outcomes)
    assert set(outcomes.values()) == {True, False} and len(outcomes) >= 5
