"""Networks."""

from __future__ import annotations

from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import remote
from mcvirt.types.network import NetworkInfo


class NetworkApi:
    """Names for host bridges."""

    object_id = "network"

    @remote(needs=Access.ANY_USER, reads=True)
    def list(self) -> tuple[NetworkInfo, ...]:
        """All networks, by name."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_HOST_NETWORKS)
    def create(self, name: str, interface: str) -> NetworkInfo:
        """Create a network over the bridge *interface*, which must exist on every node."""
        raise NotImplementedError

    @remote(needs=Permission.MANAGE_HOST_NETWORKS)
    def delete(self, name: str) -> None:
        """Delete a network that no virtual machine uses. The bridge itself stays."""
        raise NotImplementedError
