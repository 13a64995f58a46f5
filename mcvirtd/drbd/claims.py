"""Minors and ports: each belongs to one hard drive in the whole cluster, from before it is made until it is gone."""

from __future__ import annotations

import itertools
from collections.abc import Container

from mcvirt.errors import Conflict
from mcvirtd.drbd.config import FIRST_MINOR, FIRST_PORT, LAST_MINOR, LAST_PORT
from mcvirtd.state.records import BackendRecord, DiskRecord, NodeRecord, ReplicaClaimRecord
from mcvirtd.state.store import Change, Store
from mcvirtd.storage import backends
from mcvirtd.storage.planning import DiskPlan


def claim(store: Store, plan: DiskPlan, coordinator: str) -> ReplicaClaimRecord:
    """Take a minor and a port for *plan*, in a change of its own: all members know of it before anything is made."""
    with store.change() as change:
        _still_fits(store, change, plan)
        replicas = [disk.replica for disk in change.all(DiskRecord).values() if disk.replica is not None]
        claims = change.all(ReplicaClaimRecord).values()
        minors = {*plan.minors, *(each.minor for each in replicas), *(each.minor for each in claims)}
        ports = {*plan.ports, *(each.port for each in replicas), *(each.port for each in claims)}
        made = ReplicaClaimRecord(
            disk=plan.id,
            backend=plan.backend,
            minor=_lowest("DRBD minor", FIRST_MINOR, LAST_MINOR, minors),
            port=_lowest("port for DRBD", FIRST_PORT, LAST_PORT, ports),
            nodes=plan.nodes,
            coordinator=coordinator,
        )
        change.put(made)
    return made


def _lowest(what: str, first: int, last: int, taken: Container[int]) -> int:
    found = next((number for number in itertools.count(first) if number not in taken), last + 1)
    if found > last:
        raise Conflict(text=f"There is no {what} left between {first} and {last}.")
    return found


def _still_fits(store: Store, change: Change, plan: DiskPlan) -> None:
    """What was true when the disk was planned is so still; from this change on nobody can change it."""
    backend = change.get(BackendRecord, plan.backend) or backends.find(store, plan.backend)
    for node in plan.nodes:
        if change.get(NodeRecord, node) is None:
            raise Conflict(text=f"Node '{node}' was removed from the cluster meanwhile.")
        if node not in backend.nodes:
            raise backends.not_on_node(backend, node)
