"""Where on this node the channels of a migration begin and end.

QEMU opens some of these itself, as its own user, and where AppArmor confines it, only below libvirt's directory and
under a name that ends so.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from mcvirt.errors import FileFailed, LibvirtUnreachable
from mcvirtd.hypervisor.moving import Route

Channel = Literal["libvirt", "memory", "disks"]
CHANNELS: tuple[Channel, ...] = ("libvirt", "memory", "disks")
DIRECTORY = Path("/run/libvirt/mcvirt")
_LIBVIRTS_OWN = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")


def path(channel: Channel, name: str) -> Path:
    """The socket of a channel of the migration of machine *name*. The longest name still makes a path for a socket."""
    return DIRECTORY / f"{channel[0]}.tunnelmigrate.dest.{name}"


def route(name: str) -> Route:
    """The same for a hypervisor."""
    libvirt, memory, disks = (str(path(channel, name)) for channel in CHANNELS)
    return Route(libvirt=libvirt, memory=memory, disks=disks)


def prepare(owner: tuple[int, int]) -> None:
    """Have the directory, for *owner* (a user and a group) alone."""
    try:
        DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(DIRECTORY, *owner)
        DIRECTORY.chmod(0o700)
    except OSError as error:
        raise FileFailed(action="make", path=str(DIRECTORY), reason=f"{error.strerror}.") from None


def listen(channel: Channel, name: str, owner: tuple[int, int]) -> socket.socket:
    """A listening socket at the channel's path, for *owner* and root alone."""
    place = path(channel, name)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        place.unlink(missing_ok=True)
        made.bind(str(place))
        os.chown(place, *owner)
        place.chmod(0o600)
        made.listen(8)
    except OSError as error:
        made.close()
        raise FileFailed(action="listen at", path=str(place), reason=f"{error.strerror}.") from None
    return made


def reach(channel: Channel, name: str, uri: str, node: str) -> socket.socket:
    """A connection to what is at the end of the channel here: libvirt of this node (at *uri*), or a waiting QEMU."""
    places = _libvirt_sockets(uri) if channel == "libvirt" else (str(path(channel, name)),)
    reason = ""
    for place in places:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(place)
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
