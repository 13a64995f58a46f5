"""The network interfaces of this node, as the kernel shows them in /sys."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from mcvirt import names

SYS = Path("/sys/class/net")


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface; *members* are the interfaces a bridge connects, *bridge* is the one it is connected to."""

    is_bridge: bool
    up: bool
    mac: str
    members: tuple[str, ...]
    bridge: str | None


def interfaces(root: Path = SYS) -> dict[str, Interface]:
    """All interfaces by name; one that goes away meanwhile is left out."""
    found = {}
    for path in sorted(root.iterdir()):
        try:
            found[path.name] = _interface(path)
        except OSError:
            continue
    return found


def _interface(path: Path) -> Interface:
    members = path / "brif"
    master = path / "master"
    return Interface(
        is_bridge=(path / "bridge").is_dir(),
        up=bool(int((path / "flags").read_text(), 16) & 1),
        mac=(path / "address").read_text().strip(),
        members=tuple(sorted(member.name for member in members.iterdir())) if members.is_dir() else (),
        bridge=master.resolve().name if (master / "bridge").is_dir() else None,
    )


def bridge_faults(name: str, root: Path = SYS) -> list[str]:
    """Why virtual machines can't be connected to *name*, a sentence each; empty if they can."""
    path = root / names.interface_name(name)
    if not path.is_dir():
        bridges = [known for known, interface in interfaces(root).items() if interface.is_bridge]
        known = f" Its bridges are: {', '.join(bridges)}." if bridges else " It has no bridge at all."
        return [f"There is no network interface '{name}' on this node.{known}"]
    if not (path / "bridge").is_dir():
        return [f"The network interface '{name}' is not a bridge; virtual machines can be connected to bridges only."]
    return []


def address_fault(address: str) -> str:
    """Why this machine can't be reached at the IP address *address*; '' if it can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return "no network interface of this node has it."
    return ""
