"""The verbs on this node's DRBD resources. What fails is a CommandFailed with what DRBD said."""

from __future__ import annotations

import fnmatch
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from mcvirt.errors import BadArgument, CommandFailed, DrbdDeviceOpen, DrbdUnavailable, McvirtError, ProgramMissing
from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd import commands, config
from mcvirtd.drbd.config import Common, Resource
from mcvirtd.drbd.status import Picture, Progress, parse, parse_progress
from mcvirtd.host import files, lvm
from mcvirtd.host.run import installed, run, stream

WITHIN = 60.0
"""A command waits for the other side for some seconds at most; more means that a disk or the kernel hangs."""

TRANSIENT_WITHIN = 20.0
"""How long the kernel may ask to be asked again, since a connection is changing just now."""
_AGAIN_AFTER = 0.2

LEAST_KERNEL = (8, 4, 0)
LEAST_UTILS = (9, 15, 0)
ASIDE, REPLACED = ".before-mcvirt", ".replaced-by-mcvirt"
_OPEN = re.compile(r"held open|\(-12\)")
_ALONE = re.compile(r"\(162\).*unknown connection")
_TRANSIENT = re.compile(r"\(-18\)")
_SECRET = re.compile(r"--shared-secret[= ]?\S*")
_STATUS = Path("/proc/drbd")
_DIRECTORY = Path(config.DIRECTORY)
_CONF = Path("/etc/drbd.conf")
_INCLUDE = re.compile(r'^\s*include\s+"?([^";\s]+)"?\s*;', re.MULTILINE)
_VOLUME = re.compile(r'disk "(/[^"]+)";')


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """Of the kernel module and of drbd-utils; the module's is all zeros while it is not loaded."""

    kernel: tuple[int, int, int]
    utils: tuple[int, int, int]


def _do(argv: list[str], within: float = WITHIN) -> None:
    deadline, pause = time.monotonic() + TRANSIENT_WITHIN, threading.Event()
    while True:
        try:
            run(argv, within=within)
        except CommandFailed as error:
            if _TRANSIENT.search(str(error.output)) and time.monotonic() < deadline:
                # A connection is just being begun or ended. What follows is an event that not every caller reads.
                pause.wait(_AGAIN_AFTER)
                continue
            # drbdadm names the whole command that failed, and for `connect` that has the secret in it.
            hidden = _SECRET.sub("--shared-secret=...", str(error.output))
            if hidden == error.output:
                raise
            raise CommandFailed(program=error.program, status=error.status, output=hidden) from None
        else:
            return


# --- the files ----------------------------------------------------------------------------------------------------


def host_name() -> str:
    """What drbdadm takes this machine to be called."""
    return os.uname().nodename


def resource_path(name: str, directory: Path = _DIRECTORY) -> Path:
    """Where the file of a resource is."""
    return directory / f"{config.checked_name(name)}.res"


def write_resource(resource: Resource, directory: Path = _DIRECTORY) -> None:
    """Write the file of a resource, which only root can read."""
    text = config.resource_text(resource, host_name())
    files.write_atomically(resource_path(resource.name, directory), text.encode(), mode=0o600)


def _handle(name: str) -> config.Handle:
    path = resource_path(name)
    try:
        found = config.parse_handle(path.read_text())
    except OSError as error:
        raise CommandFailed(program="drbdsetup", status=1, output=f"{path}: {error.strerror}.") from None
    if found is None:
        raise CommandFailed(program="drbdsetup", status=1, output=f"{path} is not as mcvirt has written it.")
    return found


def remove_resource(name: str, directory: Path = _DIRECTORY) -> None:
    """Remove the file of a resource; one that is not there is fine."""
    files.delete(resource_path(name, directory))


def resource_files(directory: Path = _DIRECTORY) -> tuple[str, ...]:
    """The names of the resources of ours that have a file here."""
    return tuple(sorted(path.stem for path in directory.glob("mcvirt-*.res")))


def has_volumes(name: str, directory: Path = _DIRECTORY) -> bool:
    """Whether a volume that the file of a resource names is on this node, active or not, or that can't be told."""
    try:
        text = resource_path(name, directory).read_text()
        volumes = [Path(path) for path in _VOLUME.findall(text)]
        if not volumes or not text.startswith(config.MARK):
            return True
        return any(path.exists() or lvm.volume(path.parent.name, path.name) is not None for path in volumes)
    except (OSError, McvirtError):
        return True


def write_common(common: Common, path: Path = Path(config.GLOBAL_COMMON)) -> Path | None:
    """Write what all resources have in common. A file that is not ours is kept aside: the result is where."""
    text = config.global_common_text(common)
    aside = None
    with files.told("read", path):
        before = path.read_text(errors="replace") if path.exists() else ""
    if before == text:
        return None
    if before and not before.startswith(config.MARK):
        aside = path.with_name(path.name + ASIDE)
        if aside.exists():  # which is what was there before all this
            aside = path.with_name(path.name + REPLACED)
        files.write_atomically(aside, before.encode(errors="replace"), mode=0o644)
    files.write_atomically(path, text.encode(), mode=0o644)
    return aside


