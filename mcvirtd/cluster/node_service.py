"""Nodes and the settings of the cluster: the contract NodeApi."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from mcvirt import __version__, names
from mcvirt.api.cluster import NodeApi
from mcvirt.errors import BadArgument, Conflict, McvirtError
from mcvirt.types.cluster import ClusterSettings, NodeInfo
from mcvirtd.cluster.live import Known
from mcvirtd.host import facts as host_facts
from mcvirtd.host import network
from mcvirtd.host.facts import CpuTimes, Memory
from mcvirtd.state.records import ClusterRecord, NodeRecord, SettingsRecord, VmRecord
from mcvirtd.state.store import Store

LONGEST_INTERVAL = 7 * 86400
# Between two readings closer than this, the processors' use is mostly chance.
_SHORTEST_READING = 1.0


class HostFacts(Protocol):
    """What the service asks about the machine; the module mcvirtd.host.facts answers it."""

    def cpu_count(self) -> int:
        """The processors that are switched on."""

    def memory(self) -> Memory:
        """The memory as it is now."""

    def cpu_times(self) -> CpuTimes:
        """What all processors together have done since the start."""


class Domain(Protocol):
    """A domain of libvirt."""

    @property
    def active(self) -> bool:
        """Whether there is a QEMU process."""


class HypervisorFacts(Protocol):
    """What the service asks about libvirt on this node. May raise LibvirtUnreachable."""

    def domains(self) -> Mapping[str, Domain]:
        """Every domain by UUID, as last known."""

    def version(self) -> str:
        """libvirt's, as 9.0.0."""


