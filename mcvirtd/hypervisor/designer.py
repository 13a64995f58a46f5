"""Policy: which parts a domain gets for what its design says. Pure; no host is asked."""

from __future__ import annotations

import re
import string

from mcvirt.errors import BadArgument
from mcvirtd.hypervisor.design import Bus, Cache, DiskDesign, DomainDesign, Machine

_PREFIXES: dict[Bus, str] = {"virtio": "vd", "ide": "hd", "scsi": "sd", "usb": "sd", "sata": "sd"}
# Unit 5 is the last of the six ports of the first SATA controller, and hdd the last of four IDE devices: the CD drive
# stays there, whichever disks come and go.
_CDROM: dict[Machine, tuple[Bus, str]] = {"q35": ("sata", "sdf"), "pc": ("ide", "hdd")}
# Empty PCIe ports that let a running q35 guest get more disks and adapters; each port takes one device.
SPARE_PCIE_PORTS = 8
# What a q35 domain of ours has on PCIe ports besides disks and adapters: USB, virtio-serial, virtio-scsi, balloon, rng.
_FIXED_PCIE_DEVICES = 5
_SERIAL_LENGTH = 20
_NOT_IN_SERIAL = re.compile(r"[^A-Za-z0-9_.+-]", re.ASCII)
SCSI_UNITS_PER_CONTROLLER = 7


def bus_on(machine: Machine, bus: Bus) -> Bus:
    """The bus that a disk asked for on *bus* really gets: q35 has no IDE, and guests take its SATA for it."""
    return "sata" if machine == "q35" and bus == "ide" else bus


def target_name(machine: Machine, bus: Bus, slot: int) -> str:
    """What libvirt calls the disk in *slot*: vda for the first on virtio, sda on SCSI, SATA and USB, hda on IDE."""
    real = bus_on(machine, bus)
    prefix = _PREFIXES[real]
    letters = [letter for letter in string.ascii_lowercase if prefix + letter != cdrom_target(machine)]
    room = 3 if real == "ide" else len(letters)
    if not 1 <= slot <= room:
        raise BadArgument(what=f"disk number {slot}", why=f"bus '{bus}' of machine type {machine} takes 1 to {room}.")
    return prefix + letters[slot - 1]


def cdrom_target(machine: Machine) -> str:
    """What libvirt calls the CD drive."""
    return _CDROM[machine][1]


def cdrom_bus(machine: Machine) -> Bus:
    """The bus of the CD drive."""
    return _CDROM[machine][0]


def disk_cache(*, replicated: bool, direct: bool) -> Cache:
    """How QEMU writes: past the page cache where the storage can (*direct*), and through it where it can't.

    Local disks report a write when it is on the medium. Replicated ones keep the guest's own flushes instead, each of
    which reaches both nodes. Storage that refuses O_DIRECT (tmpfs on older kernels) would not even open.
    """
    if not direct:
        return "writethrough"
    return "none" if replicated else "directsync"


def disk_serial(disk_id: str) -> str:
    """The serial number the guest sees: the end of the disk's id, for QEMU hands 20 characters to a guest."""
    return _NOT_IN_SERIAL.sub("-", disk_id)[-_SERIAL_LENGTH:]


def scsi_controllers(design: DomainDesign) -> int:
    """How many virtio-scsi controllers the disks of *design* need: one at least.

    A SCSI disk attached to a running domain without one would get libvirt's default, for which guests have no driver.
    """
    # sda is unit 0 of controller 0, whichever slots are empty: libvirt takes the address from the name.
    units = [
        string.ascii_lowercase.index(target_name(design.machine, disk.bus, disk.slot)[-1])
        for disk in design.disks
        if disk.bus == "scsi"
    ]
    return max(units, default=0) // SCSI_UNITS_PER_CONTROLLER + 1


def pcie_ports(design: DomainDesign) -> int:
    """How many PCIe ports a q35 domain is given: one for each device there is, and some to spare."""
    used = sum(1 for disk in design.disks if disk.bus == "virtio") + len(design.adapters) + _FIXED_PCIE_DEVICES
    return used + SPARE_PCIE_PORTS


def cpu_mode(design: DomainDesign) -> str:
    """host-model for KVM, because a guest with it can move to a like machine; all that QEMU emulates otherwise."""
    return "host-model" if design.accelerator == "kvm" else "maximum"


def enlightened(design: DomainDesign) -> bool:
    """Whether Windows is told that it runs on a hypervisor it knows. Only KVM can play that part."""
    return design.windows and design.accelerator == "kvm"


def by_slot(design: DomainDesign) -> tuple[DiskDesign, ...]:
    """The disks in their order, which is also the order in which the firmware looks for one to boot from."""
    return tuple(sorted(design.disks, key=lambda disk: disk.slot))
