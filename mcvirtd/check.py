"""`mcvirtd --check`: everything that is wrong with the settings and the machine, said at once. Changes nothing."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from mcvirt.errors import McvirtError, SettingsRefused
from mcvirt.units import GIB, MIB, format_size
from mcvirtd.cluster import pki
from mcvirtd.host import lvm_filter
from mcvirtd.probes import IN_USE, Probes
from mcvirtd.settings import Settings, load

OLDEST_SQLITE = (3, 35, 0)
LEAST_SPACE = 64 * MIB
LITTLE_SPACE = GIB
LEAST_INODES = 1000
# A clock before this was never set: certificates would be made that nobody else accepts.
EARLIEST = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
NETWORK_FILE_SYSTEMS = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "9p")) | frozenset(
    ("glusterfs", "fuse.sshfs", "fuse.glusterfs", "lustre", "ocfs2", "gfs2", "virtiofs")
)
FORGETFUL_FILE_SYSTEMS = frozenset(("tmpfs", "ramfs", "devtmpfs"))
PROGRAMS: tuple[tuple[str, str, Literal["error", "warning"], str], ...] = (
    ("qemu-system-x86_64", "qemu-system-x86", "error", "No virtual machine can be started."),
    ("qemu-img", "qemu-utils", "error", "No hard drive can be made."),
    ("lvcreate", "lvm2", "warning", "Storage backends of type Lvm can't be used."),
    ("ip", "iproute2", "warning", "Network bridges can't be looked at."),
)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong: an error keeps mcvirtd from working, a warning from doing all it could."""

    severity: Literal["error", "warning"]
    text: str
    fix: str


def check_file(
    path: Path, *, host_name: Callable[[], str] = socket.gethostname
) -> tuple[Settings | None, list[Finding]]:
    """The settings in the file at *path* and what is wrong with it; None if they can't be used."""
    try:
        settings = load(path, host_name=host_name)
    except SettingsRefused as error:
        fix = f"Correct it in {path}."
        return None, [Finding(severity="error", text=problem, fix=fix) for problem in error.problems]
    try:
        loose = path.stat().st_mode & 0o022
    except OSError:
        loose = 0
    if loose:
        text = f"Others than its owner may change {path}, and so what mcvirtd does as root."
        return settings, [Finding(severity="error", text=text, fix=f"chmod go-w {path}")]
    return settings, []


def check(
    settings: Settings,
    *,
    frozen_name: str | None = None,
    libvirt: Callable[[str], object] | None = None,
    probes: Probes | None = None,
) -> list[Finding]:
    """Everything that is wrong with the machine, the errors first.

    *frozen_name* is the name that this node was given at its first start; *libvirt* is to connect to a URI and raise a
    McvirtError if that fails.
    """
    look = probes or Probes()
    found = [
        *_user(look),
        *_name(settings, frozen_name),
        *_state_directory(settings.paths.state, look),
        *_run_directory(settings.paths.run),
        *_programs(look),
        *_replication(look),
        *_sqlite(look),
        *_clock(look),
        *_kvm(settings, look),
        *_libvirt(settings.libvirt.uri, libvirt),
        *_port(settings, look),
    ]
    return sorted(found, key=lambda finding: finding.severity != "error")


def _error(text: str, fix: str) -> Finding:
    return Finding(severity="error", text=text, fix=fix)


def _warning(text: str, fix: str) -> Finding:
    return Finding(severity="warning", text=text, fix=fix)


def _user(look: Probes) -> list[Finding]:
    if look.user_id() == 0:
        return []
    return [_error("mcvirtd does not run as root.", "Start it with systemctl start mcvirtd, or as root.")]


def _name(settings: Settings, frozen_name: str | None) -> list[Finding]:
    if frozen_name is None or frozen_name == settings.node.name:
        return []
    return [
        _error(
            f"This node has been '{frozen_name}' since its first start, and would now be '{settings.node.name}'.",
            f'Give the machine its host name back, or set name = "{frozen_name}" under [node] in the settings.',
        )
    ]


