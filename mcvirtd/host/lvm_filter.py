"""Whether LVM leaves DRBD's devices alone.

If it does not, every command of LVM opens each of them: that takes half a second apiece while the device is Secondary,
and volume groups that a guest made on its hard drive become the node's.
"""

from __future__ import annotations

import re

from mcvirtd.host.run import run

WITHIN = 30.0
SETTINGS = ("devices/global_filter", "devices/filter", "devices/use_devicesfile")
DEVICES = ("/dev/drbd1", "/dev/drbd/by-res/mcvirt-hd-1/0", "/dev/drbd/by-disk/vg0/mcvirt-hd-1-drbd-raw")
REMEDY = 'Set global_filter = [ "r|^/dev/drbd|" ] in the section devices of /etc/lvm/lvm.conf.'
_SETTING = re.compile(r"\s*(\w+)\s*=\s*(.*)")
_PATTERN = re.compile(r'"((?:[^"\\]|\\.)*)"')


def faults() -> list[str]:
    """A sentence if LVM looks into DRBD's devices; raises CommandFailed if LVM does not say."""
    said = run(["lvmconfig", "--typeconfig", "full", *SETTINGS], within=WITHIN).stdout
    if leaves_alone(said):
        return []
    return ["LVM looks into DRBD's devices, which makes each of its commands slow."]


def leaves_alone(config: str) -> bool:
    """Whether LVM with the settings *config*, as `lvmconfig` prints them, opens no device of DRBD's."""
    settings = {match[1]: match[2] for line in config.splitlines() if (match := _SETTING.fullmatch(line))}
    if settings.get("use_devicesfile") == "1":
        return True  # only devices that an administrator has listed
    return any(
        all(_refused(device, _PATTERN.findall(settings.get(name, ""))) for device in DEVICES)
        for name in ("global_filter", "filter")
    )


def _refused(device: str, patterns: list[str]) -> bool:
    """The first pattern that fits decides; r|...| refuses, a|...| accepts, and any letter may stand for the bar."""
    for pattern in patterns:
        if len(pattern) < 3 or pattern[0] not in "ar":
            continue
        closing = {"(": ")", "[": "]", "{": "}"}.get(pattern[1], pattern[1])
        inner = pattern[2 : pattern.rfind(closing)]
        try:
            if re.search(inner, device):
                return pattern[0] == "r"
        except re.error:
            continue
    return False
