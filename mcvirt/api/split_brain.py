"""Split brains: two sides of a hard drive that were written to without each other."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import NodeArgument, Vm, VmOfDisk, remote
from mcvirt.types.split_brain import SplitInfo


class SplitBrainApi:
    """What is split is shown, and nothing is discarded before somebody says which side is to be kept.

    Even then the data of the other side is kept beside, until it is taken back or forgotten.
    """

    object_id = "split_brain"

    @remote(needs=Access.ANY_USER, reads=True)
    def show(self, name: str | None = None) -> tuple[SplitInfo, ...]:
        """The hard drives that are split, or whose earlier data is kept; of all machines or of one.

        *name* may be the ID of a hard drive instead, here and in what follows, which no machine needs to have.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=Vm("name"), task=True)
    def resolve(self, name: str, keep: str, disk: int | None = None) -> tuple[SplitInfo, ...]:
        """Go on with the data of the node *keep*, for all hard drives of a machine that are split, or for one.

        What the other node has is set aside there first. Refused while the machine runs on the other node. Nothing is
        begun before all of them were found to be resolvable.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=Vm("name"), task=True)
    def undo(self, name: str, disk: int | None = None) -> tuple[SplitInfo, ...]:
        """Go on with the data that was set aside, on a machine that is stopped; what it has now is set aside for it.

        Nothing is begun before that was found to be possible for all hard drives. Given again after it has failed, it
        goes on with those that were not taken back.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=Vm("name"), task=True)
    def forget(self, name: str, disk: int | None = None) -> tuple[SplitInfo, ...]:
        """Delete the data that was set aside."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=VmOfDisk("disk"), runs_at=NodeArgument("node"), task=True)
    def give_way(self, disk: str, node: str) -> None:
        """Set the data of *node* aside, and take that of the other: one hard drive's part of `resolve`."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=VmOfDisk("disk"), runs_at=NodeArgument("node"), task=True)
    def take_back(self, disk: str, node: str) -> None:
        """Go on with the data that was set aside on *node*: one hard drive's part of `undo`."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=VmOfDisk("disk"), runs_at=NodeArgument("node"), task=True)
    def drop(self, disk: str, node: str) -> None:
        """Delete the data that was set aside on *node*: one hard drive's part of `forget`."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=VmOfDisk("disk"), runs_at=NodeArgument("node"), task=True)
    def set_aside(self, disk: str, node: str) -> None:
        """Keep a copy of what *node* has of a hard drive that nobody uses: the other node's part of `undo`."""
        raise NotImplementedError


class SplitPeerApi:
    """What the node that gives way asks of the other, and who resolves a split of both."""

    object_id = "split_peer"

    @remote(needs=Access.PEER, reads=True)
    def may_give_way(self, disks: tuple[str, ...]) -> None:
        """Refuse with all that stands against `give_way` of these hard drives, one after the other; change nothing."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def may_take_back(self, disks: tuple[str, ...]) -> None:
        """Refuse with all that stands against `take_back` of these hard drives on this node; change nothing."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def may_set_aside(self, disks: tuple[str, ...]) -> None:
        """Refuse with all that stands against `set_aside` of these hard drives on this node; change nothing."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def meet(self, disk: str) -> None:
        """Look for the other side of the hard drive again; fine if that is done already."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def written(self, disk: str) -> int | None:
        """How many bytes of the hard drive this side has written without the other."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def drop_aside(self, disk: str) -> None:
        """Delete the copy that `set_aside` has made; fine if there is none."""
        raise NotImplementedError
