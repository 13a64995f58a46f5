"""Moving virtual machines from node to node: what users ask for, and what the nodes ask of each other."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import Owner, Vm, remote
from mcvirt.types.arrival import Place, Traveller, Whereabouts
from mcvirt.types.migration import Migration, MigrationPlan, MigrationReport


class MigrationApi:
    """Move virtual machines to other nodes."""

    object_id = "migration"

    @remote(needs=Permission.MIGRATE_VM, on=Vm("name"), runs_at=Owner("name"), reads=True)
    def plan(self, name: str, how: Migration) -> MigrationPlan:
        """What a migration would do, and all that stands against it; nothing is changed."""
        raise NotImplementedError

    @remote(
        needs=Permission.MIGRATE_VM,
        on=Vm("name"),
        also={"how.start_after": Permission.CHANGE_VM_POWER_STATE},
        runs_at=Owner("name"),
        task=True,
    )
    def migrate(self, name: str, how: Migration) -> MigrationReport:
        """Move a virtual machine to another node.

        Everything is checked first, on both nodes, and refused together. Afterwards the machine is on the one node or
        on the other, never on both or on none; what was begun is undone when it stays. Cancelling is possible until
        the guest runs on the other node.
        """
        raise NotImplementedError


class ArrivalApi:
    """Asked by the node that has the machine, of the one that is to have it. Every operation may be repeated."""

    object_id = "arrival"

    @remote(needs=Access.PEER, reads=True)
    def examine(self, traveller: Traveller) -> Place:
        """What stands against the machine here, and where it would find its parts. Changes nothing."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def expect(self, traveller: Traveller) -> None:
        """Be ready for the machine: from now until `finish` or `abandon` its node may send it."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def make_volume(self, name: str, disk: str) -> None:
        """Make an empty volume for a disk of an expected machine.

        It is deleted again, by this node itself if need be, unless the disk comes to be this node's.
        """
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def open_disks(self, name: str) -> None:
        """Let both sides of an expected machine's replicated disks be Primary, for seconds; `keep_disks` adds more.

        When nobody calls that any more, this node takes it back by itself.
        """
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def use_disks(self, name: str) -> None:
        """Make this node Primary for them, too."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def keep_disks(self, name: str) -> None:
        """It is still needed that both sides may be Primary; Conflict if it was taken back."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def rejoin_disk(self, name: str, disk: str) -> None:
        """Have this side of a disk of a machine of the asking node's join the other one, where they are alone.

        Nothing is done where anything was written here that the other side has not.
        """
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def carry(self, name: str, channel: str) -> None:
        """From the answer on, this connection carries the bytes of one channel of an expected machine's migration."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def define(self, name: str) -> None:
        """Define the domain of an expected machine, which does not run, as its record says."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def whereabouts(self, uuid: str) -> Whereabouts:
        """What libvirt says of the machine here, asked now."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def finish(self, name: str) -> None:
        """The machine is registered here now: have its domain as the record says, and let it run on."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def abandon(self, traveller: Traveller) -> None:
        """The machine does not come: leave nothing of it. Conflict if its guest runs here."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def start(self, name: str) -> None:
        """Start the machine, which is registered here now."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def sends(self, uuid: str) -> bool:
        """Asked the other way round: whether a migration of the machine to the node that asks is not settled here."""
        raise NotImplementedError
