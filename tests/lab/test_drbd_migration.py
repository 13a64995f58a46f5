"""Machines on replicated disks that move between two real nodes, while their guests write and count.

MCVIRT_LAB_MIGRATIONS is how often the guest goes from one node to the other, 6 times if it is not set.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import Any

import pytest

from tests.lab.cluster import Cluster
from tests.lab.node import Node

MIGRATIONS = int(os.environ.get("MCVIRT_LAB_MIGRATIONS", "6"))
REFUSED = 3
CLOSED_WITHIN = 10.0


@pytest.fixture
def drbd(cluster: Cluster) -> Cluster:
    """Two joined nodes that can replicate, with the storage backend vg on both."""
    cluster[1].mcvirt("drbd", "enable", within=120)
    cluster[1].mcvirt(
        *("storage", "create", "vg", "--type", "Lvm", "--volume-group-name", "vg0"),
        *("--node", "node1", "--node", "node2"),
    )
    return cluster


class Guest:
    """Machine web1 with one replicated disk, and the guest that writes numbered records on it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        first = cluster[1]
        first.mcvirt(
            *("create", "web1", "--memory", "64", "--cpu-count", "1", "--machine", "pc", "--disk-size", "16MiB"),
            *("--storage-type", "Drbd", "--storage-backend", "vg"),
            within=120,
        )
        (found,) = first.json("hard-drive", "list")
        self.disk: str = found["id"]
        self.resource = f"mcvirt-{self.disk}"
        self.device = first.succeed(f"drbdadm sh-dev {self.resource}").strip()
        self.volume = f"/dev/vg0/{found['volume']}-drbd-raw"
        first.succeed(f"drbdadm primary {self.resource}")
        first.install_guest(self.device)
        first.succeed(f"drbdadm secondary {self.resource}")

    def counts(self, node: Node, *, boots: int, beyond: int = 0) -> int:
        """Its ticks, once it has ticked on; nothing that it wrote on any side is lost or torn."""
        ticks = node.wait_for_guest(self.device, boots=boots, beyond=beyond, within=60)
        found = node.written(self.device)
        assert found.whole, found
        return ticks

    def running(self) -> list[bool]:
        """On which of the nodes it runs, as their libvirts say."""
        return ["running" in node.run("virsh -q domstate web1").stdout for node in self.cluster.nodes]

    def roles(self) -> list[str]:
        return [node.drbd()[self.resource]["resource"]["role"] for node in self.cluster.nodes]

    def windows(self) -> list[bool]:
        """On which of the nodes two Primaries are allowed, as the kernel says."""
        return ["allow-two-primaries yes" in " ".join(self._shown(node).split()) for node in self.cluster.nodes]

    def _shown(self, node: Node) -> str:
        return node.succeed(f"drbdsetup show {self.resource}")

    def good(self) -> bool:
        """Whether both kernels have all data on both sides, and nothing goes on."""
        return all(
            facts["connection"]["connection"] == "Connected"
            and facts["device"]["disk"] == facts["peer-device"]["peer-disk"] == "UpToDate"
            and facts["peer-device"]["replication"] == "Established"
            for node in self.cluster.nodes
            for facts in [node.drbd()[self.resource]]
        )

    def settled(self, *, on: int, within: float = 120.0) -> None:
        """Return when it runs on that node alone, which alone is Primary, all is good and nothing is due any more."""
        first = self.cluster[1]
        want = [number == on for number in (1, 2)]
        roles = ["Primary" if number == on else "Secondary" for number in (1, 2)]
        first.wait_until(lambda: self.running() == want, within=within, what=f"it runs on node{on} alone")
        first.wait_until(lambda: self.roles() == roles, within=within, what=f"node{on} alone is Primary")
        first.wait_until(self.good, within=within, what="both sides are good")
        first.wait_until(lambda: self.windows() == [False, False], within=CLOSED_WITHIN, what="no window is open")
        for node in self.cluster.nodes:
            node.wait_until(lambda node=node: not due(node), within=within, what="nothing is due")  # type: ignore[misc]
            assert node.json("info", "web1")["node"] == f"node{on}"
        assert self.sums_are_equal_below()

    def sums_are_equal_below(self) -> bool:
        """Whether each record is the same on both sides, below DRBD: what is written just now may be under way."""
        one, other = (node.written(self.volume) for node in self.cluster.nodes)
        return one.whole and other.whole and one.boots == other.boots


