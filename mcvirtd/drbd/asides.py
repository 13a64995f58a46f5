"""The data of one side of a hard drive, kept beside it in a volume of its own on this node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mcvirt.errors import BackendUnavailable, NotFound
from mcvirtd.drbd.resources import DATA
from mcvirtd.host import lvm_snapshots
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import BackendRecord, DiskRecord
from mcvirtd.state.store import Store
from mcvirtd.storage.backends import aside_volume


class Asides:
    """Those of this *node*. Names and groups come from the records alone."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self._node = node

    def make(self, disk: DiskRecord, progress: Callable[[int, int], None] | None = None) -> None:
        """Keep what this side holds now, instead of what was kept of it before. Nothing may write to it meanwhile."""
        group, name = self._place(disk)
        lvm_snapshots.drop(group, name)
        lvm_snapshots.keep(group, name, disk.volume + DATA, self._node, progress)

    def check_room(self, disks: Sequence[DiskRecord]) -> None:
        """Raise all that keeps `make` from having room for all *disks*, one after the other; nothing is changed."""
        groups: dict[str, dict[str, str]] = {}
        for disk in disks:
            group, name = self._place(disk)
            groups.setdefault(group, {})[name] = disk.volume + DATA
        reasons = Reasons()
        for group, origins in groups.items():
            with reasons.gather():
                lvm_snapshots.check_room(group, origins, self._node)
        reasons.raise_all()

    def drop(self, disk: DiskRecord) -> None:
        """Keep it no longer; fine if nothing was kept."""
        lvm_snapshots.drop(*self._place(disk))

    def length(self, disk: DiskRecord) -> int | None:
        """How many bytes are kept; None if nothing is."""
        return lvm_snapshots.length(*self._place(disk))

    def path(self, disk: DiskRecord) -> Path:
        """The device that holds it."""
        return lvm_snapshots.path(*self._place(disk))

    def _place(self, disk: DiskRecord) -> tuple[str, str]:
        backend = self._store.get(BackendRecord, disk.backend)
        if backend is None:
            raise NotFound(kind="storage backend", name=disk.backend)
        group = backend.location_on(self._node)
        if group is None:
            raise BackendUnavailable(backend=disk.backend, node=self._node, reason="it is not on this node.")
        return group, aside_volume(disk.volume)
