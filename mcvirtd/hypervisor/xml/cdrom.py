"""<disk> of the CD drive, with or without a disc in it."""

from __future__ import annotations

from mcvirtd.hypervisor import designer
from mcvirtd.hypervisor.design import Machine
from mcvirtd.hypervisor.xml.tree import Element, element, to_text


def cdrom_element(machine: Machine, iso: str | None) -> Element:
    """The CD drive of a *machine*, with the disc image *iso* in it."""
    bus = designer.cdrom_bus(machine)
    return element(
        "disk",
        element("driver", name="qemu", type="raw"),
        None if iso is None else element("source", file=iso),
        element("target", dev=designer.cdrom_target(machine), bus=bus),
        element("readonly"),
        # The last port of the first controller, whatever libvirt would make of the name.
        element("address", type="drive", controller="0", bus="0", target="0", unit="5") if bus == "sata" else None,
        type="file",
        device="cdrom",
    )


def cdrom_xml(machine: Machine, iso: str | None) -> str:
    """The text with which the disc in the drive is changed (``update_device``), or taken out when *iso* is None."""
    return to_text(cdrom_element(machine, iso))