def _state_directory(path: Path, look: Probes) -> list[Finding]:
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return [_error(f"{existing} is in the way of the state directory {path}.", f"Move {existing} away.")]
    found: list[Finding] = []
    if not os.access(existing, os.W_OK | os.X_OK):
        found.append(_error(f"{existing} can't be written to.", "Mount it read-write, or set paths.state."))
    if path.exists() and path.stat().st_mode & 0o022:
        found.append(_error(f"Others than its owner may write to {path}.", f"chmod 700 {path}"))
    kind = look.file_system(existing)
    if kind in NETWORK_FILE_SYSTEMS:
        found.append(
            _error(
                f"The state directory {path} is on a network file system ({kind}).", "Set paths.state to a local one."
            )
        )
    elif kind in FORGETFUL_FILE_SYSTEMS:
        found.append(
            _warning(f"The state directory {path} is on {kind} and is lost at a reboot.", "Set paths.state to a disk.")
        )
    space = look.space(existing)
    free = space.f_bavail * space.f_frsize
    if free < LEAST_SPACE:
        found.append(
            _error(f"Only {format_size(free)} are free for {path}.", f"Free at least {format_size(LEAST_SPACE)}.")
        )
    elif free < LITTLE_SPACE:
        found.append(_warning(f"Only {format_size(free)} are free for {path}.", "Free some space before it is full."))
    if space.f_files and space.f_favail < LEAST_INODES:
        found.append(
            _error(f"Only {space.f_favail} more files can be made in {path}.", "Delete files that are not needed.")
        )
    return found


def _run_directory(path: Path) -> list[Finding]:
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return [_error(f"{existing} is in the way of the run directory {path}.", f"Move {existing} away.")]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [_error(f"{existing} can't be written to.", "Mount it read-write, or set paths.run.")]
    if path.exists() and path.stat().st_mode & 0o022:
        return [_error(f"Others than its owner may write to {path}.", f"chmod 755 {path}")]
    return []


def _programs(look: Probes) -> list[Finding]:
    return [
        Finding(severity=severity, text=f"The program {name} is missing. {loss}", fix=f"apt-get install {package}")
        for name, package, severity, loss in PROGRAMS
        if look.which(name) is None
    ]


def _replication(look: Probes) -> list[Finding]:
    if look.which("drbdadm") is None:
        return []
    return [_warning(fault, lvm_filter.REMEDY) for fault in look.lvm()]


def _sqlite(look: Probes) -> list[Finding]:
    version = look.sqlite()
    if version >= OLDEST_SQLITE:
        return []
    shown = ".".join(str(part) for part in version)
    return [_error(f"SQLite {shown} is too old.", f"Install SQLite {'.'.join(map(str, OLDEST_SQLITE))} or newer.")]


def _clock(look: Probes) -> list[Finding]:
    now = look.clock()
    if now >= EARLIEST.timestamp():
        return []
    shown = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%d")
    return [_error(f"The clock says {shown} and can't be right.", "Set it, and keep it right with chrony.")]


def _kvm(settings: Settings, look: Probes) -> list[Finding]:
    if settings.libvirt.accelerator == "tcg":
        return []
    trouble = look.kvm()
    if not trouble:
        return []
    if settings.libvirt.accelerator == "kvm":
        return [
            _error(
                f"KVM can't be used: {trouble}",
                "Switch on virtualisation in the firmware and load kvm_intel or kvm_amd.",
            )
        ]
    return [
        _warning(
            f"KVM can't be used, and machines run slowly on QEMU's own emulation: {trouble}",
            "Switch on virtualisation in the firmware and load kvm_intel or kvm_amd.",
        )
    ]


def _libvirt(uri: str, connect: Callable[[str], object] | None) -> list[Finding]:
    if connect is None:
        return []
    try:
        connect(uri)
    except McvirtError as error:
        return [_error(str(error), "systemctl start libvirtd, after apt-get install libvirt-daemon-system.")]
    return []


def _port(settings: Settings, look: Probes) -> list[Finding]:
    address, port = settings.listen.address, settings.listen.port
    if port == 0:
        return []
    trouble = look.port(address, port)
    if not trouble:
        return []
    if trouble == IN_USE:
        served = look.served(address, port)
        # Our own mcvirtd may be running meanwhile.
        if served is not None and served == _own_certificate(settings.paths.state):
            return []
        return [
            _error(
                f"Port {port} of {address} is used by another program.",
                f"`ss -ltnp sport = :{port}` shows which. Stop it, or set listen.port.",
            )
        ]
    return [
        _error(
            f"Port {port} of {address} can't be listened at: {trouble}", "Set listen.address to one of this machine."
        )
    ]


def _own_certificate(state: Path) -> bytes | None:
    try:
        return ssl.PEM_cert_to_DER_cert((state / pki.DIRECTORY / "node.crt").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
