"""Networks: names for the bridges of the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mcvirt import names
from mcvirt.api.network import NetworkApi
from mcvirt.errors import AlreadyExists, BadArgument, InUse, NotFound
from mcvirt.types.network import NetworkInfo
from mcvirtd.host import network as host_network
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import NetworkRecord, VmRecord
from mcvirtd.state.store import Store


class NetworkService(NetworkApi):
    """Networks over the nodes' bridges. *bridge_faults* says what keeps an interface from being used as one here.

    *elsewhere* says that of all other nodes, by name.
    """

    def __init__(
        self,
        *,
        store: Store,
        bridge_faults: Callable[[str], list[str]] = host_network.bridge_faults,
        elsewhere: Callable[[str], Mapping[str, list[str]]] = lambda interface: {},  # noqa: ARG005
    ) -> None:
        self._store = store
        self._bridge_faults = bridge_faults
        self._elsewhere = elsewhere

    def bridge_problem(self, interface: str) -> str:
        """What keeps machines from being connected to *interface* on this node, in a sentence; '' if nothing does."""
        return " ".join(self._bridge_faults(interface))

    def list(self) -> tuple[NetworkInfo, ...]:
        records = sorted(self._store.all(NetworkRecord).values(), key=lambda record: record.name)
        used: dict[str, list[str]] = {}
        for vm in self._store.all(VmRecord).values():
            for name in set(vm.adapters.values()):
                used.setdefault(name, []).append(vm.name)
        return tuple(self._info(record, tuple(sorted(used.get(record.name, ())))) for record in records)

    def create(self, name: str, interface: str) -> NetworkInfo:
        reasons = Reasons()
        with reasons.gather():
            names.network_name(name)
            self._refuse_existing(self._store.get(NetworkRecord, name))
        with reasons.gather():
            names.interface_name(interface)
            self._check_bridges(interface, reasons)
        reasons.raise_all()
        record = NetworkRecord(name=name, interface=interface)
        with self._store.change() as change:
            self._refuse_existing(change.get(NetworkRecord, name))
            change.put(record)
        return self._info(record, ())

    def _check_bridges(self, interface: str, reasons: Reasons) -> None:
        """A machine may come to run on any node, so the bridge is to be on all of them."""
        problem = self.bridge_problem(interface)
        if problem:
            reasons.add(
                BadArgument(
                    what=f"interface '{interface}'",
                    why=f"{problem} Set up a bridge on this node first, or name one that it has.",
                )
            )
        for node, faults in sorted(self._elsewhere(interface).items()):
            if faults:
                reasons.add(BadArgument(what=f"interface '{interface}' on node '{node}'", why=" ".join(faults)))

    def delete(self, name: str) -> None:
        with self._store.change() as change:
            if change.get(NetworkRecord, name) is None:
                hint = " `mcvirt network list` shows all of them."
                raise NotFound(kind="network", name=names.printable(name), hint=hint)
            users = self._users(name)
            if users:
                machines = ", ".join(f"virtual machine '{user}'" for user in users)
                raise InUse(
                    kind="Network", name=name, users=machines, hint="Take the network adapters on it away first."
                )
            change.delete(NetworkRecord, name)

    def _users(self, name: str) -> tuple[str, ...]:
        vms = self._store.all(VmRecord).values()
        return tuple(sorted(vm.name for vm in vms if name in vm.adapters.values()))

    def _info(self, record: NetworkRecord, used_by: tuple[str, ...]) -> NetworkInfo:
        problem = self.bridge_problem(record.interface)
        return NetworkInfo(name=record.name, interface=record.interface, used_by=used_by, problem=problem)

    @staticmethod
    def _refuse_existing(record: NetworkRecord | None) -> None:
        if record is not None:
            raise AlreadyExists(kind="network", name=record.name)
