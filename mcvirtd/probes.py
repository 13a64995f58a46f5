"""How the machine is looked at before mcvirtd starts. Nothing here changes anything."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mcvirt.errors import CommandFailed
from mcvirtd.host import lvm_filter

IN_USE = "it is in use."


def file_system_of(path: Path) -> str:
    """The type of the file system that *path* is on, as the kernel calls it; '' if that can't be found out."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        place, _, source = line.partition(" - ")
        fields = place.split(" ")
        if len(fields) < 5:
            continue
        mounted = fields[4].replace("\\040", " ")
        # The last one mounted on a directory is the one that is seen.
        if f"{real}/".startswith(mounted.rstrip("/") + "/") and len(mounted) >= len(best):
            best, kind = mounted, source.split(" ", 1)[0]
    return kind


def kvm_trouble() -> str:
    """Why /dev/kvm can't be used; '' if it can be opened. Whether guests really run on it, only QEMU can tell."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}."
    return ""


def port_trouble(address: str, port: int) -> str:
    """Why nobody can begin to listen there; '' if one can, IN_USE if somebody does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(1)
    except OSError as error:
        return IN_USE if error.errno == errno.EADDRINUSE else f"{error.strerror}."
    return ""


def served_certificate(address: str, port: int, within: float = 3.0) -> bytes | None:
    """The DER of the certificate that whoever listens there shows; None for anything but TLS."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - looked up, not bound
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=within) as raw,
            context.wrap_socket(raw) as wrapped,
        ):
            return wrapped.getpeercert(binary_form=True)
    except OSError:
        return None


def lvm_faults() -> list[str]:
    """What is wrong with how LVM looks at DRBD's devices, a sentence each."""
    try:
        return lvm_filter.faults()
    except CommandFailed as error:
        return [str(error)]


@dataclass(frozen=True, kw_only=True)
class Probes:
    """How the machine is looked at; tests put their own answers here."""

    user_id: Callable[[], int] = os.geteuid
    which: Callable[[str], str | None] = shutil.which
    clock: Callable[[], float] = time.time
    sqlite: Callable[[], tuple[int, ...]] = lambda: sqlite3.sqlite_version_info
    file_system: Callable[[Path], str] = file_system_of
    space: Callable[[Path], os.statvfs_result] = os.statvfs
    kvm: Callable[[], str] = kvm_trouble
    port: Callable[[str, int], str] = port_trouble
    served: Callable[[str, int], bytes | None] = served_certificate
    lvm: Callable[[], list[str]] = lvm_faults
