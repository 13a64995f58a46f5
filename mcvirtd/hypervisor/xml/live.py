"""What a running domain has now, read from libvirt's description of it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from mcvirtd.hypervisor.xml.tree import Element, from_text, to_text


class LiveDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A disk (*source*: its path) or an adapter (its bridge), and *xml*, libvirt's own words for it."""

    source: str
    xml: str


class LiveDomain(msgspec.Struct, frozen=True, kw_only=True):
    """*disks* are by target (vda), *adapters* by MAC address; *memory* is in bytes. *disc* is what the CD drive has.

    *features* are the names of what the guest is told of its machine, and of what its balloon does.
    """

    memory: int
    cpu_count: int
    video: str
    features: tuple[str, ...]
    disks: dict[str, LiveDevice]
    adapters: dict[str, LiveDevice]
    disc: str | None


_UNITS = {"b": 1, "bytes": 1, "k": 1024, "KiB": 1024, "M": 1024**2, "MiB": 1024**2, "G": 1024**3, "GiB": 1024**3}


def _features(root: Element) -> Iterator[str]:
    for path in ("features/*", "features/hyperv/*"):
        for feature in root.iterfind(path):
            yield f"{feature.getparent().tag}/{feature.tag}"
    balloon = root.find("devices/memballoon")
    if balloon is not None and balloon.get("autodeflate") == "on":
        yield "memballoon/autodeflate"


def live_domain(description: str) -> LiveDomain:
    """The parts of a domain that can be changed while it runs, and those that show whether it needs a restart."""
    root = from_text(description)
    memory = root.find("memory")
    disks = {}
    disc = None
    for disk in root.iterfind("devices/disk"):
        source = disk.find("source")
        path = None if source is None else source.get("file") or source.get("dev")
        if disk.get("device") == "cdrom":
            disc = path
        elif path:
            disks[disk.find("target").get("dev")] = LiveDevice(source=path, xml=to_text(disk))
    adapters = {}
    for adapter in root.iterfind("devices/interface"):
        source = adapter.find("source")
        bridge = "" if source is None else source.get("bridge", "")
        adapters[adapter.find("mac").get("address").lower()] = LiveDevice(source=bridge, xml=to_text(adapter))
    video = root.find("devices/video/model")
    return LiveDomain(
        memory=int(memory.text) * _UNITS[memory.get("unit", "KiB")],
        cpu_count=int(root.findtext("vcpu")),
        video="" if video is None else video.get("type", ""),
        features=tuple(sorted(_features(root))),
        disks=disks,
        adapters=adapters,
        disc=disc,
    )
