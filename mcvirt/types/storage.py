"""Storage backends, hard drives and ISO images as they cross the wire. All sizes are in bytes."""

from __future__ import annotations

from enum import Enum

import msgspec

from mcvirt.types.vm import DiskDriver, StorageType


class BackendType(str, Enum):
    """What a storage backend keeps its volumes in."""

    LVM = "Lvm"
    FILE = "File"


class VolumeFormat(str, Enum):
    """How a File backend writes its volumes."""

    RAW = "raw"
    QCOW2 = "qcow2"


class BackendSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A storage backend to be made. *nodes* maps node to location ("" = the default location); empty = all nodes.

    A location is a volume group (Lvm) or a directory (File).
    """

    name: str
    type: BackendType
    location: str | None = None
    shared: bool = False
    nodes: dict[str, str] = {}
    thin_pool: str | None = None
    format: VolumeFormat = VolumeFormat.RAW


class BackendInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A storage backend; *free* and *total* are those of the node that was asked, None where it is not available."""

    id: str
    name: str
    type: BackendType
    location: str | None
    nodes: dict[str, str]
    shared: bool
    thin_pool: str | None
    format: VolumeFormat
    free: int | None
    total: int | None
    problem: str = ""


class DiskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A hard drive. *vm* is the virtual machine it is attached to, under the number *slot*.

    With *deleting*, its deletion has begun and is not over; deleting it again finishes it.
    """

    id: str
    size: int
    storage_type: StorageType
    backend: str
    backend_id: str
    volume: str
    driver: DiskDriver
    nodes: tuple[str, ...]
    vm: str | None
    slot: int | None
    deleting: bool = False


class IsoInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An ISO image on *node*; *used_by* are the virtual machines that have it in their drive."""

    name: str
    size: int
    sha256: str
    node: str
    used_by: tuple[str, ...] = ()


class UploadInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An upload that has begun: send pieces of at most *piece* bytes, in order."""

    id: str
    piece: int
