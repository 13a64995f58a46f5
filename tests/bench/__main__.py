"""`make bench`: the bars for speed and memory, each ratio from one run, in a table and in build/bench.json."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import call_rate, rows, together
from tests.bench.interleave import Command, Timing, best
from tests.bench.rows import Row
from tests.bench.scene import Scene

FEW, MANY = 10, 1000
SPARE = 5
MIB = 1024 * 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--no-fail", action="store_true", help="end with status 0 although a bar is missed")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), metavar="FILE")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="how often each command is run")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it starts a libvirtd of its own, and so needs root")
    began = time.monotonic()
    # Not in /tmp: where that is memory, writing down what must survive a crash would cost nothing.
    with tempfile.TemporaryDirectory(prefix="mcvirt-bench-", dir="/var/tmp") as directory:
        measured = _few(Path(directory) / "few", arguments.rounds)
        _say("10 machines in real libvirt: done", began)
        measured += _many(Path(directory) / "many", arguments.rounds)
        _say("1,000 simulated machines: done", began)
        measured += together.measure(Path(directory) / "together", arguments.rounds)
        _say("clusters of 3 and 16 nodes: done", began)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(rows.as_json(measured))
    print(rows.table(measured))
    missed = [row.name for row in measured if row.missed]
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed and not arguments.no_fail else 0


def _say(text: str, began: float) -> None:
    print(f"bench: {text} ({time.monotonic() - began:.0f} s)", file=sys.stderr)


def _few(directory: Path, rounds: int) -> list[Row]:
    """What is measured with few machines, real libvirt and volumes in files."""
    with Scene(directory, simulate=False) as scene:
        scene.fill(FEW + SPARE)
        creations = scene.creations()
        for number in range(FEW, FEW + SPARE):
            scene.node.mcvirt("delete", f"web{number}", "--yes")
        scene.restart_unobserved()
        commands = {
            "list_10": scene.mcvirt("list", expected="web9"),
            "plain": scene.plain(),
            "complete_vm_name": scene.completion("mcvirt info w", expected="web9"),
            "nodelay": scene.plain_nodelay(),
            "info_vm": scene.mcvirt("info", "web5", expected="web5"),
            "virsh_list_10": scene.virsh("list", "--all", expected="web9"),
        }
        timings = _timed(scene, commands, rounds)
        rates = call_rate.measure(scene)
    fastest = max(rates["json"], rates["serpent"])
    return [
        *_compared("list_10", timings),
        *_compared("complete_vm_name", timings),
        _on_the_clock("list_10_nodelay", timings["list_10"], timings["nodelay"], "plain Pyro4 with SOCK_NODELAY"),
        _on_the_clock("info_vm", timings["info_vm"], timings["plain"]),
        _on_the_clock("virsh_list_10", timings["virsh_list_10"], timings["plain"], "libvirt's own, not ours"),
        _rate("rpc_call_rate", rates["ours"], fastest, "vm.names, one user's session"),
        _rate("rpc_call_rate_json", rates["ours"], rates["json"]),
        _rate("rpc_call_rate_serpent", rates["ours"], rates["serpent"]),
        _rate("rpc_call_rate_vm", rates["ours_vm"], fastest, "vm.lock_state, the guard's whole way"),
        _overhead("create_overhead", creations, "with libvirt and volumes"),
    ]


def _many(directory: Path, rounds: int) -> list[Row]:
    """What is measured with very many machines, which are simulated."""
    with Scene(directory, simulate=True) as scene:
        created = scene.fill(MANY)
        creations = scene.creations()
        commands = {
            "list_1000": scene.mcvirt("list", expected=f"web{MANY - 1}"),
            "plain": scene.plain(),
            "info_vm_1000": scene.mcvirt("info", "web500", expected="web500"),
        }
        timings = _timed(scene, commands, max(6, rounds // 2))
        memory = _resident(scene.node.daemon_pid)
    client = best(created[-100:])
    return [
        *_compared("list_1000", timings),
        _on_the_clock("info_vm_1000", timings["info_vm_1000"], timings["plain"]),
        Row(
            name="daemon_memory",
            ours=memory / MIB,
            yardstick=120,
            unit="MiB",
            about="resident after listings; libvirt-python is loaded, the machines are simulated",
        ),
        _overhead("create_overhead_1000", creations[-100:], "the last 100 of 1,000 simulated ones"),
        Row(name="create_client_1000", ours=client, yardstick=50, unit="ms", about="the same, as a client sees it"),
    ]


def _timed(scene: Scene, commands: dict[str, Command], rounds: int) -> dict[str, Timing]:
    timings = scene.time(list(commands.values()), rounds)
    return {name: timings[command.name] for name, command in commands.items()}


def _compared(name: str, timings: dict[str, Timing]) -> list[Row]:
    """On the clock, and as a check on that in time of processors, which a busy machine disturbs less."""
    ours, plain = timings[name], timings["plain"]
    cpu = Row(name=f"{name}_cpu", ours=best(ours.cpu), yardstick=best(plain.cpu), unit="ms", about="of processors")
    return [_on_the_clock(name, ours, plain), cpu]


def _on_the_clock(name: str, ours: Timing, plain: Timing, about: str = "") -> Row:
    return Row(name=name, ours=best(ours.wall), yardstick=best(plain.wall), unit="ms", about=about)


def _rate(name: str, ours: float, plain: float, about: str = "") -> Row:
    return Row(name=name, ours=ours, yardstick=plain, unit="calls/s", about=about)


def _overhead(name: str, creations: list[tuple[float, float]], about: str) -> Row:
    ours = best([whole - waited for whole, waited in creations])
    whole = best([whole for whole, _ in creations])
    return Row(name=name, ours=ours, yardstick=50, unit="ms", about=f"{whole:.0f} ms {about}")


def _resident(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
