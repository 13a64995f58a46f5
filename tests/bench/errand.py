"""A client in a node that does errands and says how long each took its client: `python -m tests.bench.errand`.

A line on its input is a word and its arguments; the answer is a line with the milliseconds.

    change          a change of the configuration, the smallest there is
    list            the virtual machines, as the library sees them
    power NAME      a virtual machine off, and on again
    start NAME...   virtual machines on
    await NODE      until it is said that the node does not answer
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from mcvirt_client import Client

_PAUSE = 0.05
_SILENCE_WITHIN = 60.0


class Errands:
    """What a line may ask for."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seconds = 1000
        self.of: dict[str, Callable[..., None]] = {
            "change": self.change,
            "list": self.list,
            "power": self.power,
            "start": self.start,
            "await": self.await_silence,
        }

    def change(self) -> None:
        self._seconds += 1
        self._client.nodes.set_autostart_interval(self._seconds)

    def list(self) -> None:
        self._client.vms.list()

    def power(self, name: str) -> None:
        self._client.vms.stop(name)
        self._client.vms.start(name)

    def start(self, *names: str) -> None:
        tasks = [self._client.start_only(self._client.vms.start, name).task for name in names]
        for task in tasks:
            self._client.wait_for(task, object)

    def await_silence(self, node: str) -> None:
        deadline = time.monotonic() + _SILENCE_WITHIN
        while not any(row.name == node and row.status == "Unreachable" for row in self._client.nodes.list()):
            if time.monotonic() > deadline:
                raise SystemExit(f"node {node} is not taken for silent within {_SILENCE_WITHIN:.0f} s")
            threading.Event().wait(_PAUSE)  # or this would be what keeps the machine busy


def main() -> None:
    with Client.connect() as client:
        errands = Errands(client)
        for line in sys.stdin:
            word, *arguments = line.split()
            sys.stdout.write(f"{_timed(errands.of[word], arguments)}\n")
            sys.stdout.flush()


def _timed(errand: Callable[..., None], arguments: Sequence[str]) -> float:
    began = time.perf_counter()
    errand(*arguments)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
