"""Contract + service -> the facade that Pyro4 sees: a method an operation, each only the guard's door."""

from __future__ import annotations

import inspect
from collections.abc import MutableMapping
from typing import Any

import Pyro4

from mcvirt.rpc.contract import MARK, Operation, operations
from mcvirtd.rpc.guard import Guard, Published
from mcvirtd.rpc.server import caller_of_this_call


class NotImplementedByService(TypeError):
    """A service does not do what its contract says: a mistake of ours, found at the start."""


def publish(
    contract: type, service: object, guard: Guard, table: MutableMapping[str, Published] | None = None
) -> object:
    """The object to register under the contract's object_id; what it publishes is also put into *table*.

    Raises NotImplementedByService if an operation is missing in *service*, or has another signature there.
    """
    methods: dict[str, Any] = {}
    for name, operation in operations(contract).items():
        published = Published(operation, _implementation(operation, service))
        methods[name] = _door(published, guard)
        if table is not None:
            table[str(operation)] = published
    facade = Pyro4.expose(type(f"{contract.__name__}Facade", (), methods))
    return facade()


def _implementation(operation: Operation, service: object) -> Any:
    method = getattr(service, operation.name, None)
    if method is None or hasattr(method, MARK):
        raise NotImplementedByService(f"{type(service).__name__} does not implement {operation}")
    mine = inspect.signature(method)
    theirs = operation.signature.replace(parameters=operation.parameters)
    if mine != theirs:
        raise NotImplementedByService(
            f"{type(service).__name__}.{operation.name}{mine} is not what the contract says: {theirs}"
        )
    return method


def _door(published: Published, guard: Guard) -> Any:
    def door(_facade: object, /, *args: Any, **kwargs: Any) -> Any:
        return guard.call(published, caller_of_this_call(), args, kwargs)

    door.__name__ = published.operation.name
    return door
