"""A replicated device that is made by hand on two nodes, with mcvirt's own verbs and no record of it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.lab.node import Node

MIB = 1024**2


class Replica:
    """Resource *name* of *size* MiB on two nodes, up, connected and called equal."""

    def __init__(self, nodes: list[Node], *, name: str = "mcvirt-hd-lab", minor: int = 1, size: int = 64) -> None:
        self.nodes, self.name, self.minor, self.size = nodes, name, minor, size
        self.device = f"/dev/drbd{minor}"
        self.data = f"/dev/vg0/{name}-drbd-raw"
        self.each(self._make)
        for node in nodes:
            self.wait(node, "state.connected")
        self.verb(nodes[0], f"new_current_uuid({name!r}, clear_bitmap=True)")
        for node in nodes:
            self.wait(node, "state.both_good and not state.out_of_sync")

    def each(self, call: Any) -> list[Any]:
        """Do it on both nodes at the same time."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(call, self.nodes))

    def _make(self, node: Node) -> None:
        node.succeed(
            f"lvcreate -qq -y -Wn -Zn -L{self.size}M -n {self.name}-drbd-raw vg0 2>/dev/null && "
            f"lvcreate -qq -y -Wn -Zn -L4M -n {self.name}-drbd-meta vg0 2>/dev/null && blkdiscard -z {self.data}"
        )
        other = next(each for each in self.nodes if each is not node)
        legs = ", ".join(
            f"{word}=Leg(node={each.name!r}, address={each.address!r}, data={self.data!r}, "
            f"metadata='/dev/vg0/{self.name}-drbd-meta')"
            for word, each in (("local", node), ("peer", other))
        )
        node.python(
            "from mcvirtd.host import drbd\nfrom mcvirtd.drbd.config import Leg, Resource\n"
            f"drbd.write_resource(Resource(name={self.name!r}, minor={self.minor}, port={7788 + self.minor}, "
            f"secret={'a1' * 16!r}, {legs}))\n"
            f"drbd.create_metadata({self.name!r})\ndrbd.up({self.name!r})\n"
        )

    def verb(self, node: Node, call: str) -> str:
        """Call a verb of mcvirtd.host.drbd, such as `primary('r')`."""
        return node.python(f"from mcvirtd.host import drbd\ndrbd.{call}\n")

    def wait(self, node: Node, condition: str, *, within: float = 60.0) -> dict[str, Any]:
        """The resource's state as soon as *condition* (an expression of `state`) holds, by mcvirt's own reader."""
        return json.loads(
            node.python(
                "import msgspec\nfrom mcvirtd.host import drbd\nfrom mcvirtd.drbd.reader import Reader\n"
                "reader = Reader(drbd.events)\nreader.start()\n"
                f"found = reader.wait({self.name!r}, lambda state: state is not None and ({condition}), {within})\n"
                "print(msgspec.json.encode(found).decode())\nreader.stop()\n",
                within=within + 30,
            )
        )

    def damage(self, node: Node, blocks: int) -> None:
        """Write so many blocks of 4 KiB under DRBD's feet."""
        self.verb(node, f"down({self.name!r})")
        node.succeed(
            f"dd if=/dev/urandom of={self.data} bs=4096 seek=100 count={blocks} iflag=fullblock oflag=direct "
            "conv=notrunc status=none"
        )
        self.verb(node, f"up({self.name!r})")
        self.wait(node, "state.both_good")

    def write(self, node: Node, block: int) -> None:
        """Write a block of noise through the device of a node that is Primary."""
        node.succeed(
            f"dd if=/dev/urandom of={self.device} bs=4096 seek={block} count=1 iflag=fullblock oflag=direct status=none"
        )

    def sum(self, node: Node) -> str:
        """What the node's volume holds; its page cache does not know what DRBD has written."""
        return node.succeed(f"dd if={self.data} bs=1M iflag=direct status=none | sha256sum").split()[0]
