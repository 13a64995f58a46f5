"""Emptying a node of three, each with a libvirt of its own, and filling it again; the guests count all the while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node import tinyguest
from tests.node.cluster_fixture import ClusterNodes
from tests.node.mcvirt_node import BRIDGE, VOLUMES, McvirtNode
from tests.node.test_migration import SHARED, connected, counts, create, domains, sends, volume, whole
from tests.node.witness import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces and libvirtd")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, capabilities: Path) -> Iterator[ClusterNodes]:
    """own1 (runs, with a disk of node1's own), run1 and off1 on storage that all have, both on node1; far1 on node2."""
    with ClusterNodes(tmp_path_factory.mktemp("drain"), 3, capabilities=capabilities) as made:
        (made.directory / "shared").mkdir()
        for node in made:
            node.host.path(SHARED).mkdir()
            node.host.run(["mount", "--bind", str(made.directory / "shared"), SHARED])
        until(lambda: connected(made), "all nodes connected")
        made[1].mcvirt("network", "create", "lan", "--interface", BRIDGE)
        names = [node.name for node in made]
        each = [word for name in names for word in ("--node", name, VOLUMES)]
        made[1].mcvirt("storage", "create", "own", "--type", "File", *each)
        every = [word for name in names for word in ("--node", name)]
        made[1].mcvirt("storage", "create", "common", "--type", "File", "--shared", "--path", SHARED, *every)
        for name, backend, on in (("own1", "own", 1), ("run1", "common", 1), ("off1", "common", 1)):
            create(made, name, backend, on)
        create(made, "far1", "common", 2)
        for name in ("own1", "run1", "far1"):
            made[1].mcvirt("start", name)
        yield made


def drain(node: McvirtNode, *argv: str, status: int = 0) -> str:
    result = node.mcvirt("node", "drain", "node1", *argv, check=False)
    assert result.returncode == status, f"status {result.returncode}: {result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def places(cluster: ClusterNodes) -> dict[str, str]:
    return {row["name"]: row["node"] for row in cluster[2].json("list")}


def at_rest(cluster: ClusterNodes) -> bool:
    tasks = [task for node in cluster for task in node.json("task", "list")]
    return not [task for task in tasks if task["state"] in ("RUNNING", "STUCK")]


def remembered(cluster: ClusterNodes) -> str:
    """What node1 says of having been emptied."""
    (row,) = [row for row in cluster[1].json("info") if row["name"] == "node1"]
    return " ".join(text for text in row["warnings"] if "was emptied" in text)


def alive(cluster: ClusterNodes, name: str, on: int, boots: int = 1) -> None:
    """Its guest runs on that node and nowhere else, and has not been started anew."""
    assert [node.name for node in cluster if name in domains(node)] == [f"node{on}"]
    assert domains(cluster[on])[name] == "running"
    file = volume(cluster, name, on)
    assert counts(file)[0] == boots
    whole(file)


def test_all_that_stands_against_it_is_told_before_anything_is_done(cluster: ClusterNodes) -> None:
    before = places(cluster)
    assert before == {"own1": "node1", "run1": "node1", "off1": "node1", "far1": "node2"}
    cluster[2].mcvirt("lock", "off1", "--lock")
    said = drain(cluster[3], status=3)
    assert "--copy-storage" in said and "off1: Virtual machine 'off1' is locked" in said and "run1" not in said
    said = drain(cluster[1], "--copy-storage", "--dry-run", status=3)
    assert "STAYS" in said and "node1 -> node" in said and "with its disks" in said
    assert "not emptied" in drain(cluster[1], "--return", status=3)
    assert "no node" in cluster[1].mcvirt("node", "drain", "node9", check=False).stderr
    cluster[2].mcvirt("lock", "off1", "--unlock")
    assert places(cluster) == before and remembered(cluster) == ""


def test_one_that_fails_stops_no_other_and_it_goes_on(cluster: ClusterNodes) -> None:
    counts(volume(cluster, "own1", 1))
    cluster[1].mcvirt("stop", "run1")
    said = drain(cluster[2], "--copy-storage", "--bandwidth", "1MiB", "--deadline", "2", status=1)
    assert "2 of 3" in said and "own1:" in said and "within 2 s" in said
    assert places(cluster)["own1"] == "node1" and "node1" not in (places(cluster)["off1"], places(cluster)["run1"])
    assert "off1, run1." in remembered(cluster)
    alive(cluster, "own1", 1)
    cluster[1].mcvirt("start", "run1")
    said = drain(cluster[2], "--copy-storage")
    assert "Successfully moved 1 virtual machine off node1" in said and "own1: node1 -> node" in said
    assert domains(cluster[1]) == {} and "node1" not in places(cluster).values()
    alive(cluster, "own1", int(places(cluster)["own1"][-1]))
    assert "off1, own1, run1." in remembered(cluster)
    # Node1 is not where node2's would go, and node3 is.
    plan = cluster[2].json("node", "drain", "node2", "--dry-run", "--copy-storage")
    assert {move["target"] for move in plan["moves"]} == {"node3"}


def test_just_those_come_back_from_wherever_they_are(cluster: ClusterNodes) -> None:
    here = int(places(cluster)["run1"][-1])
    cluster[1].mcvirt("migrate", "run1", "--node", f"node{5 - here}", "--online")
    said = drain(cluster[3], "--return", "--at-once", "2")
    assert "Successfully brought 3 virtual machines back to node1" in said
    assert places(cluster) == {"own1": "node1", "run1": "node1", "off1": "node1", "far1": "node2"}
    alive(cluster, "own1", 1)
    alive(cluster, "run1", 1, boots=2)
    assert domains(cluster[1])["off1"] == "shut off"
    assert remembered(cluster) == "" and "not emptied" in drain(cluster[1], "--return", status=3)
    assert not [path for n in (2, 3) for path in cluster[n].volumes.iterdir() if path.name.startswith("mcvirt-hd")]


def test_cancelled_or_died_it_can_be_run_again(cluster: ClusterNodes) -> None:
    slow = ("--copy-storage", "--bandwidth", "1MiB")
    task = cluster[1].mcvirt("node", "drain", "node1", *slow, "--no-wait").stdout.strip()
    until(lambda: sends(cluster, "own1"), "it sends")
    cluster[2].mcvirt("task", "cancel", f"{task}@node1")
    until(lambda: at_rest(cluster), "it has ended")
    tasks = [each for each in cluster[1].json("task", "list") if each["operation"] == "drain.drain"]
    assert tasks[-1]["state"] == "CANCELLED"
    alive(cluster, "own1", 1)
    assert "own1" not in remembered(cluster)
    cluster[1].mcvirt("node", "drain", "node1", *slow, "--no-wait")
    until(lambda: sends(cluster, "own1"), "it sends")
    cluster[1].kill_daemon()
    cluster[1].start_daemon()
    until(lambda: at_rest(cluster), "it is settled")
    tasks = [each for each in cluster[1].json("task", "list") if each["operation"] == "drain.drain"]
    assert tasks[-1]["state"] == "FAILED" and "goes on" in tasks[-1]["error"]["text"], tasks[-1]
    alive(cluster, "own1", 1)
    until(lambda: connected(cluster), "all nodes connected")
    drain(cluster[1], "--copy-storage")
    assert domains(cluster[1]) == {}
    # Those that send are away for a moment, and go on with it.
    task = cluster[2].mcvirt("node", "drain", "node1", "--return", "--bandwidth", "1MiB", "--no-wait").stdout.strip()
    source = cluster[int(places(cluster)["own1"][-1])]
    until(lambda: sends(cluster, "own1", source), "it sends")
    source.pause_daemon()
    until(lambda: not connected(cluster, cluster[1]), "it is missed")
    source.resume_daemon()
    until(lambda: at_rest(cluster), "all is back")
    (ended,) = [each for each in cluster[1].json("task", "list") if each["id"] == task.partition("@")[0]]
    assert ended["state"] == "DONE", ended
    assert places(cluster) == {"own1": "node1", "run1": "node1", "off1": "node1", "far1": "node2"}
    alive(cluster, "own1", 1)
    assert tinyguest.progress(volume(cluster, "run1", 1)) is not None
