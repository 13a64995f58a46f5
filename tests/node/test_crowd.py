"""Strangers that take all connections there are do not keep the nodes of a cluster from each other."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from functools import partial

import pytest

from mcvirtd.state.records import VmRecord
from tests.node import witness
from tests.node.attacker import Denied, Network
from tests.node.cluster_fixture import ClusterNodes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
MOST = 12
SETTINGS = f'[limits]\nconnections = {MOST}\nhandshake_timeout = "1m"\n'
WITHIN = 20.0
until = partial(witness.until, within=WITHIN)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    machine = VmRecord(
        name="web2",
        id="vm-2",
        uuid="00000000-0000-4000-8000-2",
        memory=2**28,
        cpu_count=1,
        nodes=("node2",),
        node="node2",
    )
    directory = tmp_path_factory.mktemp("crowd")
    with ClusterNodes(directory, 2, simulate=True, settings=SETTINGS, records=[machine]) as made:
        yield made


@pytest.fixture(scope="module")
def on_node2(cluster: ClusterNodes) -> Iterator[Network]:
    """A stranger on node 2 itself; one at node 1's address would get at most the few places of that."""
    made = Network(cluster[2])
    yield made
    made.close()


@contextlib.contextmanager
def crowded(network: Network, *, logged_in: bool) -> Iterator[None]:
    """All places for anybody are taken: by root, logged in, or by clients that say nothing and come again and again."""
    with contextlib.ExitStack() as stack:
        if logged_in:
            with pytest.raises(Denied):
                while True:
                    stack.enter_context(network.wire())
        else:
            for _ in range(MOST + 40):
                stack.enter_context(network.tcp())
        yield


def gets_in(network: Network) -> bool:
    """Whether there is a place, and what is asked is answered."""
    try:
        with network.wire() as wire:
            assert "ok" in wire.call("vm", "names")
    except Denied:
        return False
    return True


def status(cluster: ClusterNodes) -> str:
    """What node 1 says of node 2."""
    return str(next(row["status"] for row in cluster[1].json("info") if row["name"] == "node2"))


def works(cluster: ClusterNodes) -> None:
    """Node 1 reaches node 2 for heartbeats, forwarded calls and changes."""
    until(lambda: status(cluster) == "Connected", "node 1 reaches node 2")
    cluster[1].mcvirt("start", "web2")
    cluster[1].mcvirt("stop", "web2")
    until(lambda: cluster[1].mcvirt("lock", "web2", "--lock", check=False).returncode == 0, "node 2 gets changes")
    cluster[1].mcvirt("lock", "web2", "--unlock")


@pytest.mark.parametrize("logged_in", [True, False], ids=["logged-in", "silent"])
def test_a_node_that_connects_anew_gets_in(cluster: ClusterNodes, on_node2: Network, logged_in: bool) -> None:
    cluster[1].stop_daemon()
    with crowded(on_node2, logged_in=logged_in):
        cluster[1].start_daemon()
        until(lambda: status(cluster) == "Connected", "node 1 reaches node 2")
        if logged_in:
            works(cluster)
            refused = cluster[2].mcvirt("list", check=False)
            assert (refused.returncode, "as many connections" in refused.stderr) == (5, True)


def test_also_from_an_address_that_is_not_in_its_record(cluster: ClusterNodes, on_node2: Network) -> None:
    """A node of several addresses: only its certificate says who it is."""
    host = cluster[1].host
    until(lambda: status(cluster) == "Connected", "node 1 reaches node 2")
    cluster[1].stop_daemon()
    host.run(["ip", "address", "add", "10.77.0.101/32", "dev", "eth0"])
    route = ["ip", "route", "replace", "10.77.0.0/24", "dev", "eth0"]
    try:
        host.run([*route, "src", "10.77.0.101"])
        with crowded(on_node2, logged_in=True):
            cluster[1].start_daemon()
            works(cluster)
            assert "10.77.0.101" in cluster[2].host.run(["ss", "-tn"]).stdout
    finally:
        host.run([*route, "src", cluster.address(1)])


def test_who_is_no_node_has_the_few_places_of_a_nodes_address_for_nothing(
    cluster: ClusterNodes, on_node2: Network
) -> None:
    """Also a user at a member's address is told that there is no room, and does not stay."""
    on_node1 = Network(cluster[1])
    try:
        with crowded(on_node2, logged_in=True):
            for _ in range(3):
                with pytest.raises(Denied, match="as many connections"):
                    on_node1.wire(None, address=cluster.address(2))
            quiet = [on_node1.run(socket.create_connection, (cluster.address(2), 9090), 5.0) for _ in range(30)]
            cluster[1].mcvirt("start", "web2")  # what is connected already goes on
            cluster[1].mcvirt("stop", "web2")
            for sock in quiet:
                sock.close()
        until(lambda: gets_in(on_node2), "there is room again")
    finally:
        on_node1.close()
