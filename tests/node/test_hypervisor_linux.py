"""What only a guest with drivers can prove: a real Linux, under libvirt, whose devices come and go."""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcvirtd.hypervisor.console import Console
from mcvirtd.hypervisor.design import AdapterDesign, Bus, DiskDesign, DomainDesign, Machine
from mcvirtd.hypervisor.libvirt import Hypervisor
from mcvirtd.hypervisor.xml.cdrom import cdrom_xml
from mcvirtd.hypervisor.xml.disk import disk_xml
from mcvirtd.hypervisor.xml.domain import domain_xml
from mcvirtd.hypervisor.xml.interface import interface_xml
from tests import guest
from tests.guest import build
from tests.node.libvirt_host import LibvirtHost

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("xorriso", "apt-get"))), reason="needs xorriso and apt-get to build the guest"
)

MIB = 1024 * 1024
PATIENCE = 60.0
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guest"


class Screen:
    """What a guest has said on its console so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.said = ""

    def wait(self, kind: str, fits: Callable[[guest.Line], bool] = lambda line: True) -> guest.Line:
        """The first line of that kind that fits; what was said up to now is forgotten by ``forget`` only."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for line in guest.lines(self.said, kind):
                if fits(line):
                    return line
            remaining = deadline - time.monotonic()
            assert remaining > 0 and not self.console.ended, f"no such {kind!r} in:\n{self.said}"
            self.said += self.console.read(remaining).decode(errors="replace")

    def forget(self) -> None:
        self.said = ""


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    directory = Path(tempfile.mkdtemp(prefix="mcvirt-node-"))
    try:
        with LibvirtHost(directory, "hv1") as host:
            host.run(["ip", "link", "add", "br0", "type", "bridge"])
            host.run(["ip", "link", "set", "br0", "up"])
            yield host
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_devices_of_a_running_linux_come_and_go(host: LibvirtHost, machine: Machine) -> None:
    directory = host.directory / machine
    directory.mkdir()
    iso = build.build(directory / "guest.iso", CACHE)
    hypervisor = Hypervisor(f"qemu+unix:///system?socket={host.path('/run/libvirt/libvirt-sock')}", "hv1")
    assert hypervisor.connect(PATIENCE)

    def disk(slot: int, bus: Bus) -> DiskDesign:
        image = directory / f"{slot}.raw"
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(4 * MIB)
        return DiskDesign(source=str(image), slot=slot, disk_id=f"hd-{slot}", kind="file", bus=bus)

    design = DomainDesign(
        uuid=str(uuid.uuid4()),
        name=f"linux-{machine}",
        memory=guest.MEMORY_MIB * MIB,
        cpu_count=2,
        machine=machine,
        accelerator="tcg",
        disks=(disk(1, "virtio"),),
        iso=str(iso),
        boot_from_iso=True,
    )
    identity = hypervisor.define(domain_xml(design))
    hypervisor.start(identity)
    try:
        with hypervisor.open_console(identity) as console:
            screen = Screen(console)
            screen.wait("ready")
            assert screen.wait("memory")["cpus"] == "2"
            assert screen.wait("disk", lambda line: line["serial"] == "hd-1").number("size") == 4 * MIB

            hypervisor.resize_block(identity, "vda", 8 * MIB)
            screen.wait("disk", lambda line: line["name"] == "vda" and line.number("size") == 8 * MIB)

            for slot, bus in ((2, "virtio"), (3, "scsi"), (4, "usb")):
                screen.forget()
                device = disk_xml(disk(slot, bus), machine)
                hypervisor.attach_device(identity, device, live=True, config=True)
                new = screen.wait("disk", lambda line: line["name"] != "vda")
                name = new["name"]
                if bus != "usb":  # this guest's kernel does not tell the serial numbers of those
                    assert new["serial"] == f"hd-{slot}"
                hypervisor.detach_device(identity, device, live=True, config=True, within=PATIENCE)
                screen.wait("gone", lambda line, name=name: line["name"] == name)

            screen.forget()
            adapter = interface_xml(AdapterDesign(mac="00:16:3e:00:00:07", bridge="br0"))
            hypervisor.attach_device(identity, adapter, live=True, config=True)
            screen.wait("nic", lambda line: line["mac"] == "00:16:3e:00:00:07")
            hypervisor.detach_device(identity, adapter, live=True, config=True, within=PATIENCE)
            screen.wait("gone", lambda line: line["kind"] == "nic")

            screen.forget()
            hypervisor.update_device(identity, cdrom_xml(machine, None), live=True, config=True)
            screen.wait("cdrom", lambda line: line.number("size") == 0)

            hypervisor.shutdown(identity)
            assert hypervisor.wait_for(
                identity, lambda state: state is not None and state.condition == "stopped", PATIENCE
            )
    finally:
        hypervisor.destroy(identity)
        hypervisor.undefine(identity)
        hypervisor.close()
