"""Calls for another node: handed on with the user's name, and taken from nodes that vouch for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from mcvirt import __version__
from mcvirt.api.peer import PeerApi
from mcvirt.errors import BadArgument, McvirtError
from mcvirt.rpc.codec import Reply
from mcvirt.rpc.contract import Operation
from mcvirt.types.peer import Beat, BeatAnswer, DrbdOutlook, LiveVersion, LocationState
from mcvirt.types.task import TaskInfo
from mcvirtd.auth.caller import Caller, current_caller
from mcvirtd.cluster.live import Live
from mcvirtd.cluster.peers import Peers
from mcvirtd.state.records import BackendRecord
from mcvirtd.storage.backends import BackendsOnNode
from mcvirtd.tasks.service import TaskService

Facts = Mapping[str, Any]


class Door(Protocol):
    """Answers a call of an operation by its label ("vm.start"), or says None: no such operation of one node."""

    def __call__(self, label: str, caller: Caller, arguments: dict[str, Any]) -> Reply | None: ...


class Replication(Protocol):
    """The replication of the store, as the peers see it."""

    def facts(self) -> dict[str, Any]:
        """What a heartbeat says of this member's place."""

    def observe(self, member: str, facts: Facts) -> None:
        """What another member's heartbeat has said."""

    def handle(self, sender: str, message: dict[str, Any]) -> dict[str, Any]:
        """Answer a message of another member."""


class Drbd(Protocol):
    """What other nodes ask about DRBD on this one."""

    def outlook(self) -> DrbdOutlook: ...
    def prepare(self) -> str: ...
    def unprepare(self) -> None: ...
    def outdate(self, disk: str, sender: str, *, again: bool = False) -> str: ...


