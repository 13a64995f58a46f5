"""All that has to do with migrations on this node, put together."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from mcvirt.errors import McvirtError
from mcvirt.types.cluster import NodeInfo
from mcvirt.types.vm import VmRow
from mcvirtd.auth.audit import Audit
from mcvirtd.auth.caller import Caller
from mcvirtd.auth.rights import Rights
from mcvirtd.cluster.errands import Errands
from mcvirtd.cluster.forwarding import Door
from mcvirtd.cluster.peers import Peers
from mcvirtd.drbd.whole import Drbd
from mcvirtd.host import facts
from mcvirtd.hypervisor.moving import MovingVerbs
from mcvirtd.migration.arrivals import Arrivals
from mcvirtd.migration.disks import CopiedDisks, DisksOfMachines
from mcvirtd.migration.draining import Draining
from mcvirtd.migration.expectations import Expectations
from mcvirtd.migration.planning import MigrationPlanner
from mcvirtd.migration.replicas import ArrivingReplicas
from mcvirtd.migration.replicated import ReplicatedDisks
from mcvirtd.migration.service import MigrationService
from mcvirtd.migration.settling import Settlement
from mcvirtd.migration.side_plans import SidePlanner
from mcvirtd.migration.sides import Sides
from mcvirtd.migration.volumes import Copies
from mcvirtd.migration.waiting import Waits
from mcvirtd.state.records import VmRecord
from mcvirtd.storage.backends import Nodes
from mcvirtd.tasks.engine import Tasks
from mcvirtd.tasks.task import Task
from mcvirtd.vm.arrived import EXPECT
from mcvirtd.vm.design import AcceleratorOfNode
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.power import Power
from mcvirtd.vm.unsettled import SETTLE

_ASK_WITHIN = 30.0
_TRY_AGAIN = 5.0
_encode = msgspec.json.Encoder().encode


class Moves:
    """*service*, *arrivals*, *draining* and *sides* answer MigrationApi, ArrivalApi, DrainApi and MoveApi.

    *uri* is where libvirt is; *carry_on* has the connection of the call that is being answered carried, *stopping* says
    whether mcvirtd is about to end. *door* does an operation as a user's call, *rows* and *nodes* are all machines and
    nodes as they are now. *drbd* is this node's.
    """

    def __init__(
        self,
        ground: Ground,
        *,
        hypervisor: MovingVerbs,
        uri: str,
        backends: Nodes,
        power: Power,
        accelerator: AcceleratorOfNode,
        peers: Peers,
        tasks: Tasks,
        audit: Audit,
        rights: Rights,
        carry_on: Callable[[Callable[[ssl.SSLSocket], None]], None],
        stopping: Callable[[], bool],
        door: Door,
        rows: Callable[[], Sequence[VmRow]],
        nodes: Callable[[], Sequence[NodeInfo]],
        drbd: Drbd,
    ) -> None:
        def ask(node: str, operation: str, within: float = _ASK_WITHIN, **arguments: Any) -> msgspec.Raw:
            return peers.call(node, "arrival", operation, arguments, within)

        def reachable(node: str) -> bool:
            return peers.status(node).reachable

        copies = Copies(ground, backends)
        replicated = ReplicatedDisks(
            store=ground.store,
            states=drbd.here.reader,
            roles=drbd.roles,
            windows=drbd.windows,
            rejoining=drbd.rejoining,
            ask=ask,
        )
        disks = DisksOfMachines(ground.store, CopiedDisks(ask, copies), replicated)
        self._waits = Waits(ground, rights, stopping, lambda name: power.start(name, None))
        settlement = Settlement(ground, hypervisor, disks, ask, may_start=self._waits.require_start)
        planner = MigrationPlanner(
            ground,
            hypervisor=hypervisor,
            disks=disks,
            accelerator=accelerator,
            ask=ask,
            reachable=reachable,
            unsettled=lambda name: any(ticket.name == name for ticket in settlement.due()),
            clock=time.time,
        )
        self.arrivals = Arrivals(
            ground,
            hypervisor=hypervisor,
            uri=uri,
            copies=copies,
            expectations=Expectations(ground, ask),
            leaving=settlement.due,
            power=power,
            accelerator=accelerator,
            memory=facts.memory,
            used_by=facts.memory_of_guest,
            carry_on=carry_on,
            replicas=ArrivingReplicas(
                legs=drbd.legs(ground.node),
                states=drbd.here.reader,
                roles=drbd.roles,
                windows=drbd.windows,
                rejoining=drbd.rejoining,
            ),
        )
        self._settlement = settlement
        self._store = ground.store
        self._journal = ground.journal
        self._nodes = nodes
        self._catches_up = drbd.catches_up
        self._ready: set[str] = set()
        self._tried = 0.0
        self._tasks = tasks
        self._audit = audit
        self.service = MigrationService(
            ground,
            hypervisor=hypervisor,
            planner=planner,
            settlement=settlement,
            disks=disks,
            waits=self._waits,
            ask=ask,
            dial=peers.dial,
            reachable=reachable,
        )

        self.sides = Sides(
            ground,
            planner=SidePlanner(
                ground,
                replicas=drbd.disks,
                roles=drbd.roles,
                states=drbd.here.reader,
                reachable=reachable,
            ),
            replacing=drbd.replacing,
            reachable=reachable,
        )
        self.draining = Draining(ground, Errands(peers, node=ground.node, door=door), rows=rows, nodes=nodes)

    def wait_on(self) -> None:
        """Take up what an earlier process waited for; for a timer."""
        for name, waiting in self._waits.left().items():

            def work(name: str = name, waiting: Any = waiting) -> bytes:
                return _encode(self.service.wait(name, waiting))

            self._tasks.start("migration.migrate", name, waiting.by, work, self._note)
        for name, by in self.sides.left().items():

            def go_on(name: str = name) -> bytes:
                return _encode(self.sides.go_on(name))

            self._tasks.start("move.move", name, by, go_on, self._note)

    def settle(self, settle: Callable[[Collection[str]], None]) -> None:
        """Have *settle* called, with the tasks, when a node can be asked (again) how migrations ended; for a timer."""
        targets = {ticket.target for ticket in self._settlement.left()}
        ready = self._answering() & targets if targets else set()
        back, self._ready = ready - self._ready, ready
        # A libvirtd that was away for a moment is not always seen to have been.
        if back or (ready and time.monotonic() - self._tried > _TRY_AGAIN):
            self._tried = time.monotonic()
            settle({task for task, _ in self._journal.due_of(SETTLE)})

    def _answering(self) -> set[str]:
        """The nodes that answer, and whose libvirt does."""
        return {node.name for node in self._nodes() if node.libvirt and node.status != "Unreachable"}

    def unsettled(self, name: str) -> bool:
        """Whether it is not known yet on which node the machine is, or it is under way, or its disks here are.

        One that waits for its guest to shut down is about to be: found off, it is migrated, and not started here.
        """
        vm = self._store.get(VmRecord, name)
        if vm is not None and vm.waiting is not None:
            return True
        travels = any(ticket.name == name for ticket in self._settlement.due()) or self.arrivals.expects(name)
        return travels or self._catches_up(name)

    def coming(self) -> frozenset[str]:
        """The machines of which it is not known yet whether they have come here."""
        return frozenset(arguments["name"] for _, arguments in self._journal.due_of(EXPECT))

    def _note(self, task: Task, error: McvirtError | None) -> None:
        self._audit.record(Caller(user=task.user), task.operation, task.target, error, task.id)
