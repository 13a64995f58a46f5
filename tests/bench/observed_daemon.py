"""mcvirtd, with a clock on what `create` asks of libvirt and storage: `python -m tests.bench.observed_daemon`.

For each creation it appends a line to $MCVIRT_BENCH_SAMPLES, if that is set: the milliseconds from the arrival of the
call until its task is over and stored, and those of them in which it waited for libvirt or for volumes.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcvirt.types.task import TaskNews
from mcvirtd.hypervisor.libvirt import Hypervisor
from mcvirtd.hypervisor.simulated import SimulatedHypervisor
from mcvirtd.main import main
from mcvirtd.rpc.guard import Guard, Published
from mcvirtd.storage.file_volumes import FileVolumes
from mcvirtd.storage.simulated_volumes import SimulatedVolumes
from mcvirtd.tasks.task import Task

CREATE = "vm.create"


class _Clock(threading.local):
    """Of one thread: how deep it is in calls that are watched, and how long all of them took."""

    depth = 0
    spent = 0.0


_clock = _Clock()
_began: dict[str, float] = {}


def _watch(cls: type) -> None:
    for name, method in list(vars(cls).items()):
        if not name.startswith("_") and callable(method):
            setattr(cls, name, _watched(method))
        elif isinstance(method, property) and method.fget is not None:
            setattr(cls, name, property(_watched(method.fget)))


def _watched(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        _clock.depth += 1
        try:
            return method(*args, **kwargs)
        finally:
            _clock.depth -= 1
            if not _clock.depth:
                _clock.spent += time.perf_counter() - began

    return timed


def _observe(samples: Path) -> None:
    for cls in (*Hypervisor.__mro__[:-1], FileVolumes, SimulatedHypervisor, SimulatedVolumes):
        _watch(cls)
    call, finish = Guard.call, Task.finish

    def observed_call(self: Guard, published: Published, caller: Any, args: Any, kwargs: Any) -> Any:
        if published.label == CREATE:
            _began[kwargs["spec"]["name"]] = time.perf_counter()
        return call(self, published, caller, args, kwargs)

    def observed_finish(self: Task, conclusion: TaskNews) -> None:
        finish(self, conclusion)
        if self.operation == CREATE:
            total = time.perf_counter() - _began.pop(self.target)
            with samples.open("a") as file:
                file.write(f"{total * 1000} {_clock.spent * 1000}\n")
        # Threads of tasks are used again.
        _clock.spent = 0.0

    Guard.call = observed_call  # type: ignore[method-assign]
    Task.finish = observed_finish  # type: ignore[method-assign]


if __name__ == "__main__":
    if "MCVIRT_BENCH_SAMPLES" in os.environ:
        _observe(Path(os.environ["MCVIRT_BENCH_SAMPLES"]))
    sys.exit(main())
