"""Virtual machines as objects: `client.vms["web1"].start()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcvirt.api.vm import VmApi as _Operations
else:
    _Operations = object


class VmHandle:
    """One virtual machine by its name: every operation of VmApi that takes a name first, without that name."""

    def __init__(self, operations: _Operations, name: str) -> None:
        self._operations = operations
        self.name = name

    def __repr__(self) -> str:
        return f"<VmHandle {self.name}>"

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        if operation in ("list", "names", "create"):
            raise AttributeError(f"{operation} is not an operation of one virtual machine")
        call = getattr(self._operations, operation)

        def bound(*args: Any, **kwargs: Any) -> Any:
            return call(self.name, *args, **kwargs)

        bound.__doc__ = call.__doc__
        return bound


class Vms(_Operations):
    """All operations of VmApi; indexed with a name, a handle for that virtual machine (which need not exist)."""

    def __init__(self, operations: _Operations) -> None:
        self._operations = operations

    def __getitem__(self, name: str) -> VmHandle:
        return VmHandle(self._operations, name)

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._operations, operation)
