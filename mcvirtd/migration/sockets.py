"""Where on this node the channels of a migration begin and end.

QEMU opens two of these itself, as its own user, and where AppArmor confines it, only below libvirt's directory and
under a name that ends so. The third leads to the other node's libvirt, and who speaks on it is root there: it is in a
directory of ours alone. A guest that has broken out into its QEMU is that user, so nothing is ever done as root to a
name in the directory of that user which it could have made into something else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from mcvirt.errors import FileFailed, LibvirtUnreachable
from mcvirtd.hypervisor.moving import Route

Channel = Literal["libvirt", "memory", "disks"]
CHANNELS: tuple[Channel, ...] = ("libvirt", "memory", "disks")
DIRECTORY = Path("/run/libvirt/mcvirt")  # of QEMU's user
OWN = Path("/run/libvirt/mcvirt-own")  # of this process's, on the same file system
_CREDENTIALS = struct.Struct("iII")
_LIBVIRTS_OWN = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")


def path(channel: Channel, name: str) -> Path:
    """The socket of a channel of the migration of machine *name*. The longest name still makes a path for a socket."""
    return _own(channel, name) if channel == "libvirt" else DIRECTORY / f"{channel[0]}.tunnelmigrate.dest.{name}"


def _own(channel: Channel, name: str) -> Path:
    return OWN / f"{channel[0]}.{name}"


def route(name: str) -> Route:
    """The same for a hypervisor."""
    libvirt, memory, disks = (str(path(channel, name)) for channel in CHANNELS)
    return Route(libvirt=libvirt, memory=memory, disks=disks)


def prepare(owner: tuple[int, int]) -> None:
    """Have the directories: one for *owner* (a user and a group), one for us, and each for nobody else."""
    ours = (os.geteuid(), os.getegid())
    for directory, whose in ((OWN, ours), (DIRECTORY, owner)):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chown(directory, *whose, follow_symlinks=False)
            directory.chmod(0o700)
        except OSError as error:
            raise FileFailed(action="make", path=str(directory), reason=f"{error.strerror}.") from None


def listen(channel: Channel, name: str, owner: tuple[int, int]) -> socket.socket:
    """A listening socket at the channel's path, for *owner* and root alone; libvirt's for us alone.

    It is made in our own directory, and moved to the other when there is nothing left to change of it.
    """
    place, made_at = path(channel, name), _own(channel, name)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made_at.unlink(missing_ok=True)
        made.bind(str(made_at))
        made_at.chmod(0o600)
        made.listen(8)
        if place != made_at:
            os.chown(made_at, *owner, follow_symlinks=False)
            made_at.replace(place)
    except OSError as error:
        made.close()
        with contextlib.suppress(OSError):
            made_at.unlink()
        raise FileFailed(action="listen at", path=str(place), reason=f"{error.strerror}.") from None
    return made


def user_of(connected: socket.socket) -> int:
    """The user (by number) of the process at the other end of a Unix socket."""
    answer = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(answer)[1])


def reach(channel: Channel, name: str, uri: str, node: str) -> socket.socket:
    """A connection to what is at the end of the channel here: libvirt of this node (at *uri*), or a waiting QEMU.

    Whatever else QEMU's user has put in the place of its QEMU is not connected to.
    """
    places = _libvirt_sockets(uri) if channel == "libvirt" else (str(path(channel, name)),)
    reason = ""
    for place in places:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(place)
            if channel != "libvirt" and user_of(made) != DIRECTORY.stat().st_uid:
                raise PermissionError(errno.EPERM, "it is not QEMU that listens there")
        except OSError as error:
            made.close()
            reason = reason or f"{place}: {error.strerror}."
        else:
            return made
    raise LibvirtUnreachable(node=node, uri=uri, reason=reason)


def _libvirt_sockets(uri: str) -> tuple[str, ...]:
    return tuple(parse_qs(urlsplit(uri).query).get("socket", ())) or _LIBVIRTS_OWN


def forget(name: str) -> None:
    """Nothing of the machine's sockets stays."""
    for channel in CHANNELS:
        with contextlib.suppress(OSError):
            path(channel, name).unlink()
