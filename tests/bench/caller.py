"""One client that calls as fast as it can when it is told to: `python -m tests.bench.caller ours|json|serpent ...`.

A line on its input is a number of seconds; the answer is a line with the calls of a second. Each kind is a process of
its own, since Pyro4's configuration is one for the process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

USER, PASSWORD = "bench", "eight words nobody would ever think of"


def main() -> None:
    kind = sys.argv[1]
    call = _ours() if kind == "ours" else _plain(kind, sys.argv[2], sys.argv[3])
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


def _ours() -> Callable[[], Sequence[str]]:
    from mcvirt_client import Client

    return Client.connect(username=USER, password=PASSWORD).vms.names


def _plain(serializer: str, uri: str, ca: str) -> Callable[[], Sequence[str]]:
    import Pyro4

    Pyro4.config.SSL = True
    Pyro4.config.SSL_CACERTS = ca
    Pyro4.config.SERIALIZER = serializer
    names: Callable[[], Sequence[str]] = Pyro4.Proxy(uri).names
    return names


if __name__ == "__main__":
    main()
