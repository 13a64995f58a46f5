"""kill -9 of either side in each step of an online migration: the guest runs on one node, and nothing is left astray.

By default some of the moments are tried; all of them with MCVIRT_ALL_MOMENTS=1.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node import tinyguest
from tests.node.cluster_fixture import ClusterNodes
from tests.node.mcvirt_node import VOLUMES, McvirtNode
from tests.node.test_migration import connected, domains
from tests.node.witness import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces and libvirtd")
DIES_WITHIN = 3.0
EVERY = 1 if os.environ.get("MCVIRT_ALL_MOMENTS") else 5


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, capabilities: Path) -> Iterator[ClusterNodes]:
    directory = tmp_path_factory.mktemp("crossing")
    with ClusterNodes(directory, 2, capabilities=capabilities, module="tests.node.migration_crash_points") as made:
        until(lambda: connected(made), "both nodes connected")
        each = [word for name in ("node1", "node2") for word in ("--node", name, VOLUMES)]
        made[1].mcvirt("storage", "create", "own", "--type", "File", *each)
        new = ("--memory", "32", "--cpu-count", "1", "--machine", "pc", "--disk-size", "2MiB")
        made[1].mcvirt("create", "web1", *new)
        tinyguest.install(files(made[1])[0], 2 * 2**20)
        made[1].mcvirt("start", "web1")
        yield made


def files(node: McvirtNode) -> list[Path]:
    return [path for path in node.volumes.iterdir() if path.name.startswith("mcvirt-hd")]


def settled(pair: ClusterNodes) -> int:
    """The node that has the machine, once all is settled: its guest runs there, and nothing of it is on the other."""

    def is_settled() -> bool:
        # A node that was just started again is asked itself: the other one may not reach it yet.
        tasks = [task for node in pair for task in node.json("task", "list")]
        return connected(pair) and not [task for task in tasks if task["state"] in ("RUNNING", "STUCK")]

    until(is_settled, "all is settled", within=45)
    has = int(pair[1].json("info", "web1")["node"][-1])
    there, other = pair[has], pair[3 - has]
    assert domains(there) == {"web1": "running"} and domains(other) == {}
    assert len(files(there)) == 1
    until(lambda: files(other) == [], "nothing is left on the other node", within=45)
    file = files(there)[0]
    before = tinyguest.progress(file)
    assert before is not None
    until(lambda: tinyguest.progress(file) != before, "the guest goes on", within=20)
    found = tinyguest.written(file.read_bytes()[: tinyguest.LENGTH])
    assert found is not None and found.whole and found.boots == 1, found
    assert len({node.json("info", "web1")["node"] for node in pair}) == 1
    return has


def migrate(pair: ClusterNodes, source: int, *more: str) -> None:
    argv = ("migrate", "web1", "--node", f"node{3 - source}", "--online", "--copy-storage", *more)
    pair[source].mcvirt(*argv, check=False)


def at_rest(pair: ClusterNodes, source: int) -> bool:
    """Whether no task is at work on the node that had the machine."""
    found = pair[source].mcvirt("task", "list", "--json", check=False)
    return found.returncode == 0 and '"RUNNING"' not in found.stdout


def moments(node: McvirtNode) -> list[str]:
    path = node.directory / "moments"
    return path.read_text().splitlines() if path.exists() else []


def plan(node: McvirtNode, text: str) -> None:
    (node.directory / "moments").unlink(missing_ok=True)
    (node.directory / "plan").write_text(text)


def died(node: McvirtNode) -> bool:
    try:
        node.wait_daemon(DIES_WITHIN)
    except subprocess.TimeoutExpired:
        return False
    return True


def crash(pair: ClusterNodes, victim: McvirtNode, source: int, moment: int) -> bool:
    """Let *victim* die at that moment of a migration from *source*; False if there was none."""
    plan(victim, str(moment))
    # It goes on without us: where it can't be known how it ends, it waits for the node that has died.
    migrate(pair, source, "--no-wait")
    until(lambda: any(line.startswith("killed") for line in moments(victim)) or at_rest(pair, source), "it ends")
    killed = any(line.startswith("killed") for line in moments(victim)) and died(victim)
    (victim.directory / "plan").unlink()
    return killed


@pytest.mark.parametrize("side", ["source", "target"])
def test_each_moment(pair: ClusterNodes, side: str) -> None:
    source = settled(pair)
    victim = pair[source if side == "source" else 3 - source]
    plan(victim, "count")
    migrate(pair, source)
    names = moments(victim)
    (victim.directory / "plan").unlink()
    assert settled(pair) == 3 - source and len(names) >= 8, names
    outcomes = {}
    for number in range(1, len(names) + 1, EVERY):
        source = settled(pair)
        victim = pair[source if side == "source" else 3 - source]
        killed = crash(pair, victim, source, number)
        if killed:
            victim.start_daemon()
        try:
            outcomes[f"{number} {names[number - 1]}"] = "stays" if settled(pair) == source else "goes"
        except AssertionError as error:
            raise AssertionError(
                f"after kill -9 of the {side}, {victim.name}, at moment {number} of {len(names)}, "
                f"{names[number - 1]}: {error}\n{outcomes}\n{victim.log_tail(30)}"
            ) from error
    print(outcomes)
    assert "stays" in outcomes.values()