def due(node: Node) -> list[dict[str, Any]]:
    """Tasks that have not ended; none of a node whose daemon does not answer just now is known."""
    done = node.run("mcvirt task list --json")
    return [{}] if done.returncode else [t for t in json.loads(done.stdout) if t["state"] in LIVE]


LIVE = ("RUNNING", "STUCK")


class Events:
    """What DRBD's kernel modules tell on both nodes from now on."""

    _FILE = "/run/events-of-the-test"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        for node in cluster.nodes:
            node.succeed(f"systemd-run --quiet --collect --unit=test-events sh -c 'drbdsetup events2 > {self._FILE}'")
            node.wait_until(f"grep -q 'exists -' {self._FILE}")

    def other_than_connected(self) -> list[str]:
        """The events of connections that were, for a moment at least, something else."""
        said = [line for node in self._cluster.nodes for line in node.succeed(f"cat {self._FILE}").splitlines()]
        assert any(" resource " in line and "role:Primary" in line for line in said), "nothing was recorded"
        return [
            line
            for line in said
            if " connection " in line and "connection:" in line and "connection:Connected" not in line
        ]

    def end(self) -> None:
        for node in self._cluster.nodes:
            node.run("systemctl stop test-events")


def refused(node: Node, *words: str) -> str:
    done = node.run("mcvirt migrate web1 " + " ".join(words), within=120)
    assert done.returncode == REFUSED, done
    return done.stderr


def timed(node: Node, command: str) -> float:
    """How many seconds a command takes, by the node's clock; it must succeed."""
    said = node.succeed(f"begun=$(date +%s%N); {{ {command}; }} >&2 && echo $(($(date +%s%N) - begun))", within=180)
    return int(said.split()[-1]) / 1e9


