"""What `make install` brings to a node and `make uninstall` leaves there."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.lab.fs_diff import difference, files
from tests.lab.image import IN_THE_NODE
from tests.lab.node import Node
from tests.lab.stories import machine, storage

MAKE = f"make -C /{IN_THE_NODE}/source --no-print-directory"
# What systems write by themselves.
OWN_LIFE = (
    *("/etc/lvm/", "/etc/machine-id", "/etc/mtab", "/etc/.updated", "/etc/resolv.conf", "/etc/hostname"),
    *("/etc/ld.so.cache", "/etc/libvirt/", "/etc/systemd/system/multi-user.target.wants"),
)


def kept(differences: list[str]) -> list[str]:
    return [line for line in differences if not line[2:].startswith(OWN_LIFE)]


def test_uninstalled_and_installed_again(alongside_ended: Callable[[], None]) -> None:
    alongside_ended()


def alongside_story(node: Node) -> None:
    virgin = json.loads((node.machine.image / "files.json").read_text())
    settings = node.succeed("cat /etc/mcvirt/mcvirtd.toml")
    storage(node, "thick")
    machine(node, "tiny")
    before = node.json("info", "tiny")

    node.succeed(f"{MAKE} uninstall")
    assert node.unit("mcvirtd", "LoadState") == "not-found"
    node.fail("command -v mcvirt mcvirtd")
    bare = files(node, "/etc", "/usr", times=False)
    assert kept(difference(virgin, bare)) == []
    node.fail("systemctl is-failed mcvirtd")

    timed = files(node, "/etc", "/usr")
    node.succeed(f"{MAKE} install WHEELS=/{IN_THE_NODE}/wheels", within=300)
    new = [line for line in kept(difference(timed, files(node, "/etc", "/usr"))) if "/usr/local/lib/mcvirt" not in line]
    assert all(line.startswith("+ /usr/local/") for line in new), new
    node.succeed("mcvirtd --check && systemctl enable --now mcvirtd")
    assert node.json("info", "tiny") == before
    node.mcvirt("start", "tiny")
    node.mcvirt("stop", "tiny")
    node.mcvirt("delete", "tiny", "--yes")
    node.mcvirt("storage", "delete", "store")

    node.succeed(f"{MAKE} uninstall")
    assert kept(difference(timed, files(node, "/etc", "/usr"))) == []
    assert node.succeed("cat /etc/mcvirt/mcvirtd.toml") == settings
    assert node.succeed("vgs --noheadings -o vg_tags vg0").strip() == ""
    assert node.lvs() == {}
    assert node.succeed("ls /var/lib/mcvirt") != ""
