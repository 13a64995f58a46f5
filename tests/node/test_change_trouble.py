"""The leader dies in the middle of a change, a member's disk is full, a link goes up and down: no change is lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.node.cluster_fixture import ClusterNodes
from tests.node.test_cluster_changes import change, digests, info, leader, promote, together, until, users
from tests.node.test_join_crash import died, moments, plan
from tests.node.test_trouble import _fill

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
FLAPS = 10


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    directory = tmp_path_factory.mktemp("trouble")
    with ClusterNodes(directory, 3, simulate=True, module="tests.node.change_crash_points") as made:
        yield made


@pytest.fixture
def cluster(nodes: ClusterNodes) -> Iterator[ClusterNodes]:
    """All is well before each test, and after it."""
    until(lambda: together(nodes), "all are at the same revision")
    yield nodes


def make(cluster: ClusterNodes, on: int, name: str) -> str:
    """What a command that makes a user says when nobody knows whether it did."""
    result = cluster[on].mcvirt("user", "create", name, "--generate-password", check=False)
    assert result.returncode not in (0, 6), result.stdout
    return result.stderr


@pytest.mark.parametrize(
    ("asked", "moment", "stands"),
    [
        ("leader", "after append", False),
        ("leader", "before give", True),
        ("member", "before give", True),
    ],
)
def test_the_leader_dies_in_the_middle_of_a_change(
    cluster: ClusterNodes, asked: str, moment: str, stands: bool
) -> None:
    led = int(leader(cluster, 1).removeprefix("node"))
    others = [number for number in cluster.nodes if number != led]
    _, before = change(cluster, others[0])
    kept_aside = len(cluster[led].json("cluster", "conflicts"))
    plan(cluster[led], moment)
    name = f"{asked}-{stands}".lower()
    said = make(cluster, led if asked == "leader" else others[0], name)
    assert moments(cluster[led])[-1].endswith(moment) and died(cluster[led])
    assert "not known whether" in said, said
    promote(cluster, others[0])
    assert (name in users(cluster, others[1])) is stands
    status, after = change(cluster, others[1])
    assert status == 6
    cluster[led].start_daemon()
    until(lambda: together(cluster), "the old leader follows the new one")
    for number in cluster.nodes:
        found = users(cluster, number)
        assert {before, after} <= found and (name in found) is stands
    conflicts = cluster[led].json("cluster", "conflicts")[kept_aside:]
    assert [each["what"] for each in conflicts] == ([] if stands else [[f"user {name}"]])
    assert leader(cluster, led) == f"node{others[0]}"


def test_a_member_with_a_full_disk(cluster: ClusterNodes) -> None:
    led = int(leader(cluster, 1).removeprefix("node"))
    full, other = (number for number in cluster.nodes if number != led)
    node = cluster[full]
    seen = Path(f"/proc/{node.host.pid}/root{node.state_dir}")
    node.stop_daemon()
    aside = node.state_dir.with_name("aside")
    node.host.run(["cp", "-a", str(node.state_dir), str(aside)])
    node.host.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=711", "tmpfs", str(node.state_dir)])
    node.host.run(["cp", "-a", f"{aside}/.", str(node.state_dir)])
    node.start_daemon()
    until(lambda: together(cluster), "it is back on its small disk")
    made = set()
    _fill(seen / "fill")
    for _ in range(200):  # what SQLite's log has room for is still written
        status, name = change(cluster, led)
        made.add(name)
        if status == 6:
            break
        assert status == 0
    assert status == 6
    _fill(seen / "rest")
    for asked in cluster.nodes:
        rows = info(cluster, asked)
        assert rows[f"node{full}"]["status"] == ("Local" if asked == full else "Away")
        until(lambda asked=asked: "full" in " ".join(info(cluster, asked)[f"node{full}"]["warnings"]), "it says why")  # type: ignore[misc]
    status, name = change(cluster, other)
    assert status == 6
    made.add(name)
    refused = make(cluster, full, "nobody")
    assert "could not be stored" in refused and "Nothing was changed" in refused
    assert node.daemon_runs and node.json("list") == []
    # Nobody waits for the turn that it had.
    status, name = change(cluster, other)
    made.add(name)
    assert status == 6
    for filler in ("fill", "rest"):
        (seen / filler).unlink()
    until(lambda: together(cluster), "it has caught up")
    for asked in cluster.nodes:
        assert made <= users(cluster, asked) and "nobody" not in users(cluster, asked)
        # The others know what it says of itself since it said so last.
        until(lambda asked=asked: "full" not in " ".join(info(cluster, asked)[f"node{full}"]["warnings"]), "it is well")  # type: ignore[misc]
    assert change(cluster, full)[0] == 0


@pytest.mark.parametrize("who", ["leader", "member"])
def test_a_link_goes_up_and_down_every_second(cluster: ClusterNodes, who: str) -> None:
    led = int(leader(cluster, 1).removeprefix("node"))
    flapping = led if who == "leader" else next(number for number in cluster.nodes if number != led)
    over = threading.Event()

    def go_on(number: int) -> set[str]:
        done = set()
        while not over.is_set():
            status, name = change(cluster, number)
            if status in (0, 6):
                done.add(name)
        return done

    with ThreadPoolExecutor(2) as pool:
        working = [pool.submit(go_on, number) for number in cluster.nodes if number != led or who == "leader"][:2]
        pause = threading.Event()
        for _ in range(FLAPS // 2):
            cluster.cut(flapping)
            pause.wait(1.0)
            cluster.heal(flapping)
            pause.wait(1.0)
        over.set()
        acknowledged = set().union(*(each.result() for each in working))
    print(f"{len(acknowledged)} changes were acknowledged")
    assert acknowledged
    until(lambda: together(cluster), "all are at the same revision")
    for asked in cluster.nodes:
        assert acknowledged <= users(cluster, asked)
        assert cluster[asked].json("info")


def test_the_same_everywhere_in_the_end(cluster: ClusterNodes) -> None:
    assert len(digests(cluster)) == 1
