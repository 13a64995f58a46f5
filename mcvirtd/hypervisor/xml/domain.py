"""<domain>: the whole of a virtual machine."""

from __future__ import annotations

from lxml import etree

from mcvirtd.hypervisor import designer
from mcvirtd.hypervisor.design import DomainDesign
from mcvirtd.hypervisor.xml.cdrom import cdrom_element
from mcvirtd.hypervisor.xml.disk import disk_element
from mcvirtd.hypervisor.xml.graphics import graphics_elements
from mcvirtd.hypervisor.xml.interface import interface_element
from mcvirtd.hypervisor.xml.tree import Element, element, to_text

NAMESPACE = "https://mcvirt/xmlns/domain/1.0"
AGENT_CHANNEL = "org.qemu.guest_agent.0"


def domain_xml(design: DomainDesign) -> str:
    """The text that defines *design* in libvirt. It holds the VNC password: never log it."""
    return to_text(domain_element(design))


def domain_element(design: DomainDesign) -> Element:
    """*design* as libvirt wants it."""
    return element(
        "domain",
        element("name", text=design.name),
        element("uuid", text=design.uuid),
        element("metadata", _mark(design.uuid)),
        element("memory", text=str(design.memory), unit="b"),
        element("vcpu", text=str(design.cpu_count), placement="static"),
        _boot(design),
        _features(design),
        _cpu(design),
        _clock(design),
        element("on_poweroff", text="destroy"),
        element("on_reboot", text="restart"),
        element("on_crash", text="destroy"),
        element("devices", *_devices(design)),
        type="kvm" if design.accelerator == "kvm" else "qemu",
    )


def _mark(uuid: str) -> Element:
    # By this a domain is known as ours, even by a node that has lost its own records.
    mark = etree.Element(f"{{{NAMESPACE}}}domain", nsmap={"mcvirt": NAMESPACE})
    mark.set("uuid", uuid)
    return mark


def _boot(design: DomainDesign) -> Element:
    return element(
        "os",
        element("type", text="hvm", arch="x86_64", machine=design.machine),
        element("boot", dev="cdrom") if design.boot_from_iso else None,
        element("boot", dev="hd"),
    )


def _features(design: DomainDesign) -> Element:
    hyperv = None
    if designer.enlightened(design):
        switches = ("relaxed", "vapic", "vpindex", "runtime", "synic", "stimer", "reset", "frequencies")
        hyperv = element(
            "hyperv",
            element("spinlocks", state="on", retries="8191"),
            *(element(switch, state="on") for switch in switches),
            mode="custom",
        )
    return element("features", element("acpi"), element("apic"), hyperv)


def _cpu(design: DomainDesign) -> Element:
    # One socket: some guests, Windows among them, use no more than two.
    topology = element("topology", sockets="1", dies="1", cores=design.cpu_count, threads="1")
    mode = designer.cpu_mode(design)
    return element("cpu", topology, mode=mode, check="partial" if mode == "host-model" else "none")


def _clock(design: DomainDesign) -> Element:
    return element(
        "clock",
        element("timer", name="rtc", tickpolicy="catchup"),
        element("timer", name="pit", tickpolicy="delay"),
        element("timer", name="hpet", present="no"),
        element("timer", name="hypervclock", present="yes") if designer.enlightened(design) else None,
        offset="localtime" if design.windows else "utc",
    )


def _devices(design: DomainDesign) -> list[Element]:
    devices = _controllers(design)
    devices += [disk_element(disk, design.machine) for disk in designer.by_slot(design)]
    devices.append(cdrom_element(design.machine, design.iso))
    devices += [interface_element(adapter) for adapter in design.adapters]
    log = None if design.serial_log is None else element("log", file=design.serial_log, append="off")
    devices.append(element("serial", log, element("target", port="0"), type="pty"))
    devices.append(element("channel", element("target", type="virtio", name=AGENT_CHANNEL), type="unix"))
    devices += graphics_elements(design.graphics_driver, design.vnc_password)
    devices.append(element("memballoon", model="virtio", autodeflate="on" if design.autodeflate else "off"))
    devices.append(element("rng", element("backend", text="/dev/urandom", model="random"), model="virtio"))
    return devices


def _controllers(design: DomainDesign) -> list[Element]:
    controllers = [element("controller", type="usb", index="0", model="qemu-xhci", ports="15")]
    controllers += [
        element("controller", type="scsi", index=index, model="virtio-scsi")
        for index in range(designer.scsi_controllers(design))
    ]
    if design.machine == "q35":
        controllers.append(element("controller", type="pci", index="0", model="pcie-root"))
        controllers += [
            element("controller", type="pci", index=index + 1, model="pcie-root-port")
            for index in range(designer.pcie_ports(design))
        ]
    return controllers
