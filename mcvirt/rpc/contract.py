"""Operations as data: the @remote mark on a contract's stubs, and how to read it.

A contract is a class of stubs. Each stub says with types what goes in and out, with its docstring what the caller may
rely on, and with @remote who may call it and where it runs. Daemon, peers, client library and documentation are all
derived from that one declaration.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from mcvirt.permissions import Access, Permission

F = TypeVar("F", bound=Callable[..., Any])
MARK = "_mcvirt_remote"


class Vm(msgspec.Struct, frozen=True):
    """The operation's target is the virtual machine named by this argument."""

    argument: str


class VmOfDisk(msgspec.Struct, frozen=True):
    """The operation's target is the virtual machine that has the disk named by this argument, if any."""

    argument: str


Target = Vm | VmOfDisk | None


class Owner(msgspec.Struct, frozen=True):
    """The operation runs on the node where the virtual machine named by this argument is registered.

    If none is called so, and a hard drive has it as its ID, it runs where it would for that (`OwnerOfDisk`).
    """

    argument: str


class NodeArgument(msgspec.Struct, frozen=True):
    """The operation runs on the node named by this argument; on the node that was called if it is empty."""

    argument: str


class OwnerOfDisk(msgspec.Struct, frozen=True):
    """The operation runs where the virtual machine that has the disk is registered, or where the disk is."""

    argument: str


class NodeOfTask(msgspec.Struct, frozen=True):
    """The operation runs on the node that the task named by this argument runs on: TASK@NODE."""

    argument: str


class OwnerOrBackend(msgspec.Struct, frozen=True):
    """The operation runs where the virtual machine is registered that is named by *argument*.

    Where none is, it runs on the node that was called if that has the storage backend named by *backend*, and otherwise
    on the one that does; of several it is the first of a shared backend. "spec.backend" is a field of an argument.
    """

    argument: str
    backend: str


class AmongNodes(msgspec.Struct, frozen=True):
    """The operation runs on the node that was called if this argument names it or is empty, else on the first named."""

    argument: str


Place = Owner | OwnerOfDisk | OwnerOrBackend | AmongNodes | NodeArgument | NodeOfTask | None


class Remote(msgspec.Struct, frozen=True, kw_only=True):
    """What @remote says of an operation."""

    needs: Permission | Access
    on: Target = None
    instead: Permission | None = None
    also: Mapping[str, Permission] = {}
    runs_at: Place = None
    task: bool = False
    reads: bool = False
    known_here: bool = False


def remote(
    *,
    needs: Permission | Access,
    on: Target = None,
    instead: Permission | None = None,
    also: Mapping[str, Permission] | None = None,
    runs_at: Place = None,
    task: bool = False,
    reads: bool = False,
    known_here: bool = False,
) -> Callable[[F], F]:
    """Mark a stub as an operation.

    *needs* is required of the caller, for the target *on* where there is one; where a virtual machine is the target,
    *instead* is enough as well. *also* names further permissions, each
    needed only when that argument (or "argument.field") is given and neither false nor empty. *runs_at* says which
    node does it. *task* makes it a task: followed, cancelled, journalled. *reads* says that it changes nothing, and so
    leaves no line in the audit trail unless it is refused. *known_here* says that any node can answer from what it
    knows where the node that should can't be reached.
    """
    mark = Remote(
        needs=needs,
        on=on,
        instead=instead,
        also=also or {},
        runs_at=runs_at,
        task=task,
        reads=reads,
        known_here=known_here,
    )

    def set_mark(stub: F) -> F:
        setattr(stub, MARK, mark)
        return stub

    return set_mark


class Operation:
    """One operation of a contract, with its signature; types are resolved when first asked for."""

    def __init__(self, contract: type, name: str, stub: Callable[..., Any]) -> None:
        self.contract = contract
        self.object_id: str = contract.object_id  # type: ignore[attr-defined]
        self.name = name
        self.stub = stub
        self.remote: Remote = getattr(stub, MARK)
        self.signature = inspect.signature(stub)
        self.parameters = [p for p in self.signature.parameters.values() if p.name != "self"]
        self._hints: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.object_id}.{self.name}"

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return (inspect.getdoc(self.stub) or "").split("\n", 1)[0]

    @property
    def hints(self) -> dict[str, Any]:
        """Parameter names and "return" to types."""
        if self._hints is None:
            self._hints = typing.get_type_hints(self.stub)
        return self._hints

    def arguments_type(self) -> type[msgspec.Struct]:
        """A Struct with one field a parameter, that checks what comes over the wire."""
        fields: list[Any] = []
        for parameter in self.parameters:
            hint = self.hints[parameter.name]
            if parameter.default is inspect.Parameter.empty:
                fields.append((parameter.name, hint))
            else:
                fields.append((parameter.name, hint, parameter.default))
        return msgspec.defstruct(
            f"{self.object_id}_{self.name}_arguments", fields, kw_only=True, forbid_unknown_fields=True
        )


def operation(contract: type, name: str) -> Operation | None:
    """The operation *name* of *contract*, or None."""
    stub = contract.__dict__.get(name)
    if stub is None or not hasattr(stub, MARK):
        return None
    return Operation(contract, name, stub)


def operations(contract: type) -> dict[str, Operation]:
    """All operations of *contract* in the order of their declaration.

    Raises TypeError for a public stub without @remote: what has no declared permission does not exist.
    """
    found = {}
    for name, stub in contract.__dict__.items():
        if name.startswith("_") or not inspect.isfunction(stub):
            continue
        made = operation(contract, name)
        if made is None:
            raise TypeError(f"{contract.__name__}.{name} has no @remote: it names no permission")
        if not inspect.getdoc(stub):
            raise TypeError(f"{contract.__name__}.{name} has no docstring")
        found[name] = made
    return found
