"""Machines that move between two nodes, each with a libvirt of its own, while their guests count."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node import tinyguest
from tests.node.cluster_fixture import PORT, ClusterNodes
from tests.node.mcvirt_node import BRIDGE, VOLUMES, McvirtNode
from tests.node.witness import until

SHARED = "/var/lib/libvirt/shared"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces and libvirtd")


def connected(cluster: ClusterNodes, *nodes: McvirtNode) -> bool:
    """Whether each node, or each of *nodes*, reaches the others."""
    return all(row["status"] != "Unreachable" for node in nodes or cluster for row in node.json("info"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, capabilities: Path) -> Iterator[ClusterNodes]:
    directory = tmp_path_factory.mktemp("migration")
    with ClusterNodes(directory, 2, capabilities=capabilities) as made:
        (made.directory / "shared").mkdir()
        for node in made:
            node.host.path(SHARED).mkdir()
            node.host.run(["mount", "--bind", str(made.directory / "shared"), SHARED])
        until(lambda: connected(made), "both nodes connected")
        made[1].mcvirt("network", "create", "lan", "--interface", BRIDGE)
        each = [word for name in ("node1", "node2") for word in ("--node", name, VOLUMES)]
        made[1].mcvirt("storage", "create", "own", "--type", "File", *each)
        shared = ["--type", "File", "--shared", "--path", SHARED]
        made[1].mcvirt("storage", "create", "common", *shared, "--node", "node1", "--node", "node2")
        yield made


def volume(cluster: ClusterNodes, name: str, on: int) -> Path:
    """The file of the machine's disk, as node *on* would have it."""
    (disk,) = [each for each in cluster[1].json("hard-drive", "list") if each["vm"] == name]
    place = cluster.directory / "shared" if disk["backend"] == "common" else cluster[on].volumes
    return place / str(disk["volume"])


def create(cluster: ClusterNodes, name: str, backend: str, on: int = 1) -> None:
    cluster[on].mcvirt(
        *("create", name, "--memory", "64", "--cpu-count", "1", "--machine", "pc", "--disk-size", "4MiB"),
        *("--storage-backend", backend, "--network", "lan"),
    )
    tinyguest.install(volume(cluster, name, on), 4 * 2**20)


def domains(node: McvirtNode) -> dict[str, str]:
    """Name -> state of every domain of the node's libvirt."""
    rows = [line.split(None, 2) for line in node.virsh("list", "--all").splitlines()[2:]]
    return {row[1]: row[2].strip() for row in rows if row}


def counts(file: Path) -> tuple[int, int]:
    """How often the guest has booted, and its dots, once there is another one."""
    before = tinyguest.progress(file)
    until(lambda: tinyguest.progress(file) not in (None, before), "another dot", within=20)
    found = tinyguest.progress(file)
    assert found is not None
    return found


def migrate(cluster: ClusterNodes, on: int, *argv: str) -> str:
    return cluster[on].mcvirt("migrate", *argv).stderr


def refused(cluster: ClusterNodes, on: int, *argv: str, status: int = 3) -> str:
    result = cluster[on].mcvirt("migrate", *argv, check=False)
    assert result.returncode == status, f"status {result.returncode}: {result.stdout}{result.stderr}"
    return result.stderr


def go(cluster: ClusterNodes, on: int, name: str, *argv: str) -> str:
    """Begin a migration, and give its task."""
    return cluster[on].mcvirt("migrate", name, *argv, "--no-wait").stdout.strip()


def end(cluster: ClusterNodes, name: str, on: int) -> None:
    cluster[on].mcvirt("stop", name, check=False)
    cluster[on].mcvirt("delete", name)
    assert not [path for node in cluster for path in node.volumes.iterdir() if path.name.startswith("mcvirt-")]
    for node in cluster:
        assert domains(node) == {}
        assert not list(node.host.path("/run/libvirt").glob("mcvirt/*"))
        assert not [task for task in node.json("task", "list") if task["state"] in ("RUNNING", "STUCK")]


def whole(file: Path) -> None:
    found = tinyguest.written(file.read_bytes()[: tinyguest.LENGTH])
    assert found is not None and found.whole, found


