"""Storage backends, hard drives and networks by the command, beside the directory and the kernel."""

from __future__ import annotations

import json

from tests.node.mcvirt_node import VOLUMES, McvirtNode
from tests.node.witness import MIB, create, refused


def test_networks(node: McvirtNode) -> None:
    assert node.mcvirt("network", "create", "lan", "--interface", "br0").stdout == ""
    listed = node.mcvirt("network", "list").stdout
    assert "Physical Interface" in listed and "lan" in listed and "br0" in listed
    create(node, "net1", "--network", "lan")
    refused(node, "network", "delete", "lan", says="net1")
    node.mcvirt("delete", "net1")
    assert node.mcvirt("network", "delete", "lan").stdout == ""
    assert node.json("network", "list") == []
    assert "br0" in node.host.run(["ip", "-o", "link"]).stdout
    refused(node, "network", "delete", "lan", says="no network called")


def test_backends(node: McvirtNode) -> None:
    node.mcvirt("storage", "create", "data", "--type", "File", "--path", VOLUMES)
    row = node.mcvirt("storage", "list").stdout
    assert all(word in row for word in ("Free Space", "data", "File", VOLUMES, "node1"))
    (backend,) = node.json("storage", "list")
    assert [path.name for path in node.volumes.iterdir()] == [f".mcvirt-{backend['id']}"]
    assert backend["free"] > MIB and backend["problem"] in ("", None)
    refused(node, "storage", "create", "again", "--type", "File", "--path", "relative/path")
    refused(node, "storage", "create", "lvm1", "--type", "Lvm", "--volume-group-name", "nosuchvg")
    refused(node, "storage", "create", "bad", "--type", "File", "--volume-group-name", "vg0", status=2)


def test_hard_drives(node: McvirtNode) -> None:
    disk = json.loads(node.mcvirt("hard-drive", "create", "8MiB", "--json").stdout)
    assert (node.volumes / disk["volume"]).stat().st_size == 8 * MIB
    create(node, "drv1")
    create(node, "drv2")
    assert node.mcvirt("hard-drive", "attach", disk["id"], "drv1").stdout == ""
    assert disk["volume"] in node.virsh("domblklist", "drv1")
    refused(node, "hard-drive", "attach", disk["id"], "drv2", says="drv1")
    refused(node, "hard-drive", "delete", disk["id"], says="drv1")
    refused(node, "storage", "delete", "data", says="in use by")
    assert "drv1 (disk 1)" in node.mcvirt("hard-drive", "list").stdout
    node.mcvirt("hard-drive", "detach", disk["id"])
    assert disk["volume"] not in node.virsh("domblklist", "drv1")
    refused(node, "hard-drive", "detach", disk["id"], says="not attached")
    node.mcvirt("hard-drive", "delete", disk["id"])
    assert not (node.volumes / disk["volume"]).exists()


def test_import(node: McvirtNode) -> None:
    old = node.volumes / "old.img"
    old.write_bytes(b"\x55" * 4 * MIB)
    said = node.mcvirt("hard-drive", "import", "old.img", "data", "--virtual-machine", "drv1").stdout
    assert said.startswith("Created hard drive: hd-")
    assert node.json("info", "drv1")["disks"][0]["size"] == 4 * MIB and old.read_bytes() == b"\x55" * 4 * MIB
    for name in ("../../etc/passwd", "nosuch.img", "old.img"):
        refused(node, "hard-drive", "import", name, "data")
    (node.volumes / "link.img").symlink_to("/etc/passwd")
    refused(node, "hard-drive", "import", "link.img", "data", says="link")
    (node.volumes / "link.img").unlink()
    node.mcvirt("delete", "drv1")
    node.mcvirt("delete", "drv2")
    assert not old.exists()
    node.mcvirt("storage", "delete", "data")
    assert list(node.volumes.iterdir()) == []
