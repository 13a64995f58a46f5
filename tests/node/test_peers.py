"""Nodes and each other: who is let in, calls handed on, a node that is away. Real TLS on real wires."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mcvirt.errors import McvirtError, NodeUnreachable, NotAuthenticated, NotPermitted, from_wire
from mcvirt.rpc import transport
from mcvirt.types.vm import PowerState
from mcvirtd.auth.passwords import Passwords
from mcvirtd.cluster import pki, tls
from mcvirtd.state.records import NodeRecord, UserRecord, VmRecord
from tests.node.attacker import Network
from tests.node.cluster_fixture import PORT, ClusterNodes

T = TypeVar("T")
PASSWORD = "correct horse battery"
NOTICED_WITHIN = 20.0


def machine(number: int) -> VmRecord:
    uuid = f"00000000-0000-4000-8000-{number:012}"
    name = f"web{number}"
    return VmRecord(
        name=name, id=f"vm-{number}", uuid=uuid, memory=2**28, cpu_count=1, nodes=("node1", name), node=f"node{number}"
    )


def records() -> list[Any]:
    secret = Passwords().hash(PASSWORD)
    return [
        *(machine(number) for number in (1, 2, 3)),
        UserRecord(name="super", password_hash=secret, superuser=True),
        UserRecord(
            name="bob", password_hash=secret, vm_permissions={"web2": ("CHANGE_VM_POWER_STATE", "VIEW_VNC_CONSOLE")}
        ),
        UserRecord(name="eve", password_hash=secret),
    ]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNodes]:
    directory = tmp_path_factory.mktemp("cluster")
    made = ClusterNodes(directory, 3, simulate=True, records=records(), module="tests.node.deaf_daemon")
    with made:
        yield made


@pytest.fixture
def cluster(nodes: ClusterNodes) -> Iterator[ClusterNodes]:
    """All is well before each test, and after it."""
    whole(nodes)
    yield nodes
    for number, node in nodes.nodes.items():
        nodes.resume(number)
        nodes.heal(number)
        if not node.daemon_runs:
            node.start_daemon()


def until(condition: Callable[[], T], within: float) -> T:
    """The first true value of *condition*."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.05)
    return value


def statuses(cluster: ClusterNodes, number: int) -> dict[str, str]:
    return {node["name"]: node["status"] for node in cluster[number].json("info")}


def whole(cluster: ClusterNodes) -> None:
    for number in cluster.nodes:
        until(lambda number=number: set(statuses(cluster, number).values()) == {"Local", "Connected"}, 15)


def row(cluster: ClusterNodes, number: int, name: str) -> dict[str, Any]:
    return next(row for row in cluster[number].json("list") if row["name"] == name)


def run(cluster: ClusterNodes, name: str) -> None:
    """Have the machine running."""
    cluster[1].mcvirt("start", name, check=False)
    until(lambda: row(cluster, 1, name)["state"] == "RUNNING", 10)


def off(cluster: ClusterNodes, name: str) -> None:
    cluster[1].mcvirt("stop", name, check=False)
    until(lambda: row(cluster, 1, name)["state"] != "RUNNING", 10)


def as_user(cluster: ClusterNodes, number: int, user: str, expression: str) -> Any:
    """The value of *expression* of a `client` that *user* has logged in with; its error raised."""
    code = (
        "import json, msgspec\nfrom mcvirt.errors import McvirtError\nfrom mcvirt_client import Client\n"
        f"with Client.connect('localhost', {PORT}, username='{user}', password='{PASSWORD}',"
        f" ca_file='{cluster[number].run_dir}/ca.pem') as client:\n"
        f"    try: print(msgspec.json.encode({{'value': {expression}}}).decode())\n"
        "    except McvirtError as error: print(json.dumps({'error': error.to_wire()}, default=str))\n"
    )
    answer = json.loads(cluster[number].python(code).stdout)
    if "error" in answer:
        raise from_wire(answer["error"])
    return answer["value"]


def trail(cluster: ClusterNodes, number: int) -> list[dict[str, Any]]:
    """What is written down of virtual machines."""
    return [entry for entry in cluster[number].json("audit", "list") if entry["operation"].startswith("vm.")]


# --- they find each other, and know what the others do ----------------------------------------------------------------


def test_each_node_knows_the_others(cluster: ClusterNodes) -> None:
    for number in cluster.nodes:
        found = {node["name"]: node for node in cluster[number].json("info")}
        assert {name: node["address"] for name, node in found.items()} == {
            f"node{other}": cluster.address(other) for other in cluster.nodes
        }
        assert found[f"node{number}"]["status"] == "Local"
        assert all(node["memory"] > 0 and node["version"] and node["age"] is None for node in found.values())


