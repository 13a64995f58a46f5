"""Verifying that both sides of replicated hard drives are equal, and making them so."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import NodeArgument, Owner, OwnerOfDisk, Vm, VmOfDisk, remote
from mcvirt.types.verification import Resynced, Verification, VerificationState, VerifySettings


class VerificationApi:
    """Verifications of replicated hard drives, and what follows from them.

    A verification reads every block on both nodes and compares them. One that finds differences, or is interrupted,
    has not passed; after differences the machine is neither started nor moved until they are repaired.
    """

    object_id = "verification"

    @remote(needs=Permission.MANAGE_DRBD, on=Vm("name"), runs_at=Owner("name"), task=True)
    def verify(self, name: str) -> tuple[Verification, ...]:
        """Verify all replicated hard drives of a virtual machine, running or not.

        *name* may be the ID of a hard drive instead, here and in what follows, which no machine needs to have.

        Raises VerificationFailed at the end, with all that did not pass.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, task=True)
    def verify_all(self) -> tuple[Verification, ...]:
        """Verify all replicated hard drives of the cluster, some at the same time.

        Raises VerificationFailed at the end, with all that did not pass.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=VmOfDisk("disk"), runs_at=OwnerOfDisk("disk"), task=True)
    def verify_disk(self, disk: str) -> Verification:
        """Verify one hard drive; whether it passed is in the result. What keeps it from being begun is refused."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, task=True)
    def verify_due(self) -> tuple[Verification, ...]:
        """Verify what is due by the schedule and in the care of the node that is called; what can't be is skipped."""
        raise NotImplementedError

    @remote(needs=Access.ANY_USER, reads=True)
    def states(self, name: str | None = None) -> tuple[VerificationState, ...]:
        """The last verifications of all replicated hard drives, or of those of one virtual machine."""
        raise NotImplementedError

    @remote(needs=Access.ANY_USER, reads=True)
    def settings(self) -> VerifySettings:
        """When, how many at once and how fast."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD)
    def set_schedule(
        self, schedule: str | None = None, concurrency: int | None = None, rate: int | None = None
    ) -> VerifySettings:
        """Change what is named: *schedule* is "off", "daily 03:00", "sunday 03:00" or "monthly 03:00".

        Another schedule than before begins with its next moment, by the time of the node that verifies.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=Vm("name"), runs_at=Owner("name"), task=True)
    def resync(
        self, name: str, source_node: str | None = None, disk: int | None = None, full: bool = False
    ) -> tuple[Resynced, ...]:
        """Copy what differs from one node to the other, and return when both sides are equal.

        *source_node* has the good data; without it that is the node where the machine runs, and nobody else's guess.
        *disk* is the number of one hard drive of the machine. *full* copies every block, and not only those that are
        known to differ.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_DRBD, on=VmOfDisk("disk"), runs_at=NodeArgument("source"), task=True)
    def copy_from(self, disk: str, source: str, full: bool = False, known_only: bool = False) -> Resynced:
        """The same for one hard drive, by its ID, from the node *source*.

        *known_only*: Conflict if the kernels know of no blocks that differ, though a verification has found some.
        """
        raise NotImplementedError
