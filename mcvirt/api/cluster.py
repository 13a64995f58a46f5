"""Nodes and the settings of the cluster."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import remote
from mcvirt.types.cluster import ClusterSettings, NodeInfo


class NodeApi:
    """The nodes of the cluster."""

    object_id = "node"

    @remote(needs=Access.ANY_USER, reads=True)
    def list(self) -> tuple[NodeInfo, ...]:
        """All nodes, by name."""
        raise NotImplementedError

    @remote(needs=Access.ANY_USER, reads=True)
    def settings(self) -> ClusterSettings:
        """The settings of the cluster."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_NODE)
    def set_address(self, address: str) -> None:
        """The IP address at which other nodes reach the node that is called."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_NODE)
    def set_autostart_interval(self, seconds: int) -> None:
        """How often stopped virtual machines with ON_POLL are started; 0 = never."""
        raise NotImplementedError
