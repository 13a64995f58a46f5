"""What people import and type: the client library and the mcvirt command."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcvirt_client.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> object:
    # Late, because the mcvirt command imports this package and should not pay for what it does not use.
    if name == "Client":
        from mcvirt_client.client import Client

        return Client
    raise AttributeError(f"module 'mcvirt_client' has no attribute {name!r}")
