"""Emptying nodes, and filling them again."""

from __future__ import annotations

from mcvirt.permissions import Permission
from mcvirt.rpc.contract import NodeArgument, remote
from mcvirt.types.drain import Drain, DrainPlan, DrainReport


class DrainApi:
    """Move all virtual machines off a node, and back."""

    object_id = "drain"

    @remote(needs=Permission.MIGRATE_VM, runs_at=NodeArgument("node"), task=True)
    def plan(self, node: str, how: Drain) -> DrainPlan:
        """Where each machine would go and how, and all that stands against it; nothing is changed."""
        raise NotImplementedError

    @remote(needs=Permission.MIGRATE_VM, runs_at=NodeArgument("node"), task=True)
    def drain(self, node: str, how: Drain) -> DrainReport:
        """Move all virtual machines off a node, or those back that were moved off it.

        Refused with all reasons while one of them can't go, unless that is wanted *partly*. Each machine then moves in
        a migration of its own; one that fails stops no other, and the error in the end names those that are left. What
        was moved is remembered by the cluster. Cancelled, failed or died, it can be run again and goes on.
        """
        raise NotImplementedError
