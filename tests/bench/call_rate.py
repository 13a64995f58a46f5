"""Calls a second of clients that each have one connection, in turns."""

from __future__ import annotations

import subprocess
from typing import Any

from tests.bench.interleave import best
from tests.bench.scene import Scene

KINDS = ("ours", "serpent", "json", "ours_vm")
ROUNDS = 15
SLICE = 0.2


def measure(scene: Scene) -> dict[str, float]:
    """Calls a second by kind of client (see tests.bench.caller)."""
    clients: dict[str, subprocess.Popen[Any]] = {}
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    try:
        for kind in KINDS:
            argv = ["-m", "tests.bench.caller", kind, scene.uri, scene.ca]
            clients[kind] = scene.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            _rate(clients[kind])
        for number in range(ROUNDS):
            for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                rates[kind].append(_rate(clients[kind]))
    finally:
        for client in clients.values():
            client.kill()
            client.communicate()
    return {kind: best(samples, max) for kind, samples in rates.items()}


def _rate(client: subprocess.Popen[Any]) -> float:
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(f"{SLICE}\n")
    client.stdin.flush()
    line = client.stdout.readline()
    if not line:
        raise RuntimeError("a client ended")
    return float(line)
