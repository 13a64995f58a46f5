"""What a domain is to be: plain values, without a word on how libvirt is told."""

from __future__ import annotations

from typing import Literal

import msgspec

Machine = Literal["q35", "pc"]
Accelerator = Literal["kvm", "tcg"]
Bus = Literal["virtio", "ide", "scsi", "usb", "sata"]
Cache = Literal["directsync", "none", "writethrough"]
GraphicsDriver = Literal["vga", "cirrus", "vmvga", "qxl", "virtio", "bochs", "none"]

BUSES: tuple[Bus, ...] = ("virtio", "ide", "scsi", "usb", "sata")
GRAPHICS_DRIVERS: tuple[GraphicsDriver, ...] = ("vga", "cirrus", "vmvga", "qxl", "virtio", "bochs", "none")


class DiskDesign(msgspec.Struct, frozen=True, kw_only=True):
    """One disk of a domain; *slot* is its number in the domain, from 1, and gives it its name there."""

    source: str
    slot: int
    disk_id: str
    kind: Literal["file", "block"] = "block"
    format: Literal["raw", "qcow2"] = "raw"
    bus: Bus = "virtio"
    cache: Cache = "directsync"
    discard: bool = True


class AdapterDesign(msgspec.Struct, frozen=True, kw_only=True):
    """One network adapter of a domain, on a bridge of the host."""

    mac: str
    bridge: str
    model: str = "virtio"


class DomainDesign(msgspec.Struct, frozen=True, kw_only=True):
    """A whole domain. *memory* is in bytes; *vnc_password* has at most eight characters, or VNC takes none.

    There is always a CD drive, empty when *iso* is None. *serial_log* is a file that gets what the guest says on
    its serial port, begun anew at each start (virtlogd also begins a new one at 2 MiB, and keeps three old ones).
    """

    uuid: str
    name: str
    memory: int
    cpu_count: int
    machine: Machine = "q35"
    accelerator: Accelerator = "kvm"
    disks: tuple[DiskDesign, ...] = ()
    adapters: tuple[AdapterDesign, ...] = ()
    iso: str | None = None
    boot_from_iso: bool = False
    graphics_driver: GraphicsDriver = "vmvga"
    vnc_password: str | None = None
    windows: bool = False
    autodeflate: bool = False
    serial_log: str | None = None
