"""From the records to what DRBD is configured with on this node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from mcvirt.errors import DrbdUnavailable, NotFound
from mcvirtd.drbd.config import Common, Leg, Resource, resource_name
from mcvirtd.state.records import BackendRecord, DiskRecord, NodeRecord, Replica, ReplicaClaimRecord
from mcvirtd.state.store import Store

DATA, METADATA = "-drbd-raw", "-drbd-meta"
"""What the names of the two volumes end with, after the hard drive's."""


def replicas_on(store: Store, node: str) -> Mapping[str, DiskRecord]:
    """The replicated hard drives that have a leg on *node*, by the names of their resources; see `as_connected`."""
    disks = (as_connected(store, disk, node) for disk in store.all(DiskRecord).values())
    return {resource_name(disk.id): disk for disk in disks if disk.replica is not None and node in disk.nodes}


def replacement_of(store: Store, disk: str) -> ReplicaClaimRecord | None:
    """The claim for a side on another node than the hard drive has one on now; None if there is none."""
    claim = store.get(ReplicaClaimRecord, disk)
    return claim if claim is not None and claim.replacement is not None else None


def as_connected(store: Store, disk: DiskRecord, node: str) -> DiskRecord:
    """The hard drive as *node* has it connected.

    While a new side is being copied, the side that stays and the new one have each other, whatever the record says.
    """
    claim = replacement_of(store, disk.id)
    if claim is None or claim.replacement is None or not claim.replacement.copying or node not in claim.nodes:
        return disk
    replica = Replica(minor=claim.minor, port=claim.port, secret=claim.replacement.secret)
    return msgspec.structs.replace(disk, nodes=claim.nodes, replica=replica)


def being_replaced(store: Store, disk: DiskRecord) -> str:
    """That a side of the hard drive is being replaced, in a sentence; '' if none is."""
    claim = replacement_of(store, disk.id)
    if claim is None or claim.replacement is None:
        return ""
    new = next((node for node in claim.nodes if node != claim.coordinator), "")
    where = f"moved from node '{claim.replacement.source}' to" if claim.replacement.source else "made on"
    return f"one of its two sides is being {where} node '{new}'; `mcvirt task list` shows the task."


def resource_of(store: Store, disk: DiskRecord, node: str) -> Resource:
    """What the hard drive's resource is on *node*; NotFound or DrbdUnavailable if a record of it is missing."""
    others = [name for name in disk.nodes if name != node]
    backend = store.get(BackendRecord, disk.backend)
    if disk.replica is None or len(others) != 1 or len(disk.nodes) != 2:
        raise DrbdUnavailable(reason=f"hard drive {disk.id} is not replicated between it and another node.")
    if backend is None:
        raise NotFound(kind="storage backend", name=disk.backend)
    return Resource(
        name=resource_name(disk.id),
        minor=disk.replica.minor,
        port=disk.replica.port,
        secret=disk.replica.secret,
        local=_leg(store, backend, disk, node),
        peer=_leg(store, backend, disk, others[0]),
    )


def lonely_resource_of(store: Store, disk: DiskRecord, node: str) -> Resource:
    """What the hard drive's resource is on *node*, the only one that has a leg of it: connected with nobody."""
    backend = store.get(BackendRecord, disk.backend)
    if disk.replica is None or backend is None:
        raise DrbdUnavailable(reason=f"hard drive {disk.id} is not replicated.")
    local = _leg(store, backend, disk, node)
    nobody = "::1" if ":" in local.address else "127.0.0.1"
    return Resource(
        name=resource_name(disk.id),
        minor=disk.replica.minor,
        port=disk.replica.port,
        secret=disk.replica.secret,
        local=local,
        peer=msgspec.structs.replace(local, node="nobody", address=nobody),
    )


def _leg(store: Store, backend: BackendRecord, disk: DiskRecord, node: str) -> Leg:
    record, group = store.get(NodeRecord, node), backend.location_on(node)
    if record is None or not record.address:
        raise DrbdUnavailable(reason=f"node '{node}', which has a leg of hard drive {disk.id}, has no cluster address.")
    if group is None:
        raise DrbdUnavailable(reason=f"storage backend '{backend.name}' is not on node '{node}'.")
    return Leg(
        node=node,
        address=record.address,
        data=f"/dev/{group}/{disk.volume}{DATA}",
        metadata=f"/dev/{group}/{disk.volume}{METADATA}",
    )


def handler_program(prefix: Path) -> str:
    """Where the handler program of the installation at *prefix* is, also after the next installation."""
    current = prefix.parent / "current"
    home = current if current.is_symlink() and current.resolve() == prefix.resolve() else prefix
    return str(home / "bin" / "mcvirt-drbd-handler")


def common_of(prefix: Path, spool: Path, socket: Path, rate: int) -> Common:
    """What all resources on this node have in common; *prefix* is where mcvirtd is installed, *rate* in bytes/s."""
    return Common(handler=f"{handler_program(prefix)}", spool=str(spool), socket=str(socket), most_rate=rate)
