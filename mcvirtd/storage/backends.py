"""Where storage backends are on a node: opening their volumes, and judging the places they are to be kept in."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from mcvirt import names
from mcvirt.errors import BackendUnavailable, BadArgument, McvirtError, NotFound
from mcvirt.types.storage import BackendType
from mcvirtd.host import files
from mcvirtd.state.records import BackendRecord, DiskRecord, ReplicaClaimRecord
from mcvirtd.state.store import Store
from mcvirtd.storage.file_volumes import FileVolumes
from mcvirtd.storage.lvm_volumes import LvmVolumes
from mcvirtd.storage.volumes import Volumes

DELETE_VOLUME = "disk.delete_volume"


class BackendsOnNode(Protocol):
    """What can be done about storage backends on one node."""

    def volumes(self, backend: BackendRecord) -> Volumes:
        """The backend's volumes there; BackendUnavailable if the node is none of the backend's."""

    def faults(self, backend: BackendRecord, others: Iterable[BackendRecord]) -> list[str]:
        """Why the backend can't be kept there beside *others*, a sentence each; empty if it can. Changes nothing."""


Nodes = Callable[[str], BackendsOnNode]
"""A node's name -> its backends; NodeUnreachable if it can't be asked."""


class Location(Protocol):
    """The part of Volumes that can be had of any node; see there."""

    @property
    def location(self) -> str: ...

    def check(self) -> list[str]: ...

    def mark(self, backend_id: str) -> None: ...

    def unmark(self, backend_id: str) -> None: ...

    def marked_with(self) -> frozenset[str]: ...


class LocationsOnNode(Protocol):
    """BackendsOnNode, as far as it can be had of any node."""

    def volumes(self, backend: BackendRecord) -> Location: ...

    def faults(self, backend: BackendRecord, others: Iterable[BackendRecord]) -> list[str]: ...


NodeLocations = Callable[[str], LocationsOnNode]
"""A node's name -> the locations there. NodeUnreachable, if it can't be asked, comes here or from what it gave."""


class OpenVolumes(Protocol):
    """Opens volumes of one type at a place."""

    def __call__(self, backend: BackendRecord, location: str) -> Volumes:
        """The volumes of *backend* at *location*; BadArgument if no location of its type is spelt so."""


def open_volumes(backend: BackendRecord, location: str) -> Volumes:
    """The real ones."""
    if backend.type is BackendType.LVM:
        return LvmVolumes(location, backend.thin_pool)
    return FileVolumes(location, backend.format.value)


class LocalBackends:
    """The backends on this node. No location may be in *state*, the directory of mcvirtd's own."""

    def __init__(self, node: str, state: Path, *, open_volumes: OpenVolumes = open_volumes) -> None:
        self._node = node
        self._state = state
        self._open = open_volumes

    def volumes(self, backend: BackendRecord) -> Volumes:
        location = backend.location_on(self._node)
        if location is None:
            raise not_on_node(backend, self._node)
        return self._open(backend, location)

    def faults(self, backend: BackendRecord, others: Iterable[BackendRecord]) -> list[str]:
        location = backend.location_on(self._node)
        if location is None:
            return [f"no location is named for node '{self._node}'."]
        try:
            volumes = self._open(backend, location)
            found = volumes.check()
            if not found and isinstance(volumes, FileVolumes):
                found = self._directory_faults(Path(location))
        except McvirtError as error:
            return [str(error)]
        found += self._shared_with(backend, location, others)
        return found or self._marks(backend, volumes)

    def _shared_with(self, backend: BackendRecord, location: str, others: Iterable[BackendRecord]) -> list[str]:
        place = os.path.realpath(location)
        return [
            f"{location} is the location of storage backend '{other.name}' already."
            for other in others
            if other.id != backend.id
            and other.type is backend.type
            and (there := other.location_on(self._node)) is not None
            and os.path.realpath(there) == place
        ]

    def _marks(self, backend: BackendRecord, volumes: Volumes) -> list[str]:
        try:
            foreign = sorted(volumes.marked_with() - {backend.id})
        except McvirtError as error:
            return [str(error)]
        return [
            f"{volumes.location} is marked as the location of storage backend {mark}, which is not one of this "
            "cluster. If nothing uses it any more, take the mark off: "
            f"`{_taking_off(backend, volumes.location, mark)}`."
            for mark in foreign
        ]

    def _directory_faults(self, directory: Path) -> list[str]:
        real, state = Path(os.path.realpath(directory)), Path(os.path.realpath(self._state))
        if real != directory:
            # Who may change the link could send us elsewhere later.
            return [f"{directory} is reached through a link. Name the directory itself, {real}."]
        if real == Path("/"):
            return ["the root directory can't be used. Name a directory for the volumes alone."]
        if real == state or real in state.parents or state in real.parents:
            return [f"{directory} and mcvirtd's own directory {self._state} must not be inside each other."]
        for place in (real, *real.parents):
            fault = _others_may_change(place, inner=place == real)
            if fault:
                return [fault]
        return []


