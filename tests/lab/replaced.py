"""A machine on a replicated disk of which one side moves to another node, and what is asked of all three of them."""

from __future__ import annotations

from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.trouble import no_orphans

MOVE = "mcvirt move --source-node {} --destination-node {} web1"


class Moved:
    """Machine web1 with a replicated disk on two of three nodes, and the guest that writes numbered records on it."""

    def __init__(self, cluster: Cluster, one: int, other: int, size: str = "16MiB") -> None:
        self.cluster = cluster
        first = cluster[one]
        first.mcvirt(
            *("create", "web1", "--memory", "64", "--cpu-count", "1", "--machine", "pc", "--disk-size", size),
            *("--storage-type", "Drbd", "--storage-backend", "vg"),
            *("--nodes", f"node{one}", "--nodes", f"node{other}"),
            within=120,
        )
        (found,) = first.json("hard-drive", "list")
        self.disk: str = found["id"]
        self.resource = f"mcvirt-{self.disk}"
        self.device = first.succeed(f"drbdadm sh-dev {self.resource}").strip()
        self.volume = f"/dev/vg0/{found['volume']}-drbd-raw"
        first.succeed(f"drbdadm primary {self.resource}")
        first.install_guest(self.device)
        first.wait_until(f"drbdadm secondary {self.resource}", within=10)

    def counts(self, node: Node, *, boots: int = 1, beyond: int = 0) -> int:
        """Its ticks, once it has ticked on; nothing that it wrote is lost or torn."""
        ticks = node.wait_for_guest(self.device, boots=boots, beyond=beyond, within=60)
        found = node.written(self.device)
        assert found.whole, found
        return ticks

    def nodes(self, asked: int = 1) -> list[str]:
        """The nodes that it is on, by the records."""
        (found,) = self.cluster[asked].json("hard-drive", "list")
        return list(found["nodes"])

    def wait_good(self, *numbers: int, within: float = 90.0) -> None:
        """Return when the kernels of these nodes have both sides connected, good and at rest."""
        for number in numbers:
            node = self.cluster[number]
            node.wait_until(f"drbdadm cstate {self.resource} | grep -qx Connected", within=within)
            node.wait_until(f"drbdadm dstate {self.resource} | grep -qx UpToDate/UpToDate", within=within)

    def replication(self, node: Node) -> str:
        """What the kernel of a node does with the other side."""
        return node.drbd(self.resource)[self.resource].get("peer-device", {}).get("replication", "")

    def sums(self, *numbers: int) -> list[str]:
        """What the sides on these nodes hold, past all caches, after the guest was stopped."""
        command = f"dd if={self.volume} bs=1M iflag=direct status=none | sha256sum"
        return [self.cluster[number].succeed(command).split()[0] for number in numbers]

    def is_on(self, *numbers: int) -> None:
        """It is on these two nodes, connected and good, the same on both, and nothing of it is anywhere else."""
        assert self.nodes() == [f"node{number}" for number in sorted(numbers)]
        assert sorted(self.cluster[1].json("info", "web1")["nodes"]) == self.nodes()
        self.wait_good(*numbers)
        no_orphans(self.cluster)
        for node in self.cluster.nodes:
            has = node.machine.number in numbers
            assert bool(self.has(node)) == has, (node, self.has(node))

    def has(self, node: Node) -> list[str]:
        """What a node has of the disk: volumes, file, resource."""
        said = node.succeed(
            "lvs --noheadings -o lv_name; ls /etc/drbd.d; drbdsetup events2 --now | grep -o 'name:mcvirt[^ ]*' || true"
        )
        return [word for word in said.split() if self.disk in word]
