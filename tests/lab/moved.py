"""A machine on a replicated disk that moves between two nodes: its guest writes and counts, and what both nodes have of
it is asked of libvirt and of DRBD."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from tests.lab.cluster import Cluster
from tests.lab.node import Node

CLOSED_WITHIN = 10.0
LIVE = ("RUNNING", "STUCK")


class Seen(NamedTuple):
    """What a node has: whether the guest *runs*, the disk's *role*, whether two Primaries are allowed (*open*), and
    whether both sides are connected, good and at rest."""

    runs: bool
    role: str
    open: bool
    good: bool


class Guest:
    """Machine *name*, which has one replicated disk, and the guest that writes numbered records on it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        first = cluster[1]
        (found,) = [disk for disk in first.json("hard-drive", "list") if disk["vm"] == name]
        self.disk: str = found["id"]
        self.resource = f"mcvirt-{self.disk}"
        self.device = first.succeed(f"drbdadm sh-dev {self.resource}").strip()
        self.volume = f"/dev/vg0/{found['volume']}-drbd-raw"

    @classmethod
    def create(cls, cluster: Cluster, name: str = "web1", *, greedy: bool = False) -> Guest:
        """Make it on the storage backend vg; it does not run yet."""
        cluster[1].mcvirt(
            *("create", name, "--memory", "64", "--cpu-count", "1", "--machine", "pc", "--disk-size", "16MiB"),
            *("--storage-type", "Drbd", "--storage-backend", "vg"),
            within=120,
        )
        guest = cls(cluster, name)
        guest.install(greedy=greedy)
        return guest

    def install(self, *, greedy: bool = False) -> None:
        """Put the guest on its disk; nobody may use that. A *greedy* one changes its memory all the time."""
        first = self.cluster[1]
        first.succeed(f"drbdadm primary {self.resource}")
        first.install_guest(self.device, greedy=greedy)
        first.wait_until(f"drbdadm secondary {self.resource}", within=10)

    def counts(self, node: Node, *, boots: int, beyond: int = 0) -> int:
        """Its ticks, once it has ticked on; nothing that it wrote on any side is lost or torn."""
        ticks = node.wait_for_guest(self.device, boots=boots, beyond=beyond, within=60)
        found = node.written(self.device)
        assert found.whole, found
        return ticks

    def seen(self) -> list[Seen]:
        """What the two nodes have of it now."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(self.look, self.cluster.nodes))

    def look(self, node: Node) -> Seen:
        """What a node has of it now."""
        said = node.succeed(
            f"virsh -q domstate {self.name} 2>&1; echo +++; drbdsetup show {self.resource}; echo +++; "
            f"drbdsetup events2 --now --statistics {self.resource}"
        )
        domain, shown, events = said.split("+++")
        facts: dict[str, str] = {}
        for field in events.split():
            key, colon, value = field.partition(":")
            # The role of the connection is the other side's, which is looked at itself.
            if colon:
                facts.setdefault(key, value)
        good = tuple(facts.get(key, "") for key in ("connection", "disk", "peer-disk", "replication"))
        return Seen(
            runs="running" in domain,
            role=facts.get("role", ""),
            open="allow-two-primaries yes" in " ".join(shown.split()),
            good=good == ("Connected", "UpToDate", "UpToDate", "Established"),
        )

    def rests(self) -> int:
        """The number of the node on which it runs and has its disk for itself, both sides being good; 0: not so now."""
        return _rests(self.seen())

    def settled(self, *, within: float = 150.0) -> int:
        """On which node it rests, once it does, and nothing of its migration is due on any node."""
        found: list[int] = []

        def settled() -> bool:
            seen = self.seen()
            assert not all(one.runs for one in seen), seen
            found[:] = [_rests(seen)]
            return found[0] > 0 and not any(map(due, self.cluster.nodes))

        self.cluster[1].wait_until(settled, within=within, what="it runs on one node, and all is good")
        for node in self.cluster.nodes:
            assert node.json("info", self.name)["node"] == f"node{found[0]}"
        return found[0]

    def wait_closed(self) -> None:
        """Return as soon as no node that is on allows two Primaries."""
        alive = [node for node in self.cluster.nodes if node.machine.is_on]
        alive[0].wait_until(
            lambda: not any(self.look(node).open for node in alive), within=CLOSED_WITHIN, what="no window is open"
        )

    @contextmanager
    def in_nobodys_care(self) -> Iterator[None]:
        """In the block mcvirtd stands still on both nodes, and finds what it has left when it goes on."""
        for node in self.cluster.nodes:
            node.freeze()
        try:
            yield
        finally:
            for node in self.cluster.nodes:
                node.thaw()
        self.cluster.wait_together()


def _rests(seen: list[Seen]) -> int:
    whole = all(one.good and not one.open and (one.role == "Primary") == one.runs for one in seen)
    runs = [one.runs for one in seen]
    return 1 + runs.index(True) if whole and runs.count(True) == 1 else 0


def due(node: Node) -> bool:
    """Whether a task has not ended; a daemon that does not answer just now may have some."""
    done = node.run("mcvirt task list --json")
    return bool(done.returncode) or any(task["state"] in LIVE for task in json.loads(done.stdout))


@contextmanager
def slow(cluster: Cluster) -> Iterator[None]:
    """Let a migration take its time: there is little to send of a guest this small."""
    for node in cluster.nodes:
        node.succeed("modprobe sch_netem; tc qdisc replace dev eth1 root netem rate 800kbit limit 40")
    try:
        yield
    finally:
        for node in cluster.nodes:
            if node.machine.is_on:
                node.run("tc qdisc del dev eth1 root")


def sends(node: Node, name: str) -> bool:
    """Whether some of the guest's memory has been sent."""
    found = re.search(r"Data processed:\s+([0-9.]+)", node.run(f"virsh domjobinfo {name}").stdout)
    return found is not None and float(found[1]) > 0


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
