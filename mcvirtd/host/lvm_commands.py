"""The argument lists of LVM's programs. Nothing is run here."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mcvirt import names
from mcvirt.errors import BadArgument
from mcvirtd.host.content import whole_sectors

_TAG = re.compile(r"[A-Za-z0-9_+.=:#&/!][A-Za-z0-9_+.=:#&/!-]{0,200}", re.ASCII)
_REPORT = ("--reportformat", "json", "--units", "b", "--nosuffix")
_GROUP_FIELDS = "vg_name,vg_size,vg_free,vg_extent_size,vg_tags,vg_missing_pv_count,vg_permissions,vg_exported"
_VOLUME_FIELDS = "lv_name,lv_size,lv_path,lv_tags,pool_lv,lv_attr,data_percent,metadata_percent"


def report_groups() -> list[str]:
    return ["vgs", *_REPORT, "-o", _GROUP_FIELDS]


def report_volumes(group: str, name: str | None = None) -> list[str]:
    selection = [] if name is None else ["-S", f'lv_name="{names.volume_name(name)}"']
    return ["lvs", *_REPORT, "-o", _VOLUME_FIELDS, *selection, names.volume_group_name(group)]


def report_pools(group: str) -> list[str]:
    """The thin pools of the group, and with each what there is to say of the group."""
    fields = f"{_VOLUME_FIELDS},{_GROUP_FIELDS}"
    return ["lvs", *_REPORT, "-o", fields, "-S", "segtype=thin-pool", names.volume_group_name(group)]


def create(group: str, name: str, size: int, *, thin_pool: str | None, tags: Iterable[str]) -> list[str]:
    # Nothing is cleared by lvcreate: it would clear the first 4 KiB only, and signatures it knows. ``wipe`` clears all.
    how = (
        ["-Wn", "-Zn", "-L", f"{whole_sectors(size)}b"]
        if thin_pool is None
        else ["-V", f"{whole_sectors(size)}b", "--thinpool", names.volume_name(thin_pool)]
    )
    tagged = [word for tag in tags for word in ("--addtag", _tag(tag))]
    return ["lvcreate", "-qq", "-y", *how, *tagged, "-n", names.volume_name(name), names.volume_group_name(group)]


def thin_snapshot(group: str, name: str, origin: str) -> list[str]:
    return ["lvcreate", "-qq", "-y", "-s", "-kn", "-n", names.volume_name(name), _full(group, origin)]


def remove(group: str, name: str) -> list[str]:
    return ["lvremove", "-qq", "-y", _full(group, name)]


def extend(group: str, name: str, size: int) -> list[str]:
    return ["lvextend", "-qq", "-y", "-L", f"{whole_sectors(size)}b", _full(group, name)]


def reduce(group: str, name: str, size: int) -> list[str]:
    return ["lvreduce", "-qq", "-y", "-f", "-L", f"{whole_sectors(size)}b", _full(group, name)]


def activate(group: str, name: str) -> list[str]:
    return ["lvchange", "-qq", "-y", "-K", "-ay", _full(group, name)]


def deactivate(group: str, name: str) -> list[str]:
    return ["lvchange", "-qq", "-y", "-an", _full(group, name)]


def tag_volume(group: str, name: str, *, add: str | None = None, remove: str | None = None) -> list[str]:
    return ["lvchange", "-qq", "-y", *_tagging(add, remove), _full(group, name)]


def tag_group(group: str, *, add: str | None = None, remove: str | None = None) -> list[str]:
    return ["vgchange", "-qq", "-y", *_tagging(add, remove), names.volume_group_name(group)]


def _tagging(add: str | None, remove: str | None) -> list[str]:
    return [*(["--addtag", _tag(add)] if add else []), *(["--deltag", _tag(remove)] if remove else [])]


def _full(group: str, name: str) -> str:
    return f"{names.volume_group_name(group)}/{names.volume_name(name)}"


def _tag(tag: str) -> str:
    if not _TAG.fullmatch(tag):
        raise BadArgument(
            what=f"LVM tag '{names.printable(tag)}'", why="a tag has letters, digits and _+.-=:#&/! only."
        )
    return tag
