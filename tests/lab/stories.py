"""What several stories begin with."""

from __future__ import annotations

from pathlib import PurePath

from tests.lab.node import Node

GROUP = "vg0"
POOL = "pool"
MIB = 1024**2


def storage(node: Node, kind: str, *others: Node) -> None:
    """Make the storage backend `store` in the volume group of all nodes: `thick`, or `thin` in a pool of its own."""
    words = ["storage", "create", "store", "--type", "Lvm", "--vg", GROUP]
    if kind == "thin":
        for each in (node, *others):
            each.succeed(f"lvcreate -qq -y -L 256M -T {GROUP}/{POOL}")
        words += ["--thin-pool", POOL]
    node.mcvirt(*words)


def machine(node: Node, name: str, size: str = "16MiB") -> str:
    """Create a machine with the guest that counts on its disk, and return that disk's device."""
    before = set(node.lvs())
    node.mcvirt(
        *("create", name, "--memory", "32", "--cpu-count", "1", "--machine", "pc"),
        *("--disk-size", size, "--storage-backend", "store"),
    )
    made = set(node.lvs()) - before
    assert len(made) == 1, made
    device = str(PurePath("/dev") / made.pop())
    node.succeed(f"lvchange -qq -y -ay -K {device}")
    node.install_guest(device)
    return device


def grow(node: Node, name: str, device: str) -> None:
    """Make the disk of a machine that runs larger, from 16 to 24 MiB."""
    node.mcvirt("update", name, "--increase-disk", "8MiB", "--disk-id", "1")
    assert int(node.lvs()[volume(device)]["lv_size"]) == 24 * MIB
    assert str(24 * MIB) in node.virsh("domblkinfo", name, "vda").split()


def volume(device: str) -> str:
    """The logical volume (group/name) that is *device*."""
    return device.removeprefix("/dev/")
