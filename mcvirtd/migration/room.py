"""The memory of this node, as machines that come share it: what one of them is promised, no other is."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mcvirt.errors import Conflict
from mcvirt.units import format_size
from mcvirtd.host.facts import Memory
from mcvirtd.state.records import VmRecord
from mcvirtd.vm import checks


class Room:
    """*memory* measures this node, *used_by* what the QEMU of a machine has of it by now.

    What was taken for a machine is kept free as long as *expected* says so of it.
    """

    def __init__(
        self,
        node: str,
        *,
        memory: Callable[[], Memory],
        used_by: Callable[[str], int],
        expected: Callable[[str], bool],
    ) -> None:
        self._node = node
        self._memory = memory
        self._used_by = used_by
        self._expected = expected
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}

    def check(self, vm: VmRecord, *, runs: bool) -> None:
        """Raise unless the machine can be here; where it *runs* here, unless its memory is free now, too."""
        with self._lock:
            self._check(vm, runs=runs)

    def take(self, vm: VmRecord) -> None:
        """Keep what the machine, which will run here, needs free for it; Conflict if it is not free."""
        with self._lock:
            self._check(vm, runs=True)
            self._taken[vm.name] = vm.memory

    def leave(self, name: str) -> None:
        """The machine has come, or does not."""
        with self._lock:
            self._taken.pop(name, None)

    def _check(self, vm: VmRecord, *, runs: bool) -> None:
        memory = self._memory()
        checks.memory(vm.memory, memory.total)
        if not runs:
            return
        # A guest that is just coming has a part of its memory already.
        coming = {
            name: max(0, size - self._used_by(name))
            for name, size in self._taken.items()
            if name != vm.name and self._expected(name)
        }
        free = max(0, memory.total - memory.used - sum(coming.values()))
        if vm.memory > free:
            but = f", with what is kept free for {', '.join(sorted(coming))}" if coming else ""
            raise Conflict(
                text=f"The machine needs {format_size(vm.memory)} of memory, and node '{self._node}' has "
                f"{format_size(free)} left{but}."
            )
