"""A running domain's description as another node needs it, and what that node has to be able to do."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mcvirtd.hypervisor.xml.tree import from_text, to_text


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest runs with: libvirt's kind of domain (kvm, qemu), machine type, emulator, and <cpu> ('' if none).

    *targets* maps the paths of its disks to their names (vda).
    """

    kind: str
    machine_type: str
    emulator: str
    cpu: str
    targets: dict[str, str]


def running(description: str) -> Running:
    """From libvirt's description of a running domain."""
    root = from_text(description)
    cpu = root.find("cpu")
    targets = {}
    for disk in root.iterfind("devices/disk[@device='disk']"):
        source = disk.find("source")
        path = None if source is None else source.get("file") or source.get("dev")
        if path:
            targets[path] = disk.find("target").get("dev")
    return Running(
        kind=root.get("type", ""),
        machine_type=root.find("os/type").get("machine", ""),
        emulator=root.findtext("devices/emulator") or "",
        cpu="" if cpu is None else to_text(cpu),
        targets=targets,
    )


def moved(description: str, paths: Mapping[str, str]) -> str:
    """The same domain where its files are elsewhere: *paths* maps a path here to the path there."""
    root = from_text(description)
    for element in root.iterfind("devices//*"):
        if element.tag in ("source", "log"):
            for name in ("file", "dev"):
                if element.get(name) in paths:
                    element.set(name, paths[element.get(name)])
    return to_text(root)


def guests_user(capabilities: str) -> tuple[int, int]:
    """The user and group that QEMU runs as, from libvirt's capabilities; root's where libvirt does not tell."""
    for model in from_text(capabilities).iterfind("host/secmodel"):
        if model.findtext("model") == "dac":
            user, _, group = (model.findtext("baselabel") or "").partition(":")
            return int(user.lstrip("+") or 0), int(group.lstrip("+") or 0)
    return 0, 0
