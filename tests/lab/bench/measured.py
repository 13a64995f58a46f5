"""The parts of the bench: each does what it measures and its yardstick in turns, and returns rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from tests.bench.rows import Row
from tests.lab.bench import by_hand
from tests.lab.bench.hands import Agents
from tests.lab.node import Node
from tests.lab.stories import GROUP, POOL

MIB = 1024**2
SMALL, LARGE = 1024 * MIB, 16 * 1024 * MIB
ROUNDS = 4
TOGETHER, COMPARED = 4, 128 * MIB
RESYNC_SIZE = 512
CPU_BAR = 5.0
THIN = "thin"

Say = Callable[[str], None]


def row(name: str, ours: list[float], other: list[float], about: str, unit: str = "s") -> Row:
    """The medians, and how far the samples are from each other."""
    spread = f"{about}; {_range(ours)} beside {_range(other)}, {len(ours)} and {len(other)} times"
    return Row(name=name, ours=statistics.median(ours), yardstick=statistics.median(other), unit=unit, about=spread)


def _range(values: list[float]) -> str:
    return f"{min(values):.2f}-{max(values):.2f}"


def creation(agents: Agents, say: Say) -> list[Row]:
    """A machine with a disk of 16 GiB, one of 1 GiB, and the former by hand."""
    agent, cluster = agents[1], agents.cluster
    one, other = cluster.nodes
    took: dict[str, list[float]] = {"small": [], "large": [], "by hand": []}
    scripts = {"here": by_hand.create(cluster, one, "16G"), "there": by_hand.create(cluster, other, "16G")}
    for number in range(ROUNDS + 1):
        now: dict[str, float] = {}
        for name, size in (("small", SMALL), ("large", LARGE)):
            now[name] = agent.seconds("create", name=name, size=size, backend=THIN, memory=by_hand.MEMORY * MIB)
            agent.ask("delete", name=name)
        now["by hand"] = agent.seconds("create_by_hand", **scripts, xml=by_hand.DOMAIN)
        for each in (agents[1], agents[2]):
            each.ask("undefine", name=by_hand.NAME)
        agent.ask("hands", here=by_hand.REMOVE, there=by_hand.REMOVE)
        say(f"creation {number}: " + ", ".join(f"{what} {seconds:.2f} s" for what, seconds in now.items()))
        if number:  # what is not in the page cache yet is nobody's merit
            for what, seconds in now.items():
                took[what].append(seconds)
    return [
        row("drbd_create_16g", took["large"], took["small"], "a machine with a disk of 16 GiB beside one of 1 GiB"),
        row("drbd_create", took["large"], took["by hand"], "the same beside LVM, drbdadm and libvirt on both nodes"),
    ]


def verification(agents: Agents, say: Say) -> list[Row]:
    """Several disks at once, and the same by hand."""
    agent, first = agents[1], agents.cluster[1]
    names = [f"verify{number}" for number in range(TOGETHER)]
    for name in names:
        agent.ask("create", name=name, size=COMPARED, backend=THIN, memory=by_hand.MEMORY * MIB)
    resources = sorted(first.drbd())
    assert len(resources) == TOGETHER, resources
    took: dict[str, list[float]] = {"by hand": [], "ours": []}
    for number in range(ROUNDS + 1):
        now = {
            "by hand": agent.seconds("verify_by_hand", resources=resources),
            "ours": agent.seconds("verify_all"),
        }
        say(f"verification {number}: " + ", ".join(f"{what} {seconds:.2f} s" for what, seconds in now.items()))
        if number:
            for what, seconds in now.items():
                took[what].append(seconds)
    for name in names:
        agent.ask("delete", name=name)
    about = f"{TOGETHER} disks of {COMPARED // MIB} MiB at once, beside drbdadm verify of the same"
    return [row("drbd_verify_all", took["ours"], took["by hand"], about)]


def resync(agents: Agents, say: Say) -> list[Row]:
    """What mcvirtd takes of a processor while a disk is copied."""
    first, cluster = agents.cluster[1], agents.cluster
    agents[1].ask("create", name="resync", size=RESYNC_SIZE * MIB, backend=THIN, memory=by_hand.MEMORY * MIB)
    (resource,) = first.drbd()
    shares = []
    for number in range(ROUNDS):
        before = [_cpu(node) for node in cluster.nodes]
        begun = time.monotonic()
        first.succeed(f"drbdadm invalidate-remote {resource}")
        done = f"while ! drbdadm dstate {resource} | grep -qx UpToDate/UpToDate; do sleep 1; done"
        first.succeed(done, within=600)
        seconds = time.monotonic() - begun
        used = [(_cpu(node) - was) / 1e9 for node, was in zip(cluster.nodes, before, strict=True)]
        say(f"resync {number}: {seconds:.1f} s, {', '.join(f'{each:.2f}' for each in used)} s of processors")
        shares.append(100 * max(used) / seconds)
    agents[1].ask("delete", name="resync")
    about = (
        f"of a processor, the busier of both nodes, while {RESYNC_SIZE} MiB are copied; "
        f"{min(shares):.1f}-{max(shares):.1f}, {len(shares)} times"
    )
    return [
        Row(name="drbd_resync_cpu", ours=statistics.median(shares), yardstick=CPU_BAR, unit="%", about=about)
    ]


def _cpu(node: Node) -> int:
    """Nanoseconds of processors that mcvirtd has had, with all that it has started."""
    return int(node.unit("mcvirtd", "CPUUsageNSec"))


def prepare(agents: Agents) -> None:
    """Storage in a thin pool for replicated disks."""
    cluster = agents.cluster
    cluster.lab.each(lambda node: node.succeed(f"lvcreate -qq -y -L 40G -T {GROUP}/{POOL}"))
    first = cluster[1]
    first.mcvirt("drbd", "enable", within=120)
    first.mcvirt("storage", "create", THIN, "--type", "Lvm", "--vg", GROUP, "--thin-pool", POOL)
