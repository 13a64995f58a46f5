"""Designs and the XML made of them. MCVIRT_REGENERATE=1 writes the golden files anew: read the difference."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from mcvirt.errors import BadArgument
from mcvirtd.hypervisor import designer
from mcvirtd.hypervisor.design import BUSES, GRAPHICS_DRIVERS, AdapterDesign, DiskDesign, DomainDesign
from mcvirtd.hypervisor.xml import read
from mcvirtd.hypervisor.xml.cdrom import cdrom_xml
from mcvirtd.hypervisor.xml.disk import disk_xml
from mcvirtd.hypervisor.xml.domain import domain_xml
from mcvirtd.hypervisor.xml.interface import interface_xml
from mcvirtd.hypervisor.xml.tree import from_text

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")

DISK = DiskDesign(source="/dev/vg0/mcvirt-web1", slot=1, disk_id="hd-0123456789abcdef-0123456789abcdef012345")
FILE_DISK = DiskDesign(
    source="/srv/vms/data.qcow2",
    slot=2,
    disk_id="hd-two",
    kind="file",
    format="qcow2",
    bus="sata",
    cache="writethrough",
    discard=False,
)
ADAPTER = AdapterDesign(mac="00:16:3e:01:02:03", bridge="br0")
PLAIN = DomainDesign(uuid="5c1b4a7e-3f0d-4c5f-9d6e-2f4d8a5f0c11", name="web1", memory=512 * 2**20, cpu_count=1)


def but(**changes: object) -> DomainDesign:
    return msgspec.structs.replace(PLAIN, **changes)


DOMAINS = {
    "plain": PLAIN,
    "full": but(
        memory=4 * 2**30,
        cpu_count=4,
        disks=(DISK, FILE_DISK),
        adapters=(ADAPTER, msgspec.structs.replace(ADAPTER, mac="00:16:3e:01:02:04", model="e1000e")),
        iso="/var/lib/mcvirt/iso/debian 12.iso",
        boot_from_iso=True,
        vnc_password="Gx4Tz9Kq",
        autodeflate=True,
        serial_log="/var/lib/mcvirt/serial/web1.log",
    ),
    "windows": but(windows=True, cpu_count=2, graphics_driver="qxl"),
    "emulated-windows": but(windows=True, accelerator="tcg"),
    "pc-emulated": but(
        machine="pc",
        accelerator="tcg",
        disks=(msgspec.structs.replace(DISK, bus="ide"),),
        graphics_driver="none",
        iso="/x.iso",
    ),
    "every-bus": but(
        disks=tuple(
            DiskDesign(source=f"/dev/vg0/{bus}", slot=slot, disk_id=f"hd-{bus}", bus=bus)
            for slot, bus in enumerate(BUSES, 1)
        )
    ),
}
DEVICES = {
    "disk-block": disk_xml(DISK, "q35"),
    "disk-replicated": disk_xml(
        msgspec.structs.replace(DISK, cache=designer.disk_cache(replicated=True, direct=True)), "q35"
    ),
    "disk-file": disk_xml(FILE_DISK, "q35"),
    "interface": interface_xml(ADAPTER),
    "cdrom-q35": cdrom_xml("q35", "/x.iso"),
    "cdrom-pc-empty": cdrom_xml("pc", None),
}
TEXTS = {f"domain-{name}": domain_xml(design) for name, design in DOMAINS.items()} | DEVICES


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA} is not there: install libvirt-daemon (Debian) to check XML against libvirt's schema")
    return etree.RelaxNG(etree.parse(str(SCHEMA)))


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_xml_is_as_recorded(name: str) -> None:
    golden = GOLDEN / f"{name}.xml"
    if os.environ.get("MCVIRT_REGENERATE"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(TEXTS[name])
    assert golden.exists(), "record it with MCVIRT_REGENERATE=1"
    assert TEXTS[name] == golden.read_text()


def test_no_golden_file_is_forgotten() -> None:
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(TEXTS)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_recorded_xml_is_valid_for_libvirt(name: str, schema: etree.RelaxNG) -> None:
    tree = from_text((GOLDEN / f"{name}.xml").read_text())
    if tree.tag != "domain":  # a device alone is valid where it would stand in a domain
        device, tree = tree, from_text(domain_xml(PLAIN))
        devices = tree.find("devices")
        for twin in [old for old in devices.iterfind("disk") if device.tag == "disk"]:
            devices.remove(twin)
        devices.append(device)
    assert schema.validate(tree), schema.error_log


def test_the_schema_can_say_no(schema: etree.RelaxNG) -> None:
    tree = from_text(domain_xml(PLAIN))
    tree.find("devices/disk/target").set("bus", "carrier-pigeon")
    assert not schema.validate(tree)


@pytest.mark.parametrize("driver", GRAPHICS_DRIVERS)
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_every_screen_is_valid(driver: str, machine: str, schema: etree.RelaxNG) -> None:
    tree = from_text(domain_xml(but(graphics_driver=driver, machine=machine)))
    assert schema.validate(tree), schema.error_log
    assert (tree.find("devices/graphics") is None) == (driver == "none")


@given(name=st.text(min_size=1), path=st.text(min_size=1), password=st.text(max_size=8))
def test_no_text_breaks_the_xml(name: str, path: str, password: str) -> None:
    design = but(
        name=name,
        disks=(msgspec.structs.replace(FILE_DISK, source=path, disk_id=name),),
        iso=path,
        vnc_password=password,
        serial_log=path,
        adapters=(AdapterDesign(mac=name, bridge=path),),
    )
    try:
        text = domain_xml(design)
    except BadArgument:
        every = name + path + password
        assert any(char < " " or char in "\x7f\ufffe\uffff" or "\ud800" <= char <= "\udfff" for char in every)
        return
    tree = from_text(text)
    assert tree.findtext("name") == name
    assert [source.get("file") for source in tree.iterfind("devices/disk/source")] == [path, path]
    assert tree.find("devices/graphics").get("passwd") == password
    assert tree.find("devices/serial/log").get("file") == path
    assert tree.find("devices/interface/source").get("bridge") == path
    assert read.source_paths(text) == {path}


@given(disk_id=st.text(min_size=1))
def test_every_serial_number_fits(disk_id: str) -> None:
    serial = designer.disk_serial(disk_id)
    assert 1 <= len(serial) <= 20 and serial.isascii()


def test_long_ids_keep_different_serial_numbers() -> None:
    ends = ["hd-0123456789abcdef-0123456789abcdef01234" + digit for digit in "56"]
    assert len({designer.disk_serial(disk_id) for disk_id in ends}) == 2


# --- policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "bus", "names"),
    [
        ("q35", "virtio", ["vda", "vdb", "vdc", "vdd"]),
        ("q35", "ide", ["sda", "sdb", "sdc", "sdd"]),
        ("q35", "sata", ["sda", "sdb", "sdc", "sdd", "sde", "sdg"]),
        ("pc", "ide", ["hda", "hdb", "hdc"]),
        ("pc", "scsi", ["sda", "sdb", "sdc", "sdd", "sde", "sdf"]),
    ],
)
def test_disks_have_their_names_and_leave_the_cd_drive_alone(machine: str, bus: str, names: list[str]) -> None:
    assert [designer.target_name(machine, bus, slot) for slot in range(1, len(names) + 1)] == names
    assert designer.cdrom_target(machine) not in names


@pytest.mark.parametrize(("machine", "bus", "slot"), [("pc", "ide", 4), ("q35", "virtio", 0), ("q35", "virtio", 27)])
def test_there_is_an_end_to_disk_numbers(machine: str, bus: str, slot: int) -> None:
    with pytest.raises(BadArgument):
        designer.target_name(machine, bus, slot)


def test_storage_without_direct_io_is_written_through() -> None:
    assert designer.disk_cache(replicated=False, direct=True) == "directsync"
    assert designer.disk_cache(replicated=True, direct=True) == "none"
    assert designer.disk_cache(replicated=False, direct=False) == "writethrough"


def test_hyperv_is_for_windows_on_kvm_only() -> None:
    for windows, accelerator, expected in ((True, "kvm", True), (True, "tcg", False), (False, "kvm", False)):
        tree = from_text(domain_xml(but(windows=windows, accelerator=accelerator)))
        assert (tree.find("features/hyperv") is not None) == expected


# --- reading ------------------------------------------------------------------------------------------------------


def test_our_mark_is_read_back_and_nobody_elses() -> None:
    assert read.marked_uuid(domain_xml(PLAIN)) == PLAIN.uuid
    assert read.marked_uuid("<domain><name>x</name></domain>") is None


def test_backing_files_are_used_paths_too() -> None:
    text = """<domain><devices><disk type='file'><source file='/top.qcow2'/>
        <backingStore type='block'><source dev='/dev/base'/><backingStore/></backingStore></disk>
        <disk type='network'><source protocol='rbd' name='pool/image'/></disk></devices></domain>"""
    assert read.source_paths(text) == {"/top.qcow2", "/dev/base"}


def test_a_device_is_recognised_by_what_names_it() -> None:
    text = domain_xml(DOMAINS["full"])
    assert read.has_device(text, disk_xml(DISK, "q35"))
    assert not read.has_device(text, disk_xml(msgspec.structs.replace(DISK, slot=9), "q35"))
    assert read.has_device(text, interface_xml(ADAPTER))
    assert not read.has_device(text, interface_xml(msgspec.structs.replace(ADAPTER, mac="00:16:3e:ff:ff:ff")))
    assert read.describe_device(disk_xml(DISK, "q35")) == "disk vda"
    assert read.describe_device(interface_xml(ADAPTER)) == "network adapter 00:16:3e:01:02:03"


def test_the_vnc_port_is_that_of_a_running_domain() -> None:
    assert read.vnc_port(domain_xml(PLAIN)) is None
    assert read.vnc_port("<domain><devices><graphics type='vnc' port='5907'/></devices></domain>") == 5907
