"""The argument lists of DRBD's programs. Nothing is run here, and no secret is among the words.

drbdadm asks the kernel for its version, reads the files of all resources, and has drbdsetup do the work; that takes it
many times as long as the work. So what needs nothing of the files but the resource's handle is said to drbdsetup.
"""

from __future__ import annotations

from mcvirtd.drbd.config import Handle, checked_name

EVENTS = ["drbdsetup", "events2", "--timestamps", "--statistics"]
VERSIONS = ["drbdadm", "--version"]


def _adm(verb: str, resource: str, *options: str) -> list[str]:
    passed = ["--", *options] if options else []
    return ["drbdadm", *passed, verb, checked_name(resource)]


def _setup(verb: str, minor: int, *options: str) -> list[str]:
    return ["drbdsetup", verb, str(minor), *options]


def create_metadata(resource: str) -> list[str]:
    return _adm("create-md", resource, "--force")


def up(resource: str) -> list[str]:
    return _adm("up", resource)


def down(resource: str) -> list[str]:
    return ["drbdsetup", "down", checked_name(resource)]


def show(resource: str) -> list[str]:
    return ["drbdsetup", "show", checked_name(resource)]


def primary(handle: Handle, *, force: bool = False) -> list[str]:
    return _setup("primary", handle.minor, *(["--force"] if force else []))


def secondary(handle: Handle) -> list[str]:
    return _setup("secondary", handle.minor)


def connect(resource: str, *, discard_my_data: bool = False) -> list[str]:
    return _adm("connect", resource, *(["--discard-my-data"] if discard_my_data else []))


def disconnect(resource: str, *, force: bool = False) -> list[str]:
    return _adm("disconnect", resource, *(["--force"] if force else []))


def verify(handle: Handle) -> list[str]:
    # Without a start the kernel goes on where an earlier verification was interrupted, and calls the rest a whole.
    return _setup("verify", handle.minor, "--start=0")


def stop_verify(handle: Handle) -> list[str]:
    # Said while one is going on it moves that one's end, which the kernel then finds to be behind it.
    return _setup("verify", handle.minor, "--start=0", "--stop=8")


def limit_rate(resource: str, kib: int) -> list[str]:
    return ["drbdadm", "disk-options", f"--c-max-rate={kib}k", f"--resync-rate={kib}k", checked_name(resource)]


def state(resource: str) -> list[str]:
    return ["drbdsetup", "events2", "--now", "--statistics", checked_name(resource)]


def invalidate(resource: str) -> list[str]:
    return _adm("invalidate", resource)


def invalidate_remote(resource: str) -> list[str]:
    return _adm("invalidate-remote", resource)


def new_current_uuid(handle: Handle, *, clear_bitmap: bool) -> list[str]:
    return _setup("new-current-uuid", handle.minor, *(["--clear-bitmap"] if clear_bitmap else []))


def pause_sync(handle: Handle) -> list[str]:
    return _setup("pause-sync", handle.minor)


def resume_sync(handle: Handle) -> list[str]:
    return _setup("resume-sync", handle.minor)


def resize(resource: str, *, assume_clean: bool) -> list[str]:
    return _adm("resize", resource, *(["--assume-clean"] if assume_clean else []))


def outdate(resource: str) -> list[str]:
    return _adm("outdate", resource)


def two_primaries(handle: Handle, allow: bool) -> list[str]:
    word = "yes" if allow else "no"
    return ["drbdsetup", "net-options", handle.local, handle.peer, f"--allow-two-primaries={word}"]


def adjust(resource: str) -> list[str]:
    return _adm("adjust", resource)


def status(resource: str) -> list[str]:
    return ["drbdsetup", "status", checked_name(resource)]
