"""kill -9 of either side in each step of joining: the node has joined, or both are what they were before."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.node.cluster_fixture import ClusterNodes
from tests.node.mcvirt_node import McvirtNode
from tests.node.test_join import is_blank, join, kept, members, string, whole

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
DIES_WITHIN = 3.0
SETTLES_WITHIN = 45.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    directory = tmp_path_factory.mktemp("pair")
    with ClusterNodes(directory, 2, simulate=True, formed=False, module="tests.node.join_crash_points") as made:
        for number in made.nodes:
            made[number].mcvirt("node", "--set-ip-address", made.address(number))
        yield made


def plan(node: McvirtNode, text: str) -> None:
    (node.directory / "moments").unlink(missing_ok=True)
    (node.directory / "plan").write_text(text)


def moments(node: McvirtNode) -> list[str]:
    (node.directory / "plan").unlink(missing_ok=True)
    path = node.directory / "moments"
    return path.read_text().splitlines() if path.exists() else []


def died(node: McvirtNode) -> bool:
    try:
        node.wait_daemon(DIES_WITHIN)
    except subprocess.TimeoutExpired:
        return False
    return True


def joined(one: McvirtNode, two: McvirtNode) -> bool:
    """Which of the two it is, once it is one of them."""
    deadline = time.monotonic() + SETTLES_WITHIN
    while True:
        sides = (members(one), members(two))
        if sides == ({"node1": "Local"}, {"node2": "Local"}) and is_blank(one) and is_blank(two):
            return False
        if sides == ({"node1": "Local", "node2": "Connected"}, {"node1": "Connected", "node2": "Local"}):
            whole(one, two)
            return True
        assert time.monotonic() < deadline, f"neither joined nor blank: {sides}\n{two.log_tail(30)}"


def leave(one: McvirtNode) -> None:
    one.mcvirt("cluster", "remove-node", "--node", "node2")


@pytest.mark.parametrize("side", [1, 2])
def test_each_moment(pair: ClusterNodes, side: int) -> None:
    one, two = pair
    victim = pair[side]
    before = kept(two)
    plan(victim, "count")
    join(one, two)
    names = moments(victim)
    assert len(names) >= 6, names
    leave(one)
    outcomes = {}
    for number, name in enumerate(names, 1):
        text = string(two)
        plan(victim, str(number))
        one.mcvirt("cluster", "add-node", "--connect-string", text, check=False)
        killed = any(line.startswith("killed") for line in moments(victim)) and died(victim)
        assert killed or number > len(names) - 6, f"it did not die at moment {number} ({name})"
        if killed:
            victim.start_daemon()
        try:
            outcomes[f"{number} {name}"] = joined(one, two)
        except AssertionError as error:
            raise AssertionError(
                f"after kill -9 of {victim.name} at moment {number} of {len(names)}, {name}: {error}"
            ) from error
        if not outcomes[f"{number} {name}"]:
            join(one, two)
            whole(one, two)
        leave(one)
        assert kept(two) == before, name
    print(outcomes)
    assert False in outcomes.values()