def test_a_state_is_known_everywhere_in_a_moment(cluster: ClusterNodes) -> None:
    for name in ("web1", "web2", "web3"):
        run(cluster, name)
    for number in cluster.nodes:
        until(lambda number=number: {vm["state"] for vm in cluster[number].json("list")} == {"RUNNING"}, 1.5)
    cluster[2].mcvirt("stop", "web2")
    for number in cluster.nodes:
        until(lambda number=number: row(cluster, number, "web2")["state"] == "STOPPED", 1.5)
        assert row(cluster, number, "web2")["age"] is None


# --- calls are handed on ----------------------------------------------------------------------------------------------


def test_a_user_starts_a_machine_of_another_node(cluster: ClusterNodes) -> None:
    off(cluster, "web2")
    as_user(cluster, 1, "bob", "client.vms.start('web2')")
    assert row(cluster, 2, "web2")["state"] == "RUNNING"
    here, there = trail(cluster, 1)[-1], trail(cluster, 2)[-1]
    for entry in (here, there):
        assert (entry["user"], entry["operation"], entry["target"]) == ("bob", "vm.start", "web2")
    assert (here["result"], there["result"]) == ("ok", "ok")
    assert "handed on as task" in here["detail"] and here["reference"].endswith("@node2")
    assert there["reference"] == here["reference"].removesuffix("@node2")
    assert there["address"] == "127.0.0.1 through node1"


def test_a_user_without_the_right_is_refused(cluster: ClusterNodes) -> None:
    with pytest.raises(NotPermitted):
        as_user(cluster, 1, "eve", "client.vms.start('web2')")
    with pytest.raises(NotPermitted):
        as_user(cluster, 1, "bob", "client.vms.start('web3')")
    assert [entry["result"] for entry in trail(cluster, 1)[-2:]] == ["NotPermitted", "NotPermitted"]


def test_information_comes_from_the_node_of_the_machine(cluster: ClusterNodes) -> None:
    run(cluster, "web2")
    info = cluster[1].json("info", "web2")
    assert (info["state"], info["node"]) == ("RUNNING", "node2")
    assert info["usage"]["memory"] == 64 << 20  # only the hypervisor of node2 can tell


def test_a_task_elsewhere_is_followed_listed_and_cancelled_from_any_node(cluster: ClusterNodes) -> None:
    run(cluster, "web2")
    task = as_user(cluster, 1, "bob", "client.start_only(client.vms.shutdown, 'web2', wait=300).task")
    assert task.endswith("@node2")
    for number in (1, 3):
        assert task in [each["id"] for each in cluster[number].json("task", "list", "--running")]
    assert task.removesuffix("@node2") in [each["id"] for each in cluster[2].json("task", "list", "--running")]
    assert task in [each["id"] for each in as_user(cluster, 3, "bob", "client.tasks.list()")]
    assert as_user(cluster, 3, "eve", "client.tasks.list()") == []
    with pytest.raises(McvirtError, match="no task"):
        as_user(cluster, 3, "eve", f"client.tasks.cancel('{task}')")
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(cluster[1].mcvirt, "task", "watch", task, check=False)
        cluster[3].mcvirt("task", "cancel", task)
        assert "cancelled by root" in watching.result(30).stderr
    assert cluster[2].mcvirt("task", "watch", task, check=False).returncode == 1


# --- who is let in ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_node1(nodes: ClusterNodes) -> Iterator[Network]:
    transport.configure()
    network = Network(nodes[1])
    yield network
    network.close()


def connection(
    cluster: ClusterNodes, directory: Path, credentials: dict[str, str], to: int = 2
) -> transport.Connection:
    """One from node1 to another node that shows the certificate in *directory*, of node1's CA."""
    trusted = cluster[1].state_dir / pki.DIRECTORY
    directory.mkdir(exist_ok=True, mode=0o700)
    if directory != trusted:
        for name in ("ca.key", "ca.pem"):
            (directory / name).write_bytes((trusted / name).read_bytes())
            (directory / name).chmod(0o600)
    if directory == trusted:
        identity = pki.ensure(directory, "node1", [cluster.address(1)])
    else:
        identity = pki.ensure(directory, "node9", [cluster.address(1)])
    return transport.Connection(cluster.address(to), PORT, tls.peer_context(identity), credentials)


