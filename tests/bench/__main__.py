"""`make bench`: the bars for speed and memory, each ratio from one run, in a table and in build/bench.json."""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import call_rate, rows
from tests.bench.interleave import Timing, best
from tests.bench.rows import Row
from tests.bench.scene import Scene

FEW, MANY = 10, 1000
SPARE = 5
MIB = 1024 * 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--no-fail", action="store_true", help="end with status 0 although a bar is missed")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), metavar="FILE")
    parser.add_argument("--rounds", type=int, default=24, metavar="N", help="how often each command is run")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it starts a libvirtd of its own, and so needs root")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mcvirt-bench-") as directory:
        measured = _few(Path(directory) / "few", arguments.rounds)
        _say("10 machines in real libvirt: done", began)
        measured += _many(Path(directory) / "many", arguments.rounds)
        _say("1,000 simulated machines: done", began)
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
        samples = [tuple(map(float, line.split())) for line in scene.samples.read_text().splitlines()]
        total = statistics.median(whole for whole, _ in samples)
        overhead = statistics.median(whole - waited for whole, waited in samples)
        for number in range(FEW, FEW + SPARE):
            scene.node.mcvirt("delete", f"web{number}", "--yes")
        scene.restart_unobserved()
        commands = {
            "list_10": scene.mcvirt("list", expected="web9"),
            "plain": scene.plain(),
            "complete_vm_name": scene.completion("mcvirt info w", expected="web9"),
            "info_vm": scene.mcvirt("info", "web5", expected="web5"),
            "virsh_list_10": scene.virsh("list", "--all", expected="web9"),
        }
        timings = scene.time(list(commands.values()), rounds)
        by_name = {name: timings[command.name] for name, command in commands.items()}
        rates = call_rate.measure(scene)
    fastest = max(rates["json"], rates["serpent"])
    return [
        *_compared("list_10", by_name),
        *_compared("complete_vm_name", by_name),
        *_compared("info_vm", by_name)[:1],
        *_compared("virsh_list_10", by_name)[:1],
        Row(name="rpc_call_rate", ours=rates["ours"], yardstick=fastest, unit="calls/s", about="vm.names, one session"),
        *(
            Row(name=f"rpc_call_rate_{kind}", ours=rates["ours"], yardstick=rates[kind], unit="calls/s")
            for kind in ("json", "serpent")
        ),
        Row(name="create_overhead", ours=overhead, yardstick=50, unit="ms", about=f"{total:.0f} ms with libvirt, volumes"),
    ]


def _many(directory: Path, rounds: int) -> list[Row]:
    """What is measured with very many machines, which are simulated."""
    with Scene(directory, simulate=True) as scene:
        created = scene.fill(MANY)
        commands = {"list_1000": scene.mcvirt("list", expected=f"web{MANY - 1}"), "plain": scene.plain()}
        commands["info_vm_1000"] = scene.mcvirt("info", "web500", expected="web500")
        timings = scene.time(list(commands.values()), max(6, rounds // 2))
        memory = _resident(scene.node.daemon_pid)
    by_name = {name: timings[command.name] for name, command in commands.items()}
    first, last = statistics.median(created[:100]), statistics.median(created[-100:])
    return [
        *_compared("list_1000", by_name),
        *_compared("info_vm_1000", by_name)[:1],
        Row(
            name="daemon_memory",
            ours=memory / MIB,
            yardstick=120,
            unit="MiB",
            about="resident after listings; libvirt-python loaded, machines simulated",
        ),
        Row(name="create_simulated", ours=last, yardstick=first, unit="ms", about="the last 100 and the first of 1,000"),
    ]


def _compared(name: str, timings: dict[str, Timing]) -> list[Row]:
    """On the clock, and as a check on that in time of processors, which a busy machine disturbs less."""
    ours, plain = timings[name], timings["plain"]
    return [
        Row(name=name, ours=best(ours.wall), yardstick=best(plain.wall), unit="ms"),
        Row(name=f"{name}_cpu", ours=best(ours.cpu), yardstick=best(plain.cpu), unit="ms"),
    ]


def _resident(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    sys.exit(main())
