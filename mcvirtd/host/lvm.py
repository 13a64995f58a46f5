"""The verbs that look at LVM's volumes and change them; names are checked once more on the way to each command."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from mcvirt import names
from mcvirt.errors import (
    CommandFailed,
    DeadlinePassed,
    McvirtError,
    NoSpaceLeft,
    NotFound,
    UndoIncomplete,
    VolumeExists,
    VolumeInUse,
    VolumeNotFound,
    VolumeUnusable,
)
from mcvirtd.host import content, files
from mcvirtd.host import lvm_commands as commands
from mcvirtd.host.content import Progress
from mcvirtd.host.lvm_reports import (
    UNWIPED,
    ThinPool,
    Volume,
    VolumeGroup,
    parse_groups,
    parse_groups_of_volumes,
    parse_thin_pools,
    parse_volumes,
)
from mcvirtd.host.run import Output, run

WITHIN = 120.0
"""A command waits for the lock of its volume group while another one, perhaps not ours, works there."""


def _run(argv: list[str]) -> Output:
    return run(argv, within=WITHIN)


def volume_groups() -> dict[str, VolumeGroup]:
    """All volume groups of this node."""
    return parse_groups(_run(commands.report_groups()).stdout)


def volume_group(group: str) -> VolumeGroup:
    """One volume group; NotFound if there is none of that name."""
    found = volume_groups().get(names.volume_group_name(group))
    if found is None:
        raise NotFound(kind="volume group", name=group, hint=" `vgs` shows those of this node.")
    return found


def volumes(group: str) -> dict[str, Volume]:
    """The volumes of a volume group, its thin pools left out."""
    return parse_volumes(_report(group))


def thin_pools(group: str) -> dict[str, ThinPool]:
    """The thin pools of a volume group."""
    return parse_thin_pools(_report(group))


def group_and_pools(group: str) -> tuple[VolumeGroup | None, dict[str, ThinPool]]:
    """A volume group, None if there is none of that name, and its thin pools, from one report where it has some."""
    try:
        report = _run(commands.report_pools(group)).stdout
    except CommandFailed:
        report = ""
    if report and (pools := parse_thin_pools(report)):
        return parse_groups_of_volumes(report).get(group), pools
    return volume_groups().get(names.volume_group_name(group)), {}


def volume(group: str, name: str) -> Volume | None:
    """One volume, or None if there is none of that name."""
    return parse_volumes(_report(group, name)).get(name)


def _report(group: str, name: str | None = None) -> str:
    try:
        return _run(commands.report_volumes(group, name)).stdout
    except CommandFailed:
        volume_group(group)
        raise


def _known(group: str, name: str) -> Volume:
    found = volume(group, name)
    if found is None:
        raise VolumeNotFound(name=name, location=group)
    return found


def create_volume(
    group: str,
    name: str,
    size: int,
    *,
    thin_pool: str | None = None,
    tags: Iterable[str] = (),
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> int:
    """Make an active volume that reads as zeros and return its size: *size* rounded up to extents.

    What fails or is cancelled leaves no volume. A power failure may leave one with the tag UNWIPED, whose content
    ``activate`` keeps from guests.
    """
    _refuse_what_is_there(group, name, size, thin_pool)
    content.Pace(size, None, cancel).at(0)
    unwiped = [] if thin_pool else [UNWIPED + "0"]
    try:
        _run(commands.create(group, name, size, thin_pool=thin_pool, tags=[*tags, *unwiped]))
    except DeadlinePassed:
        remove_volume(group, name)
        raise
    with _UndoneBy("the new volume", group, name, lambda: remove_volume(group, name)):
        if thin_pool:
            return content.length(Path(f"/dev/{group}/{name}").resolve())  # one report less
        made = _known(group, name)
        _finish_wiping(group, name, made, progress, cancel)
    return made.size


def create_bare_volume(group: str, name: str, size: int, *, thin_pool: str | None = None) -> None:
    """Make an active volume that may hold anything: no guest may ever read it."""
    try:
        _run(commands.create(group, name, size, thin_pool=thin_pool, tags=()))
    except CommandFailed:
        _refuse_what_is_there(group, name, size, thin_pool)
        raise
    except DeadlinePassed:
        remove_volume(group, name)
        raise


def copy_volume(
    group: str,
    source: str,
    name: str,
    *,
    thin_pool: str | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> int:
    """Make volume *name* with the content of *source*, and return its size; fails as ``create_volume`` does."""
    origin = open_path(group, source)
    size = _known(group, source).size

    def at(begun: int) -> Progress:
        return lambda done, _: progress(begun + done, 2 * size) if progress else None

    create_volume(group, name, size, thin_pool=thin_pool, progress=at(0), cancel=cancel)
    with _UndoneBy("the new volume", group, name, lambda: remove_volume(group, name)):
        target = _device(_known(group, name))
        with files.told("copy to", target), files.opened(target, os.O_RDWR) as descriptor:
            content.copy(origin, descriptor, progress=at(size), cancel=cancel)
    return size


def _refuse_what_is_there(group: str, name: str, size: int, thin_pool: str | None) -> None:
    report = _report(group)
    if name in parse_volumes(report) or name in (pools := parse_thin_pools(report)):
        raise VolumeExists(name=name, location=group)
    if thin_pool is None:
        if content.whole_sectors(size) > volume_group(group).free:
            raise NoSpaceLeft(action="create", path=f"{group}/{name}")
    elif thin_pool not in pools:
        raise NotFound(kind="thin pool", name=f"{group}/{thin_pool}", hint=" `lvs` shows those of this node.")
    elif not pools[thin_pool].zeroes:
        raise VolumeUnusable(name=thin_pool, location=group, reason=pool_fault(group, thin_pool))


def pool_fault(group: str, pool: str) -> str:
    """The sentence about a thin pool that does not zero."""
    return (
        f"The thin pool {group}/{pool} does not zero new chunks, so that a virtual machine could read what others "
        f"stored there. `lvchange --zero y {group}/{pool}` changes that."
    )


class _UndoneBy:
    """Undoes what was made when the block fails, and says what remains when that fails too."""

    def __init__(self, what: str, group: str, name: str, undo: Callable[[], object]) -> None:
        self.what, self.full, self.undo = what, f"{group}/{name}", undo

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        try:
            self.undo()
        except McvirtError as failure:
            remains = f"{self.what} {self.full} ({failure})"
            raise UndoIncomplete(text=str(error), remains=remains) from error


def _finish_wiping(
    group: str, name: str, volume: Volume, progress: Progress | None, cancel: threading.Event | None
) -> None:
    start = volume.unwiped_from
    if start is None:
        return
    content.wipe(_device(volume), start=start, progress=progress, cancel=cancel)
    for tag in volume.tags:
        if tag.startswith(UNWIPED):
            tag_volume(group, name, remove=tag)


def remove_volume(group: str, name: str) -> None:
    """Remove a volume for good; one that is not there is fine, one that is open is VolumeInUse.

    Never removes anything else with it: neither the volumes in a thin pool nor the snapshots of a volume.
    """
    found = volume(group, name)
    if found is None:
        return
    if found.snapshots:
        reason = "it has snapshots, which would be deleted with it. Delete them first."
        raise VolumeUnusable(name=name, location=group, reason=reason)
    try:
        _run(commands.remove(group, name))
    except CommandFailed:
        found = volume(group, name)
        if found is None:
            return
        if found.open:
            raise VolumeInUse(name=name, location=group) from None
        raise


def extend_volume(
    group: str,
    name: str,
    to_size: int,
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> int:
    """Make a volume at least *to_size* bytes long, the new part reading as zeros, and return its size.

    What fails or is cancelled leaves the volume as long as it was. A power failure may leave one with the tag UNWIPED:
    call this again to finish. A volume that is long enough and wiped stays as it is.
    """
    before = _known(group, name)
    if before.size < to_size:
        content.Pace(to_size, None, cancel).at(0)
        if before.pool:
            _run(commands.extend(group, name, to_size))
            return _known(group, name).size
        _extend_thick(group, name, to_size, before)
        with _UndoneBy("the growth of volume", group, name, lambda: _shrink_back(group, name, before)):
            after = _activated(group, name)
            _finish_wiping(group, name, after, progress, cancel)
        return after.size
    if before.unwiped_from is not None:
        _finish_wiping(group, name, _activated(group, name), progress, cancel)
    return before.size


def _extend_thick(group: str, name: str, to_size: int, before: Volume) -> None:
    if content.whole_sectors(to_size) - before.size > volume_group(group).free:
        raise NoSpaceLeft(action="grow", path=f"{group}/{name}")
    with _UndoneBy("the growth of volume", group, name, lambda: _shrink_back(group, name, before)):
        tag_volume(group, name, add=_growth_mark(before))
        _run(commands.extend(group, name, to_size))


def _growth_mark(before: Volume) -> str:
    return f"{UNWIPED}{before.size if before.unwiped_from is None else before.unwiped_from}"


def _shrink_back(group: str, name: str, before: Volume) -> None:
    if _known(group, name).size > before.size:
        _run(commands.reduce(group, name, before.size))
    if before.unwiped_from is None:
        tag_volume(group, name, remove=_growth_mark(before))


def _activated(group: str, name: str) -> Volume:
    """The volume with its device there, whatever it holds."""
    if not (found := _known(group, name)).active:
        _run(commands.activate(group, name))
    return found


def activate(group: str, name: str) -> str:
    """Make the volume's device appear, and return its path; VolumeUnusable while a guest could read old data there."""
    found = _known(group, name)
    if found.unwiped_from is not None:
        todo = "Delete it." if found.unwiped_from == 0 else "Grow it again, to the size that it was to have."
        raise VolumeUnusable(
            name=name, location=group, reason=f"making it was interrupted, and it may hold old data. {todo}"
        )
    return _activated(group, name).path if not found.active else found.path


def open_path(group: str, name: str) -> Path:
    """As ``activate``, but the device itself, not the link to it: what we write to is never reached through links."""
    return Path(activate(group, name)).resolve()


def _device(volume: Volume) -> Path:
    return Path(volume.path).resolve()


def deactivate(group: str, name: str) -> None:
    """Make the volume's device go away; one that is open is VolumeInUse."""
    try:
        _run(commands.deactivate(group, name))
    except CommandFailed:
        if _known(group, name).open:
            raise VolumeInUse(name=name, location=group) from None
        raise


def tag_volume(group: str, name: str, *, add: str | None = None, remove: str | None = None) -> None:
    """Add a tag to a volume, remove one, or both; twice is as good as once."""
    _run(commands.tag_volume(group, name, add=add, remove=remove))


def tag_group(group: str, *, add: str | None = None, remove: str | None = None) -> None:
    """Add a tag to a volume group, remove one, or both; twice is as good as once."""
    _run(commands.tag_group(group, add=add, remove=remove))
