"""Two nodes with one configuration: what replicated hard drives need of each, and what is left when something dies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcvirt.errors import NodeUnreachable
from mcvirt.types.storage import BackendSpec, BackendType
from mcvirt.types.vm import StorageType
from mcvirtd.drbd.disks import ReplicatedDisks
from mcvirtd.drbd.local_legs import Legs, LocalLegs
from mcvirtd.drbd.readdressing import Readdressing
from mcvirtd.drbd.roles import Roles
from mcvirtd.state.records import DiskRecord, DrbdRecord, NodeRecord, ReplicaClaimRecord
from mcvirtd.storage.disks import Disks
from mcvirtd.storage.simulated_volumes import SimulatedVolumes
from tests.unit.drbd.kernels import Kernel, Wires
from tests.unit.storage.world import Places, World


class Farther:
    """The legs of a node over a connection that *lost* can take away: before a request arrives, or before its answer.

    *before* and *after* are called with the operation's name around it.
    """

    def __init__(self, legs: Legs, node: str) -> None:
        self._legs, self._node = legs, node
        self.away = False
        self.lose: dict[str, bool] = {}  # operation -> whether it is done all the same
        self.on: dict[str, Callable[[], None]] = {}

    def __getattr__(self, operation: str) -> Any:
        act = getattr(self._legs, operation)

        def ask(*args: Any, **kwargs: Any) -> Any:
            self._refuse()
            done = self.lose.pop(operation, None)
            if done is False:
                self.away = True
                self._refuse()
            kwargs.pop("progress", None)
            kwargs.pop("cancel", None)
            self.on.pop(operation, lambda: None)()
            answer = act(*args, **kwargs)
            if done:
                self.away = True
            self._refuse()
            return answer

        return ask

    def _refuse(self) -> None:
        if self.away:
            raise NodeUnreachable(node=self._node, reason="it does not answer.")


class Pair(World):
    """*far* are the ways from n1, where everything is asked for, and *farther* the one to n2. Node n3 has no DRBD."""

    NODES: tuple[str, ...] = ("n1", "n2")

    def __init__(self, directory: Path, places: dict[str, Places] | None = None, wires: Wires | None = None) -> None:
        self.wires = wires or getattr(self, "wires", None) or Wires()
        self.kernels = self.wires.kernels
        super().__init__(directory, places or {name: Places() for name in ("n1", "n2", "n3")})
        if self.store.get(NodeRecord, "n2") is None:
            self.put(NodeRecord(name="n1", id="n1", address="10.0.0.1"))
            for name in self.NODES[1:]:
                self.put(NodeRecord(name=name, id=name, address=f"10.0.0.{name[1]}"))
            with self.store.change() as change:
                change.put(DrbdRecord(enabled=True))
            for name in self.NODES:
                self.places[name].make("vg0")
            spec = BackendSpec(name="pool", type=BackendType.LVM, location="vg0", nodes=dict.fromkeys(self.NODES, ""))
            self.storage.create(spec)

    def make_disks(self) -> Disks:
        for name in self.NODES:
            if name not in self.kernels:
                Kernel(self.wires, name, lambda name=name: self.volumes(name))  # type: ignore[misc]
        self.legs = {
            name: LocalLegs(store=self.store, node=name, nodes=self.node, verbs=kernel, states=kernel)
            for name, kernel in self.kernels.items()
        }
        self.far = {name: Farther(self.legs[name], name) for name in self.NODES[1:]}
        self.farther = self.far["n2"]
        kernel = self.kernels["n1"]
        self.levelled: list[DiskRecord] = []
        self.roles = Roles(
            store=self.store,
            node="n1",
            legs=self.legs["n1"],
            states=kernel,
            reachable=lambda name: not self.far[name].away,
        )
        self.replicated = ReplicatedDisks(
            store=self.store,
            journal=self.journal,
            node="n1",
            legs=lambda name: self.legs["n1"] if name == "n1" else self.far[name],  # type: ignore[return-value]
            states=kernel,
            roles=self.roles,
            used_paths=lambda: self.used,
            level=self.levelled.append,
            device_size=kernel.device_size,
        )
        self.moving: set[str] = set()
        self.readdressings = {
            name: Readdressing(store=self.store, node=name, readdress=legs.readdress, moving=self.moving.__contains__)
            for name, legs in self.legs.items()
        }
        return Disks(
            store=self.store,
            journal=self.journal,
            locks=self.locks,
            nodes=self.node,
            node="n1",
            used_paths=lambda: self.used,
            storage_types=lambda: (StorageType.LOCAL, StorageType.DRBD),
            replicated=self.replicated,
            replicas=self.replicated,
        )

    def volumes(self, node: str) -> SimulatedVolumes:
        return self.places[node].simulated["vg0"]

    def third_node(self) -> None:
        """A third member, on which the backend is, too."""
        self.put(NodeRecord(name="n3", id="n3", address="10.0.0.3"))
        self.places["n3"].make("vg0")
        self.storage.add_nodes("pool", {"n3": ""})

    def after_power_loss(self) -> Pair:
        """The next process on n1; n2 and both kernels have gone on."""
        return Pair(self.copy(), self.places, self.wires)

    def orphans(self) -> list[str]:
        """What is on a node, or in the records, and belongs to no hard drive's record."""
        disks = self.store.all(DiskRecord)
        names = {f"mcvirt-{disk}" for disk in disks}
        found = [f"claim {key}" for key in self.store.all(ReplicaClaimRecord)]
        for node, kernel in self.kernels.items():
            found += [f"{node}: file {name}" for name in kernel.files if name not in names]
            found += [f"{node}: resource {name}" for name in kernel.resources if name not in names]
            found += [
                f"{node}: volume {name}"
                for name in self.volumes(node).names()
                if name.removesuffix("-drbd-raw").removesuffix("-drbd-meta") not in names
            ]
        return found


class Gate:
    """Holds up whoever passes it, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.go.wait(20.0)
