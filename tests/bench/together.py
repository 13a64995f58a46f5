"""What a cluster costs: real daemons over real TLS, each in a network of its own, with simulated machines.

All nodes share the processors of this machine, which real ones do not. Sixteen that store a change at the same time
are therefore measured on disks that take their time (see tests.bench.slow_disk_daemon), beside three on such disks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from mcvirtd.state.records import Record, VmRecord
from tests.bench.interleave import Command, Request, Timing, best
from tests.bench.rows import Row
from tests.node.cluster_fixture import ClusterNodes
from tests.node.mcvirt_node import McvirtNode

FEW, MANY = 3, 16
SLOW = "tests.bench.slow_disk_daemon"
MACHINES = 1000
CUTS = 3
POWER_CYCLES = 10
SECOND = 1000.0
MARKED_WITHIN = 5000.0
_READY_WITHIN = 120.0


class Errands:
    """The client of a node (see tests.bench.errand)."""

    def __init__(self, node: McvirtNode) -> None:
        argv = [sys.executable, "-m", "tests.bench.errand"]
        self._process = node.host.popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **node.client_env()}
        )

    def __call__(self, *words: str) -> float:
        """The milliseconds that it took."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the client that was to do {words[0]} has ended")
        return float(answer)

    def close(self) -> None:
        """End the client."""
        self._process.kill()
        self._process.communicate()


class Commands:
    """Times commands in a node."""

    def __init__(self, node: McvirtNode) -> None:
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(("MCVIRT", "PYRO"))}
        self._env.update(node.client_env())
        argv = [sys.executable, "-m", "tests.bench.interleave"]
        self._process = node.host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._env)

    def __call__(self, *words: str, expected: str) -> float:
        """The milliseconds of one run of the mcvirt command."""
        assert self._process.stdin is not None and self._process.stdout is not None
        argv = [sys.executable, "-c", "import sys; from mcvirt_client.cli.main import main; sys.exit(main())", *words]
        command = Command(name=words[0], argv=argv, env=self._env, expected=expected)
        request = Request(commands=[command], rounds=1, warm=False)
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        self._process.stdin.flush()
        (timing,) = msgspec.json.decode(self._process.stdout.readline(), type=list[Timing])
        return timing.wall[0]

    def close(self) -> None:
        """End the process that ran them."""
        self._process.kill()
        self._process.communicate()