def test_online_with_its_disk(cluster: ClusterNodes) -> None:
    create(cluster, "web1", "own")
    assert "--copy-storage" in refused(cluster, 1, "web1", "--node", "node2", "--online")
    cluster[2].mcvirt("start", "web1")
    boots, dots = counts(volume(cluster, "web1", 1))
    plan = cluster[2].json("migrate", "web1", "--node", "node2", "--online", "--copy-storage", "--dry-run")
    assert all(check["ok"] for check in plan["checks"]) and plan["size"] == 68 * 2**20
    with Wire(cluster) as wire:
        said = migrate(cluster, 2, "web1", "--node", "node2", "--online", "--copy-storage")
    assert "Successfully migrated 'web1' to node2" in said and "stood still for" in said
    assert domains(cluster[1]) == {} and domains(cluster[2]) == {"web1": "running"}
    assert not volume(cluster, "web1", 1).exists()
    after = counts(volume(cluster, "web1", 2))
    assert after[0] == boots and after[1] > dots
    whole(volume(cluster, "web1", 2))
    info = cluster[1].json("info", "web1")
    assert (info["node"], info["nodes"], info["state"]) == ("node2", ["node2"], "RUNNING")
    assert info["last_migration"]["downtime"] is not None and info["last_migration"]["by"] == "root"
    # All of it went over mcvirtd's own port, and the guest's code and its records are not to be read there.
    assert wire.ports <= {PORT} and wire.seen > 2**20
    assert tinyguest.SECTOR[:48] not in wire.data and b"TINY" not in wire.data
    migrate(cluster, 1, "web1", "--node", "node1", "--online", "--copy-storage")
    assert counts(volume(cluster, "web1", 1))[1] > after[1]
    end(cluster, "web1", 2)


def test_online_on_shared_storage_and_when_off(cluster: ClusterNodes) -> None:
    create(cluster, "web2", "common")
    file = volume(cluster, "web2", 1)
    cluster[1].mcvirt("start", "web2")
    boots, dots = counts(file)
    said = refused(cluster, 1, "web2", "--node", "node2")
    assert "is running" in said
    migrate(cluster, 1, "web2", "--node", "node2", "--online", "--max-downtime", "500", "--bandwidth", "200MiB")
    after = counts(file)
    assert after[0] == boots and after[1] > dots and domains(cluster[1]) == {}
    whole(file)
    cluster[1].mcvirt("stop", "web2")
    assert "is not running" in refused(cluster, 1, "web2", "--node", "node1", "--online")
    assert migrate(cluster, 2, "web2", "--node", "node1") == "Successfully migrated 'web2' to node1\n"
    assert domains(cluster[1]) == {"web2": "shut off"} and domains(cluster[2]) == {}
    migrate(cluster, 2, "web2", "--node", "node2", "--start-after-migration")
    assert domains(cluster[1]) == {} and domains(cluster[2]) == {"web2": "running"}
    assert counts(file)[0] == boots + 1
    end(cluster, "web2", 1)


def test_waiting_for_the_shutdown(cluster: ClusterNodes) -> None:
    create(cluster, "web3", "common")
    cluster[1].mcvirt("start", "web3")
    counts(volume(cluster, "web3", 1))
    wanted = ("--node", "node2", "--wait-for-shutdown", "--start-after-migration")
    task = go(cluster, 2, "web3", *wanted)
    until(lambda: cluster[2].json("info", "web3")["waiting"], "the waiting is written down")
    assert "waits already" in refused(cluster, 1, "web3", *wanted)
    cluster[1].mcvirt("reset", "web3")  # nothing is held
    cluster[2].mcvirt("task", "cancel", task)
    until(lambda: not cluster[2].json("info", "web3")["waiting"], "the waiting ends")
    go(cluster, 1, "web3", *wanted)
    until(lambda: cluster[1].json("info", "web3")["waiting"], "the waiting is written down")
    cluster[1].stop_daemon()
    cluster[1].start_daemon()
    assert cluster[1].json("info", "web3")["waiting"]["node"] == "node2"
    until(lambda: any(t["state"] == "RUNNING" for t in cluster[1].json("task", "list")), "it is waited again")
    cluster[1].mcvirt("shutdown", "web3")
    until(lambda: domains(cluster[2]) == {"web3": "running"}, "the machine starts on node2")
    until(lambda: cluster[1].json("info", "web3")["state"] == "RUNNING", "it is seen")
    assert domains(cluster[1]) == {}
    end(cluster, "web3", 1)


