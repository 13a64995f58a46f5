"""The records of the shared configuration: frozen values, validated whenever they are read or written.

Sizes are in bytes. A record's key is its first field; ids never change, names do not either.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from mcvirt.types.migration import MigrationReport, Waiting
from mcvirt.types.storage import BackendType, VolumeFormat
from mcvirt.types.verification import Result
from mcvirt.types.vm import AutoStart, DiskDriver, Flag, GraphicsDriver, Machine, StorageType


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all records share; *kind* is the name under which they are stored."""

    kind: ClassVar[str] = ""

    @property
    def key(self) -> str:
        """What tells this record from the others of its kind."""
        return str(getattr(self, self.__struct_fields__[0]))


class UserRecord(Record, frozen=True, kw_only=True):
    """A user's account. *vm_permissions* maps VM name to permissions held for that VM alone."""

    kind: ClassVar[str] = "user"

    name: str
    password_hash: str
    superuser: bool = False
    permissions: tuple[str, ...] = ()
    vm_permissions: dict[str, tuple[str, ...]] = {}


class GroupRecord(Record, frozen=True, kw_only=True):
    """A group. *vm_users* maps VM name to the members for that VM alone."""

    kind: ClassVar[str] = "group"

    name: str
    id: str
    permissions: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    vm_users: dict[str, tuple[str, ...]] = {}


class NetworkRecord(Record, frozen=True, kw_only=True):
    """A network: a name for the bridge *interface*."""

    kind: ClassVar[str] = "network"

    name: str
    interface: str


class BackendRecord(Record, frozen=True, kw_only=True):
    """A storage backend; *nodes* maps node to location ("" = *location*), empty = all nodes at *location*."""

    kind: ClassVar[str] = "backend"

    name: str
    id: str
    type: BackendType
    location: str | None
    nodes: dict[str, str]
    shared: bool = False
    thin_pool: str | None = None
    format: VolumeFormat = VolumeFormat.RAW

    def location_on(self, node: str) -> str | None:
        """Where the backend is on *node*; None if it is not there."""
        if node not in self.nodes:
            return None
        return self.nodes[node] or self.location