def called(wire: transport.Connection, object_id: str, method: str, /, **arguments: Any) -> Any:
    reply = json.loads(wire.call(object_id, method, arguments))
    if reply.get("error"):
        raise from_wire(reply["error"])
    return reply["ok"]


def test_a_member_may_only_do_what_is_for_members(cluster: ClusterNodes, on_node1: Network) -> None:
    wire = connection(cluster, cluster[1].state_dir / pki.DIRECTORY, {"peer": "node1"})
    assert on_node1.run(called, wire, "peer", "tasks", user="root", root=True) is not None
    for operation in ("vm.list", "node.list", "user.list"):
        with pytest.raises(NotAuthenticated):
            on_node1.run(called, wire, *operation.split("."))
    wire.close()


def test_what_a_member_hands_on_is_checked_again(cluster: ClusterNodes, on_node1: Network) -> None:
    wire = connection(cluster, cluster[1].state_dir / pki.DIRECTORY, {"peer": "node1"})

    def forward(operation: str, caller: str, /, **arguments: Any) -> None:
        what = {"operation": operation, "arguments": arguments, "user": caller, "address": "192.0.2.1"}
        answer = on_node1.run(called, wire, "peer", "forward", **what)
        if answer.get("error"):
            raise from_wire(answer["error"])

    with pytest.raises(NotPermitted):
        forward("vm.start", "eve", name="web2")
    with pytest.raises(NotAuthenticated, match="no user"):
        forward("vm.start", "nobody-of-that-name", name="web2")
    with pytest.raises(McvirtError, match="handed on"):
        forward("auth.login", "bob", user="bob", password=PASSWORD)
    with pytest.raises(McvirtError, match="handed on"):
        forward("peer.tasks", "super", user="super")
    with pytest.raises(McvirtError, match="Try again"):  # and is not handed on for ever
        forward("vm.start", "super", name="web3")
    entry = trail(cluster, 2)[-1]
    assert (entry["user"], entry["address"]) == ("super", "192.0.2.1 through node1")
    wire.close()


def test_who_is_no_member_is_not_let_in(cluster: ClusterNodes, on_node1: Network, tmp_path: Path) -> None:
    own = cluster[1].state_dir / pki.DIRECTORY
    for directory, name in (
        (tmp_path / "foreign", "node9"),  # certified by the CA, and in no record
        (tmp_path / "foreign", "node1"),  # a member's name with another key
        (own, "node3"),  # a member that says it is another one
        (own, "node2"),  # or the node itself
    ):
        wire = connection(cluster, directory, {"peer": name})
        with pytest.raises(NotAuthenticated, match="member"):
            on_node1.run(called, wire, "peer", "tasks", user="root", root=True)
    context = transport.client_context((own / "ca.pem").read_text())
    bare = transport.Connection(cluster.address(2), PORT, context, {"peer": "node1"})
    with pytest.raises(NotAuthenticated, match="certificate"):
        on_node1.run(called, bare, "peer", "tasks", user="root", root=True)


def test_not_even_root_may_do_what_is_for_members(cluster: ClusterNodes, on_node1: Network) -> None:
    own = cluster[1].state_dir / pki.DIRECTORY
    token = (cluster[1].run_dir / "root.token").read_text().strip()
    context = transport.client_context((own / "ca.pem").read_text())
    wire = transport.Connection("localhost", PORT, context, {"token": token})
    assert on_node1.run(called, wire, "vm", "names")
    for operation, arguments in (
        ("tasks", {"user": "root", "root": True}),
        ("replicate", {"message": {"kind": "status"}}),
        ("forward", {"operation": "vm.start", "arguments": {"name": "web1"}, "user": "root"}),
    ):
        with pytest.raises(NotAuthenticated, match="Only another node"):
            on_node1.run(called, wire, "peer", operation, **arguments)
    wire.close()


def test_a_node_in_anothers_place_is_not_spoken_to(cluster: ClusterNodes, on_node1: Network) -> None:
    from mcvirtd.cluster.members import Members
    from mcvirtd.state.store import Store

    own = cluster[1].state_dir / pki.DIRECTORY
    store = Store(own.parent.parent / "other.db")
    with store.change() as change:
        change.put(NodeRecord(name="node2", id="x", address=cluster.address(2), fingerprint="0" * 64))
    members = Members(store, "node1")
    identity = pki.ensure(own, "node1", [cluster.address(1)])
    wire = transport.Connection(
        cluster.address(2),
        PORT,
        tls.peer_context(identity),
        {"peer": "node1"},
        verify=lambda certificate: members.verify("node2", certificate),
    )
    with pytest.raises(NodeUnreachable, match="another key"):
        on_node1.run(called, wire, "peer", "tasks", user="root", root=True)
    store.close()


