"""What the nodes of a cluster ask of each other. It is published beside the users' contracts, and to nodes only."""

from __future__ import annotations

from typing import Any

from mcvirt.permissions import Access
from mcvirt.rpc.contract import remote
from mcvirt.types.peer import Beat, BeatAnswer, DrbdOutlook, LocationState
from mcvirt.types.task import TaskInfo


class PeerApi:
    """Called with the certificate of a member."""

    object_id = "peer"

    @remote(needs=Access.PEER, reads=True)
    def heartbeat(self, beat: Beat) -> BeatAnswer:
        """Say that one is there, and what is new."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def replicate(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message of the replication protocol."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def forward(
        self,
        operation: str,
        arguments: dict[str, Any],
        user: str,
        *,
        root: bool = False,
        address: str = "",
        without: tuple[str, ...] = (),
        ignore_drbd: bool = False,
    ) -> dict[str, Any]:
        """Do *operation* ("vm.start") for *user*, for whom the calling node vouches; gives the whole Reply.

        What the user may is checked again. Only operations that belong to one node are taken.
        """
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def tasks(self, user: str, root: bool = False, ended: bool = True) -> tuple[TaskInfo, ...]:
        """The tasks of this node that the user may see, the newest last."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def reaches(self, node: str) -> str:
        """How this node knows that *node* is on, in words; '' if it does not."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def finds(self, address: str, port: int) -> str:
        """Why the calling node is not found at *address*, in a sentence; '' if it is."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def bridge_faults(self, interface: str) -> tuple[str, ...]:
        """What keeps machines of this node from being connected to *interface*, a sentence each."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def location_faults(self, backend: dict[str, Any], others: tuple[dict[str, Any], ...]) -> tuple[str, ...]:
        """Why a storage backend (a record, stored or not) can't be kept on this node beside *others*."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def location(self, backend: dict[str, Any]) -> LocationState:
        """What this node sees of the backend's location here."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def mark_location(self, backend: dict[str, Any], mark: str, present: bool) -> None:
        """Have the backend's location here carry *mark*, or not; fine if it is so already.

        The calling node keeps the journal, and undoes it.
        """
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def drbd_outlook(self) -> DrbdOutlook:
        """What keeps this node from replicating hard drives."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def drbd_prepare(self) -> str:
        """Write what all resources have in common; where a file that was there before is now, or "".

        The calling node keeps the journal, and undoes it.
        """
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def drbd_unprepare(self) -> None:
        """Undo `drbd_prepare`, unless DRBD is enabled; fine if it was never done."""
        raise NotImplementedError

    @remote(needs=Access.PEER, reads=True)
    def drbd_outdate(self, disk: str, again: bool = False) -> str:
        """Mark this node's data of a hard drive as old, since the calling node goes on without it.

        *again*: it has done so for some time, and its kernel does not wait for the answer. The result is "outdated",
        "primary" (nothing was done: it is in use here) or "failed".
        """
        raise NotImplementedError
