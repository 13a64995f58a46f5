"""Volumes that are logical volumes of a volume group, or of a thin pool in it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from mcvirt import names
from mcvirt.errors import CommandFailed, NotFound, VolumeNotFound, VolumeUnusable
from mcvirtd.host import content, lvm
from mcvirtd.host.lvm_reports import ThinPool, Volume, VolumeGroup
from mcvirtd.storage.volumes import Found, Kind, Progress, Survey, Written

MARK = "mcvirt."


class LvmVolumes:
    """The logical volumes of *group* that are in *thin_pool*, or, without one, those that are in none."""

    kind: Kind = "block"
    format: Written = "raw"

    def __init__(self, group: str, thin_pool: str | None = None) -> None:
        self.location = names.volume_group_name(group)
        self._group = self.location
        self._pool = None if thin_pool is None else names.volume_name(thin_pool)

    def check(self) -> list[str]:
        return list(self.survey().faults)

    def survey(self) -> Survey:
        try:
            group, pools = (
                lvm.group_and_pools(self._group) if self._pool else (lvm.volume_groups().get(self._group), {})
            )
        except CommandFailed as error:
            return Survey(faults=(str(error),))
        faults = tuple(self._faults(group, pools))
        if faults or group is None:
            return Survey(faults=faults)
        free = group.free if self._pool is None else pools[self._pool].free
        return Survey(marks=_marks(group.tags), free=free)

    def _faults(self, group: VolumeGroup | None, pools: Mapping[str, ThinPool]) -> list[str]:
        if group is None:
            return [f"There is no volume group '{self._group}' on this node; `vgs` shows those that it has."]
        faults = []
        if group.missing_devices:
            faults.append(f"The volume group {self._group} misses {group.missing_devices} of its devices.")
        if not group.writable:
            faults.append(f"The volume group {self._group} is exported or read-only.")
        if self._pool and self._pool not in pools:
            faults.append(f"There is no thin pool '{self._pool}' in the volume group {self._group}.")
        elif self._pool and not pools[self._pool].zeroes:
            faults.append(lvm.pool_fault(self._group, self._pool))
        return faults

    def free(self) -> int:
        if self._pool is None:
            return lvm.volume_group(self._group).free
        return self._thin_pool().free

    def total(self) -> int:
        return lvm.volume_group(self._group).size if self._pool is None else self._thin_pool().size

    def names(self) -> list[str]:
        return sorted(name for name, volume in lvm.volumes(self._group).items() if volume.pool == self._pool)

    def exists(self, name: str) -> bool:
        return self._find(name) is not None

    def size(self, name: str) -> int:
        return self._known(name).size

    def path(self, name: str) -> str:
        return f"/dev/{self._group}/{names.volume_name(name)}"

    def create(
        self, name: str, size: int, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        return lvm.create_volume(self._group, name, size, thin_pool=self._pool, progress=progress, cancel=cancel)

    def create_bare(self, name: str, size: int) -> None:
        lvm.create_bare_volume(self._group, name, size, thin_pool=self._pool)

    def grow(
        self, name: str, size: int, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        self._known(name)
        return lvm.extend_volume(self._group, name, size, progress=progress, cancel=cancel)

    def delete(self, name: str) -> None:
        if self._find(name) is not None:
            lvm.remove_volume(self._group, name)

    def activate(self, name: str) -> str:
        self._known(name)
        return lvm.activate(self._group, name)

    def deactivate(self, name: str) -> None:
        self._known(name)
        lvm.deactivate(self._group, name)

    def check_import(self, name: str) -> Found:
        found = lvm.volume(self._group, names.volume_name(name))
        if found is None:
            raise VolumeNotFound(name=name, location=self._group)
        if found.pool != self._pool:
            here = f"the thin pool {self._pool}" if self._pool else "no thin pool"
            there = f"the thin pool {found.pool}" if found.pool else "none"
            raise self._unusable(name, f"the volumes of this backend are in {here}, and it is in {there}.")
        if found.unwiped_from is not None:
            raise self._unusable(name, "making it was interrupted, and it may hold old data.")
        return Found(size=found.size, format="raw")

    def fill(
        self,
        name: str,
        chunks: Iterable[bytes],
        *,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> int:
        self._known(name)
        return content.fill(lvm.open_path(self._group, name), chunks, progress=progress, cancel=cancel)

    def copy(
        self, source: str, name: str, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        self._known(source)
        return lvm.copy_volume(self._group, source, name, thin_pool=self._pool, progress=progress, cancel=cancel)

    def mark(self, backend_id: str) -> None:
        lvm.tag_group(self._group, add=_mark(backend_id))

    def unmark(self, backend_id: str) -> None:
        lvm.tag_group(self._group, remove=_mark(backend_id))

    def marked_with(self) -> frozenset[str]:
        return _marks(lvm.volume_group(self._group).tags)

    def _thin_pool(self) -> ThinPool:
        found = lvm.thin_pools(self._group).get(self._pool or "")
        if found is None:
            raise NotFound(
                kind="thin pool", name=f"{self._group}/{self._pool}", hint=" `lvs` shows those of this node."
            )
        return found

    def _find(self, name: str) -> Volume | None:
        found = lvm.volume(self._group, names.volume_name(name))
        return found if found is not None and found.pool == self._pool else None

    def _known(self, name: str) -> Volume:
        found = self._find(name)
        if found is None:
            raise VolumeNotFound(name=name, location=self._group)
        return found

    def _unusable(self, name: str, reason: str) -> VolumeUnusable:
        return VolumeUnusable(name=name, location=self._group, reason=reason)


def _marks(tags: Iterable[str]) -> frozenset[str]:
    return frozenset(tag.removeprefix(MARK) for tag in tags if tag.startswith(MARK))


def _mark(backend_id: str) -> str:
    return MARK + names.object_id(backend_id, "sb", "storage backend")
