"""Moving one side of replicated hard drives to another node."""

from __future__ import annotations

from mcvirt.permissions import Permission
from mcvirt.rpc.contract import Owner, Vm, remote
from mcvirt.types.move import MovePlan, MoveReport


class MoveApi:
    """Replace one of the two nodes that have a machine's replicated hard drives. The machine itself stays."""

    object_id = "move"

    @remote(needs=Permission.MOVE_VM, on=Vm("name"), runs_at=Owner("name"), reads=True)
    def plan(self, name: str, destination: str, source: str | None = None, force: bool = False) -> MovePlan:
        """What a move would do, and all that stands against it; nothing is changed."""
        raise NotImplementedError

    @remote(needs=Permission.MOVE_VM, on=Vm("name"), runs_at=Owner("name"), task=True)
    def move(self, name: str, destination: str, source: str | None = None, force: bool = False) -> MoveReport:
        """Have all replicated hard drives of a machine on *destination* instead of on *source*, also while it runs.

        *source* is the node that does not have the machine; it need not be named, nor be there any more. With *force*
        it need not answer either, and what it has need not be good. All is checked first, and refused together. Then
        everything is copied, which outlives mcvirtd; cancelled before the end, the hard drives have the sides that
        they had, of which the old one is copied to again.
        """
        raise NotImplementedError
