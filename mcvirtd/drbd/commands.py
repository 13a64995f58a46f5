"""The argument lists of DRBD's programs. Nothing is run here, and no secret is among the words."""

from __future__ import annotations

from mcvirtd.drbd.config import checked_name

EVENTS = ["drbdsetup", "events2", "--timestamps", "--statistics"]
VERSIONS = ["drbdadm", "--version"]


def _adm(verb: str, resource: str, *options: str) -> list[str]:
    passed = ["--", *options] if options else []
    return ["drbdadm", *passed, verb, checked_name(resource)]


def create_metadata(resource: str) -> list[str]:
    return _adm("create-md", resource, "--force")


def up(resource: str) -> list[str]:
    return _adm("up", resource)


def down(resource: str) -> list[str]:
    return ["drbdsetup", "down", checked_name(resource)]


def show(resource: str) -> list[str]:
    return ["drbdsetup", "show", checked_name(resource)]


def primary(resource: str, *, force: bool = False) -> list[str]:
    return _adm("primary", resource, *(["--force"] if force else []))


def secondary(resource: str) -> list[str]:
    return _adm("secondary", resource)


def connect(resource: str, *, discard_my_data: bool = False) -> list[str]:
    return _adm("connect", resource, *(["--discard-my-data"] if discard_my_data else []))


def disconnect(resource: str, *, force: bool = False) -> list[str]:
    return _adm("disconnect", resource, *(["--force"] if force else []))


def verify(resource: str) -> list[str]:
    # Without a start the kernel goes on where an earlier verification was interrupted, and calls the rest a whole.
    return _adm("verify", resource, "--start=0")


def stop_verify(resource: str) -> list[str]:
    # Said while one is going on it moves that one's end, which the kernel then finds to be behind it.
    return _adm("verify", resource, "--start=0", "--stop=8")


def limit_rate(resource: str, kib: int) -> list[str]:
    return ["drbdadm", "disk-options", f"--c-max-rate={kib}k", f"--resync-rate={kib}k", checked_name(resource)]


def invalidate(resource: str) -> list[str]:
    return _adm("invalidate", resource)


def invalidate_remote(resource: str) -> list[str]:
    return _adm("invalidate-remote", resource)


def new_current_uuid(resource: str, *, clear_bitmap: bool) -> list[str]:
    return _adm("new-current-uuid", resource, *(["--clear-bitmap"] if clear_bitmap else []))


def resize(resource: str, *, assume_clean: bool) -> list[str]:
    return _adm("resize", resource, *(["--assume-clean"] if assume_clean else []))


def outdate(resource: str) -> list[str]:
    return _adm("outdate", resource)


def two_primaries(resource: str, allow: bool) -> list[str]:
    return ["drbdadm", "net-options", f"--allow-two-primaries={'yes' if allow else 'no'}", checked_name(resource)]


def adjust(resource: str) -> list[str]:
    return _adm("adjust", resource)


def status(resource: str) -> list[str]:
    return ["drbdsetup", "status", checked_name(resource)]