class NodeService(NodeApi):
    """The nodes, and what operators set for all of them. *accelerator* says what guests run with here, and why.

    *live* is what is known of another node.
    """

    def __init__(
        self,
        *,
        store: Store,
        node: str,
        hypervisor: HypervisorFacts,
        accelerator: Callable[[], tuple[str, str]],
        host: HostFacts = host_facts,
        warnings: Callable[[], tuple[str, ...]] = lambda: (),
        live: Callable[[str], Known] = lambda node: Known(),  # noqa: ARG005
        version_fault: Callable[[str], str] = lambda node: "",  # noqa: ARG005
    ) -> None:
        self._store = store
        self._node = node
        self._hypervisor = hypervisor
        self._accelerator = accelerator
        self._host = host
        self._warnings = warnings
        self._live = live
        self._version_fault = version_fault
        # Set by who knows: how far a node is, and what is to be said of this one's place in the cluster.
        self.revision_of: Callable[[str], int | None] = lambda node: None  # noqa: ARG005
        self.status: Callable[[], str] = lambda: "Local"
        # Raises if other members that answer would not find this node at an address.
        self.try_address: Callable[[str], None] = lambda address: None  # noqa: ARG005
        self._processors = _ProcessorUse(host.cpu_times)

    def list(self) -> tuple[NodeInfo, ...]:
        """All nodes, by name."""
        members = sorted({self._node, *self._store.all(NodeRecord)})
        cluster = self._store.get(ClusterRecord, "cluster")
        leader = cluster.leader if cluster is not None else self._node
        newest = max(self._store.revision, self.revision_of(leader) or 0)
        found = (self.here() if name == self._node else self._elsewhere(name) for name in members)
        return tuple(self._placed(node, leader, newest) for node in found)

    def _placed(self, node: NodeInfo, leader: str, newest: int) -> NodeInfo:
        revision = self._store.revision if node.name == self._node else self.revision_of(node.name)
        lag = None if revision is None else max(0, newest - revision)
        return msgspec.structs.replace(
            node, leader=node.name == leader, revision=node.revision if revision is None else revision, lag=lag
        )

    def settings(self) -> ClusterSettings:
        """The settings of the cluster."""
        return ClusterSettings(autostart_interval=autostart_interval(self._store))

    def set_address(self, address: str) -> None:
        """The IP address at which other nodes reach this one."""
        found = checked_address(address)
        fault = network.address_fault(found)
        if fault:
            raise BadArgument(what=f"address {found}", why=fault)
        record = self._store.get(NodeRecord, self._node)
        if record is not None and record.address != found:
            self.try_address(found)
        with self._store.change() as change:
            others = [record for record in change.all(NodeRecord).values() if record.name != self._node]
            taken = next((record.name for record in others if record.address == found), None)
            if taken is not None:
                raise Conflict(text=f"Node '{taken}' has the address {found}. Each node needs one of its own.")
            change.edit(NodeRecord, self._node, address=found)

    def set_autostart_interval(self, seconds: int) -> None:
        """How often stopped virtual machines with ON_POLL are started."""
        if not 0 <= seconds <= LONGEST_INTERVAL:
            raise BadArgument(
                what="autostart interval",
                why=f"it is a number of seconds from 0 (never) to {LONGEST_INTERVAL} (a week).",
            )
        with self._store.change() as change:
            if change.get(SettingsRecord, "cluster") is None:
                change.put(SettingsRecord(autostart_interval=seconds))
            else:
                change.edit(SettingsRecord, "cluster", autostart_interval=seconds)

    def _elsewhere(self, name: str) -> NodeInfo:
        """Another node, from memory: nobody is asked."""
        record = self._store.all(NodeRecord)[name]
        known = self._live(name)
        status = "Unreachable" if known.silent else "Away" if record.away else "Connected"
        registered = sum(1 for vm in self._store.all(VmRecord).values() if vm.node == name)
        if known.info is not None:
            fault = self._version_fault(name)
            return msgspec.structs.replace(
                known.info,
                name=name,
                address=record.address,
                status=status,
                vms=registered,
                age=known.age,
                warnings=(*known.info.warnings, *([fault] if fault else [])),
            )
        return NodeInfo(
            name=name,
            id=record.id,
            address=record.address,
            status=status,
            version="",
            revision=0,
            cpu_count=0,
            cpu_percent=None,
            memory=0,
            memory_used=0,
            accelerator="unknown",
            accelerator_reason="",
            libvirt="",
            vms_running=0,
            vms=registered,
        )

    def here(self) -> NodeInfo:
        """This node, measured now."""
        record = self._store.get(NodeRecord, self._node)
        mine = [vm.uuid for vm in self._store.all(VmRecord).values() if vm.node == self._node]
        memory = self._host.memory()
        domains = self._hypervisor.domains()
        warnings = list(self._warnings())
        try:
            libvirt = self._hypervisor.version()
            accelerator, reason = self._accelerator()
        except McvirtError as error:
            libvirt, accelerator, reason = "", "unknown", "libvirt does not answer"
            warnings.append(str(error))
        return NodeInfo(
            name=self._node,
            id=record.id if record else "",
            address=record.address if record else None,
            status=self.status(),
            version=__version__,
            revision=self._store.revision,
            cpu_count=self._host.cpu_count(),
            cpu_percent=self._processors.percent(),
            memory=memory.total,
            memory_used=memory.used,
            accelerator=accelerator,
            accelerator_reason=reason,
            libvirt=libvirt,
            vms_running=sum(1 for uuid in mine if uuid in domains and domains[uuid].active),
            vms=len(mine),
            warnings=tuple(warnings),
        )


def checked_address(text: str) -> str:
    """An address that other nodes can reach a node at, in its usual spelling; raises BadArgument."""
    what = f"address '{names.printable(text)}'"
    try:
        found = ipaddress.ip_address(text.strip())
    except ValueError:
        raise BadArgument(what=what, why="it is no IP address.") from None
    if found.is_loopback or found.is_unspecified or found.is_multicast or found.is_link_local:
        raise BadArgument(what=what, why="other nodes can't reach this node there.")
    return str(found)


def autostart_interval(store: Store) -> int:
    """How often stopped virtual machines with ON_POLL are started, in seconds; 0 = never."""
    settings = store.get(SettingsRecord, "cluster") or SettingsRecord()
    return settings.autostart_interval


class _ProcessorUse:
    """The use of the processors since it was last asked for, over a second at least."""

    def __init__(self, times: Callable[[], CpuTimes]) -> None:
        self._times = times
        self._lock = threading.Lock()
        self._last = times()
        self._read_at = time.monotonic()
        self._percent: float | None = None

    def percent(self) -> float | None:
        """In percent of all of them; None if not enough time has passed to say."""
        with self._lock:
            now = time.monotonic()
            if now - self._read_at >= _SHORTEST_READING:
                times = self._times()
                self._percent = round(host_facts.cpu_percent(self._last, times), 1)
                self._last, self._read_at = times, now
            return self._percent