def most_rate(path: Path = Path(config.GLOBAL_COMMON)) -> int | None:
    """How fast verifying and copying may be, as the file says, in bytes a second; None if it says nothing of it."""
    try:
        return config.parse_most_rate(path.read_text(errors="replace"))
    except OSError:
        return None


def restore_common(path: Path = Path(config.GLOBAL_COMMON)) -> None:
    """Put back what was there before `write_common`; a file that is not ours is left alone."""
    aside = path.with_name(path.name + ASIDE)
    with files.told("read", path):
        ours = path.exists() and path.read_text(errors="replace").startswith(config.MARK)
    if not ours:
        return
    if aside.exists():
        with files.told("put back", path):
            aside.replace(path)
            files.sync_directory(path.parent)
    else:
        files.delete(path)


# --- a resource ---------------------------------------------------------------------------------------------------


def create_metadata(name: str) -> None:
    """Write new metadata: what was known of the data is forgotten."""
    _do(commands.create_metadata(name))


def up(name: str) -> None:
    """Have the kernel know the resource, attach its disk and connect; what of that is so already stays."""
    try:
        _do(commands.up(name))
    except CommandFailed:
        if not is_up(name):
            raise
        _do(commands.adjust(name))


def down(name: str) -> None:
    """Have the kernel forget the resource; DrbdDeviceOpen while its device is in use, and nothing if there is none."""
    _unless_open(name, commands.down(name))


def primary(name: str, *, force: bool = False) -> None:
    """Let the device be written to here; *force* although its data may be old."""
    _do(commands.primary(_handle(name), force=force))


def secondary(name: str) -> None:
    """Let the device be written to here no more; DrbdDeviceOpen while a program has it open."""
    _unless_open(name, commands.secondary(_handle(name)))


def connect(name: str, *, discard_my_data: bool = False) -> None:
    """Begin to look for the other side; with *discard_my_data* as the one whose data gives way after a split."""
    _do(commands.connect(name, discard_my_data=discard_my_data))


def disconnect(name: str, *, force: bool = False) -> None:
    """End the connection, and look for the other side no more; fine if there is none, as after a split."""
    try:
        _do(commands.disconnect(name, force=force))
    except CommandFailed as error:
        if not _ALONE.search(str(error.output)):
            raise


def verify(name: str) -> None:
    """Begin to compare both sides, from the first block to the last."""
    _do(commands.verify(_handle(name)))


def stop_verify(name: str) -> None:
    """End the comparison that was begun here."""
    _do(commands.stop_verify(_handle(name)))