def test_all_reasons_are_told_together(cluster: ClusterNodes) -> None:
    create(cluster, "web4", "own")
    only = ["link", "add", "only1", "type", "bridge"]
    cluster[1].host.run(["ip", *only])
    cluster[2].host.run(["ip", *only])
    cluster[1].mcvirt("network", "create", "dmz", "--interface", "only1")
    cluster[2].host.run(["ip", "link", "delete", "only1"])
    cluster[1].mcvirt("update", "web4", "--add-network", "dmz")
    cluster[1].mcvirt("lock", "web4", "--lock")
    said = refused(cluster, 2, "web4", "--node", "node2", "--online", "--copy-storage")
    assert all(word in said for word in ("is locked", "is not running", "only1")), said
    result = cluster[1].mcvirt("migrate", "web4", "--node", "node2", "--dry-run", check=False)
    assert result.returncode == 3 and "FAILED" in result.stdout and "only while the guest runs" in result.stdout
    cluster[1].mcvirt("lock", "web4", "--unlock")
    assert "already" in refused(cluster, 1, "web4", "--node", "node1")
    assert "no node" in refused(cluster, 1, "web4", "--node", "node9")
    for words in (("--wait-for-shutdown",), ("--start-after-migration",), ("--deadline", "0")):
        assert "--online" in refused(cluster, 1, "web4", "--node", "node2", "--online", *words, status=2) or words[1:]
    refused(cluster, 1, "web4", "--node", "node2", "--deadline", "9", status=2)
    cluster[2].host.stop_libvirtd()
    cluster[1].mcvirt("start", "web4", check=False)
    said = refused(cluster, 1, "web4", "--node", "node2", "--online", "--copy-storage")
    assert "Is libvirtd running?" in said
    cluster[2].host.start_libvirtd()
    cluster[1].mcvirt("stop", "web4", check=False)
    end(cluster, "web4", 1)
    cluster[1].mcvirt("network", "delete", "dmz")


def slow(cluster: ClusterNodes, name: str) -> str:
    """Begin a migration that takes longer than any test waits, and give its task once it sends."""
    until(lambda: at_rest(cluster), "the nodes know each other, and nothing is left to be settled")
    task = go(cluster, 1, name, "--node", "node2", "--online", "--copy-storage", "--bandwidth", "1MiB")
    until(lambda: sends(cluster, name) or cluster[1].json("task", "list")[-1]["state"] != "RUNNING", "it sends")
    now = cluster[1].json("task", "list")[-1]
    assert now["state"] == "RUNNING", cluster[1].mcvirt("task", "watch", task, check=False).stderr
    return task


def at_rest(cluster: ClusterNodes) -> bool:
    """Whether the nodes reach each other both ways, and no task goes on or is due."""
    statuses = {row["status"] for node in cluster for row in node.json("info")}
    live = [task for node in cluster for task in node.json("task", "list") if task["state"] in ("RUNNING", "STUCK")]
    return statuses == {"Local", "Connected"} and not live


def sends(cluster: ClusterNodes, name: str, source: McvirtNode | None = None) -> bool:
    """Whether some of its memory or its disks has been sent, by node1 if not by *source*."""
    found = re.search(r"Data processed:\s+([0-9.]+)", (source or cluster[1]).virsh("domjobinfo", name, check=False))
    return found is not None and float(found[1]) > 0


def as_before(cluster: ClusterNodes, name: str) -> None:
    until(lambda: domains(cluster[2]) == {}, "no domain is left on node2")
    until(lambda: not volume(cluster, name, 2).exists(), "no volume is left on node2")
    assert domains(cluster[1]) == {name: "running"}
    counts(volume(cluster, name, 1))
    whole(volume(cluster, name, 1))
    assert cluster[2].json("info", name)["node"] == "node1"


