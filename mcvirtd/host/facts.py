"""What this machine has, and how busy it is."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

PROC = Path("/proc")
LIBVIRT = Path("/run/libvirt/qemu")


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's memory in bytes; *used* is what could not be had for something new."""

    total: int
    used: int


class CpuTimes(msgspec.Struct, frozen=True, kw_only=True):
    """What all processors together have done since the start, in ticks."""

    busy: int
    total: int


def cpu_count() -> int:
    """The processors that are switched on."""
    return os.cpu_count() or 1


def memory(proc: Path = PROC) -> Memory:
    """The memory as it is now."""
    kib = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        kib[name] = int(value.split()[0])
    return Memory(total=kib["MemTotal"] * 1024, used=(kib["MemTotal"] - kib["MemAvailable"]) * 1024)


def memory_of_guest(name: str, run: Path = LIBVIRT, proc: Path = PROC) -> int:
    """The memory that the QEMU of libvirt's domain *name* has now; 0 if there is none.

    libvirt itself does not tell it of a guest that is just coming from another node.
    """
    try:
        process = int((run / f"{name}.pid").read_text())
        pages = int((proc / str(process) / "statm").read_text().split()[1])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_times(proc: Path = PROC) -> CpuTimes:
    """A reading for ``cpu_percent``."""
    # user nice system idle iowait irq softirq steal; the guests' ticks after these are in user and nice already
    ticks = [int(word) for word in (proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    total = sum(ticks)
    return CpuTimes(busy=total - ticks[3] - ticks[4], total=total)


def cpu_percent(before: CpuTimes, after: CpuTimes) -> float:
    """The share of all processors that was used between two readings, from 0 to 100."""
    total = after.total - before.total
    if total <= 0:
        return 0.0
    return min(100.0, max(0.0, 100.0 * (after.busy - before.busy) / total))


def boot_id(proc: Path = PROC) -> str:
    """Another text after each start of the machine."""
    return (proc / "sys/kernel/random/boot_id").read_text().strip()
