"""One client that calls as fast as it can when it is told to: `python -m tests.bench.caller KIND URI CA`.

KIND is ours, ours_vm, json or serpent; the last two are plain Pyro4, and only they need what follows.

A line on its input is a number of seconds; the answer is a line with the calls of a second. Each kind is a process of
its own, since Pyro4's configuration is one for the process.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable

OURS = ("ours", "ours_vm")
USER, PASSWORD = "bench", "eight words nobody would ever think of"


def main() -> None:
    kind = sys.argv[1]
    call = _ours(kind) if kind in OURS else _plain(kind, sys.argv[2], sys.argv[3])
    call()
    for line in sys.stdin:
        seconds = float(line)
        calls = 0
        began = now = time.perf_counter()
        while now - began < seconds:
            for _ in range(20):
                call()
            calls += 20
            now = time.perf_counter()
        sys.stdout.write(f"{calls / (now - began)}\n")
        sys.stdout.flush()


def _ours(kind: str) -> Callable[[], object]:
    from mcvirt_client import Client

    vms = Client.connect(username=USER, password=PASSWORD).vms
    # The second has a target, and so goes the whole way through the guard.
    return vms.names if kind == "ours" else functools.partial(vms.lock_state, "web5")


def _plain(serializer: str, uri: str, ca: str) -> Callable[[], object]:
    import Pyro4

    Pyro4.config.SSL = True
    Pyro4.config.SSL_CACERTS = ca
    Pyro4.config.SERIALIZER = serializer
    names: Callable[[], object] = Pyro4.Proxy(uri).names
    return names


if __name__ == "__main__":
    main()
