"""Times commands in turns, ABCABC..., so that whatever else the machine does disturbs all of them alike.

`python -m tests.bench.interleave` reads Requests as JSON, one a line, from its input and writes for each a line with a
list of Timing: for commands that have to run inside a host.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import msgspec

BATCHES = 3


class Command(msgspec.Struct, kw_only=True):
    """What to run. Its answer, on descriptor *answer*, must contain *expected*."""

    name: str
    argv: list[str]
    env: dict[str, str]
    expected: str
    answer: int = 1


class Request(msgspec.Struct, kw_only=True):
    """Run each of *commands* *rounds* times; if *warm*, after once that does not count."""

    commands: list[Command]
    rounds: int
    warm: bool = True


class Timing(msgspec.Struct, kw_only=True):
    """Milliseconds that one command took at each run: on the clock, and of processors."""

    name: str
    wall: list[float] = []
    cpu: list[float] = []


def best(samples: Sequence[float], of: Callable[[list[float]], float] = min) -> float:
    """The best of the medians of BATCHES parts: what the quietest part of the run says."""
    size = max(1, len(samples) // BATCHES)
    parts = [samples[start : start + size] for start in range(0, len(samples) - size + 1, size)]
    return of([statistics.median(part) for part in parts])


def run(request: Request) -> list[Timing]:
    """The timings of all commands, in their order."""
    timings = {command.name: Timing(name=command.name) for command in request.commands}
    with tempfile.TemporaryFile() as answer:
        for command in (
            request.commands if request.warm else ()
        ):  # what is not in the page cache yet, or not compiled, is nobody's merit
            _once(command, answer.fileno())
        for number in range(request.rounds):
            for command in request.commands if number % 2 == 0 else reversed(request.commands):
                wall, cpu = _once(command, answer.fileno())
                timings[command.name].wall.append(wall)
                timings[command.name].cpu.append(cpu)
    return list(timings.values())


def _once(command: Command, answer: int) -> tuple[float, float]:
    os.ftruncate(answer, 0)
    os.lseek(answer, 0, os.SEEK_SET)
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, descriptor, "/dev/null", os.O_RDWR, 0) for descriptor in (0, 1, 2, 8, 9)
    ]
    # Only one of the descriptors that were just opened: `answer` itself is above them, as we have opened it late.
    actions.append((os.POSIX_SPAWN_DUP2, answer, command.answer))
    began = time.perf_counter()
    pid = os.posix_spawn(command.argv[0], command.argv, command.env, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - began
    said = os.pread(answer, 1 << 20, 0).decode(errors="replace")
    if status or command.expected not in said:
        raise RuntimeError(f"{command.argv} ended with wait status {status} and said: {said[:500]}")
    return wall * 1000, (usage.ru_utime + usage.ru_stime) * 1000


if __name__ == "__main__":
    for _ in range(10 - 3):  # keep the descriptors up to 9 for the commands
        os.open("/dev/null", os.O_RDONLY)
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(run(msgspec.json.decode(line, type=Request))) + b"\n")
        sys.stdout.buffer.flush()
