"""Machines on replicated disks that move between two real nodes, while their guests write and count.

MCVIRT_LAB_MIGRATIONS is how often the guest goes from one node to the other, 4 times if it is not set.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from tests.lab.cluster import Cluster
from tests.lab.node import Node

MIGRATIONS = int(os.environ.get("MCVIRT_LAB_MIGRATIONS", "4"))
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

    def seen(self) -> list[Seen]:
        """What the two nodes have of it now."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(self._look, self.cluster.nodes))

    def _look(self, node: Node) -> Seen:
        said = node.succeed(
            f"virsh -q domstate web1 2>&1; echo +++; drbdsetup show {self.resource}; echo +++; "
            f"drbdsetup events2 --now --statistics {self.resource}"
        )
        domain, shown, events = said.split("+++")
        facts: dict[str, str] = {}
        for field in events.split():
            key, colon, value = field.partition(":")
            # The role of the connection is the other side's, which is looked at itself.
            if colon:
                facts.setdefault(key, value)
        good = (facts["connection"], facts["disk"], facts["peer-disk"], facts["replication"])
        return Seen(
            runs="running" in domain,
            role=facts["role"],
            open="allow-two-primaries yes" in " ".join(shown.split()),
            good=good == ("Connected", "UpToDate", "UpToDate", "Established"),
        )

    def rests(self) -> int:
        """The number of the node on which it runs and has its disk for itself, both sides being good; 0: not so now."""
        seen = self.seen()
        whole = all(one.good and not one.open and (one.role == "Primary") == one.runs for one in seen)
        runs = [one.runs for one in seen]
        return 1 + runs.index(True) if whole and runs.count(True) == 1 else 0

    def settled(self, *, within: float = 150.0) -> int:
        """On which node it rests, once it does, and nothing of its migration is due on any node."""
        found: list[int] = []

        def settled() -> bool:
            found[:] = [self.rests()]
            return found[0] > 0 and not any(map(due, self.cluster.nodes))

        self.cluster[1].wait_until(settled, within=within, what="it runs on one node, and all is good")
        for node in self.cluster.nodes:
            assert node.json("info", "web1")["node"] == f"node{found[0]}"
        return found[0]

    def wait_closed(self) -> None:
        """Return as soon as no node allows two Primaries."""
        first = self.cluster[1]
        first.wait_until(
            lambda: not any(one.open for one in self.seen()), within=CLOSED_WITHIN, what="no window is open"
        )


class Seen(NamedTuple):
    """What a node has: whether the guest *runs*, the disk's *role*, whether two Primaries are allowed (*open*), and
    whether both sides are connected, good and at rest."""

    runs: bool
    role: str
    open: bool
    good: bool


