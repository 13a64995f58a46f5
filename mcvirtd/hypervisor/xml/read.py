"""What libvirt's own descriptions say, in our words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mcvirtd.hypervisor.xml.domain import NAMESPACE
from mcvirtd.hypervisor.xml.tree import Element, from_text


def source_paths(domain: str) -> frozenset[str]:
    """Every file and block device that a domain's disks stand on: hard disks, discs, and their backing files."""
    paths = set()
    for disk in from_text(domain).iterfind("devices/disk"):
        for source in disk.iter("source"):
            path = source.get("file") or source.get("dev")
            if path:
                paths.add(path)
    return frozenset(paths)


def path_users(descriptions: Iterable[tuple[str, str]]) -> Mapping[str, frozenset[str]]:
    """From UUIDs and descriptions: every path -> UUIDs of the domains that stand on it."""
    users: dict[str, set[str]] = {}
    for uuid, domain in descriptions:
        for path in source_paths(domain):
            users.setdefault(path, set()).add(uuid)
    return {path: frozenset(uuids) for path, uuids in users.items()}


def vnc_port(domain: str) -> int | None:
    """The TCP port on which a running domain shows its screen, or None."""
    graphics = from_text(domain).find("devices/graphics[@type='vnc']")
    port = int(graphics.get("port", "-1")) if graphics is not None else -1
    return port if port > 0 else None


def marked_uuid(domain: str) -> str | None:
    """The UUID in our mark, for a domain that we made; None for one of somebody else's."""
    mark = from_text(domain).find(f"metadata/{{{NAMESPACE}}}domain")
    return None if mark is None else str(mark.get("uuid", ""))


def has_device(domain: str, device: str) -> bool:
    """Whether a domain has the disk (by its target), adapter (by its MAC address) or other device described."""
    wanted = from_text(device)
    key = _identity(wanted)
    return any(_identity(there) == key for there in from_text(domain).iterfind(f"devices/{wanted.tag}"))


def describe_device(device: str) -> str:
    """A device's description in two or three words, for messages."""
    kind, name = _identity(from_text(device))
    return f"{kind} {name}".strip()


def _identity(device: Element) -> tuple[str, str]:
    if device.tag == "disk":
        return ("disk", device.find("target").get("dev"))
    if device.tag == "interface":
        return ("network adapter", device.find("mac").get("address", "").lower())
    if device.tag == "hostdev":
        address = device.find("source/address")
        return ("host device", "" if address is None else ":".join(f"{k}={v}" for k, v in sorted(address.items())))
    return (str(device.tag), "")
