"""Minors and ports: each belongs to one hard drive in the whole cluster, from before it is made until it is gone."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence, Set

from mcvirt.errors import Conflict
from mcvirtd.drbd.config import FIRST_MINOR, FIRST_PORT, LAST_MINOR, LAST_PORT
from mcvirtd.state.records import (
    BackendRecord,
    DiskRecord,
    FormerLegRecord,
    NodeRecord,
    Replacement,
    ReplicaClaimRecord,
)
from mcvirtd.state.store import Change, Store
from mcvirtd.storage import backends
from mcvirtd.storage.planning import DiskPlan


def claim(store: Store, plan: DiskPlan, coordinator: str) -> ReplicaClaimRecord:
    """Take a minor and a port for *plan*, in a change of its own: all members know of it before anything is made."""
    with store.change() as change:
        _still_fits(store, change, plan.backend, plan.nodes)
        replicas = [disk.replica for disk in change.all(DiskRecord).values() if disk.replica is not None]
        claims = change.all(ReplicaClaimRecord).values()
        minors = {*plan.minors, *(each.minor for each in replicas), *(each.minor for each in claims)}
        made = ReplicaClaimRecord(
            disk=plan.id,
            backend=plan.backend,
            minor=_lowest("DRBD minor", FIRST_MINOR, LAST_MINOR, minors),
            port=_free_port(change, plan.ports),
            nodes=plan.nodes,
            coordinator=coordinator,
        )
        change.put(made)
    return made


def claim_replacement(
    store: Store, change: Change, disk: DiskRecord, *, stays: str, new: str, replacement: Replacement, ports: Set[int]
) -> ReplicaClaimRecord:
    """Take a port, in *change*, for a side of *disk* on node *new*, to be connected with the one on *stays*.

    *ports* are those that it can't have. The minor is the hard drive's own, by which its guest knows it.
    """
    now = change.get(DiskRecord, disk.id)
    if now is None or now.replica is None or (now.nodes, now.vm) != (disk.nodes, disk.vm):
        raise Conflict(text=f"Hard drive {disk.id} was changed meanwhile.")
    if now.deleting or change.get(ReplicaClaimRecord, disk.id) is not None:
        raise Conflict(text=f"Hard drive {disk.id} is being worked at by somebody else.")
    nodes = (min(stays, new), max(stays, new))
    _still_fits(store, change, disk.backend, nodes)
    made = ReplicaClaimRecord(
        disk=disk.id,
        backend=disk.backend,
        minor=now.replica.minor,
        port=_free_port(change, ports),
        nodes=nodes,
        coordinator=stays,
        replacement=replacement,
    )
    change.put(made)
    return made


def _free_port(change: Change, taken: Set[int]) -> int:
    replicas = [disk.replica.port for disk in change.all(DiskRecord).values() if disk.replica is not None]
    claimed = [each.port for each in change.all(ReplicaClaimRecord).values()]
    # A side that was replaced, and looks for the other one there, would end the connection of who has the port now.
    former = [each.port for each in change.all(FormerLegRecord).values()]
    return _lowest("port for DRBD", FIRST_PORT, LAST_PORT, {*taken, *replicas, *claimed, *former})


def _lowest(what: str, first: int, last: int, taken: Container[int]) -> int:
    found = next((number for number in itertools.count(first) if number not in taken), last + 1)
    if found > last:
        raise Conflict(text=f"There is no {what} left between {first} and {last}.")
    return found


def _still_fits(store: Store, change: Change, name: str, nodes: Sequence[str]) -> None:
    """What was true when the disk was planned is so still; from this change on nobody can change it."""
    backend = change.get(BackendRecord, name) or backends.find(store, name)
    for node in nodes:
        if change.get(NodeRecord, node) is None:
            raise Conflict(text=f"Node '{node}' was removed from the cluster meanwhile.")
        if node not in backend.nodes:
            raise backends.not_on_node(backend, node)