def due(node: Node) -> bool:
    """Whether a task has not ended; a daemon that does not answer just now may have some."""
    done = node.run("mcvirt task list --json")
    return bool(done.returncode) or any(task["state"] in LIVE for task in json.loads(done.stdout))


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
    names = ("offline", "online", "by mcvirtd", "raw online")
    times: dict[str, list[tuple[float, int | None]]] = {name: [] for name in names}

    # Stopped; and started where it comes to.
    times["offline"].append((timed(first, "mcvirt migrate web1 --node node2"), None))
    assert [one.role for one in guest.seen()] == ["Secondary", "Secondary"]
    assert first.json("info", "web1")["node"] == "node2"
    first.mcvirt("migrate", "web1", "--node", "node1", "--start-after-migration", within=120)
    ticks = guest.counts(first, boots=1)
    assert "is running" in refused(first, "--node", "node2")
    plan = second.json("migrate", "web1", "--node", "node2", "--online", "--dry-run", within=120)
    assert any(guest.disk in step for step in plan["steps"]), plan

    on = 1
    for number in range(MIGRATIONS):
        there = drbd[3 - on]
        seconds = timed(drbd[1 + number // 2 % 2], f"mcvirt migrate web1 --node {there.name} --online")
        on = 3 - on
        assert guest.rests() == on and drbd[3 - on].virsh("list", "--all", "--name") == ""
        report = there.json("info", "web1")["last_migration"]
        times["online"].append((seconds, report["downtime"]))
        times["by mcvirtd"].append((report["seconds"], report["downtime"]))
        ticks = guest.counts(there, boots=1, beyond=ticks)
    # By hand, without mcvirtd, which demotes what no guest uses as far as it knows.
    drbd.lab.each(lambda node: node.succeed("systemctl stop mcvirtd", within=120))
    for _ in range(2):
        times["raw online"].append(raw(guest, drbd[on], drbd[3 - on]))
        on = 3 - on
        ticks = guest.counts(drbd[on], boots=1, beyond=ticks)
    assert events.other_than_connected() == []
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
    """What was measured, also by mcvirtd itself, and what it is in terms of the commands by hand."""
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


@contextmanager
def slow(cluster: Cluster) -> Iterator[None]:
    """Let a migration take its time: there is little to send of a guest this small."""
    for node in cluster.nodes:
        node.succeed("modprobe sch_netem; tc qdisc replace dev eth1 root netem rate 800kbit limit 40")
    yield
    for node in cluster.nodes:
        node.run("tc qdisc del dev eth1 root")


def sends(node: Node) -> bool:
    """Whether some of the guest's memory has been sent."""
    found = re.search(r"Data processed:\s+([0-9.]+)", node.run("virsh domjobinfo web1").stdout)
    return found is not None and float(found[1]) > 0


def test_what_dies_in_the_middle(drbd: Cluster) -> None:
    first, second = drbd.nodes
    guest = Guest(drbd)
    first.mcvirt("start", "web1", within=120)
    ticks = guest.counts(first, boots=1)

    # Not connected: nothing is begun.
    second.succeed(f"drbdadm disconnect {guest.resource}")
    assert "not connected and up to date" in refused(first, "--node", "node2", "--online")
    assert not any(one.open for one in guest.seen())
    second.succeed(f"drbdadm connect {guest.resource}")
    first.wait_until(guest.rests, what="both sides are good")

    def go(until: Callable[[Node], object]) -> tuple[Node, Node]:
        """Begin a migration, and return in the middle of it, with the node that has the guest, and the other one."""
        here, there = drbd[guest.settled()], drbd[3 - guest.settled()]
        here.mcvirt("migrate", "web1", "--node", there.name, "--online", "--no-wait", within=120)
        here.wait_until(lambda: until(here), what="the middle")
        return here, there

    def both(_: Node) -> bool:
        return [(one.role, one.open) for one in guest.seen()] == [("Primary", True)] * 2

    def goes_on(ticks: int) -> int:
        return guest.counts(drbd[guest.settled()], boots=1, beyond=ticks)

    # Either daemon. The guest may just have gone, or not: it runs once, and what it wrote is there.
    for role, until in ((0, sends), (1, both)):
        with slow(drbd):
            go(until)[role].kill()
            guest.wait_closed()
        ticks = goes_on(ticks)

    # The link: the two sides lose each other while both are Primary, and find each other again by themselves.
    with slow(drbd):
        go(both)
        second.cut()
        guest.wait_closed()
    second.heal()
    drbd.wait_together(within=60)
    ticks = goes_on(ticks)

    # DRBD's link alone: each kernel begins a past of its own, and the side without the guest gives its one up.
    with slow(drbd):
        _, there = go(both)
        there.succeed(f"drbdadm disconnect --force {guest.resource}")
        guest.wait_closed()
    ticks = goes_on(ticks)
    assert "Split-Brain detected, manually solved" in first.succeed("dmesg")
    told = first.mcvirt("task", "list")
    assert "have lost each other" in told, told

    # All is as it was before.
    here, there = drbd[guest.settled()], drbd[3 - guest.settled()]
    first.mcvirt("migrate", "web1", "--node", there.name, "--online", within=120)
    goes_on(ticks)
    first.mcvirt("stop", "web1")
    verified = first.run("mcvirt verify web1", within=120)
    assert verified.returncode == 0, verified

    # Not equal: nothing is begun either.
    second.succeed(
        f"dd if=/dev/urandom of={guest.volume} bs=4096 seek=3500 count=1 conv=notrunc oflag=direct status=none"
    )
    assert first.run("mcvirt verify web1", within=120).returncode == 1
    said = refused(second, "--node", here.name)
    assert f"Hard drive {guest.disk} can't be migrated" in said and "differ" in said, said
