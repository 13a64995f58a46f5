"""Nodes that have been joined the way operators do it, and what tests ask of them together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from tests.lab.cache import took
from tests.lab.lab import Lab
from tests.lab.node import Node

JOINED = "joined"

_DIGEST = """
import hashlib, pathlib, shutil, sqlite3, tempfile
# mcvirtd keeps its own locked.
copy = pathlib.Path(tempfile.mkdtemp())
for name in ("state.db", "state.db-wal"):
    shutil.copy("/var/lib/mcvirt/" + name, copy)
state = sqlite3.connect(copy / "state.db")
records = state.execute("SELECT kind, key, data FROM record ORDER BY kind, key").fetchall()
revision = state.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()
shutil.rmtree(copy)
print(hashlib.sha256(repr((revision, records)).encode()).hexdigest())
"""


class Cluster:
    """The nodes of a lab as one cluster: ``cluster[1].mcvirt("list")``. node1 leads it at first."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @classmethod
    def join(cls, lab: Lab) -> Cluster:
        """Make one cluster of fresh nodes, and remember that state, for ``revert``."""
        begun = time.monotonic()
        cluster = cls(lab)
        _set_address(lab[1])
        for node in cluster.nodes[1:]:
            cluster.add(node)
        cluster.wait_together()
        took(f"joined {len(lab.nodes)} nodes", begun)
        lab.save(JOINED)
        return cluster

    def revert(self) -> None:
        """Everything is as it was when the nodes had just been joined."""
        self.lab.revert(JOINED)

    def __getitem__(self, number: int) -> Node:
        return self.lab[number]

    @property
    def nodes(self) -> list[Node]:
        return self.lab.nodes

    # --- members ----------------------------------------------------------------------------------------------------

    def grow(self) -> Node:
        """Start one more node and take it in."""
        node = self.lab.grow()
        self.add(node)
        self.wait_together()
        return node

    def add(self, node: Node, *, by: int = 1) -> None:
        """Take in a blank node."""
        _set_address(node)
        self.lab.each(Node.set_clock)
        string = node.mcvirt("cluster", "get-connect-string").encode()
        said = self[by].run("mcvirt cluster add-node --connect-string -", input=string)
        assert said.returncode == 0, f"{self[by].name} does not take {node.name} in: {said.stdout}{said.stderr}"

    # --- what they know of each other -------------------------------------------------------------------------------

    def info(self, asked: int = 1) -> dict[str, dict[str, Any]]:
        """What a node knows of all members, by name."""
        return {row["name"]: row for row in self[asked].json("info")}

    def leader(self, asked: int = 1) -> str:
        """Who leads, for a node that knows."""
        return next(name for name, row in self.info(asked).items() if row["leader"])

    def digests(self) -> int:
        """How many different configurations the nodes have on their disks."""
        found: set[str] = set()
        self.lab.each(lambda node: found.add(node.python(_DIGEST)))
        return len(found)

    def wait_status(self, asked: int, name: str, status: str, *, within: float = 30.0) -> None:
        """Return when the node asked says `Connected`, `Unreachable`, ... of another one."""
        self[asked].wait_until(
            lambda: self.info(asked)[name]["status"] == status, within=within, what=f"{name} is {status}"
        )

    def wait_together(self, nodes: Iterable[Node] | None = None, *, within: float = 30.0) -> None:
        """Return when these nodes, and only these, are members, reach each other, and know the same."""
        chosen = list(nodes or self.nodes)
        names = {node.name for node in chosen}
        seen: list[object] = []

        def so() -> bool:
            answers = [node.run("mcvirt info --json") for node in chosen]
            if any(answer.returncode for answer in answers):
                return False  # a mcvirtd that is being started again; who never answers is told of by the deadline
            views = [json.loads(answer.stdout) for answer in answers]
            seen[:] = views
            rows = [row for view in views for row in view]
            return (
                all({row["name"] for row in view} == names for view in views)
                and all(row["status"] in ("Local", "Connected") and row["lag"] == 0 for row in rows)
                and len({row["revision"] for row in rows}) == 1
            )

        chosen[0].wait_until(so, within=within, what=f"{', '.join(sorted(names))} together")


def _set_address(node: Node) -> None:
    node.mcvirt("node", "--set-ip-address", node.address)