def measure(directory: Path, rounds: int) -> list[Row]:
    """All rows of clusters."""
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(_cluster(directory / "one", 1))
        few = stack.enter_context(_cluster(directory / "few", FEW))
        rows = _listing(one, few, max(6, rounds // 2))
        rows += _changes(one, few, rounds)
        rows += _cut(few)
    with contextlib.ExitStack() as stack:
        few = stack.enter_context(_cluster(directory / "few-slow", FEW, machines=0, module=SLOW))
        many = stack.enter_context(_cluster(directory / "many-slow", MANY, machines=0, module=SLOW))
        return rows + _many_changes(few, many, rounds)


@contextlib.contextmanager
def _cluster(
    directory: Path, count: int, machines: int = MACHINES, module: str = "mcvirtd.main"
) -> Iterator[ClusterNodes]:
    """A cluster of *count* nodes with *machines* virtual machines that run, evenly on all nodes."""
    records = _records(count, machines)
    cluster = ClusterNodes(directory, count, simulate=True, records=records, module=module, log_level="INFO")
    with cluster:
        for number, node in cluster.nodes.items():
            with _errands(node) as errands:
                errands("start", *(f"web{machine}" for machine in range(number - 1, machines, count)))
        for node in cluster:
            _until(lambda node=node: _quiet(node), "all nodes answer, and all machines run")  # type: ignore[misc]
        yield cluster


def _quiet(node: McvirtNode) -> bool:
    return {row["status"] for row in node.json("info")} <= {"Local", "Connected"} and {
        vm["state"] for vm in node.json("list")
    } <= {"RUNNING"}


def _records(count: int, machines: int) -> list[Record]:
    made: list[Record] = []
    for number in range(machines):
        node = f"node{number % count + 1}"
        made.append(
            VmRecord(
                name=f"web{number}",
                id=f"vm-{number}",
                uuid=f"00000000-0000-4000-8000-{number:012}",
                memory=2**28,
                cpu_count=1,
                nodes=(node,),
                node=node,
            )
        )
    return made


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {_READY_WITHIN:.0f} s: {what}")


def _listing(one: ClusterNodes, few: ClusterNodes, rounds: int) -> list[Row]:
    last = f"web{MACHINES - 1}"
    with contextlib.ExitStack() as stack:
        commands = {name: stack.enter_context(_commands(cluster[1])) for name, cluster in (("one", one), ("few", few))}
        whole = _in_turns({name: partial(run, "list", expected=last) for name, run in commands.items()}, rounds)
        errands = {name: stack.enter_context(_errands(cluster[1])) for name, cluster in (("one", one), ("few", few))}
        calls = _in_turns({name: partial(run, "list") for name, run in errands.items()}, rounds)
    return [
        _compared("list_1000_3", whole["few"], whole["one"], "with 3 nodes, to one's"),
        _compared("list_1000_3_call", calls["few"], calls["one"], "the library's call alone"),
    ]


def _compared(name: str, ours: Sequence[float], yardstick: Sequence[float], about: str) -> Row:
    return Row(name=name, ours=best(ours), yardstick=best(yardstick), unit="ms", about=about)


def _in_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # what is not warm yet is nobody's merit
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            taken[name].append(ways[name]())
    return taken


def _changes(one: ClusterNodes, few: ClusterNodes, rounds: int) -> list[Row]:
    with _errands(one[1]) as alone, _errands(few[1]) as leader, _errands(few[2]) as follower:
        ways = {"alone": alone, "leader": leader, "follower": follower}
        taken = _in_turns({name: partial(run, "change") for name, run in ways.items()}, rounds)
    return [
        _compared("change_3", taken["leader"], taken["alone"], "on the leader of 3 nodes, to one node's"),
        _compared("change_3_follower", taken["follower"], taken["alone"], "on another of the 3"),
    ]


def _many_changes(few: ClusterNodes, many: ClusterNodes, rounds: int) -> list[Row]:
    with _errands(few[1]) as three, _errands(many[1]) as sixteen:
        taken = _in_turns({"three": partial(three, "change"), "sixteen": partial(sixteen, "change")}, rounds)
    return [
        _compared("change_16", taken["sixteen"], taken["three"], "with 16 nodes, to 3's; disks take 5 ms a commit")
    ]


def _cut(cluster: ClusterNodes) -> list[Row]:
    """Node 3 falls silent: what node 1 still says, and how soon it says that node 3 does not answer."""
    slowest, marked, before, during = {"list": 0.0, "info": 0.0}, 0.0, [], []
    with _commands(cluster[1]) as command, _errands(cluster[1]) as watch, _errands(cluster[1]) as errand:
        power = partial(errand, "power", f"web{1 + FEW}")
        with ThreadPoolExecutor(1) as pool:
            for _ in range(CUTS):
                before += [power() for _ in range(POWER_CYCLES)]
                cluster.cut(3)
                watching = pool.submit(watch, "await", "node3")
                expected = "node3"
                while not watching.done() or expected == "node3":
                    if watching.done():
                        expected = "nreachable"  # once more, now that it is known
                    for word in slowest:
                        slowest[word] = max(slowest[word], command(word, expected=expected))
                    during += [power() for _ in range(POWER_CYCLES // 5)]
                marked = max(marked, watching.result())
                cluster.heal(3)
                _until(lambda: _quiet(cluster[1]), "node 3 answers again")
    return [
        Row(
            name="list_cut",
            ours=slowest["list"],
            yardstick=SECOND,
            unit="ms",
            about="the slowest, a node being cut off",
        ),
        Row(
            name="info_cut",
            ours=slowest["info"],
            yardstick=SECOND,
            unit="ms",
            about="the slowest, a node being cut off",
        ),
        _compared("power_cut", during, before, "off and on, on another node than the one that is cut off"),
        Row(
            name="silent_marked",
            ours=marked,
            yardstick=MARKED_WITHIN,
            unit="ms",
            about="until it is known, the slowest",
        ),
    ]


def _errands(node: McvirtNode) -> contextlib.closing[Errands]:
    return contextlib.closing(Errands(node))


def _commands(node: McvirtNode) -> contextlib.closing[Commands]:
    return contextlib.closing(Commands(node))
