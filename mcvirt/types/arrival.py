"""What nodes tell each other about a machine that moves from one to the other."""

from __future__ import annotations

import msgspec

from mcvirt.types.migration import MigrationCheck


class Traveller(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that is to arrive. Those of its disks in *copied* have their data sent, the others are there already.

    It runs on its new node at once if it is *online*, or *starts* there.
    *accelerator*, *machine_type* and *cpu* (a <cpu> of libvirt's) are what its guest runs with now, where it runs.
    """

    name: str
    uuid: str
    online: bool = False
    starts: bool = False
    copied: tuple[str, ...] = ()
    accelerator: str = ""
    machine_type: str = ""
    cpu: str = ""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What awaits it: what was looked at there, and where its disks (by ID), its image and its console's log are."""

    checks: tuple[MigrationCheck, ...]
    disks: dict[str, str] = {}
    image: str | None = None
    console: str = ""


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """What libvirt on a node says of a machine now: whether it has it for good, and what QEMU does, if there is one."""

    defined: bool = False
    active: bool = False
    running: bool = False
    reason: str = ""
