"""What things may be called; pure checks that raise BadArgument with the rule that was broken."""

from __future__ import annotations

import re
import secrets

from mcvirt.errors import BadArgument

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*", re.ASCII)
_LVM = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]*", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII)
_ISO = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+. ()-]*", re.ASCII)
_ID = re.compile(r"[a-z]{2,3}-[0-9a-f]{16,18}-[0-9a-f]{22,24}", re.ASCII)

_LVM_OWN = re.compile(
    r"snapshot.*|pvmove.*|.*_(?:cdata|cmeta|corig|cvol|iorig|mimage|mlog|pmspare|rimage|rmeta|tdata|tmeta|vdata|vorigin"
    r"|wcorig).*"
)
RESERVED_USER_PREFIXES = ("mcv-", "drbd-hook-")
MAC_PREFIX = "00:16:3e"


def _label(name: str, kind: str, shortest: int, longest: int) -> str:
    if not shortest <= len(name) <= longest or not _LABEL.fullmatch(name):
        raise BadArgument(
            what=f"{kind} name '{printable(name)}'",
            why=f"a name has {shortest} to {longest} letters (a-z, A-Z), digits and dashes, and no dash at either end.",
        )
    return name


def printable(text: str) -> str:
    """*text* made safe and short enough to stand in one line of a message."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def vm_name(name: str) -> str:
    """*name*, if a virtual machine may be called so."""
    if is_id(name, "hd"):
        raise BadArgument(
            what=f"virtual machine name '{name}'", why="the IDs of hard drives look like this. Choose another one."
        )
    return _label(name, "virtual machine", 3, 64)


def network_name(name: str) -> str:
    """*name*, if a network may be called so."""
    return _not_default(_label(name, "network", 1, 64), "network")


def backend_name(name: str) -> str:
    """*name*, if a storage backend may be called so."""
    return _not_default(_label(name, "storage backend", 1, 64), "storage backend")


def _not_default(name: str, kind: str) -> str:
    if name == "default":
        raise BadArgument(what=f"{kind} name 'default'", why="this name is reserved. Choose another one.")
    return name


def group_name(name: str) -> str:
    """*name*, if a group may be called so."""
    return _label(name, "group", 1, 64)


def node_name(name: str) -> str:
    """*name*, if a node may be called so."""
    return _label(name, "node", 1, 64)


def user_name(name: str) -> str:
    """*name*, if a user of the ordinary kind may be called so."""
    if not 1 <= len(name) <= 64 or not _USER.fullmatch(name):
        raise BadArgument(
            what=f"user name '{printable(name)}'",
            why="a name has 1 to 64 letters, digits and . _ @ -, and begins with a letter, a digit or _.",
        )
    if name.startswith(RESERVED_USER_PREFIXES) or name == "root":
        raise BadArgument(
            what=f"user name '{name}'", why="this name is reserved for mcvirt itself. Choose another one."
        )
    return name


def volume_name(name: str) -> str:
    """*name*, if LVM and file systems take a volume of that name."""
    if not 1 <= len(name) <= 100 or not _LVM.fullmatch(name) or name in (".", ".."):
        raise BadArgument(
            what=f"volume name '{printable(name)}'", why="a volume name has letters, digits and _ + . - only."
        )
    if _LVM_OWN.fullmatch(name):
        raise BadArgument(what=f"volume name '{name}'", why="LVM keeps this name for itself. Choose another one.")
    return name


def volume_group_name(name: str) -> str:
    """*name*, if LVM takes a volume group of that name."""
    if not 1 <= len(name) <= 100 or not _LVM.fullmatch(name) or name in (".", ".."):
        raise BadArgument(
            what=f"volume group '{printable(name)}'", why="a volume group name has letters, digits and _ + . - only."
        )
    return name


def interface_name(name: str) -> str:
    """*name*, if a network interface may be called so."""
    if not _INTERFACE.fullmatch(name) or name in (".", ".."):
        raise BadArgument(
            what=f"interface name '{printable(name)}'", why="an interface name has 1 to 15 letters, digits and _ . -"
        )
    return name


def directory(path: str) -> str:
    """*path* in its shortest spelling, if it can be a directory's: absolute, without '..' and control characters."""
    if not path.startswith("/") or ".." in path.split("/") or not path.isprintable() or len(path.encode()) > 4000:
        raise BadArgument(what=f"path '{printable(path)}'", why="write an absolute path without '..'.")
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def iso_name(name: str) -> str:
    """*name* with '.iso' at the end, if an ISO may be called so."""
    if not 1 <= len(name) <= 200 or not _ISO.fullmatch(name):
        raise BadArgument(
            what=f"ISO name '{printable(name)}'",
            why="an ISO name has letters, digits, blanks and _ + . ( ) - and begins with a letter, a digit, _ or +.",
        )
    return name if name.lower().endswith(".iso") else name + ".iso"


def mac_address(mac: str) -> str:
    """*mac* in lower case, if it is the address of one adapter."""
    address = mac.strip().lower()
    if not _MAC.fullmatch(address):
        raise BadArgument(
            what=f"MAC address '{printable(mac)}'", why="write six pairs of hex digits, as 00:16:3e:12:34:56."
        )
    if int(address[:2], 16) & 1 or address == "00:00:00:00:00:00":
        raise BadArgument(what=f"MAC address '{address}'", why="no adapter can have it: it is not the address of one.")
    return address


def new_mac_address() -> str:
    """A random address in the range that virtual adapters use."""
    return MAC_PREFIX + "".join(f":{byte:02x}" for byte in secrets.token_bytes(3))


def new_id(code: str) -> str:
    """A new identity of the form that operators' scripts know, such as hd-<18 hex>-<22 hex>."""
    head, tail = (16, 24) if code == "sb" else (18, 22)
    return f"{code}-{secrets.token_hex(head // 2)}-{secrets.token_hex(tail // 2)}"


def is_id(text: str, code: str) -> bool:
    """Whether *text* has the form of an identity with *code*."""
    return _ID.fullmatch(text) is not None and text.startswith(code + "-")


def object_id(text: str, code: str, kind: str) -> str:
    """*text*, if it has the form of an identity with *code*."""
    if not is_id(text, code):
        raise BadArgument(what=f"{kind} ID '{printable(text)}'", why=f"an ID looks like {new_id(code)}.")
    return text
