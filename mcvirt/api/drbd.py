"""Replication of hard drives by DRBD: for the whole cluster."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import NodeArgument, Vm, VmOfDisk, remote
from mcvirt.types.drbd import Attached, DrbdEnabled, DrbdInfo


class DrbdApi:
    """DRBD, as far as it is not about one hard drive."""

    object_id = "drbd"

    @remote(needs=Permission.MANAGE_DRBD, task=True)
    def enable(self) -> DrbdEnabled:
        """Make all nodes ready to replicate hard drives; those that join later do it by themselves.

        Refused with all that is missing on all nodes at once. Doing it again is fine, and repairs what was changed.
        """
        raise NotImplementedError

    @remote(needs=Access.ANY_USER, reads=True)
    def list(self) -> tuple[DrbdInfo, ...]:
        """All replicated hard drives, with what both of their nodes say of them."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=Vm("name"), task=True)
    def attach(self, name: str, node: str | None = None, disk: int | None = None) -> tuple[Attached, ...]:
        """Use those sides of a machine's replicated hard drives again that were given up, taken down or cut off.

        It returns when they have all data. A side is given up by DRBD when its storage fails; what it has missed is
        copied from the other one, whether the machine runs or not. *node* is the only one to do it on, and *disk* the
        number of the only hard drive. Refused where there is nothing to attach, while one of the two nodes does not
        answer, and after a split brain.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=VmOfDisk("disk"), runs_at=NodeArgument("at"), task=True)
    def attach_disk(self, disk: str, at: str, node: str | None = None) -> Attached:
        """The same for one hard drive, by its ID, seen to by *at*, which has it."""
        raise NotImplementedError