def test_broken_off(cluster: ClusterNodes) -> None:
    create(cluster, "web5", "own")
    cluster[1].mcvirt("start", "web5")
    counts(volume(cluster, "web5", 1))
    words = ("web5", "--node", "node2", "--online", "--copy-storage", "--bandwidth", "1MiB", "--deadline", "2")
    assert "within 2 s" in refused(cluster, 1, *words, status=1)
    as_before(cluster, "web5")
    task = slow(cluster, "web5")
    cluster[2].mcvirt("task", "cancel", f"{task}@node1" if "@" not in task else task)
    until(lambda: cluster[1].json("task", "list")[-1]["state"] == "CANCELLED", "it is cancelled")
    as_before(cluster, "web5")
    slow(cluster, "web5")
    cluster[2].kill_daemon()
    until(lambda: cluster[1].json("task", "list")[-1]["state"] in ("FAILED", "STUCK"), "it has failed")
    cluster[2].start_daemon()
    as_before(cluster, "web5")
    until(lambda: not [t for t in cluster[1].json("task", "list") if t["state"] in ("RUNNING", "STUCK")], "settled")
    slow(cluster, "web5")
    cluster[1].kill_daemon()
    cluster[1].start_daemon()
    as_before(cluster, "web5")
    slow(cluster, "web5")
    cluster.cut(2)
    until(lambda: cluster[1].json("task", "list")[-1]["state"] in ("FAILED", "STUCK"), "it has failed")
    assert domains(cluster[1]) == {"web5": "running"}
    cluster.heal(2)
    as_before(cluster, "web5")
    slow(cluster, "web5")
    cluster[2].host.kill_libvirtd()
    until(lambda: cluster[1].json("task", "list")[-1]["state"] in ("FAILED", "STUCK"), "it has failed")
    cluster[2].host.start_libvirtd()
    as_before(cluster, "web5")
    until(lambda: not [t for t in cluster[1].json("task", "list") if t["state"] in ("RUNNING", "STUCK")], "settled")
    end(cluster, "web5", 1)


class Wire:
    """What passes between the nodes, from a raw socket on node1."""

    _CODE = """
import socket, sys, threading
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
s.bind(("eth0", 0))
s.setsockopt(socket.SOL_SOCKET, 33, 256 * 2**20)
out = open(sys.argv[1], "wb")
print("listening", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), s.settimeout(0.01)), daemon=True).start()
s.settimeout(0.2)
import select
while True:
    if select.select([s, sys.stdin], [], [], 0.1)[0] == [sys.stdin]:
        break
    try:
        frame = s.recv(70000)
    except OSError:
        continue
    out.write(len(frame).to_bytes(4, "big") + frame)
out.close()
"""

    def __init__(self, cluster: ClusterNodes) -> None:
        self._node = cluster[1]
        self._file = cluster.directory / "wire"
        self.data = b""
        self.ports: set[int] = set()
        self.seen = 0

    def __enter__(self) -> Wire:
        argv = [sys.executable, "-c", self._CODE, str(self._file)]
        self._process = self._node.host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None and self._process.stdout.readline() == b"listening\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)
        data = self._file.read_bytes()
        while data:
            size = int.from_bytes(data[:4], "big")
            frame, data = data[4 : 4 + size], data[4 + size :]
            self._note(frame)

    def _note(self, frame: bytes) -> None:
        if frame[12:14] != b"\x08\x00" or frame[23] != 6:
            return
        tcp = frame[14 + (frame[14] & 15) * 4 :]
        source, target = int.from_bytes(tcp[:2], "big"), int.from_bytes(tcp[2:4], "big")
        self.ports.add(min(source, target))
        payload = tcp[(tcp[12] >> 4) * 4 :]
        self.seen += len(payload)
        self.data += payload


