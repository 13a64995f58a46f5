"""The agents of the two nodes, as the bench speaks with them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.cache import LabFailed
from tests.lab.cluster import Cluster
from tests.lab.node import Node

_PROGRAM = Path(__file__).with_name("agent.py")
_PYTHON = "/usr/local/lib/mcvirt/current/bin/python3 -I -u"


class Agent:
    """The one in *node*: `agent.ask("migrate", name="web1", node="node2", online=True)["seconds"]`."""

    def __init__(self, node: Node, other: Node) -> None:
        self.node = node
        node.put(_PROGRAM.read_bytes(), "/root/agent.py")
        argv = [*node.ssh_argv(), f"{_PYTHON} /root/agent.py {node.address} {other.address}"]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """What came of it; LabFailed if it failed."""
        assert self._process.stdin is not None
        print(json.dumps({"do": what, **arguments}), file=self._process.stdin, flush=True)
        answer = self._answer()
        if "error" in answer:
            raise LabFailed(f"{self.node}: {what} {arguments}: {answer['error']}")
        return answer

    def seconds(self, what: str, **arguments: Any) -> float:
        """How long it took."""
        return float(self.ask(what, **arguments)["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabFailed(f"{self.node}: its agent has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """It ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


class Agents:
    """Those of both nodes, in the block."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._agents: dict[str, Agent] = {}

    def __enter__(self) -> Agents:
        one, other = self.cluster.nodes
        self._agents = {one.name: Agent(one, other), other.name: Agent(other, one)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for agent in self._agents.values():
            agent.end()

    def __getitem__(self, number: int) -> Agent:
        return self._agents[self.cluster[number].name]
