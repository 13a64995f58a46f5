"""Replication of hard drives by DRBD: for the whole cluster."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import remote
from mcvirt.types.drbd import DrbdEnabled, DrbdInfo


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
