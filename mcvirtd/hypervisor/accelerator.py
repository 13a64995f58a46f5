"""KVM or emulation: what guests of this machine can really run with, and why."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mcvirtd.hypervisor.design import Accelerator

Setting = Literal["auto", "kvm", "tcg"]


def choose(
    setting: Setting, *, device_trouble: str | None, cpu_has_it: bool, libvirt_knows_it: Callable[[], bool]
) -> tuple[Accelerator, str]:
    """The accelerator for guests and the reason in words. *device_trouble*: why /dev/kvm does not open, if so."""
    if setting == "tcg":
        return "tcg", "the settings ask for emulation"
    trouble = None
    if device_trouble is not None:
        trouble = device_trouble
    elif not cpu_has_it:
        # /dev/kvm may exist all the same, from a module that does in software what the processor does not have.
        # Ordinary 64-bit guests hang there.
        trouble = "the processor has no hardware virtualisation (neither vmx nor svm in /proc/cpuinfo)"
    elif not libvirt_knows_it():
        trouble = "libvirt does not offer KVM for this machine"
    if setting == "kvm":
        return "kvm", "the settings ask for KVM" + (f", although {trouble}" if trouble else "")
    if trouble is not None:
        return "tcg", f"guests are emulated, and slow: {trouble}"
    return "kvm", "the processor and libvirt offer it"


def of_this_machine(setting: Setting, libvirt_knows_it: Callable[[], bool]) -> tuple[Accelerator, str]:
    """``choose`` for the machine we run on."""
    return choose(setting, device_trouble=device_trouble(), cpu_has_it=cpu_has_it(), libvirt_knows_it=libvirt_knows_it)


def device_trouble(path: str = "/dev/kvm") -> str | None:
    """Why *path* can't be opened, or None when it can."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"there is no {path}"
    except OSError as error:
        return f"{path} can't be opened ({error.strerror})"
    return None


def cpu_has_it(cpuinfo: str | None = None) -> bool:
    """Whether the processor says that it has hardware virtualisation."""
    text = Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo
    return re.search(r"^flags\s*:.*\b(vmx|svm)\b", text, re.MULTILINE) is not None
