"""Where libvirt keeps the definitions of domains on a node: on a file system that can be frozen.

While it is, who is to write or delete a definition waits in the kernel until it goes on; to read them is possible.
"""

from __future__ import annotations

from tests.lab.node import Node

_PLACE = "/etc/libvirt/qemu"
_DEVICE = "/dev/vg0/definitions"
_MAKE = f"""
lvcreate -qq -y -L 16M -n definitions vg0
mkfs.ext4 -q {_DEVICE}
mount {_DEVICE} /mnt
cp -a {_PLACE}/. /mnt
umount /mnt
echo '{_DEVICE} {_PLACE} ext4 defaults 0 0' >> /etc/fstab
systemctl daemon-reload
mount {_PLACE}
"""


def set_apart(node: Node) -> None:
    """Give them a file system of their own, also after the next boot."""
    node.succeed(f"set -e; {_MAKE}", within=120)


def hold(node: Node) -> None:
    """From now on who changes a definition waits."""
    node.succeed(f"sync; fsfreeze --freeze {_PLACE}")


def held(node: Node) -> None:
    """Return when libvirt waits in the middle of such a change."""
    node.wait_until(
        "grep -q percpu_rwsem_wait /proc/$(pidof libvirtd)/task/*/wchan", what="libvirt waits with a definition"
    )


def let_go(node: Node) -> None:
    """Who waits goes on; nothing is done where nobody is to wait."""
    node.run(f"fsfreeze --unfreeze {_PLACE}")
