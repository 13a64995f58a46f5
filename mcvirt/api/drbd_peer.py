"""What the two nodes of a replicated hard drive ask of each other. It is published to nodes only."""

from __future__ import annotations

from mcvirt.permissions import Access
from mcvirt.rpc.contract import remote
from mcvirt.types.drbd import ResourceState
from mcvirt.types.replica import LegCommand, LegSpec, Outlook


class DrbdPeerApi:
    """Called with the certificate of a member. The calling node keeps the journal, and undoes what it has begun.

    A path never crosses the wire: each node makes its own of its records and the hard drive's ID.
    """

    object_id = "drbd_peer"

    @remote(needs=Access.PEER, reads=True)
    def outlook(self, needed: dict[str, int]) -> Outlook:
        """What stands against new legs on this node that take so many bytes of each backend."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def make_leg(self, leg: LegSpec) -> int:
        """Make the leg here and connect it; returns the size of its data. There must be a claim for it.

        What fails leaves some of it behind: drop it.
        """
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def drop_leg(self, disk: str, backend: str) -> None:
        """Delete the leg with all its data, and whatever there is of it; nothing happens if there is none.

        A leg that is being made is given up first, and never made afterwards.
        """
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def grow_leg(self, disk: str, size: int) -> int:
        """Make the leg's volumes long enough for *size* bytes of data; returns how long its data is then."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def leg_command(self, disk: str, command: LegCommand) -> None:
        """Have DRBD bring the leg up or down, or copying wait or go on. Raises BadArgument for any other command."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def leg_state(self, disk: str) -> ResourceState | None:
        """The leg as this node's kernel sees it; None if it has none."""
        raise NotImplementedError
