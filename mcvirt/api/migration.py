"""What the nodes of a cluster ask of each other to move a virtual machine. Published to nodes only."""

from __future__ import annotations

from mcvirt.permissions import Access
from mcvirt.rpc.contract import remote
from mcvirt.types.arrival import Place, Traveller, Whereabouts


class ArrivalApi:
    """Asked by the node that has the machine, of the one that is to have it. Every operation may be repeated."""

    object_id = "arrival"

    @remote(needs=Access.PEER, reads=True)
    def examine(self, traveller: Traveller) -> Place:
        """What stands against the machine here, and where it would find its parts. Changes nothing."""
        raise NotImplementedError

    @remote(needs=Access.PEER)
    def expect(self, traveller: Traveller) -> None:
        """Be ready for the machine: from now until `finish` or `abandon` its node may send it.

        The volumes for copied disks are made, and are deleted again, by this node itself if need be, unless the machine
        comes to be registered here.
        """
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def carry(self, name: str, channel: str) -> None:
        """From the answer on, this connection carries the bytes of one channel of an expected machine's migration."""
        raise NotImplementedError

    @remote(needs=Access.PEER)
    def define(self, name: str) -> None:
        """Define the domain of an expected machine, which does not run, as its record says."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def whereabouts(self, uuid: str) -> Whereabouts:
        """What libvirt says of the machine here, asked now."""
        raise NotImplementedError

    @remote(needs=Access.PEER)
    def finish(self, name: str) -> None:
        """The machine is registered here now: have its domain as the record says, and let it run on."""
        raise NotImplementedError

    @remote(needs=Access.PEER)
    def abandon(self, traveller: Traveller) -> None:
        """The machine does not come: leave nothing of it. Conflict if its guest runs here."""
        raise NotImplementedError

    @remote(needs=Access.PEER)
    def start(self, name: str) -> None:
        """Start the machine, which is registered here now."""
        raise NotImplementedError
