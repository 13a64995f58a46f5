"""Nodes that have been joined, as they are installed: what one node does not survive, the cluster does."""

from __future__ import annotations

from tests.lab.cluster import Cluster
from tests.lab.fs_diff import difference, files
from tests.lab.node import Node
from tests.lab.stories import POOL, grow, machine, storage, volume

PLACES = ("/etc", "/usr/local", "/var/lib/mcvirt", "/var/lib/libvirt", "/run/mcvirt", "/root")
AWAY, UNREACHABLE = 6, 5
"""Exit statuses: done, but a member has not got it; not done, since somebody is needed who does not answer."""


def machines(node: Node) -> list[tuple[str, str, str]]:
    """What a node lists; it must do so soon, whoever is away."""
    found = [(row["name"], row["state"], row["node"]) for row in node.json("list", within=10)]
    return sorted(found)


def change(node: Node, user: str) -> tuple[int, str]:
    """Try to make a user: the exit status, and what is said."""
    done = node.run(f"mcvirt user create {user} --generate-password")
    return done.returncode, done.stderr


def users(node: Node) -> set[str]:
    return {row["name"] for row in node.json("user", "list")}


def test_a_node_whose_power_fails_comes_back_with_its_machine(cluster: Cluster) -> None:
    first, second = cluster.nodes
    storage(first, "thick")
    device = machine(second, "tiny")
    second.mcvirt("update", "tiny", "--autostart-on-boot")
    # A command is carried out where the machine is, whoever is asked.
    first.mcvirt("start", "tiny")
    second.wait_for_guest(device, boots=1, beyond=10)
    for node in cluster.nodes:
        assert machines(node) == [("tiny", "RUNNING", "node2")]
    assert first.lvs() == {} and first.virsh("list", "--all", "--name") == ""
    before = second.written(device)
    assert before.whole

    second.power_off()
    cluster.wait_status(1, "node2", "Unreachable")
    assert [row[0] for row in machines(first)] == ["tiny"]
    status, said = change(first, "alice")
    assert status == AWAY and "node2" in said
    status, said = first.run("mcvirt stop tiny").returncode, first.fail("mcvirt stop tiny")
    assert status == UNREACHABLE and "node2" in said

    second.boot()
    second.wait_for_guest(device, boots=2, within=60)
    cluster.wait_together()
    assert users(second) == {"alice"}
    for node in cluster.nodes:
        assert machines(node) == [("tiny", "RUNNING", "node2")]
    first.mcvirt("stop", "tiny")
    # What the guest was told is written is there, although the power failed.
    after = second.written(device)
    assert after.after(before) and after.boots == 2 and after.ahead <= 1, (before, after)


def test_a_killed_daemon_and_a_cut_link_are_no_matter_and_a_reboot_brings_back_what_starts(cluster: Cluster) -> None:
    first, second = cluster.nodes
    storage(first, "thin", second)
    device = machine(first, "auto")
    assert first.lvs()[volume(device)]["pool_lv"] == POOL
    first.mcvirt("update", "auto", "--autostart-on-boot")
    first.mcvirt("start", "auto")
    ticks = first.wait_for_guest(device, boots=1)
    grow(first, "auto", device)

    first.kill()
    first.wait_restarted(1)
    ticks = first.wait_for_guest(device, boots=1, beyond=ticks)
    cluster.wait_together()
    assert change(second, "alice")[0] == 0
    runs = [("auto", "RUNNING", "node1")]
    for node in cluster.nodes:
        assert machines(node) == runs

    second.cut(silently=True)
    cluster.wait_status(1, "node2", "Unreachable")
    cluster.wait_status(2, "node1", "Unreachable")
    assert [row[0] for row in machines(second)] == ["auto"]
    assert machines(first) == runs
    status, said = change(first, "bob")
    assert status == AWAY and "node2" in said
    status, said = change(second, "carol")
    assert status == UNREACHABLE and "node1" in said
    ticks = first.wait_for_guest(device, boots=1, beyond=ticks)

    second.heal()
    cluster.wait_together()
    assert cluster.digests() == 1
    assert users(first) == users(second) == {"alice", "bob"}
    first.wait_for_guest(device, boots=1, beyond=ticks)
    assert first.written(device).whole

    identity = first.succeed("cat /var/lib/mcvirt/node.json")
    first.reboot()
    first.wait_for_guest(device, boots=2, within=60)
    cluster.wait_together()
    assert machines(second) == runs
    assert first.succeed("cat /var/lib/mcvirt/node.json") == identity
    assert first.unit("mcvirtd", "NRestarts") == "0"
    second.mcvirt("stop", "auto")
    assert first.written(device).whole


def test_a_third_node_comes_sees_the_leader_go_and_leaves_without_a_trace(cluster: Cluster, blank_node: Node) -> None:
    third = blank_node
    before = files(third, *PLACES, times=False)
    cluster.add(third, by=2)
    cluster.wait_together()
    assert len({node.succeed("sha256sum < /run/mcvirt/ca.pem") for node in cluster.nodes}) == 1

    first, second, _ = cluster.nodes
    first.power_off()
    cluster.wait_status(2, "node1", "Unreachable")
    cluster.wait_status(3, "node1", "Unreachable")
    status, said = change(third, "alice")
    assert status == UNREACHABLE and "promote" in said
    # Two of three are a majority: nobody has to vouch that it is off.
    assert second.run("mcvirt cluster promote").returncode in (0, AWAY)
    assert change(third, "bob")[0] == AWAY
    first.boot()
    cluster.wait_together()
    assert cluster.leader(1) == cluster.leader(3) == "node2"
    assert change(first, "carol")[0] == 0
    assert cluster.digests() == 1
    assert {frozenset(users(node)) for node in cluster.nodes} == {frozenset(("bob", "carol"))}

    first.mcvirt("cluster", "remove-node", "--node", "node3", "--yes")
    cluster.wait_together(cluster.nodes[:2])
    cluster.wait_together(cluster.nodes[2:])
    assert users(third) == set()
    # Its keys are new, and so is what its state has.
    left = difference(before, files(third, *PLACES, times=False))
    assert [line for line in left if not line.startswith(("~ /var/lib/mcvirt/", "~ /run/mcvirt/"))] == []
    assert third.succeed("sha256sum < /run/mcvirt/ca.pem") != first.succeed("sha256sum < /run/mcvirt/ca.pem")
