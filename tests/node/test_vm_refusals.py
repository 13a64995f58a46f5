"""What can't be done is refused in one sentence, with the right status, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node.mcvirt_node import VOLUMES, McvirtNode
from tests.node.witness import create, furnish, refused

CREATE = ("--memory", "32", "--cpu-count", "1")


@pytest.fixture(scope="module", autouse=True)
def furnished(node: McvirtNode) -> Iterator[None]:
    furnish(node)
    create(node, "web1", "--disk-size", "8MiB", "--network", "lan")
    yield


@pytest.mark.parametrize(
    ("says", "argv"),
    [
        ("no virtual machine called 'nosuch'", ("start", "nosuch")),
        ("no virtual machine called 'nosuch'", ("stop", "nosuch")),
        ("no virtual machine called 'nosuch'", ("info", "nosuch")),
        ("no virtual machine called 'nosuch'", ("delete", "nosuch")),
        ("no virtual machine called 'nosuch'", ("update", "nosuch", "--memory", "64")),
        ("no virtual machine called 'nosuch'", ("lock", "nosuch", "--lock")),
        ("no virtual machine called 'nosuch'", ("register", "nosuch")),
        ("no virtual machine called 'nosuch'", ("console", "nosuch", "--log")),
        (
            "no storage backend called 'nosuch'",
            ("create", "vm9", *CREATE, "--disk-size", "8", "--storage-backend", "nosuch"),
        ),
        ("no network called 'nosuch'", ("create", "vm9", *CREATE, "--network", "nosuch")),
        ("no network called 'nosuch'", ("update", "web1", "--add-network", "nosuch")),
        ("no node called 'nosuch'", ("create", "vm9", *CREATE, "--nodes", "nosuch")),
        ("nosuch.iso", ("start", "web1", "--iso", "nosuch.iso")),
        ("nosuch.iso", ("update", "web1", "--iso", "nosuch.iso")),
        ("hard drive", ("hard-drive", "attach", "nosuch", "web1")),
        ("already a virtual machine called 'web1'", ("create", "web1", *CREATE)),
        ("already a network called 'lan'", ("network", "create", "lan", "--interface", "br0")),
        ("already a storage backend called 'data'", ("storage", "create", "data", "--type", "File", "--path", VOLUMES)),
        ("name", ("create", "ab", *CREATE)),
        ("name", ("create", "x" * 65, *CREATE)),
        ("name", ("create", "abc-", *CREATE)),
        ("name", ("create", "a b c", *CREATE)),
        ("name", ("create", "../../etc", *CREATE)),
        ("name", ("create", "über", *CREATE)),
        ("default", ("network", "create", "default", "--interface", "br0")),
        ("more than zero", ("create", "vm9", "--memory", "0", "--cpu-count", "1")),
        ("more than", ("create", "vm9", "--memory", "900TiB", "--cpu-count", "1")),
        ("whole number of KiB", ("create", "vm9", "--memory", "33000001B", "--cpu-count", "1")),
        ("not a size", ("create", "vm9", "--memory", "lots", "--cpu-count", "1")),
        ("not a size", ("create", "vm9", "--memory", "-5", "--cpu-count", "1")),
        ("not a unit", ("create", "vm9", "--memory", "1.5GiBx", "--cpu-count", "1")),
        ("not a unit", ("create", "vm9", *CREATE, "--disk-size", "8QiB")),
        ("not a size", ("hard-drive", "create", "a lot")),
        ("processors", ("create", "vm9", "--memory", "32", "--cpu-count", "0")),
        ("processors", ("create", "vm9", "--memory", "32", "--cpu-count", "-3")),
        ("processors", ("create", "vm9", "--memory", "32", "--cpu-count", "100000")),
        ("size", ("create", "vm9", *CREATE, "--disk-size", "0")),
        ("512", ("create", "vm9", *CREATE, "--disk-size", "8388609B")),
        ("free", ("create", "vm9", *CREATE, "--disk-size", "60TiB")),
        ("size", ("create", "vm9", *CREATE, "--disk-size", "9000TiB")),
        ("512", ("update", "web1", "--disk-id", "1", "--increase-disk", "5B")),
        ("no disk of 'web1' called '7'", ("update", "web1", "--disk-id", "7", "--increase-disk", "8MiB")),
        ("no disk of 'web1' called '7'", ("update", "web1", "--delete-disk", "7")),
        ("5 hard drives", ("create", "vm9", *CREATE, *("--disk-size", "8") * 5)),
        ("5 hard drives", ("update", "web1", *("--add-disk", "8") * 4)),
        ("SD", ("create", "vm9", *CREATE, "--disk-size", "8", "--driver", "SD")),
        ("xen", ("create", "vm9", *CREATE, "--graphics-driver", "xen")),
        ("vbox", ("update", "web1", "--graphics-driver", "vbox")),
        ("takes 1 to 3", ("create", "vm9", *CREATE, *("--disk-size", "8") * 4, "--driver", "IDE")),
        ("Drbd", ("create", "vm9", *CREATE, "--disk-size", "8", "--storage-type", "Drbd")),
        ("network adapter", ("update", "web1", "--remove-network", "00:16:3e:00:00:00")),
        ("MAC", ("update", "web1", "--remove-network", "zz:zz")),
        ("nosuchbr", ("network", "create", "wan", "--interface", "nosuchbr")),
        ("not a bridge", ("network", "create", "wan", "--interface", "lo")),
        ("in use by", ("network", "delete", "lan")),
        ("in use by", ("storage", "delete", "data")),
        ("directory", ("storage", "create", "more", "--type", "File", "--path", "/var/lib/libvirt/nosuch")),
        ("not running", ("stop", "web1")),
        ("not running", ("shutdown", "web1")),
        ("not running", ("reset", "web1")),
        ("not running", ("info", "web1", "--vnc-port")),
        ("not running", ("console", "web1")),
        ("registered on node 'node1'", ("register", "web1")),
        ("unlocked already", ("lock", "web1", "--unlock")),
        ("not protected", ("update", "web1", "--disable-delete-protection", "1bew")),
        ("no task called", ("task", "watch", "tsk-0123456789abcdef01-0123456789abcdef012345")),
        ("no task called", ("task", "cancel", "nosuch")),
        ("no user called 'nobody1'", ("permission", "web1", "--add-owner", "nobody1")),
        ("no group called", ("group", "add-user", "nosuch", "nobody1")),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_refused(node: McvirtNode, says: str, argv: tuple[str, ...]) -> None:
    refused(node, *argv, says=says)


@pytest.mark.parametrize(
    "argv",
    [
        ("create", "vm9"),
        ("create", "vm9", "--memory", "32"),
        ("create", "vm9", "--memory", "32", "--cpu-count", "one"),
        ("create", "vm9", *CREATE, "--driver", "FLOPPY"),
        ("create", "vm9", *CREATE, "--modification-flag", "dos"),
        ("create", "-abc", *CREATE),
        ("nosuchcommand",),
        ("update", "web1"),
        ("update", "web1", "--increase-disk", "8MiB"),
        ("update", "web1", "--change-network", "00:16:3e:00:00:00"),
        ("update", "web1", "--autostart-on-boot", "--autostart-disable"),
        ("lock", "web1"),
        ("info", "--vnc-port"),
        ("permission", "web1", "--add-superuser", "root"),
        ("start", "web1", "--nosuchflag"),
    ],
    ids=lambda argv: " ".join(argv)[:60],
)
def test_bad_usage(node: McvirtNode, argv: tuple[str, ...]) -> None:
    refused(node, *argv, status=2)


def test_all_reasons_are_told_at_once(node: McvirtNode) -> None:
    said = refused(
        node, "create", "a b", "--memory", "1", "--cpu-count", "0", "--network", "nosuch", "--disk-size", "60TiB"
    )
    for words in ("name", "4 MiB", "processors", "nosuch", "free"):
        assert words in said


def test_backend_must_be_named_where_there_are_two_or_none_fits(node: McvirtNode) -> None:
    (node.volumes / "second").mkdir()
    node.mcvirt("storage", "create", "second", "--type", "File", "--path", VOLUMES + "/second")
    said = refused(node, "create", "vm9", *CREATE, "--disk-size", "8")
    assert "data" in said and "second" in said
    node.mcvirt("storage", "delete", "second")


def test_machines_with_ide_disks_are_of_the_older_type(node: McvirtNode) -> None:
    create(node, "old1", "--disk-size", "8", "--driver", "IDE")
    assert node.json("info", "old1")["machine"] == "pc"
    assert "machine='pc-i440fx" in node.virsh("dumpxml", "old1")
    assert "bus='ide'" in node.virsh("dumpxml", "old1").split("device='disk'")[1]
    node.mcvirt("delete", "old1")


def test_network_whose_bridge_is_gone(node: McvirtNode) -> None:
    node.host.run(["ip", "link", "add", "br7", "type", "bridge"])
    node.mcvirt("network", "create", "gone", "--interface", "br7")
    create(node, "gone1", "--network", "gone")
    node.host.run(["ip", "link", "delete", "br7"])
    refused(node, "create", "vm9", *CREATE, "--network", "gone", says="br7")
    refused(node, "start", "gone1", says="br7")
    refused(node, "update", "web1", "--add-network", "gone", says="br7")
    node.mcvirt(
        "update",
        "gone1",
        "--change-network",
        *node.json("info", "gone1")["adapters"][0]["mac"].split(),
        "--new-network",
        "lan",
    )  # which repairs it
    node.mcvirt("start", "gone1")
    node.mcvirt("stop", "gone1")
    node.mcvirt("delete", "gone1")
    node.mcvirt("network", "delete", "gone")


def test_domain_of_somebody_else_with_the_name(node: McvirtNode) -> None:
    xml = "<domain type='qemu'><name>mine</name><memory>4096</memory><os><type arch='x86_64'>hvm</type></os></domain>"
    path = node.directory / "mine.xml"
    path.write_text(xml)
    node.virsh("define", str(path))
    refused(node, "create", "mine", *CREATE, says="that mcvirt does not manage")
    assert "mine" not in {row["name"] for row in node.json("list")}
    node.virsh("undefine", "mine")
    create(node, "mine")
    node.mcvirt("delete", "mine")


def test_locked_machine(node: McvirtNode) -> None:
    create(node, "lock1", "--disk-size", "8MiB")
    node.mcvirt("start", "lock1")
    assert node.mcvirt("lock", "lock1", "--lock").stdout == ""
    assert node.mcvirt("lock", "lock1", "--check-lock").stdout == "LOCKED\n"
    refused(node, "lock", "lock1", "--lock", says="locked already")
    refused(node, "reset", "lock1", says="locked")
    refused(node, "update", "lock1", "--memory", "64", says="locked")
    refused(node, "update", "lock1", "--add-disk", "8", says="locked")
    refused(node, "hard-drive", "create", "8", "--virtual-machine", "lock1", says="locked")
    node.mcvirt("stop", "lock1")
    for command in ("start", "delete", "unregister"):
        refused(node, command, "lock1", says="locked")
    node.mcvirt("lock", "lock1", "--unlock")
    node.mcvirt("unregister", "lock1")
    node.mcvirt("lock", "lock1", "--lock")
    refused(node, "register", "lock1", says="locked")
    node.mcvirt("lock", "lock1", "--unlock")
    node.mcvirt("delete", "lock1")


def test_delete_protection(node: McvirtNode) -> None:
    create(node, "prot1")
    node.mcvirt("update", "prot1", "--enable-delete-protection")
    refused(node, "update", "prot1", "--enable-delete-protection", says="already")
    said = refused(node, "delete", "prot1", says="protected")
    assert "1torp" not in said  # the code is for who thinks of it
    refused(node, "update", "prot1", "--disable-delete-protection", "prot1", says="reversed")
    node.mcvirt("update", "prot1", "--disable-delete-protection", "1torp")
    node.mcvirt("delete", "prot1")


def test_running_machine_is_not_deleted_nor_taken_away(node: McvirtNode) -> None:
    node.mcvirt("start", "web1")
    before = node.virsh("domid", "web1")
    refused(node, "delete", "web1", says="running")
    refused(node, "unregister", "web1", says="running")
    refused(node, "start", "web1", says="running already")
    assert node.virsh("domid", "web1") == before
    node.mcvirt("stop", "web1")


def test_first_failure_of_several_machines_stops_the_rest(node: McvirtNode) -> None:
    create(node, "one1")
    create(node, "two2")
    result = node.mcvirt("start", "one1", "nosuch", "two2", check=False)
    # Not 3, which says that nothing was changed.
    assert result.returncode == 1 and "Successfully started VM one1" in result.stderr
    assert node.virsh("domstate", "one1").strip() == "running"
    assert node.virsh("domstate", "two2").strip() == "shut off"
    node.mcvirt("stop", "one1")
    assert node.mcvirt("start").returncode == 0
    node.mcvirt("delete", "one1")
    node.mcvirt("delete", "two2")