def test_back_and_forth_under_writes(drbd: Cluster) -> None:
    first, second = drbd.nodes
    guest = Guest(drbd)
    events = Events(drbd)
    times: dict[str, list[tuple[float, int | None]]] = {"offline": [], "online": [], "raw online": []}

    # Stopped; and started where it comes to.
    times["offline"].append((timed(first, "mcvirt migrate web1 --node node2"), None))
    assert guest.roles() == ["Secondary", "Secondary"] and first.json("info", "web1")["node"] == "node2"
    first.mcvirt("migrate", "web1", "--node", "node1", "--start-after-migration", within=120)
    ticks = guest.counts(first, boots=1)
    assert "is running" in refused(first, "--node", "node2")
    plan = second.json("migrate", "web1", "--node", "node2", "--online", "--dry-run", within=120)
    assert any(guest.disk in step for step in plan["steps"]), plan

    for number in range(MIGRATIONS):
        here, there = (first, second) if number % 2 == 0 else (second, first)
        seconds = timed(drbd[1 + number // 2 % 2], f"mcvirt migrate web1 --node {there.name} --online")
        report = there.json("info", "web1")["last_migration"]
        times["online"].append((seconds, report["downtime"]))
        assert guest.roles()[drbd.nodes.index(there)] == "Primary" and here.virsh("list", "--all", "--name") == ""
        ticks = guest.counts(there, boots=1, beyond=ticks)
        assert guest.windows() == [False, False] and guest.good()
    on = 1 + MIGRATIONS % 2
    guest.settled(on=on)
    for _ in range(2):
        times["raw online"].append(raw(guest, drbd[on], drbd[3 - on]))
        on = 3 - on
        ticks = guest.counts(drbd[on], boots=1, beyond=ticks)
        drbd[3 - on].run("virsh undefine web1")
    assert events.other_than_connected() == []
    events.end()
    print(table(times))


def raw(guest: Guest, here: Node, there: Node) -> tuple[float, int | None]:
    """The same by hand: roles, and virsh with the flags that mcvirt gives, without mcvirt's way between the nodes."""
    libvirt = "/run/raw-libvirt"
    there.put(_RELAY.encode(), "/root/relay.py")
    here.put(_RELAY.encode(), "/root/relay.py")
    there.succeed(f"systemd-run -q --collect --unit=raw python3 /root/relay.py {there.address}:7000 {_LIBVIRT}")
    here.succeed(f"systemd-run -q --collect --unit=raw python3 /root/relay.py {libvirt} {there.address}:7000")
    here.put((here.machine.image / "id").read_bytes(), "/root/raw-id", 0o600)
    options = "-oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oLogLevel=ERROR -oBatchMode=yes"
    ssh = f"ssh {options} -i /root/raw-id -oControlPath=/run/raw-ssh root@10.8.0.{there.machine.number}"
    here.succeed(f"{ssh} -fNM < /dev/null > /dev/null 2>&1; test -S {libvirt} || sleep 1")
    name = guest.resource
    allow, refuse = (f"drbdadm net-options --allow-two-primaries={word} {name}" for word in ("yes", "no"))
    flags = "--live --persistent --undefinesource --abort-on-error --auto-converge --unsafe"
    uri = shlex.quote(f"qemu+unix:///system?socket={libvirt}")
    seconds = timed(
        here,
        f"{{ {ssh} '{allow}' & {allow}; wait; }} && {ssh} drbdadm primary {name} && "
        f"virsh migrate {flags} web1 {uri} --migrateuri tcp://{there.address} && drbdadm secondary {name} && "
        f"{{ {ssh} '{refuse}' & {refuse}; wait; }}",
    )
    found = re.search(r"Total downtime:\s+(\d+)", there.run("virsh domjobinfo web1 --completed").stdout)
    here.run(f"{ssh} -O exit; systemctl stop raw; rm -f {libvirt}")
    there.run("systemctl stop raw")
    return seconds, int(found[1]) if found else None


_LIBVIRT = "/run/libvirt/libvirt-sock"
_RELAY = """
import socket, sys, threading

def opened(place, listen):
    tcp = ":" in place
    sock = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
    if tcp:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    host, _, port = place.rpartition(":")
    (sock.bind if listen else sock.connect)((host, int(port)) if tcp else place)
    if listen:
        sock.listen()
    return sock

def carry(one, other):
    while piece := one.recv(65536):
        other.sendall(piece)
    other.shutdown(socket.SHUT_WR)

door = opened(sys.argv[1], True)
while True:
    near, _ = door.accept()
    far = opened(sys.argv[2], False)
    for pair in ((near, far), (far, near)):
        threading.Thread(target=carry, args=pair, daemon=True).start()
"""


def table(times: dict[str, list[tuple[float, int | None]]]) -> str:
    """What was measured, and what it is in terms of the commands by hand."""
    lines = ["", f"{'':12} {'times':>5} {'total, mean':>12} {'longest':>9} {'downtime, mean':>15}"]
    means: dict[str, tuple[float, float]] = {}
    for name, found in times.items():
        totals = [seconds for seconds, _ in found]
        downs = [down for _, down in found if down is not None]
        means[name] = sum(totals) / len(totals), sum(downs) / len(downs) if downs else 0.0
        down = f"{means[name][1]:12.0f} ms" if downs else ""
        lines.append(f"{name:12} {len(found):5} {means[name][0]:10.2f} s {max(totals):7.2f} s {down:>15}")
    total, down = (means["online"][index] / (means["raw online"][index] or 1.0) for index in (0, 1))
    lines.append(f"online, of raw: {total:.2f} times the total, {down:.2f} times the downtime")
    return "\n".join(lines)
