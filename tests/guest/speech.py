"""What the guest says on its serial port, and what it leaves on its disk.

Every line it prints is `MCVIRT-GUEST kind key=value ...`:

    booted kernel=              the kernel runs and /init has begun
    memory= cpus=               KiB the kernel may use, processors online (again when one changes)
    disk name= size= serial=    one a disk: bytes; serial is - when there is none
    cdrom name= size=           one a drive: bytes of the medium, 0 when empty
    nic name= mac= link=        one a network card: link is up or down
    gone kind= name=            a disk, drive or card that was there is not there any more
    ready                       all that was there at boot has been said; devices are watched from here on
    tick boots= ticks=          every few seconds: the boots counted on the disk, the ticks counted in memory,
                                so a migrated guest keeps boots and goes on, a restarted one has a boot more
    error ...                   what went wrong, in words
    echo TEXT                   the answer to `echo TEXT`
    poweroff, reboot            the last line before it does

It understands, one a line: `echo TEXT`, `report` (everything above again), `reboot`, `poweroff`.
A disk, drive or card is said again whenever one of its values changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MARK = "MCVIRT-GUEST"
BOOTED = f"{MARK} booted"
READY = f"{MARK} ready"

MEMORY_MIB = 128
"""Memory for the guest: 96 has always been enough, 80 is too little."""
CPU_MODEL = "max"
"""Any model will do: without KVM, qemu64 and max with fewer features took the same time to boot."""
READY_WITHIN = 60.0
"""Seconds after which a guest that has not said `ready` will not any more, on a busy machine without KVM."""

COUNTER_OFFSET = 1 << 20
COUNTER_SIZE = 512


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the guest: its kind (`memory` for the line without one), its values by name, its text."""

    kind: str
    values: dict[str, str]
    text: str

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def number(self, name: str) -> int:
        return int(self.values[name])


def lines(serial: str, kind: str | None = None) -> list[Line]:
    """The guest's lines in *serial* (of one *kind*), in order; half a line at the end is left out."""
    found = []
    for said in re.findall(rf"{MARK} ([^\r\n]+)\r?\n", serial):
        word, _, text = said.partition(" ")
        if "=" in word:
            word, text = word.partition("=")[0], said
        if kind is None or word == kind:
            values = dict(item.split("=", 1) for item in text.split() if "=" in item)
            found.append(Line(kind=word, values=values, text=text))
    return found


def parse_counter(sector: bytes) -> tuple[int, int] | None:
    """(boots, ticks) of the first disk's COUNTER_SIZE bytes at COUNTER_OFFSET; None before its first boot."""
    found = re.match(rb"MCVIRT boots=(\d+) ticks=(\d+) *\n", sector)
    return (int(found[1]), int(found[2])) if found else None
