"""Making this node the one of a machine that is registered on none."""

from __future__ import annotations

from collections.abc import Callable

from mcvirt.errors import Conflict, UnsuitableNode, VmNotFound, VmRegistered
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import VmRecord
from mcvirtd.state.store import Change
from mcvirtd.tasks.task import step
from mcvirtd.vm import checks
from mcvirtd.vm.elsewhere import Nodes, runs_elsewhere
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.power import Power
from mcvirtd.vm.unsettled import settled, stays


class Registration:
    """Callers hold the machine's lock, which is this node's alone; *define* has libvirt and the record know."""

    def __init__(self, ground: Ground, power: Power, nodes: Nodes, define: Callable[[str], None]) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._domains = ground.domains
        self._node = ground.node
        self._power = power
        self._nodes = nodes
        self._define = define

    def carry_out(self, name: str) -> None:
        """Make this node the one that runs the machine; everything is checked before anything is done."""
        machine = self._domains.machine(name)
        vm = machine.vm
        self._domains.require_libvirt()
        reasons = Reasons()
        if vm.node is not None and not self._domains.is_missing(vm):
            reasons.add(VmRegistered(name=name, node=vm.node))
        with reasons.gather():
            checks.unlocked(vm)
        with reasons.gather():
            stays(vm)
        with reasons.gather():
            settled(self._journal, name)
        if self._node not in vm.nodes:
            reasons.add(UnsuitableNode(name=name, node=self._node, nodes=", ".join(vm.nodes)))
        self._power.check_parts(machine, reasons)
        with step("Asking the other nodes whether it runs there"):
            # As where it was just being migrated when its node, which alone knew of that, was removed for good.
            for node in runs_elsewhere(self._nodes, vm, reasons):
                text = f"Virtual machine '{name}' runs on node '{node}', and can be registered only there."
                reasons.add(Conflict(text=text))
        reasons.raise_all()
        with self._store.change() as change:  # in its turn: who has registered or deletes it elsewhere is seen
            still_free(change, name, self._node)
        with step("Registering the machine in libvirt"):
            self._define(name)


def still_free(change: Change, name: str, node: str) -> None:
    """In a change: *node* may have the machine; raises if it is another's by now, or is being deleted."""
    now = change.get(VmRecord, name)
    if now is None:
        raise VmNotFound(name=name)
    if now.node not in (None, node):
        raise VmRegistered(name=name, node=now.node)
    stays(now)
