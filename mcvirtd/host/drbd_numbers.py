"""DRBD's devices as the kernel lists them, and which minors and TCP ports are in use. No program is started for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

DEVICES = Path("/sys/block")
SOCKETS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
FILES = (Path("/etc/drbd.d"), Path("/etc/drbd.conf"))

_DEVICE = re.compile(r"drbd(\d+)", re.ASCII)
_MINOR = re.compile(r"\bdevice\s+(?:\S+\s+)?(?:minor\s+|\"?/dev/drbd_?\S*?)(\d+)", re.ASCII)
_PORT = re.compile(r"\baddress\b[^;\n]*[\d\]]:(\d{1,5})\b", re.ASCII)


def minors_in_use(devices: Path = DEVICES, files: Iterable[Path] = FILES) -> frozenset[int]:
    """The minors of devices that the kernel has, and of those that resource files speak of.

    One minor in two resource files keeps drbdadm from doing anything at all.
    """
    found = {int(match[1]) for path in _listed(devices) if (match := _DEVICE.fullmatch(path.name))}
    return frozenset(found | {int(number) for text in _texts(files) for number in _MINOR.findall(text)})


def ports_in_use(sockets: Iterable[Path] = SOCKETS, files: Iterable[Path] = FILES) -> frozenset[int]:
    """The ports that sockets of this machine have, and those that resource files speak of."""
    found = {int(number) for text in _texts(files) for number in _PORT.findall(text)}
    for table in sockets:
        for line in _text(table).splitlines()[1:]:
            local = line.split()[1:2]
            port = local[0].rpartition(":")[2] if local else ""
            if port:
                found.add(int(port, 16))
    return frozenset(found)


def device_size(minor: int, devices: Path = DEVICES) -> int:
    """How many bytes the device has now; 0 if there is none. No event tells of a change."""
    text = _text(devices / f"drbd{minor}" / "size").strip()
    return int(text) * 512 if text.isdecimal() else 0


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _texts(files: Iterable[Path]) -> Iterator[str]:
    for place in files:
        for path in [each for each in _listed(place) if each.suffix == ".res"] or [place]:
            yield "\n".join(line.partition("#")[0] for line in _text(path).splitlines())


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
