"""<disk> of a hard disk, and the controllers that carry it."""

from __future__ import annotations

from mcvirtd.hypervisor import designer
from mcvirtd.hypervisor.design import DiskDesign, Machine
from mcvirtd.hypervisor.xml.tree import Element, element, to_text


def disk_element(disk: DiskDesign, machine: Machine) -> Element:
    """*disk* as libvirt wants it, in a domain or alone."""
    unbuffered = disk.cache in ("directsync", "none")
    return element(
        "disk",
        element(
            "driver",
            name="qemu",
            type=disk.format,
            cache=disk.cache,
            # Linux AIO on a sparse file blocks QEMU while blocks are allocated.
            io="native" if unbuffered and disk.kind == "block" else None,
            discard="unmap" if disk.discard else None,
        ),
        element("source", **{"file" if disk.kind == "file" else "dev": disk.source}),
        element(
            "target",
            dev=designer.target_name(machine, disk.bus, disk.slot),
            bus=designer.bus_on(machine, disk.bus),
        ),
        element("serial", text=designer.disk_serial(disk.disk_id)),
        type=disk.kind,
        device="disk",
    )


def disk_xml(disk: DiskDesign, machine: Machine) -> str:
    """The text with which *disk* is attached to a domain, detached from it, or changed."""
    return to_text(disk_element(disk, machine))
