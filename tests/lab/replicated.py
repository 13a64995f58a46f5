"""The replicated hard drive of a machine, as mcvirt made it, and what tests do to its two sides."""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab.cache import LabFailed
from tests.lab.cluster import Cluster
from tests.lab.node import Node

BLOCK = 4096


def can_replicate(cluster: Cluster) -> Cluster:
    """Enable DRBD on joined nodes, with the storage backend vg on all."""
    cluster[1].mcvirt("drbd", "enable", within=120)
    nodes = [word for node in cluster.nodes for word in ("--node", node.name)]
    cluster[1].mcvirt("storage", "create", "vg", "--type", "Lvm", "--volume-group-name", "vg0", *nodes)
    return cluster


class Disk:
    """The replicated disk of a machine that is made for it."""

    def __init__(self, cluster: Cluster, vm: str, size: str = "64MiB", *, machine: str = "") -> None:
        self.cluster = cluster
        self.vm = vm
        cluster[1].mcvirt(
            *("create", vm, "--memory", "64", "--cpu-count", "1", "--disk-size", size),
            *("--storage-type", "Drbd", "--storage-backend", "vg"),
            *(("--machine", machine) if machine else ()),
            within=120,
        )
        (found,) = [disk for disk in cluster[1].json("hard-drive", "list") if disk["vm"] == vm]
        self.id: str = found["id"]
        self.resource = f"mcvirt-{self.id}"
        self.volume = f"/dev/vg0/{found['volume']}-drbd-raw"
        minor = cluster[1].succeed(f"drbdadm sh-dev {self.resource}").strip()
        self.device = minor

    def damage(self, node: Node, first: int, blocks: int) -> int:
        """Write below DRBD on one side; returns the bytes."""
        node.succeed(
            f"dd if=/dev/urandom of={self.volume} bs={BLOCK} seek={first} count={blocks} conv=notrunc oflag=direct "
            "status=none"
        )
        return blocks * BLOCK

    def sum(self, node: Node) -> str:
        """What a side holds, past all caches."""
        return node.succeed(f"dd if={self.volume} bs=1M iflag=direct status=none | sha256sum").split()[0]

    def sums(self) -> list[str]:
        """What each side holds."""
        return [self.sum(node) for node in self.cluster.nodes]

    def state(self, node: Node) -> dict[str, Any]:
        """What mcvirt on a node says of this side."""
        (found,) = [disk for disk in node.json("drbd", "list") if disk["disk"] == self.id]
        return dict(found)

    def wait_good(self, *, within: float = 60.0) -> None:
        """Return when both kernels have both sides connected and up to date."""
        for node in self.cluster.nodes:
            node.wait_until(f"drbdadm cstate {self.resource} | grep -qx Connected", within=within)
            node.wait_until(
                f"drbdadm dstate {self.resource} | grep -x UpToDate/UpToDate || "
                f"{{ drbdadm dstate {self.resource}; cat /proc/drbd; false; }}",
                within=within,
            )

    def role(self, node: Node) -> str:
        """What the kernel of a node calls its side."""
        return node.drbd(self.resource)[self.resource]["resource"]["role"]

    def install_guest(self) -> None:
        """Put the guest that counts on both sides, through DRBD; the machine is to have the type pc."""
        first = self.cluster[1]
        first.succeed(f"drbdadm primary {self.resource}")
        first.install_guest(self.device)
        first.wait_until(f"drbdadm secondary {self.resource}", within=10)

    def runs(self, node: Node) -> list[dict[str, Any]]:
        """The verifications on record."""
        (state,) = node.json("verify", "--history", self.vm)
        return list(state["runs"])


@contextmanager
def slow(disk: Disk, rate: str = "2M") -> Iterator[None]:
    """Let verifications take their time, so that something can happen meanwhile."""
    for node in disk.cluster.nodes:
        node.succeed(f"drbdadm disk-options --c-plan-ahead=0 --resync-rate={rate} {disk.resource}")
    yield
    for node in disk.cluster.nodes:
        node.run(f"drbdadm adjust {disk.resource}")


class InBackground:
    """A command of a node that goes on while the test does something else."""

    def __init__(self, node: Node, command: str, *, within: float = 180.0) -> None:
        self.done: list[subprocess.CompletedProcess[str]] = []
        self._thread = threading.Thread(target=self._run, args=(node, command, within))
        self._thread.start()

    def _run(self, node: Node, command: str, within: float) -> None:
        try:
            self.done.append(node.run(command, within=within))
        except LabFailed as error:  # as when the node loses its power
            self.done.append(subprocess.CompletedProcess(command, 255, "", str(error)))

    @classmethod
    def python(cls, node: Node, code: str) -> InBackground:
        """The same for Python code that is run with mcvirt's own interpreter."""
        return cls(node, f"/usr/local/lib/mcvirt/current/bin/python3 -I -c {shlex.quote(code)}")

    def wait(self) -> subprocess.CompletedProcess[str]:
        """How it ended."""
        self._thread.join(800)
        assert self.done, "it waits and waits"
        return self.done[0]
