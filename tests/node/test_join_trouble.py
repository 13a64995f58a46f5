"""Nodes that do not suit: of another version, with another time, with machines, without a bridge, in a taken place.

Real libvirt, real bridges, a daemon whose clock is really wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.cluster_fixture import ClusterNodes, _mac
from tests.node.mcvirt_node import McvirtNode
from tests.node.shifted_clock import ShiftedClock
from tests.node.test_join import is_blank, join, kept, make_user, members, refused, string, until, whole

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
FOREIGN = "<domain type='qemu'><name>byhand</name><memory>8192</memory><os><type>hvm</type></os></domain>"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, capabilities: Path) -> Iterator[ClusterNodes]:
    """node1 with a network that only it has the bridge of, and node2; both alone."""
    directory = tmp_path_factory.mktemp("trouble")
    options = {"capabilities": capabilities, "module": "tests.node.other_version"}
    with ClusterNodes(directory, 3, formed=False, names={3: "node1"}, **options) as made:  # type: ignore[arg-type]
        for number in made.nodes:
            made[number].mcvirt("node", "--set-ip-address", made.address(number))
        made[1].host.run(["ip", "link", "add", "only1", "type", "bridge"])
        made[1].mcvirt("network", "create", "lan", "--interface", "only1")
        # Its record gets the certificate with the new address some seconds later, or at the start: that is no change
        # by what the tests do.
        made[1].stop_daemon()
        made[1].start_daemon()
        yield made


@pytest.fixture(scope="module")
def clock(nodes: ClusterNodes) -> ShiftedClock:
    """That of node2."""
    made = ShiftedClock(nodes.directory / "clock")
    restart(nodes[2], made)
    return made


@pytest.fixture
def alone(nodes: ClusterNodes, clock: ShiftedClock) -> Iterator[ClusterNodes]:
    """Nobody has joined, and the clock is right."""
    clock.ahead(0)
    yield nodes
    clock.ahead(0)
    (nodes[2].directory / "version").unlink(missing_ok=True)


def restart(node: McvirtNode, clock: ShiftedClock, version: str = "") -> None:
    path = node.directory / "version"
    path.unlink(missing_ok=True)
    if version:
        path.write_text(version)
    node.stop_daemon()
    node.start_daemon(env=clock.env)


def test_all_that_stands_against_a_real_node_is_told_at_once(alone: ClusterNodes, clock: ShiftedClock) -> None:
    one, two, _ = alone
    restart(two, clock, "14.0.0")
    path = two.directory / "byhand.xml"
    path.write_text(FOREIGN)
    two.virsh("define", str(path))
    two.mcvirt("create", "web9", "--memory", "32MiB", "--cpu-count", "1")
    clock.ahead(20)
    text = string(two)
    before = [(kept(node), node.json("info")[0]["revision"], node.json("network", "list")) for node in (one, two)]
    for flags in ((), ("--dry-run",)):
        said = refused(one, text, *flags)
        for part in (
            "its clock is 20 s ahead of this node's",
            "it has mcvirt 14.0.0, which does not work together with 12",
            "it has virtual machines: web9",
            "domains that mcvirt did not make: byhand",
            "network 'lan' can't be had there",
        ):
            assert part in said or part[:1].upper() + part[1:] in said, (part, said)
    assert [
        (kept(node), node.json("info")[0]["revision"], node.json("network", "list")) for node in (one, two)
    ] == before
    assert is_blank(one) and is_blank(two)
    # When all is put right, the same string takes it in.
    two.virsh("undefine", "byhand")
    two.mcvirt("delete", "web9")
    two.host.run(["ip", "link", "add", "only1", "type", "bridge"])
    clock.ahead(0)
    restart(two, clock)
    one.mcvirt("cluster", "add-node", "--connect-string", text)
    whole(one, two)
    one.mcvirt("cluster", "remove-node", "--node", "node2")
    assert is_blank(two)


@pytest.mark.parametrize("ahead", [3, 8, -8, -7200])
def test_clocks_that_differ(alone: ClusterNodes, clock: ShiftedClock, ahead: int) -> None:
    one, two, _ = alone
    clock.ahead(ahead)
    result = one.mcvirt("cluster", "add-node", "--connect-string", string(two), "--dry-run", check=False)
    if abs(ahead) < 5:
        assert "both clocks agree" in result.stdout
    else:
        direction = "ahead of" if ahead > 0 else "behind"
        said = result.stdout.replace("\n", " ")
        assert result.returncode == 3 and direction in said and "its clock is" in said, result
    assert is_blank(one) and is_blank(two)


def test_a_node_with_a_members_name_in_a_members_place(alone: ClusterNodes) -> None:
    """A machine that was put in the place of one that is down, under the name of another."""
    one, two, three = alone
    assert three.name == one.name
    two.host.run(["ip", "link", "show", "only1"])
    assert "there is a member called 'node1' already" in refused(one, string(three)).replace("There", "there")
    join(one, two)
    whole(one, two)
    two.stop_daemon()
    two.host.run(["ip", "address", "del", f"{alone.address(2)}/24", "dev", "eth0"])
    three.host.run(["ip", "address", "add", f"{alone.address(2)}/24", "dev", "eth0"])
    one.host.run(["ip", "neighbour", "replace", alone.address(2), "lladdr", _mac(3), "dev", "eth0", "nud", "permanent"])
    three.mcvirt("node", "--set-ip-address", alone.address(2))
    said = refused(one, string(three))
    assert (
        "called 'node1' already" in said
        and f"member 'node2' has its address, {alone.address(2)}, too" in said.replace("Member", "member")
    )
    assert set(members(one)) == {"node1", "node2"} and is_blank(three)
    three.host.run(["ip", "address", "del", f"{alone.address(2)}/24", "dev", "eth0"])
    two.host.run(["ip", "address", "add", f"{alone.address(2)}/24", "dev", "eth0"])
    one.host.run(["ip", "neighbour", "replace", alone.address(2), "lladdr", _mac(2), "dev", "eth0", "nud", "permanent"])


def test_members_of_other_versions(alone: ClusterNodes, clock: ShiftedClock) -> None:
    """Goes on with the cluster that the test before has left: node2 is down."""
    one, two, _ = alone
    (two.directory / "version").write_text("12.1.0")
    two.start_daemon(env=clock.env)
    whole(one, two)
    make_user(one, "alice")
    make_user(two, "bob")
    assert {row["version"] for row in one.json("info")} == {"12.0.0", "12.1.0"}
    two.mcvirt("create", "web2", "--memory", "32MiB", "--cpu-count", "1")
    until(lambda: [row["state"] for row in one.json("list")] == ["STOPPED"])
    one.mcvirt("start", "web2")
    one.mcvirt("stop", "web2")
    restart(two, clock, "12.2.0")

    def apart(node: McvirtNode, other: str) -> bool:
        rows = {row["name"]: row for row in node.json("info")}
        return rows[other]["status"] != "Unreachable" and "work together" in " ".join(rows[other]["warnings"])

    until(lambda: apart(one, "node2") and apart(two, "node1"))
    assert {row["version"] for row in one.json("info")} == {"12.0.0", "12.2.0"}
    assert [row["name"] for row in one.json("list")] == [row["name"] for row in two.json("list")] == ["web2"]
    for result in (
        one.mcvirt("start", "web2", check=False),  # to be done there
        two.mcvirt("group", "create", "never", check=False),  # to be ordered here
    ):
        assert result.returncode == 5 and "does not work together with 12." in result.stderr, result
    done = one.mcvirt("group", "create", "ops", check=False)
    assert done.returncode == 6 and "node2" in done.stderr
    two.mcvirt("start", "web2")  # its own it may do
    two.mcvirt("stop", "web2")
    restart(two, clock, "12.1.0")
    whole(one, two)
    assert "ops" in [row["name"] for row in two.json("group", "list")]
    two.mcvirt("delete", "web2")