def test_guest_that_changes_its_memory_faster_than_it_can_be_sent(cluster: ClusterNodes) -> None:
    """It stays where it is when the deadline has passed, and goes as soon as it may stand still for longer."""
    create(cluster, "web9", "common")
    file = volume(cluster, "web9", 1)
    tinyguest.install(file, 4 * 2**20, greedy=True)
    cluster[1].mcvirt("start", "web9")
    boots, dots = counts(file)
    tight = ("web9", "--node", "node2", "--online", "--bandwidth", "1MiB", "--max-downtime", "1", "--deadline", "12")
    task = go(cluster, 1, *tight)
    # All of it has been sent, and what was changed meanwhile, again and again.
    until(lambda: rounds(cluster, "web9") >= 6, "it is sent over and over", within=20)
    until(lambda: cluster[1].json("task", "list")[-1]["state"] == "FAILED", "it has failed", within=40)
    said = cluster[1].mcvirt("task", "watch", task, check=False).stderr
    assert "within 12 s" in said and "may change its memory faster" in said and "on node 'node1' as before" in said
    until(lambda: domains(cluster[2]) == {}, "no domain is left on node2")
    assert domains(cluster[1]) == {"web9": "running"}
    after = counts(file)
    assert after[0] == boots and after[1] > dots
    whole(file)
    migrate(cluster, 1, "web9", "--node", "node2", "--online", "--max-downtime", "2000")
    assert counts(file)[0] == boots and domains(cluster[1]) == {}
    whole(file)
    end(cluster, "web9", 2)


def rounds(cluster: ClusterNodes, name: str) -> int:
    """How often its memory has been gone through."""
    found = re.search(r"Iteration:\s+([0-9]+)", cluster[1].virsh("domjobinfo", name, check=False))
    return int(found[1]) if found is not None else 0


def test_other_libvirtd_dies_while_it_prepares(cluster: ClusterNodes) -> None:
    """Its QEMU is there and waits: nothing of it is left soon after libvirtd is back, at once or after a while."""
    create(cluster, "web6", "own")
    cluster[1].mcvirt("start", "web6")
    counts(volume(cluster, "web6", 1))
    for at_once in (True, False):
        go(cluster, 1, "web6", "--node", "node2", "--online", "--copy-storage", "--bandwidth", "1MiB")
        until(lambda: emulators(cluster[2], "web6"), "node2 prepares")
        cluster[2].host.kill_libvirtd()
        if not at_once:
            until(lambda: cluster[1].json("task", "list")[-1]["state"] in ("FAILED", "STUCK"), "it has failed")
        cluster[2].host.start_libvirtd()
        until(lambda: at_rest(cluster), "it is settled")
        as_before(cluster, "web6")
        assert emulators(cluster[2], "web6") == []
    migrate(cluster, 1, "web6", "--node", "node2", "--online", "--copy-storage")
    end(cluster, "web6", 2)


def emulators(node: McvirtNode, name: str) -> list[int]:
    """The QEMU processes of that machine on the node."""
    space = Path(f"/proc/{node.host.pid}/ns/pid").readlink()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if f"guest={name},".encode() in command and (entry / "ns/pid").readlink() == space:
                found.append(int(entry.name))
    return found


def test_machine_that_starts_by_itself_does_when_it_is_settled(cluster: ClusterNodes) -> None:
    """Its node died as it was sent, and is back before the other one can be asked whether it has come there."""
    create(cluster, "web7", "own")
    cluster[1].mcvirt("update", "web7", "--autostart-on-boot")
    cluster[1].mcvirt("start", "web7")
    assert counts(volume(cluster, "web7", 1))[0] == 1
    slow(cluster, "web7")
    cluster.cut(2)
    cluster[1].kill_daemon()
    # As the end of the node would. (libvirtd 9.0 itself now and then dies of the end of a guest that it is sending.)
    cluster[1].host.kill_libvirtd()
    for process in emulators(cluster[1], "web7"):
        os.kill(process, signal.SIGKILL)
    until(lambda: not emulators(cluster[1], "web7"), "its QEMU has ended")
    cluster[1].host.start_libvirtd()
    cluster[1].start_daemon()
    until(lambda: "not started until it is settled" in cluster[1].log_tail(4000), "it is not started")
    assert domains(cluster[1]) == {"web7": "shut off"}
    assert "is not settled yet" in cluster[1].mcvirt("start", "web7", check=False).stderr
    cluster.heal(2)
    until(lambda: domains(cluster[1]) == {"web7": "running"}, "it is started", within=90)
    until(lambda: tinyguest.progress(volume(cluster, "web7", 1)) not in (None, (1, 0)), "it counts")
    until(lambda: counts(volume(cluster, "web7", 1))[0] == 2, "it has booted once more")
    until(lambda: at_rest(cluster), "all is settled")
    end(cluster, "web7", 1)