class Replica(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What DRBD calls a replicated hard drive on both of its nodes. *secret* is for the two nodes' kernels alone."""

    minor: int
    port: int
    secret: str

    def __repr__(self) -> str:
        return f"Replica(minor={self.minor}, port={self.port})"


class DiskRecord(Record, frozen=True, kw_only=True):
    """A hard drive: *volume* on *backend* (its name) on *nodes*; attached to *vm* under *slot* (1..n), or to none.

    With a *replica* it is mirrored between its two nodes, since it was *made*, and *volume* is what its volumes' names
    begin with; no *made*: an older mcvirtd made it. Once it is *deleting*, its data may be gone: it can be deleted to
    the end, and nothing else. *deleter* is the task that has begun that last.
    """

    kind: ClassVar[str] = "disk"

    id: str
    volume: str
    backend: str
    size: int
    driver: DiskDriver
    storage_type: StorageType
    nodes: tuple[str, ...]
    format: VolumeFormat = VolumeFormat.RAW
    vm: str | None = None
    slot: int | None = None
    replica: Replica | None = None
    made: datetime | None = None
    deleting: bool = False
    deleter: str = ""


class Replacement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A hard drive gets a side on another node instead of the one that it has on *source* ("": it has no other side).

    While it is *copying*, the side that stays is connected with the new one, by *secret*, and no longer with the old
    one; *undoing* it goes back to that. *by* is who wants it.
    """

    source: str
    secret: str
    by: str
    phase: Literal["making", "copying", "undoing"] = "making"

    @property
    def copying(self) -> bool:
        """Whether the two new sides are the ones that are connected."""
        return self.phase == "copying"

    def __repr__(self) -> str:
        return f"Replacement({self.source!r}, by {self.by!r}, {self.phase})"


class ReplicaClaimRecord(Record, frozen=True, kw_only=True):
    """A minor and a port taken for the hard drive *disk*, which *coordinator* is making on *nodes* of *backend*.

    With a *replacement* the hard drive is there, on *coordinator*, and only its side on the other node is made.
    """

    kind: ClassVar[str] = "replica_claim"

    disk: str
    backend: str
    minor: int
    port: int
    nodes: tuple[str, ...]
    coordinator: str
    replacement: Replacement | None = None


class FormerLegRecord(Record, frozen=True, kw_only=True):
    """Node *node* is to delete the side that it had of the hard drive *disk*, as soon as it can.

    Until then its kernel may look for the other side at *port*.
    """

    kind: ClassVar[str] = "former_leg"

    name: str
    disk: str
    node: str
    backend: str
    port: int


class VerificationRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One comparison of the two sides, begun on *node* for the user *by*, or by "schedule". Bytes *out_of_sync*.

    *reason* says why it was interrupted or skipped.
    """

    started: datetime
    ended: datetime
    by: str
    node: str
    result: Result
    out_of_sync: int = 0
    reason: str = ""


class VerificationRecord(Record, frozen=True, kw_only=True):
    """What is known of the equality of a hard drive's two sides; *failed* keeps its machine from being started.

    *runs* are the last ones, the newest last.
    """

    kind: ClassVar[str] = "verification"

    disk: str
    failed: bool = False
    out_of_sync: int = 0
    runs: tuple[VerificationRun, ...] = ()


class SplitUndoRecord(Record, frozen=True, kw_only=True):
    """The data that node *node* had of a hard drive when node *kept* was chosen to go on, kept beside it.

    *done*: the choice was carried out. *taking*: what was kept is to be taken back, and not all of it is there yet.
    *mixed*: that has begun to be written, so what the hard drive holds now is nobody's data. *wanted* names the undo
    that has begun, and has not come to this hard drive, or not to its end; *took* the one that has, and this is what it
    has set aside.
    """

    kind: ClassVar[str] = "split_undo"

    disk: str
    node: str
    kept: str
    made: datetime
    by: str
    done: bool = False
    taking: bool = False
    mixed: bool = False
    wanted: str = ""
    took: str = ""


class DrbdRecord(Record, frozen=True, kw_only=True):
    """What is settled for DRBD on the whole cluster; there is one, called "drbd". Rates in bytes a second.

    *verify_schedule* is what `mcvirtd.drbd.schedule` reads, and *verify_since* when it was set (None: an older mcvirtd
    set it, or nobody). A *verify_rate* of 0 is no limit of its own.
    """

    kind: ClassVar[str] = "drbd"

    name: str = "drbd"
    enabled: bool = False
    verify_schedule: str = "off"
    verify_since: datetime | None = None
    verify_concurrency: int = 4
    verify_rate: int = 0


class VmRecord(Record, frozen=True, kw_only=True):
    """A virtual machine. *node* is where it is registered, *adapters* maps MAC address to network.

    *deleter* is the task that deletes it, or has begun to: until it is over, no node registers it.
    """

    kind: ClassVar[str] = "vm"

    name: str
    id: str
    uuid: str
    memory: int
    cpu_count: int
    nodes: tuple[str, ...]
    node: str | None = None
    machine: Machine = Machine.Q35
    graphics_driver: GraphicsDriver = GraphicsDriver.VIRTIO
    adapters: dict[str, str] = {}
    flags: tuple[Flag, ...] = ()
    autostart: AutoStart = AutoStart.NO_AUTOSTART
    locked: bool = False
    delete_protection: bool = False
    autodeflate: bool = False
    vnc_password: str = ""
    iso: str | None = None
    boot_iso: bool = False
    unfinished: tuple[str, ...] = ()  # what its creation was to add and has not: for `info`
    waiting: Waiting | None = None  # to be migrated as soon as its guest has shut down
    last_migration: MigrationReport | None = None
    deleter: str = ""


class Drained(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine that was moved, or was about to be; *copied* is whether disks went along."""

    name: str
    uuid: str
    copied: bool = False


class DrainRecord(Record, frozen=True, kw_only=True):
    """Node *node* was emptied, and nothing is to be moved there by itself; *machines* are to be brought back to it."""

    kind: ClassVar[str] = "drain"

    node: str
    machines: tuple[Drained, ...] = ()


class SettingsRecord(Record, frozen=True, kw_only=True):
    """What operators set for the whole cluster; there is one, called "cluster"."""

    kind: ClassVar[str] = "settings"

    name: str = "cluster"
    autostart_interval: int = 300


class NodeRecord(Record, frozen=True, kw_only=True):
    """A member of the cluster. *fingerprint* is its certificate's; one that is *away* is not waited for."""

    kind: ClassVar[str] = "node"

    name: str
    id: str
    address: str | None = None
    port: int = 0
    fingerprint: str = ""
    away: bool = False


class ClusterRecord(Record, frozen=True, kw_only=True):
    """The cluster as a whole; there is one, called "cluster". *leader* orders the changes of *epoch*."""

    kind: ClassVar[str] = "cluster"

    name: str = "cluster"
    id: str
    leader: str
    epoch: int = 1


RECORDS: dict[str, type[Record]] = {
    cls.kind: cls
    for cls in (
        UserRecord,
        GroupRecord,
        NetworkRecord,
        BackendRecord,
        DiskRecord,
        ReplicaClaimRecord,
        FormerLegRecord,
        VerificationRecord,
        SplitUndoRecord,
        DrbdRecord,
        VmRecord,
        DrainRecord,
        SettingsRecord,
        NodeRecord,
        ClusterRecord,
    )
}
