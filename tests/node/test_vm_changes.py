"""Changes of machines, most of them while the guest runs: the guest, virsh and the kernel are asked what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests import guest
from tests.node.mcvirt_node import VOLUMES, McvirtNode
from tests.node.witness import MIB, Screen, boot, create, furnish, image, refused, tap


@pytest.fixture(scope="module")
def screen(node: McvirtNode) -> Iterator[Screen]:
    furnish(node, iso=True)
    with boot(node, "web1", "--disk-size", "8MiB", "--network", "lan") as screen:
        yield screen


def update(node: McvirtNode, *argv: str, name: str = "web1") -> str:
    return node.mcvirt("update", name, *argv).stderr


def macs(node: McvirtNode) -> list[str]:
    return [adapter["mac"] for adapter in node.json("info", "web1")["adapters"]]


@pytest.mark.parametrize("driver", ["VIRTIO", "SCSI", "USB"])
def test_disk_comes_grows_and_goes(node: McvirtNode, screen: Screen, driver: str) -> None:
    screen.forget()
    said = update(node, "--add-disk", "4MiB", "--driver", driver)
    assert "stopped and started" not in said
    new = screen.wait("disk", lambda line: line.number("size") == 4 * MIB)
    disk = node.json("info", "web1")["disks"][1]
    if driver != "USB":
        assert disk["id"].endswith(new["serial"])
    assert image(node, "web1", 2).stat().st_size == 4 * MIB
    screen.forget()
    update(node, "--disk-id", "2", "--increase-disk", "4MiB")
    if driver == "VIRTIO":  # the others' guests have to be told to look
        screen.wait("disk", lambda line: line["name"] == new["name"] and line.number("size") == 8 * MIB)
    assert image(node, "web1", 2).stat().st_size == 8 * MIB
    path = image(node, "web1", 2)
    screen.forget()
    update(node, "--delete-disk", "2")
    screen.wait("gone", lambda line: line["name"] == new["name"])
    assert not path.exists() and [disk["slot"] for disk in node.json("info", "web1")["disks"]] == [1]
    assert path.name not in node.virsh("dumpxml", "web1") + node.virsh("dumpxml", "web1", "--inactive")


def test_running_disk_grows(node: McvirtNode, screen: Screen) -> None:
    update(node, "--disk-id", "1", "--increase-disk", "8MiB")
    screen.wait("disk", lambda line: line["name"] == "vda" and line.number("size") == 16 * MIB)
    assert "Capacity:       16777216" in node.virsh("domblkinfo", "web1", "vda")


def test_sata_disk_waits_for_a_restart_and_can_be_taken_back(node: McvirtNode, screen: Screen) -> None:
    assert "stopped and started" in update(node, "--add-disk", "4MiB", "--driver", "SATA")
    assert node.json("info", "web1")["restart_needed"]
    assert "sdb" in node.virsh("domblklist", "web1", "--inactive")
    update(node, "--delete-disk", "2")  # the guest does not have it yet
    assert not node.json("info", "web1")["restart_needed"]


def test_network_adapter_comes_moves_and_goes(node: McvirtNode, screen: Screen) -> None:
    screen.forget()
    update(node, "--add-network", "dmz")
    mac = macs(node)[1]
    name = screen.wait("nic", lambda line: line["mac"] == mac)["name"]
    assert tap(node, "web1", mac) == "br1"
    update(node, "--change-network", mac.upper(), "--new-network", "lan")
    assert tap(node, "web1", mac) == "br0" and "br1" not in node.virsh("dumpxml", "web1", "--inactive")
    screen.forget()
    update(node, "--remove-network", mac)
    screen.wait("gone", lambda line: line["name"] == name)
    assert mac not in node.virsh("domiflist", "web1") + node.virsh("domiflist", "web1", "--inactive")


def test_iso_is_ejected_and_changed(node: McvirtNode, screen: Screen) -> None:
    small = node.directory / "small.iso"
    small.write_bytes(bytes(2 * MIB))
    node.mcvirt("iso", "add", str(small))
    screen.forget()
    update(node, "--iso")
    screen.wait("cdrom", lambda line: line.number("size") == 0)
    screen.forget()
    update(node, "--attach-iso", "small.iso")
    screen.wait("cdrom", lambda line: line.number("size") == 2 * MIB)
    assert "small.iso" in node.virsh("domblklist", "web1")
    assert refused(node, "iso", "delete", "small.iso", says="in use by")


def test_only_what_is_named_changes(node: McvirtNode, screen: Screen) -> None:
    update(node, "--autostart-on-boot", "--iso", "small.iso")
    before = node.json("info", "web1")
    update(node, "--enable-memballoon-deflation")
    after = node.json("info", "web1")
    changed = {key for key in before if before[key] != after[key]} - {"usage"}
    assert changed == {"autodeflate", "restart_needed"} and after["autostart"] == "ON_BOOT"
    update(node, "--disable-memballoon-deflation", "--autostart-disable")


def test_all_or_nothing(node: McvirtNode, screen: Screen) -> None:
    said = refused(
        node, "update", "web1", "--memory", "64", "--add-disk", "4MiB", "--add-network", "nosuch", "--delete-disk", "9",
        "--disk-id", "1", "--increase-disk", "100TiB", "--remove-network", "00:16:3e:00:00:09", "--iso", "nosuch.iso",
    )  # fmt: skip
    for words in ("nosuch'", "called '9'", "64 TiB", "00:16:3e:00:00:09", "nosuch.iso"):
        assert words in said
    refused(node, "update", "web1", "--delete-disk", "1", "--disk-id", "1", "--increase-disk", "8", says="at once")
    mac = macs(node)[0]
    refused(
        node, "update", "web1", "--change-network", mac.upper(), "--new-network", "dmz", "--remove-network", mac,
        says="named twice",
    )  # fmt: skip
    refused(node, "update", "web1", "--add-flag", "windows", "--remove-flag", "windows", says="at once")
    refused(node, "update", "web1", *("--add-network", "lan") * 16, says="more than 16")


def test_changed_meanwhile(node: McvirtNode, screen: Screen) -> None:
    code = (
        "from mcvirt_client.client import Client\nfrom mcvirt.types.vm import VmChange\n"
        "from mcvirt.errors import Conflict\n"
        "with Client.connect() as client:\n"
        "    for change in (VmChange(cpu_count=3, old_cpu_count=7), VmChange(memory=2**26, old_memory=5)):\n"
        "        try:\n            client.vms.update('web1', change)\n"
        "        except Conflict as error:\n            print(error)\n"
    )
    assert node.python(code).stdout.count("was changed meanwhile") == 2
    assert node.json("info", "web1")["cpu_count"] == 1


def test_hard_drives_attach_and_detach_live(node: McvirtNode, screen: Screen) -> None:
    disk = json.loads(node.mcvirt("hard-drive", "create", "4MiB", "--json").stdout)["id"]
    screen.forget()
    node.mcvirt("hard-drive", "attach", disk, "web1")
    name = screen.wait("disk", lambda line: disk.endswith(line["serial"]))["name"]
    refused(node, "hard-drive", "attach", disk, "web1", says="is attached to")
    refused(node, "hard-drive", "delete", disk, says="is attached to")
    screen.forget()
    node.mcvirt("hard-drive", "detach", disk)
    screen.wait("gone", lambda line: line["name"] == name)
    node.mcvirt("hard-drive", "delete", disk)
    assert disk not in node.mcvirt("hard-drive", "list").stdout


def test_memory_cpus_and_display_change_at_the_next_start(node: McvirtNode, screen: Screen) -> None:
    said = update(node, "--memory", "160", "--cpu-count", "2", "--graphics-driver", "vga", "--add-flag", "windows")
    assert "160 MiB on next VM boot" in said and "from 1 to 2" in said and "stopped and started" in said
    assert node.json("info", "web1")["restart_needed"]
    assert "131072" in node.virsh("dommemstat", "web1")
    update(node, "--remove-flag", "windows", "--add-disk", "4MiB", "--driver", "SATA")
    node.mcvirt("stop", "web1")
    screen.ended()
    node.mcvirt("start", "web1", "--iso", "linux.iso")
    with Screen(node, "web1") as again:
        again.wait("ready")
        memory = again.wait("memory")
        assert memory["cpus"] == "2" and memory.number("memory") > 100_000
        assert len(guest.lines(again.said, "disk")) == 2
    info = node.json("info", "web1")
    assert not info["restart_needed"] and info["graphics_driver"] == "vga"
    refused(node, "update", "web1", "--delete-disk", "2", says="gives no disk away")
    disk = info["disks"][1]["id"]
    refused(node, "hard-drive", "detach", disk, says="gives no disk away")
    node.mcvirt("stop", "web1")
    node.mcvirt("update", "web1", "--delete-disk", "2")


def test_qcow2(node: McvirtNode, screen: Screen) -> None:
    (node.volumes / "q").mkdir()
    node.mcvirt("storage", "create", "q", "--type", "File", "--path", VOLUMES + "/q", "--format", "qcow2")

    def seen() -> tuple[str, int]:
        told = json.loads(node.host.run(["qemu-img", "info", "-U", "--output=json", str(path)]).stdout)
        return told["format"], told["virtual-size"]

    create(node, "cow1", "--disk-size", "8MiB", "--storage-backend", "q")
    path = next(path for path in (node.volumes / "q").iterdir() if not path.name.startswith("."))
    assert seen() == ("qcow2", 8 * MIB)
    node.mcvirt("update", "cow1", "--disk-id", "1", "--increase-disk", "8MiB")
    assert seen() == ("qcow2", 16 * MIB)
    node.mcvirt("start", "cow1")
    node.mcvirt("update", "cow1", "--disk-id", "1", "--increase-disk", "16MiB")
    assert seen() == ("qcow2", 32 * MIB)
    assert "Capacity:       33554432" in node.virsh("domblkinfo", "cow1", "vda")
    assert node.json("info", "cow1")["disks"][0]["size"] == 32 * MIB
    node.mcvirt("stop", "cow1")
    node.host.run(["qemu-img", "create", "-q", "-f", "qcow2", VOLUMES + "/q/old.qcow2", "16M"])
    said = node.mcvirt("hard-drive", "import", "old.qcow2", "q", "--virtual-machine", "cow1").stdout
    assert said.startswith("Created hard drive: hd-")
    assert [disk["size"] // MIB for disk in node.json("info", "cow1")["disks"]] == [32, 16]
    refused(node, "hard-drive", "import", "old.qcow2", "q", says="is used by")
    refused(node, "hard-drive", "import", "nosuch", "q", says="no volume called")
    node.mcvirt("delete", "cow1")
    assert [path.name for path in (node.volumes / "q").iterdir() if not path.name.startswith(".")] == []
    node.mcvirt("storage", "delete", "q")
