"""Whether a machine runs on another node, whatever its record says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from mcvirt.errors import Conflict, McvirtError
from mcvirt.types.arrival import Whereabouts
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import VmRecord


class Nodes(Protocol):
    """What is asked about other nodes."""

    def witness(self, node: str) -> str:
        """Who knows that *node* is there, and how, in a sentence; '' if nobody does."""

    def whereabouts(self, uuid: str) -> Mapping[str, Whereabouts | McvirtError]:
        """What the other members that answer have of the machine, by their names, or why one of them can't say."""

    def require_leader(self) -> None:
        """Raise LeaderUnreachable if nothing of the configuration can be changed now."""


def runs_elsewhere(nodes: Nodes, vm: VmRecord, reasons: Reasons) -> Sequence[str]:
    """The other nodes that the machine runs on; who answers and can't say is added to *reasons*.

    It may have come there in a migration, of whose end its own node could tell nobody.
    """
    found = []
    for node, has in sorted(nodes.whereabouts(vm.uuid).items()):
        if isinstance(has, McvirtError):
            text = f"Node '{node}' answers, and can't say whether virtual machine '{vm.name}' runs there: {has}"
            reasons.add(Conflict(text=text))
        elif has.active:
            found.append(node)
    return found
