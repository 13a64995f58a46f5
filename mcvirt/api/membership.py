"""Joining and leaving a cluster, and who leads it."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import NodeArgument, remote
from mcvirt.types.membership import (
    ConflictInfo,
    ConnectStringInfo,
    JoinBegun,
    JoinerFacts,
    JoinPackage,
    JoinQuestions,
    JoinReport,
    LeaveReport,
    Promotion,
)


class ClusterApi:
    """The cluster as a whole."""

    object_id = "cluster"

    @remote(needs=Permission.MANAGE_CLUSTER)
    def connect_string(self) -> ConnectStringInfo:
        """A connect string of the node that is called, for a member of the cluster that it is to join.

        It is good for an hour and for one join; an older one is worth nothing from now on. Whoever has it decides what
        the node becomes. Refused on a node that is in a cluster with others, or has no cluster address.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_CLUSTER, task=True)
    def add_node(self, connect_string: str, dry_run: bool = False) -> JoinReport:
        """Take the node of *connect_string* into the cluster; with *dry_run*, only see whether it could join.

        The configuration of that node is replaced by the cluster's. Refused with all reasons at once if it does not
        suit. When this fails, the cluster is as it was, and the node is as it was, too.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_CLUSTER, reads=True)
    def leaving(self, node: str) -> LeaveReport:
        """What stands against the removal of *node*, or would be lost with it."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_CLUSTER, task=True)
    def remove_node(self, node: str, force: bool = False) -> LeaveReport:
        """Take *node* out of the cluster; it becomes a cluster of its own, with nothing of this one's.

        Refused while a virtual machine is registered there, or anything is there only. *force* is for a node that is
        gone for good: its virtual machines are registered nowhere any more, and what was there only is forgotten.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_CLUSTER)
    def promote(self, leader_is_off: str | None = None) -> Promotion:
        """Have the node that is called order the changes of the cluster, in place of a leader that is gone.

        Refused while any node reaches the leader. Where fewer than half of the nodes can be asked, *leader_is_off*
        names the leader: the operator's word that it is off.
        """
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_CLUSTER, runs_at=NodeArgument("node"), reads=True)
    def conflicts(self, node: str | None = None) -> tuple[ConflictInfo, ...]:
        """The changes that *node* (None: the one that is called) made as a leader that had been replaced."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_CLUSTER, runs_at=NodeArgument("node"))
    def clear_conflicts(self, conflicts: tuple[int, ...], node: str | None = None) -> int:
        """Delete what `conflicts` has shown, by ID; returns how many there were. Nothing brings it back."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_CLUSTER)
    def reset(self) -> None:
        """Make the node that is called a cluster of its own, with an empty configuration.

        For a node that was removed while it was away, or whose joining was broken off; refused on any other.
        """
        raise NotImplementedError


class JoinApi:
    """What a member asks of a node that it takes in, with the secret of the node's connect string."""

    object_id = "join"

    @remote(needs=Access.JOINER, reads=True)
    def facts(self, questions: JoinQuestions) -> JoinerFacts:
        """The node as it is. Changes nothing, and leaves the connect string good."""
        raise NotImplementedError

    @remote(needs=Access.JOINER)
    def begin(self) -> JoinBegun:
        """Use up the connect string, and make a new key. Conflict if the node is at work, or joins already."""
        raise NotImplementedError

    @remote(needs=Access.JOINER)
    def hand_over(self, ticket: str, start: int, part: str) -> None:
        """Keep *part* of the configuration, from its character *start*, until the rest comes with `take_over`."""
        raise NotImplementedError

    @remote(needs=Access.JOINER)
    def take_over(self, ticket: str, package: JoinPackage) -> None:
        """Become a member, with all that *package* says instead of the own configuration.

        The content of its snapshot follows what was handed over before.
        """
        raise NotImplementedError

    @remote(needs=Access.JOINER)
    def rejoin(self, ticket: str) -> None:
        """Catch up with the leader, until it counts this node in."""
        raise NotImplementedError

    @remote(needs=Access.JOINER)
    def give_up(self, ticket: str) -> None:
        """The joining has failed: be what the node was before."""
        raise NotImplementedError


class MembershipApi:
    """What members ask of one that leaves."""

    object_id = "membership"

    @remote(needs=Access.PEER)
    def part(self) -> None:
        """Prepare to be removed; Conflict if the node is at work, or has a virtual machine that runs."""
        raise NotImplementedError

    @remote(needs=Access.PEER)
    def parted(self) -> None:
        """The removal is stored: become a cluster of one. Conflict without `part` before."""
        raise NotImplementedError
