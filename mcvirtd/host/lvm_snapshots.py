"""What a logical volume holds at a moment, kept in another one.

In a thin pool that is a snapshot. Of a thick volume it is a copy: LVM's thick snapshots make each write to the volume
slow, are worth nothing once they are full, and need a module that not every kernel has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mcvirt.errors import DeadlinePassed, NoSpace, VolumeNotFound
from mcvirt.units import format_size
from mcvirtd.host import content, lvm
from mcvirtd.host import lvm_commands as commands
from mcvirtd.host.run import run

WITHIN = 120.0


def keep(group: str, name: str, origin: str, node: str, progress: Callable[[int, int], None] | None = None) -> None:
    """Make *name* hold what *origin* holds, to which nobody writes meanwhile. What fails leaves nothing."""
    found = lvm.volume(group, origin)
    if found is None:
        raise VolumeNotFound(name=origin, location=group)
    if found.pool is not None:
        try:
            run(commands.thin_snapshot(group, name, origin), within=WITHIN)
        except DeadlinePassed:
            drop(group, name)
            raise
        return
    if (free := lvm.volume_group(group).free) < found.size:
        needed, there = format_size(found.size), format_size(free)
        raise NoSpace(backend=group, node=node, free=there, needed=f"{needed} to keep what {origin} holds")
    lvm.create_volume(group, name, found.size)
    try:
        # Past the page cache, which knows nothing of what DRBD has written below it.
        content.restore(lvm.open_path(group, origin), lvm.open_path(group, name), progress=progress)
    except BaseException:
        drop(group, name)
        raise


def check_room(group: str, origins: Mapping[str, str], node: str) -> None:
    """NoSpace, or VolumeNotFound, if not all *origins* could be kept by their names, each instead of what was before.

    A snapshot in a thin pool takes no space yet.
    """
    found = lvm.volumes(group)
    missing = [origin for origin in origins.values() if origin not in found]
    if missing:
        raise VolumeNotFound(name=missing[0], location=group)
    copied = [name for name, origin in origins.items() if found[origin].pool is None]
    if not copied:
        return
    needed = sum(found[origins[name]].size for name in copied)
    freed = sum(found[name].size for name in copied if name in found and found[name].pool is None)
    free = lvm.volume_group(group).free + freed
    if free < needed:
        what = f"{format_size(needed)} to keep what {' and '.join(origins[name] for name in copied)}"
        held = "holds" if len(copied) == 1 else "hold"
        raise NoSpace(backend=group, node=node, free=format_size(free), needed=f"{what} {held}")


def drop(group: str, name: str) -> None:
    """Remove what was kept; fine if nothing was."""
    lvm.remove_volume(group, name)


def length(group: str, name: str) -> int | None:
    """How many bytes were kept; None if nothing was."""
    found = lvm.volume(group, name)
    return None if found is None else found.size


def path(group: str, name: str) -> Path:
    """The device of what was kept, which is there then."""
    return lvm.open_path(group, name)