class NoReplication:
    """Where nothing is replicated."""

    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def observe(self, member: str, facts: Facts) -> None:
        """Nothing happens."""

    def handle(self, sender: str, message: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """There is no answer."""
        raise BadArgument(what="replication", why="this node has none.")


class Forwarding:
    """Hands calls on to the node that they are for."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def __call__(self, node: str, operation: Operation, arguments: dict[str, Any], caller: Caller) -> bytes:
        """The Reply of *node*, in wire form; its tasks are called TASK@NODE there. Raises NodeUnreachable."""
        handed_on = {
            "operation": str(operation),
            "arguments": arguments,
            "user": caller.user,
            "root": caller.root,
            "address": caller.address,
        }
        if caller.without or caller.ignore_drbd:
            handed_on |= {"without": caller.without, "ignore_drbd": caller.ignore_drbd}
        answer = self._peers.call(node, "peer", "forward", handed_on)
        reply = msgspec.json.decode(answer, type=Reply)
        if reply.task is None:
            return bytes(answer)
        reply.task = at_node(reply.task, node)
        return msgspec.json.encode(reply)


class PeerService(PeerApi):
    """What other nodes ask of this one. *heard* is told their heartbeats; *run* is the guard's door to users' calls."""

    def __init__(
        self,
        *,
        live: Live,
        tasks: TaskService,
        run: Door,
        replication: Callable[[], Replication],
        bridge_faults: Callable[[str], list[str]],
        backends: BackendsOnNode,
        reaches: Callable[[str], str],
        drbd: Drbd,
        finds: Callable[[str, str, int], str],
        heard: Callable[[str, Beat], None],
    ) -> None:
        self._finds = finds
        self._heard = heard
        self._reaches = reaches
        self._drbd = drbd
        self._bridge_faults = bridge_faults
        self._backends = backends
        self._live = live
        self._tasks = tasks
        self._run = run
        self._replication = replication

    def heartbeat(self, beat: Beat) -> BeatAnswer:
        """Say that one is there, and what is new."""
        sender = current_caller().peer
        self._heard(sender, beat)
        have = self._live.hear(sender, beat.live) if beat.live is not None else LiveVersion()
        replication = self._replication()
        if beat.replica:
            replication.observe(sender, beat.replica)
        return BeatAnswer(version=__version__, replica=replication.facts(), have=have)

    def replicate(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message of the replication protocol."""
        return self._replication().handle(current_caller().peer, message)

    def forward(
        self,
        operation: str,
        arguments: dict[str, Any],
        user: str,
        *,
        root: bool = False,
        address: str = "",
        without: tuple[str, ...] = (),
        ignore_drbd: bool = False,
    ) -> dict[str, Any]:
        """Do *operation* for *user*, for whom the calling node vouches."""
        caller = Caller(
            user=user,
            root=root,
            address=address,
            via=current_caller().peer,
            without=without,
            ignore_drbd=ignore_drbd,
        )
        reply = self._run(operation, caller, arguments)
        if reply is None:
            raise BadArgument(what="operation", why="this node has none of that name that can be handed on.")
        # As it is on the wire: the value of a Raw is not to be taken apart and put together again.
        return msgspec.structs.asdict(reply)

    def tasks(self, user: str, root: bool = False, ended: bool = True) -> tuple[TaskInfo, ...]:
        """The tasks of this node that the user may see."""
        return self._tasks.here(Caller(user=user, root=root, via=current_caller().peer), ended)

    def reaches(self, node: str) -> str:
        """How this node knows that *node* is on, in words; '' if it does not."""
        return self._reaches(node)

    def finds(self, address: str, port: int) -> str:
        """Why the calling node is not found at *address*, in a sentence; '' if it is."""
        return self._finds(current_caller().peer, address, port)

    def bridge_faults(self, interface: str) -> tuple[str, ...]:
        """What keeps machines of this node from being connected to *interface*."""
        return tuple(self._bridge_faults(interface))

    def location_faults(self, backend: dict[str, Any], others: tuple[dict[str, Any], ...]) -> tuple[str, ...]:
        """Why a storage backend can't be kept on this node beside *others*."""
        return tuple(self._backends.faults(_record(backend), [_record(other) for other in others]))

    def location(self, backend: dict[str, Any]) -> LocationState:
        """What this node sees of the backend's location here."""
        volumes = self._backends.volumes(_record(backend))
        faults = tuple(volumes.check())
        return LocationState(faults=faults, marks=() if faults else tuple(sorted(volumes.marked_with())))

    def mark_location(self, backend: dict[str, Any], mark: str, present: bool) -> None:
        """Have the backend's location here carry *mark*, or not."""
        volumes = self._backends.volumes(_record(backend))
        (volumes.mark if present else volumes.unmark)(mark)

    def drbd_outlook(self) -> DrbdOutlook:
        """What keeps this node from replicating hard drives."""
        return self._drbd.outlook()

    def drbd_prepare(self) -> str:
        """Write what all resources have in common; where a file that was there before is now, or ""."""
        return self._drbd.prepare()

    def drbd_unprepare(self) -> None:
        """Undo `drbd_prepare`, unless DRBD is enabled."""
        self._drbd.unprepare()

    def drbd_outdate(self, disk: str, again: bool = False) -> str:
        """Mark this node's data of a hard drive as old, since the calling node goes on without it."""
        return self._drbd.outdate(disk, current_caller().peer, again=again)


def _record(plain: dict[str, Any]) -> BackendRecord:
    return msgspec.convert(plain, BackendRecord)


class TasksElsewhere:
    """The tasks of all other nodes that answer."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def __call__(self, caller: Caller, ended: bool) -> list[TaskInfo]:
        """Those that the caller may see; nodes that do not answer within two seconds are left out."""
        asked = {"user": caller.user, "root": caller.root, "ended": ended}
        found: list[TaskInfo] = []
        for node, answer in self._peers.call_all(self._peers.reachable(), "tasks", asked, 2.0).items():
            if isinstance(answer, McvirtError):
                continue
            for task in msgspec.json.decode(answer, type=tuple[TaskInfo, ...]):
                found.append(msgspec.structs.replace(task, id=at_node(task.id, node)))
        return found


def at_node(task: str, node: str) -> str:
    """The name under which any node knows a task of *node*."""
    return task if "@" in task else f"{task}@{node}"
