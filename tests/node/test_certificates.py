"""Certificates: renewed without a restart, also while a node is away; worth nothing once their node was removed."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcvirt.errors import McvirtError, NotAuthenticated, from_wire
from mcvirt.rpc import transport
from mcvirtd.cluster import pki, tls
from tests.node.attacker import Network
from tests.node.cluster_fixture import PORT, ClusterNodes, certificate
from tests.node.shifted_clock import ShiftedClock
from tests.node.test_cluster_changes import change, info, together, until, users
from tests.node.test_join import until as soon

DAY = 86400
_SHOWN = f"""
import ssl
print(ssl.get_server_certificate(("{{address}}", {PORT})))
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> ShiftedClock:
    """That of all nodes."""
    return ShiftedClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, clock: ShiftedClock) -> Iterator[ClusterNodes]:
    directory = tmp_path_factory.mktemp("certificates")
    made = ClusterNodes(directory, 3, simulate=True, module="tests.node.hasty_chores")
    for node in made:
        node.env.update(clock.env)
    with made:
        until(lambda: together(made), "all are at the same revision")
        yield made


def serials(cluster: ClusterNodes) -> dict[int, int]:
    return {number: certificate(node).serial_number for number, node in cluster.nodes.items()}


def set_right(cluster: ClusterNodes, clock: ShiftedClock) -> None:
    """Set all clocks back to what they should be: that is no harm either."""
    clock.ahead(0)
    now = datetime.datetime.now(datetime.UTC)
    soon(lambda: all(certificate(node).not_valid_before_utc <= now for node in cluster), 30.0)
    until(lambda: together(cluster), "all are at the same revision")


def shown(cluster: ClusterNodes, asked: int, number: int) -> str:
    """The certificate that a node shows to who connects now."""
    return cluster[asked].python(_SHOWN.format(address=cluster.address(number))).stdout.strip()


def test_renewed_without_a_restart_while_a_node_is_away(cluster: ClusterNodes, clock: ShiftedClock) -> None:
    before, processes = serials(cluster), [node.daemon_pid for node in cluster]
    cluster.cut(3)
    until(lambda: info(cluster, 1)["node3"]["status"] == "Unreachable", "node3 is missed")
    clock.ahead(300 * DAY)
    soon(lambda: all(serials(cluster)[number] != before[number] for number in cluster.nodes), 30.0)
    for number, asked in ((1, 2), (2, 1)):
        path = cluster[number].state_dir / pki.DIRECTORY / "node.crt"
        until(
            lambda path=path, asked=asked, number=number: shown(cluster, asked, number) == path.read_text().strip(),
            "shown",
        )  # type: ignore[misc]
        until(lambda asked=asked, number=number: info(cluster, asked)[f"node{number}"]["status"] == "Connected", "seen")  # type: ignore[misc]
    status, name = change(cluster, 2)
    assert status == 6
    cluster.heal(3)
    until(lambda: together(cluster), "node3 is back")
    assert name in users(cluster, 3)
    assert change(cluster, 3)[0] == 0
    assert processes == [node.daemon_pid for node in cluster]


def test_a_node_whose_certificate_has_expired_while_it_was_off(cluster: ClusterNodes, clock: ShiftedClock) -> None:
    cluster[3].stop_daemon()
    old = certificate(cluster[3])
    for days in (560, 810):
        before = serials(cluster)
        clock.ahead(days * DAY)
        soon(lambda before=before: all(serials(cluster)[number] != before[number] for number in (1, 2)), 30.0)  # type: ignore[misc]
    status, name = change(cluster, 2)
    assert status == 6
    cluster[3].start_daemon()
    until(lambda: together(cluster), "node3 is back")
    assert certificate(cluster[3]).serial_number != old.serial_number and name in users(cluster, 3)
    set_right(cluster, clock)


def called(wire: transport.Connection, label: str, arguments: dict[str, Any]) -> Any:
    reply = json.loads(wire.call(*label.split("."), arguments))
    if reply.get("error"):
        raise from_wire(reply["error"])
    return reply["ok"]


OPERATIONS: dict[str, dict[str, Any]] = {
    "peer.heartbeat": {"beat": {}},
    "peer.tasks": {"user": "root", "root": True},
    "peer.replicate": {"message": {"kind": "turn.begin"}},
    "peer.forward": {"operation": "vm.start", "arguments": {"name": "web1"}, "user": "root", "root": True},
    "peer.bridge_faults": {"interface": "br0"},
    "membership.part": {},
    "membership.parted": {},
    "user.list": {},
}


def connect(cluster: ClusterNodes, directory: Path, name: str, certified: str = "") -> transport.Connection:
    """To node1, with a certificate from *directory*, as node *name*."""
    identity = pki.ensure(directory, certified or name, [cluster.address(int(name[-1]))])
    return transport.Connection(cluster.address(1), PORT, tls.peer_context(identity), {"peer": name})


def worthless(run: Callable[..., Any], connection: Callable[[], transport.Connection]) -> None:
    for label, arguments in OPERATIONS.items():
        wire = connection()
        with pytest.raises((NotAuthenticated, McvirtError)) as refused:
            run(called, wire, label, arguments)
        assert isinstance(refused.value, NotAuthenticated) or "reset" in str(refused.value), (label, refused.value)
        wire.close()


@pytest.mark.parametrize("number", [3, 2])
def test_the_certificates_of_a_removed_node_are_worth_nothing(
    cluster: ClusterNodes, clock: ShiftedClock, tmp_path: Path, number: int
) -> None:
    """node3 is removed while it is off, node2 with its help; each has kept a copy of its keys, the CA's among them."""
    if number == 3:
        set_right(cluster, clock)
    name, node = f"node{number}", cluster[number]
    kept, minted = tmp_path / "kept", tmp_path / "minted"
    for directory in (kept, minted):
        shutil.copytree(node.state_dir / pki.DIRECTORY, directory)
    for file in ("node.key", "node.crt"):
        (minted / file).unlink()
    transport.configure()
    network = Network(node)
    open_before = connect(cluster, kept, name)
    assert network.run(called, open_before, "peer.tasks", OPERATIONS["peer.tasks"]) is not None
    if number == 3:
        node.kill_daemon()
        until(lambda: info(cluster, 1)[name]["status"] == "Unreachable", "it is missed")
        cluster[1].mcvirt("cluster", "remove-node", "--node", name, "--force", "--yes")
    else:
        cluster[1].mcvirt("cluster", "remove-node", "--node", name)
    revision = cluster[1].json("info")[0]["revision"]
    with pytest.raises(McvirtError):
        network.run(called, open_before, "peer.tasks", OPERATIONS["peer.tasks"])
    worthless(network.run, lambda: connect(cluster, kept, name))
    worthless(network.run, lambda: connect(cluster, minted, name))
    worthless(network.run, lambda: connect(cluster, minted, "node2" if number == 3 else "node1", name))
    assert cluster[1].json("info")[0]["revision"] == revision
    open_before.close()
    network.close()
    if number == 3:
        node.start_daemon()
        until(lambda: info(cluster, 3)[name]["status"] == "Removed", "it finds itself removed")
        assert any("was removed" in warning for warning in info(cluster, 3)[name]["warnings"])
        refused = node.mcvirt("user", "create", "late", "--generate-password", check=False)
        assert refused.returncode == 3 and "was removed" in refused.stderr
    assert name not in info(cluster, 1)