def _others_may_change(place: Path, *, inner: bool) -> str:
    """Why others than root decide what is found under *place*, or ''."""
    with files.told("read", place):
        facts = place.stat()
    loose = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not inner and facts.st_mode & stat.S_ISVTX:
        loose = 0
    if facts.st_uid not in (0, os.geteuid()):
        return f"{place} does not belong to root, so others could put things in the way; `chown root {place}` helps."
    if loose:
        return f"Others than root may change {place}, and so what mcvirtd does there; `chmod go-w {place}` helps."
    return ""


def _taking_off(backend: BackendRecord, location: str, mark: str) -> str:
    if backend.type is BackendType.LVM:
        return f"vgchange --deltag mcvirt.{mark} {location}"
    return f"rm {location}/.mcvirt-{mark}"


def not_on_node(backend: BackendRecord, node: str) -> BackendUnavailable:
    """The error for a backend that is on other nodes."""
    reason = f"it is on {', '.join(sorted(backend.nodes))} only."
    return BackendUnavailable(backend=backend.name, node=node, reason=reason)


def problem(backend: BackendRecord, node: str, nodes: Nodes) -> str:
    """Why the backend's volumes can't be had on *node* now, in a sentence; '' if they can."""
    return survey(backend, node, nodes)[0]


def survey(backend: BackendRecord, node: str, nodes: Nodes) -> tuple[str, int]:
    """The same, and how many bytes new volumes can take there."""
    try:
        volumes = nodes(node).volumes(backend)
        found = volumes.survey()
    except McvirtError as error:
        return str(error.fields.get("reason", error)) if isinstance(error, BackendUnavailable) else str(error), 0
    if not found.faults and backend.id not in found.marks:
        return (
            f"{volumes.location} is there, but does not carry the mark of this backend. Is the right storage "
            "mounted there?"
        ), 0
    return " ".join(found.faults), found.free


def checked_location(backend_type: BackendType, location: str) -> str:
    """*location* in its shortest spelling, if it can be one of that type."""
    if backend_type is BackendType.LVM:
        return names.volume_group_name(location)
    if not location.startswith("/"):
        raise BadArgument(
            what=f"location '{names.printable(location)}'",
            why="a storage backend of type File is kept in a directory: write its absolute path.",
        )
    return names.directory(location)


def find(store: Store, text: str) -> BackendRecord:
    """The backend with that name or ID; NotFound if there is none."""
    found = store.get(BackendRecord, text)
    if found is None:
        found = next((each for each in store.all(BackendRecord).values() if each.id == text), None)
    if found is None:
        raise NotFound(
            kind="storage backend", name=names.printable(text), hint=" `mcvirt storage list` shows all of them."
        )
    return found


def being_made(store: Store) -> frozenset[tuple[str, str]]:
    """(backend, volume) of all volumes that a task is making, or whose undoing is still due.

    The journal has an entry before such a volume exists, until it belongs to a hard drive's record or is gone.
    """
    rows = store.query("SELECT arguments FROM journal WHERE act = ?", (DELETE_VOLUME,))
    entries = [msgspec.json.decode(arguments) for (arguments,) in rows]
    # Two nodes make a replicated one, and only one of them has it in its journal; the claim is known to both.
    claims = store.all(ReplicaClaimRecord).values()
    return frozenset(
        (
            *((entry["backend"], entry["volume"]) for entry in entries),
            *((claim.backend, volume) for claim in claims for volume in _all_of_replica(volume_of(claim.disk))),
        )
    )


def volume_of(disk: str) -> str:
    """What the volume of hard drive *disk* (its ID) is called, or what the names of its volumes begin with."""
    return f"mcvirt-{disk}"


def replica_volumes(base: str) -> tuple[str, str]:
    """The volumes of a replicated hard drive on each of its nodes: one for the data, and one for DRBD's metadata."""
    return f"{base}-drbd-raw", f"{base}-drbd-meta"


def aside_volume(base: str) -> str:
    """The volume that what one side of a replicated hard drive had before a split was resolved is kept in."""
    return f"{base}-drbd-aside"


def _all_of_replica(base: str) -> tuple[str, ...]:
    return (*replica_volumes(base), aside_volume(base))


def volumes_of(record: DiskRecord) -> tuple[str, ...]:
    """All volumes that a hard drive has, or may have, on one of its nodes. They are nobody else's."""
    return _all_of_replica(record.volume) if record.replica is not None else (record.volume,)