# --- a node is away ---------------------------------------------------------------------------------------------------


def notice(cluster: ClusterNodes, asker: int, name: str) -> None:
    """*asker* says that *name* is unreachable; how soon, and how quick `list` and `info` are, `make bench` measures."""
    until(lambda: statuses(cluster, asker)[name] == "Unreachable", NOTICED_WITHIN)
    cluster[asker].json("list")


def _of(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row["name"] == name)


@pytest.mark.parametrize("how", ["cut", "pause"])
def test_a_silent_node_is_noticed_and_holds_nobody_up(cluster: ClusterNodes, how: str) -> None:
    for name in ("web1", "web2", "web3"):
        run(cluster, name)
    getattr(cluster, how)(3)
    notice(cluster, 1, "node3")
    notice(cluster, 2, "node3")
    lost = row(cluster, 1, "web3")
    assert lost["state"] == PowerState.RUNNING.value and lost["age"] is not None
    until(lambda: row(cluster, 1, "web3")["age"] >= 2, 10)
    assert row(cluster, 1, "web2")["age"] is None
    cluster[1].mcvirt("stop", "web2")
    cluster[1].mcvirt("start", "web2")
    cluster[2].mcvirt("task", "list")
    refused = cluster[1].mcvirt("stop", "web3", check=False)
    assert (refused.returncode, "node3" in refused.stderr) == (5, True)
    known = cluster[1].json("info", "web3")
    assert (known["state"], known["usage"]) == ("RUNNING", None)
    assert any("does not answer" in warning for warning in known["warnings"])
    cluster.heal(3)
    cluster.resume(3)
    until(lambda: statuses(cluster, 1)["node3"] == "Connected", 10)
    assert row(cluster, 1, "web3")["age"] is None


def test_who_waits_for_a_node_that_goes_silent_is_told(cluster: ClusterNodes) -> None:
    run(cluster, "web3")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cluster[1].mcvirt, "shutdown", "web3", "--wait", "--timeout", "300", check=False)
        until(lambda: cluster[1].json("task", "list", "--running"), 10)
        cluster.cut(3)
        result = waiting.result(30)  # far less than the 300 s of the command
        assert (result.returncode, "node3" in result.stderr) == (5, True)
    cluster.heal(3)
    whole(cluster)
    for task in cluster[1].json("task", "list", "--running"):
        cluster[1].mcvirt("task", "cancel", task["id"])


def test_a_daemon_that_ends_is_noticed_at_once_and_found_again(cluster: ClusterNodes) -> None:
    run(cluster, "web2")
    cluster[2].kill_daemon()
    until(lambda: statuses(cluster, 1)["node2"] == "Unreachable", 10)
    assert row(cluster, 1, "web2")["age"] is not None
    cluster[2].start_daemon()
    until(lambda: statuses(cluster, 1)["node2"] == "Connected", 10)
    # Its simulated domains are gone with it: another life, of which nothing old is kept.
    until(lambda: row(cluster, 1, "web2")["missing"], 10)
    assert row(cluster, 1, "web2")["state"] == "UNKNOWN"


def test_a_node_that_starts_while_another_is_away_knows_its_machines_from_the_records(cluster: ClusterNodes) -> None:
    cluster.cut(3)
    cluster[1].stop_daemon()
    cluster[1].start_daemon()
    assert row(cluster, 1, "web3")["state"] == "UNKNOWN"
    info = cluster[1].json("info", "web3")
    assert (info["node"], info["state"]) == ("node3", "UNKNOWN")
    node = _of(cluster[1].json("info"), "node3")
    assert (node["status"], node["age"], node["memory"]) == ("Unreachable", None, 0)


def test_what_is_done_without_a_node_says_so_and_reaches_it_later(cluster: ClusterNodes) -> None:
    cluster.cut(3)
    until(lambda: statuses(cluster, 1)["node3"] == "Unreachable", 10)
    for command in (("lock", "web2", "--lock"), ("lock", "web2", "--unlock")):
        done = cluster[2].mcvirt(*command, check=False)
        assert (done.returncode, "node3" in done.stderr) == (6, True), done.stderr
    cluster[1].mcvirt("lock", "web1", "--lock", check=False)
    cluster.heal(3)
    until(lambda: row(cluster, 3, "web1")["locked"], 15)
    until(lambda: cluster[1].mcvirt("lock", "web1", "--unlock", check=False).returncode in (0, 6), 10)