def limit_rate(name: str, rate: int) -> None:
    """Compare and copy at most *rate* bytes a second, until ``unlimit_rate`` or ``adjust``."""
    _do(commands.limit_rate(name, max(1, rate // 1024)))


def unlimit_rate(name: str) -> None:
    """Compare and copy as fast as the files say; nothing else is changed. Fine if the kernel has no such resource."""
    try:
        limit_rate(name, most_rate() or config.MOST_RATE)
    except CommandFailed:
        if is_up(name):
            raise


def invalidate(name: str) -> None:
    """Have all data of this side copied from the other."""
    _do(commands.invalidate(name))


def invalidate_remote(name: str) -> None:
    """Have all data of the other side copied from this one."""
    _do(commands.invalidate_remote(name))


def new_current_uuid(name: str, *, clear_bitmap: bool = False) -> None:
    """Begin another generation of the data; with *clear_bitmap* both sides, just made, count as equal."""
    _do(commands.new_current_uuid(_handle(name), clear_bitmap=clear_bitmap))


def pause_sync(name: str) -> None:
    """Let copying wait, and tell the other side so, with the state of this one."""
    _do(commands.pause_sync(_handle(name)))


def resume_sync(name: str) -> None:
    """Let copying wait no more, as far as this side is concerned."""
    _do(commands.resume_sync(_handle(name)))


def resize(name: str, *, assume_clean: bool = False) -> None:
    """Take in that the volumes of both sides have grown; with *assume_clean* the new part counts as equal."""
    _do(commands.resize(name, assume_clean=assume_clean))


def outdate(name: str) -> None:
    """Mark this side's data as older than what the other side has."""
    _do(commands.outdate(name))


def two_primaries(name: str, allow: bool) -> None:
    """Let both sides be Primary at the same time, or no more; it takes effect at once.

    Where there is no connection, as after a split, no more than one may be: the next one begins as the file says.
    """
    try:
        _do(commands.two_primaries(_handle(name), allow))
    except CommandFailed as error:
        # To say it again and again is no choice: said to a connection that is just being made, it kills the kernel's
        # thread of that (8.4 takes the key away under it).
        if allow or not _ALONE.search(str(error.output)):
            raise


def adjust(name: str) -> None:
    """Bring a resource that is up to what the files say; a connection that was cut is made again."""
    _do(commands.adjust(name))


def _unless_open(name: str, argv: list[str]) -> None:
    try:
        _do(argv)
    except CommandFailed as error:
        if _OPEN.search(str(error)):
            raise DrbdDeviceOpen(name=name) from None
        raise


# --- looking ------------------------------------------------------------------------------------------------------


def events(heard: Callable[[str], None], stop: threading.Event) -> int:
    """Call *heard* with each line of the kernel's events, all that exists first, until *stop* is set."""
    return stream(commands.EVENTS, heard, stop)


def is_up(name: str) -> bool:
    """Whether the kernel knows the resource."""
    try:
        return bool(run(commands.status(name), within=WITHIN).stdout.strip())
    except CommandFailed:
        return False


def state(name: str) -> ResourceState | None:
    """The resource, asked of the kernel now; None if it has none of that name. `split_brain` is not known so."""
    try:
        said = run(commands.state(name), within=WITHIN).stdout
    except CommandFailed:
        if is_up(name):
            raise
        return None
    picture = Picture()
    for line in said.splitlines():
        if (event := parse(line)) is not None:
            picture.apply(event)
    return picture.state(name)


def addresses(name: str) -> frozenset[str]:
    """The addresses of both sides that the kernel uses, as `config.addresses` writes them."""
    return config.parse_addresses(run(commands.show(name), within=WITHIN).stdout)


def progress() -> dict[int, Progress]:
    """How far what goes on is, by minor; this starts no program."""
    try:
        return parse_progress(_STATUS.read_text())
    except OSError:
        return {}


def versions() -> Versions:
    """The versions of DRBD here; ProgramMissing without drbd-utils, DrbdUnavailable if they don't say."""
    said = run(commands.VERSIONS, within=WITHIN).stdout
    values = dict(line.partition("=")[::2] for line in said.splitlines())
    try:
        kernel = int(values["DRBD_KERNEL_VERSION_CODE"], 16)
        utils = int(values["DRBDADM_VERSION_CODE"], 16)
    except (KeyError, ValueError):
        raise DrbdUnavailable(reason="drbdadm does not say which version it is.") from None
    return Versions(kernel=_version(kernel), utils=_version(utils))


def _version(code: int) -> tuple[int, int, int]:
    return code >> 16 & 255, code >> 8 & 255, code & 255


def missing() -> list[str]:
    """What of DRBD is not on this node, a sentence each; no program is started for it."""
    found: list[str] = []
    if not (installed("drbdadm") and installed("drbdsetup")):
        found.append("drbd-utils is not installed: `apt install drbd-utils`, and `systemctl restart mcvirtd` after it.")
    if not module_there():
        found.append(
            "the kernel module drbd is not loaded: `modprobe drbd` does that, and a line `drbd` in "
            "/etc/modules-load.d/drbd.conf at each start."
        )
    return found


def faults(address: str | None = None) -> list[str]:
    """What keeps this node from replicating, a sentence each; *address* is the cluster address, to be one of ours."""
    found = missing()
    if installed("drbdadm"):
        found += [f"{fault} `systemctl restart mcvirtd` may help." for fault in files.directory_faults(_DIRECTORY)]
        found += include_faults()
    if not found:
        found += _version_faults()
    if address is not None and not _is_ours(address):
        found.append(f"the cluster address {address} is not on this node now.")
    return found


def include_faults(path: Path = _CONF) -> list[str]:
    """What drbdadm would not find because its own file does not include it, in a sentence."""
    try:
        included = _INCLUDE.findall(path.read_text(errors="replace"))
    except OSError as error:
        return [f"{path} can't be read: {error.strerror}. It comes with drbd-utils."]
    patterns = [word.removeprefix(f"{path.parent}/") for word in included]
    lacks = [
        name
        for name, one in (("global_common.conf", "global_common.conf"), ("*.res", "mcvirt-hd.res"))
        if not any(fnmatch.fnmatch(f"drbd.d/{one}", pattern) for pattern in patterns)
    ]
    return [
        f"{path} does not include drbd.d/{name}: add the line `include \"drbd.d/{name}\";` to it." for name in lacks
    ]


def module_there() -> bool:
    """Whether the kernel's module is loaded."""
    return Path("/sys/module/drbd").exists()


def _version_faults() -> list[str]:
    try:
        found = versions()
    except (ProgramMissing, CommandFailed, DrbdUnavailable) as error:
        return [str(error)]
    faults = []
    if found.kernel[:2] != LEAST_KERNEL[:2]:
        faults.append(f"the kernel module drbd is version {_dotted(found.kernel)}, and 8.4 is needed.")
    if found.utils < LEAST_UTILS:
        faults.append(f"drbd-utils is version {_dotted(found.utils)}, and {_dotted(LEAST_UTILS)} is needed.")
    return faults


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _is_ours(address: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def port_is_free(address: str, port: int) -> bool:
    """Whether nothing listens at the port."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError:
        return False
    return True


def minor_is_free(minor: int) -> bool:
    """Whether the kernel has no device of that minor."""
    if minor < 0:
        raise BadArgument(what=f"DRBD minor {minor}", why="it can't be less than 0.")
    return not Path(f"/sys/block/drbd{minor}").exists()
