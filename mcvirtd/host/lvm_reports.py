"""What LVM's JSON reports say, as values. Nothing is run here."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from mcvirt.errors import CommandFailed

UNWIPED = "mcvirt.unwiped."
"""A tag: from that byte on the volume may hold what somebody else stored, and no guest may read it."""


class VolumeGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A volume group; sizes in bytes."""

    size: int
    free: int
    extent: int
    tags: frozenset[str]
    missing_devices: int
    writable: bool


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A logical volume; *pool* is the thin pool it is in, *open* says that something on this node uses it.

    *snapshots* says that it has some which can't live without it.
    """

    size: int
    path: str
    tags: frozenset[str]
    pool: str | None
    active: bool
    open: bool
    snapshots: bool

    @property
    def unwiped_from(self) -> int | None:
        """The first byte that may hold old data; None if there is no such byte."""
        starts = [int(tag.removeprefix(UNWIPED)) for tag in self.tags if tag.startswith(UNWIPED)]
        return min(starts, default=None)


class ThinPool(msgspec.Struct, frozen=True, kw_only=True):
    """A thin pool; *zeroes* says that a new chunk reads as zeros. The percentages of an inactive one are 0."""

    size: int
    data_percent: float
    metadata_percent: float
    zeroes: bool

    @property
    def free(self) -> int:
        """The bytes that are not used yet."""
        return int(self.size * (100 - self.data_percent) / 100)


class _Group(msgspec.Struct):
    vg_name: str
    vg_size: int
    vg_free: int
    vg_extent_size: int
    vg_tags: str
    vg_missing_pv_count: int
    vg_permissions: str
    vg_exported: str


class _Volume(msgspec.Struct):
    lv_name: str
    lv_size: int
    lv_path: str
    lv_tags: str
    pool_lv: str
    lv_attr: str
    data_percent: str
    metadata_percent: str


class _Report(msgspec.Struct):
    vg: list[_Group] = []
    lv: list[_Volume] = []


class _Reports(msgspec.Struct):
    report: list[_Report]


class _GroupsOfVolumes(msgspec.Struct):
    lv: list[_Group] = []


class _GroupsReports(msgspec.Struct):
    report: list[_GroupsOfVolumes]


T = TypeVar("T", _Reports, _GroupsReports)


def _decode(text: str) -> _Reports:
    return _read(text, _Reports)


def _read(text: str, kind: type[T]) -> T:
    try:
        return msgspec.convert(msgspec.json.decode(text), kind, strict=False)
    except msgspec.MsgspecError as error:
        raise CommandFailed(program="lvm", status=0, output=f"its report was not understood: {error}.") from error


def _tags(text: str) -> frozenset[str]:
    return frozenset(filter(None, text.split(",")))


def parse_groups(text: str) -> dict[str, VolumeGroup]:
    return {row.vg_name: _group(row) for report in _decode(text).report for row in report.vg}


def parse_groups_of_volumes(text: str) -> dict[str, VolumeGroup]:
    """The volume groups of a report on volumes that has their groups' fields, too."""
    return {row.vg_name: _group(row) for report in _read(text, _GroupsReports).report for row in report.lv}


def _group(row: _Group) -> VolumeGroup:
    return VolumeGroup(
        size=row.vg_size,
        free=row.vg_free,
        extent=row.vg_extent_size,
        tags=_tags(row.vg_tags),
        missing_devices=row.vg_missing_pv_count,
        writable=row.vg_permissions == "writeable" and not row.vg_exported,
    )


def parse_volumes(text: str) -> dict[str, Volume]:
    """The volumes of a report without its thin pools."""
    return {
        row.lv_name: Volume(
            size=row.lv_size,
            path=row.lv_path,
            tags=_tags(row.lv_tags),
            pool=row.pool_lv or None,
            active=row.lv_attr[4] == "a",
            open=row.lv_attr[5] == "o",
            snapshots=row.lv_attr[0] in "oO",
        )
        for report in _decode(text).report
        for row in report.lv
        if row.lv_attr[0] != "t"
    }


def parse_thin_pools(text: str) -> dict[str, ThinPool]:
    return {
        row.lv_name: ThinPool(
            size=row.lv_size,
            data_percent=float(row.data_percent or 0),
            metadata_percent=float(row.metadata_percent or 0),
            zeroes=row.lv_attr[7] == "z",
        )
        for report in _decode(text).report
        for row in report.lv
        if row.lv_attr[0] == "t"
    }
