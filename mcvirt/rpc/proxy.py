"""A contract's client: the stubs' signatures, carried over a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import msgspec

from mcvirt.errors import AnswerLost, InternalError, NodeUnreachable, from_wire
from mcvirt.rpc.codec import Reply
from mcvirt.rpc.contract import Operation, operation
from mcvirt.rpc.transport import Connection

T = TypeVar("T")
_reply = msgspec.json.Decoder(Reply)


class Follow(Protocol):
    """Waits for a task and returns its result (in wire form), or raises its error."""

    def __call__(self, task: str, operation: Operation) -> msgspec.Raw: ...


class _Call:
    """One operation, ready to be called."""

    def __init__(self, connection: Connection, operation: Operation, follow: Follow) -> None:
        self._connection = connection
        self._operation = operation
        self._follow = follow
        self._result = msgspec.json.Decoder(operation.hints["return"])
        names = [parameter.name for parameter in operation.parameters]
        self._names = names
        # Calls that wait on the daemon's side carry their own wait: give the wire more time than that.
        self._waits = "wait" in names
        self.__doc__ = operation.stub.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            if len(args) > len(self._names):
                raise TypeError(f"{self._operation} takes {len(self._names)} arguments, not {len(args)}")
            kwargs.update(zip(self._names, args, strict=False))
        try:
            data = self._connection.call(self._operation.object_id, self._operation.name, kwargs)
        except AnswerLost as error:
            if not self._operation.remote.reads:
                raise
            raise NodeUnreachable(**error.fields) from None  # nothing was to be done, so nothing is unknown
        reply = _reply.decode(data)
        if reply.error is not None:
            raise from_wire(reply.error)
        if reply.away:
            self._connection.away.update(reply.away)
        raw = reply.ok if reply.task is None else self._follow(reply.task, self._operation)
        try:
            return self._result.decode(raw)
        except msgspec.ValidationError as error:
            raise InternalError(node=self._connection.node, reference=f"reply of {self._operation}: {error}") from None


class _Client:
    def __init__(self, contract: type, connection: Connection, follow: Follow) -> None:
        self._contract = contract
        self._connection = connection
        self._follow = follow

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found = None if name.startswith("_") else operation(self._contract, name)
        if found is None:
            raise AttributeError(f"{self._contract.__name__} has no operation {name}")
        call = _Call(self._connection, found, self._follow)
        self.__dict__[name] = call
        return call


def make_client(contract: type[T], connection: Connection, follow: Follow) -> T:
    """An object with the operations of *contract*, each carried over *connection*.

    Operations that are tasks are followed with *follow* and return what the stub says that they return. Their errors
    are the classes of mcvirt.errors.
    """
    return cast(T, _Client(contract, connection, follow))
