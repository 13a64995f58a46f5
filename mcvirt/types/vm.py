"""Virtual machines as they cross the wire. All sizes are in bytes."""

from __future__ import annotations

from enum import Enum

import msgspec

from mcvirt.types.drbd import DrbdInfo
from mcvirt.types.migration import MigrationReport, Waiting


class PowerState(str, Enum):
    """What a virtual machine does. UNKNOWN: not registered, or its node or libvirt is away."""

    STOPPED = "STOPPED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    UNKNOWN = "UNKNOWN"


class LockState(str, Enum):
    """Whether a virtual machine is locked against changes."""

    UNLOCKED = "UNLOCKED"
    LOCKED = "LOCKED"


class AutoStart(str, Enum):
    """When mcvirtd starts a virtual machine by itself."""

    NO_AUTOSTART = "NO_AUTOSTART"
    ON_BOOT = "ON_BOOT"
    ON_POLL = "ON_POLL"


class GraphicsDriver(str, Enum):
    """The display adapter that the guest sees."""

    VIRTIO = "virtio"
    VGA = "vga"
    CIRRUS = "cirrus"
    VMVGA = "vmvga"
    QXL = "qxl"
    BOCHS = "bochs"
    NONE = "none"
    XEN = "xen"
    VBOX = "vbox"


class DiskDriver(str, Enum):
    """The bus that a hard drive is on."""

    VIRTIO = "VIRTIO"
    SCSI = "SCSI"
    SATA = "SATA"
    IDE = "IDE"
    USB = "USB"
    SD = "SD"


class Machine(str, Enum):
    """The machine type: q35, or pc (i440FX) for guests that need IDE drives."""

    Q35 = "q35"
    PC = "pc"


class StorageType(str, Enum):
    """How a hard drive is kept: on one node (or shared storage), or mirrored by DRBD."""

    LOCAL = "Local"
    DRBD = "Drbd"


class Flag(str, Enum):
    """Changes to the machine for one kind of guest."""

    WINDOWS = "windows"


class VmRow(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual machine as `mcvirt list` shows it."""

    name: str
    state: PowerState
    node: str | None
    memory: int
    cpu_count: int
    disk_size: int
    locked: bool = False
    missing: bool = False  # registered, but libvirt on its node has lost the domain
    age: int | None = None  # its node is away, and the state is from so many seconds ago
    trouble: tuple[str, ...] = ()  # what is wrong with its replicated hard drives, a sentence each


class DiskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A hard drive to be made. What is None or empty is chosen if there is just one choice.

    *nodes* are the two that a replicated one is to be on.
    """

    size: int
    storage_type: StorageType | None = None
    backend: str | None = None
    driver: DiskDriver | None = None
    nodes: tuple[str, ...] = ()


class VmSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual machine to be made."""

    name: str
    memory: int
    cpu_count: int
    disks: tuple[DiskSpec, ...] = ()
    networks: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    graphics_driver: GraphicsDriver | None = None
    machine: Machine | None = None
    flags: tuple[Flag, ...] = ()


class VmChange(msgspec.Struct, frozen=True, kw_only=True):
    """What to change of a virtual machine; None and empty leave things as they are.

    *old_cpu_count* and *old_memory*, where given, must still be true, or the change is refused.
    """

    memory: int | None = None
    old_memory: int | None = None
    cpu_count: int | None = None
    old_cpu_count: int | None = None
    add_networks: tuple[str, ...] = ()
    remove_networks: tuple[str, ...] = ()  # MAC addresses
    change_networks: dict[str, str] = {}  # MAC address -> network
    add_disks: tuple[DiskSpec, ...] = ()
    delete_disk: int | None = None
    grow_disk: int | None = None  # disk number
    grow_by: int | None = None
    iso: str | None = None  # "" ejects
    add_flags: tuple[Flag, ...] = ()
    remove_flags: tuple[Flag, ...] = ()
    autostart: AutoStart | None = None
    graphics_driver: GraphicsDriver | None = None
    autodeflate: bool | None = None
    enable_delete_protection: bool = False
    disable_delete_protection: str | None = None  # the name reversed


class VmDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A hard drive attached to a virtual machine, under the number *slot*."""

    slot: int
    id: str
    size: int
    storage_type: StorageType
    backend: str
    driver: DiskDriver
    replica: DrbdInfo | None = None


class VmAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """A network adapter."""

    mac: str
    network: str


class VmGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Who has the rights of a group on a virtual machine."""

    group: str
    users: tuple[str, ...]


class VmUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a running virtual machine uses of its node: percent of one core, and bytes."""

    cpu_percent: float | None
    memory: int


class VmInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a virtual machine."""

    name: str
    id: str
    uuid: str
    state: PowerState
    node: str | None
    nodes: tuple[str, ...]
    memory: int
    cpu_count: int
    machine: Machine
    accelerator: str
    graphics_driver: GraphicsDriver
    autostart: AutoStart
    lock: LockState
    delete_protection: bool
    autodeflate: bool
    flags: tuple[Flag, ...]
    iso: str | None
    disks: tuple[VmDisk, ...]
    adapters: tuple[VmAdapter, ...]
    groups: tuple[VmGroup, ...]
    permissions: dict[str, tuple[str, ...]]
    usage: VmUsage | None = None
    missing: bool = False
    restart_needed: bool = False
    warnings: tuple[str, ...] = ()
    waiting: Waiting | None = None  # to be migrated once its guest has shut down
    last_migration: MigrationReport | None = None


class VncInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the VNC display, on the node itself."""

    node: str
    host: str
    port: int
    password: str


class ConsoleChunk(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a console; *open* is false when there will be no more."""

    data: bytes
    open: bool
