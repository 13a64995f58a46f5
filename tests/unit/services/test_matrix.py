"""Every operation of every contract, called by every kind of caller through the real guard.

What to expect is read from the contracts' declarations here, by other means than the guard's.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt.api import contracts
from mcvirt.errors import NotAuthenticated, NotPermitted
from mcvirt.permissions import VM_SCOPED, Access, Permission
from mcvirt.rpc.contract import Operation, Vm, VmOfDisk, operations
from mcvirtd.auth.caller import Caller
from tests.unit.services.world import ROOT, World, recorder

OPERATIONS = [operation for contract in contracts() for operation in operations(contract).values()]
HERE, ELSEWHERE = "web1", "web2"


class Case(msgspec.Struct, frozen=True):
    """One way to call an operation, what it needs, and the machine that it is for."""

    arguments: dict[str, Any]
    needs: tuple[Permission, ...]
    vm: str | None
    instead: tuple[Permission, ...] = ()


def sample(hint: Any, *, full: bool = False) -> Any:
    """A value in wire form that passes for the type; *full* is one that is neither false nor empty."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in parameters:
        return sample(next(each for each in parameters if each is not type(None)), full=full)
    if origin is tuple:
        return [sample(parameters[0])] if full else []
    if origin is dict:
        return {"a": "b"} if full else {}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return next(iter(hint)).value
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        hints = typing.get_type_hints(hint)
        return {field.name: sample(hints[field.name]) for field in msgspec.structs.fields(hint) if field.required}
    return {str: "some", int: 1, float: 1.0, bool: True, bytes: "AAAA"}[hint]


def cases(operation: Operation) -> Iterator[Case]:
    remote, hints = operation.remote, operation.hints
    required = {p.name: sample(hints[p.name]) for p in operation.parameters if p.default is p.empty}
    own = () if isinstance(remote.needs, Access) else (remote.needs,)
    targets: list[tuple[dict[str, Any], str | None]] = [({}, None)]
    if isinstance(remote.on, Vm):
        targets = [({remote.on.argument: HERE}, HERE)]
        if remote.on.argument not in required:
            targets.append(({}, None))
    elif isinstance(remote.on, VmOfDisk):
        targets = [({remote.on.argument: "hd-used"}, HERE), ({remote.on.argument: "hd-free"}, None)]
    for named, vm in targets:
        arguments = {**required, **named}
        base = (*own, *(permission for path, permission in remote.also.items() if path in named))
        instead = (remote.instead,) if remote.instead is not None and vm is not None else ()
        yield Case(arguments, base, vm, instead)
        for path, permission in remote.also.items():
            if path not in named and not (isinstance(remote.on, Vm) and path == remote.on.argument):
                yield Case(given(arguments, path, hints), tuple(dict.fromkeys((*base, permission))), vm, instead)


def given(arguments: dict[str, Any], path: str, hints: dict[str, Any]) -> dict[str, Any]:
    name, _, field = path.partition(".")
    if not field:
        return {**arguments, name: sample(hints[name], full=True)}
    inner = sample(typing.get_type_hints(hints[name])[field], full=True)
    return {**arguments, name: {**arguments[name], field: inner}}


MATRIX = [
    pytest.param(operation, case, id=f"{operation}-{number}")
    for operation in OPERATIONS
    for number, case in enumerate(cases(operation))
]


class Stage(World):
    """A world in which all services only note that they were reached."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.reached: list[tuple[str, dict[str, Any]]] = []
        for contract in contracts():
            self.publish(contract, recorder(contract, lambda label, given: self.reached.append((label, given))))
        self.vm(HERE)
        self.vm(ELSEWHERE)

    def outcome(self, caller: Caller, operation: Operation, case: Case) -> str:
        self.reached.clear()
        try:
            self.call(caller, str(operation), **case.arguments)
        except NotPermitted:
            assert self.reached == []
            return "not permitted"
        except NotAuthenticated:
            assert self.reached == []
            return "not authenticated"
        assert [label for label, _ in self.reached] == [str(operation)]
        return "allowed"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("matrix"))
    yield made
    made.close()


@pytest.mark.parametrize(("operation", "case"), MATRIX)
def test_only_who_has_what_is_declared_gets_through(stage: Stage, operation: Operation, case: Case) -> None:
    needs = tuple(permission.value for permission in case.needs)
    anyone = operation.remote.needs is Access.ANYONE
    # Nobody has SUPERUSER but superusers, whatever is written in their list of permissions.
    enough = "not permitted" if "SUPERUSER" in needs else "allowed"
    scoped = case.vm is not None and set(case.needs) <= VM_SCOPED
    nothing = "allowed" if not needs else "not permitted"

    def outcome(caller: Caller) -> str:
        return stage.outcome(caller, operation, case)

    assert outcome(Caller(address="192.0.2.1")) == ("allowed" if anyone else "not authenticated")
    assert outcome(stage.caller(stage.user("plain"))) == nothing
    assert outcome(stage.caller(stage.user("exact", *needs))) == enough
    assert outcome(stage.caller(stage.user("here", on={HERE: needs}))) == ("allowed" if scoped else nothing)
    assert outcome(stage.caller(stage.user("elsewhere", on={ELSEWHERE: needs}))) == nothing
    others = tuple(each.value for each in Permission if each not in (*case.needs, *case.instead))
    assert outcome(stage.caller(stage.user("others", *others))) == nothing
    for one in needs:
        rest = tuple(each.value for each in Permission if each.value != one and each not in case.instead)
        assert outcome(stage.caller(stage.user("allbutone", *rest))) == "not permitted"
    for other in case.instead:
        assert outcome(stage.caller(stage.user("other", on={HERE: (other.value,)}))) == "allowed"
        assert outcome(stage.caller(stage.user("other", on={ELSEWHERE: (other.value,)}))) == "not permitted"
        assert outcome(stage.caller(stage.user("other", other.value))) == "allowed"
    assert outcome(stage.caller(stage.user("super", superuser=True))) == "allowed"
    assert outcome(ROOT) == "allowed"


def test_the_matrix_has_seen_every_operation_and_every_condition() -> None:
    assert {param.values[0] for param in MATRIX} == set(OPERATIONS)
    assert len(OPERATIONS) > 50
    for operation in OPERATIONS:
        seen = {need for param in MATRIX if param.values[0] is operation for need in param.values[1].needs}
        declared = set(operation.remote.also.values())
        if not isinstance(operation.remote.needs, Access):
            declared.add(operation.remote.needs)
        assert seen == declared, str(operation)


GIVEN_BY_GROUPS = [
    operation
    for operation in OPERATIONS
    if next(cases(operation)).needs and Permission.SUPERUSER not in next(cases(operation)).needs
]


@pytest.mark.parametrize("operation", GIVEN_BY_GROUPS, ids=str)
def test_a_group_gives_the_same_as_a_permission_of_ones_own(stage: Stage, operation: Operation) -> None:
    case = next(cases(operation))
    needs = tuple(permission.value for permission in case.needs)
    stage.user("member")
    stage.group("team", *needs, users=("member",))
    assert stage.outcome(stage.caller("member"), operation, case) == "allowed"
    stage.group("team", *needs, on={HERE: ("member",)})
    scoped = case.vm is not None and set(case.needs) <= VM_SCOPED
    assert stage.outcome(stage.caller("member"), operation, case) == ("allowed" if scoped else "not permitted")
    stage.group("team", *needs, on={ELSEWHERE: ("member",)})
    assert stage.outcome(stage.caller("member"), operation, case) == "not permitted"
    stage.group("team", *needs)
    assert stage.outcome(stage.caller("member"), operation, case) == "not permitted"


def test_a_machine_is_not_started_by_way_of_a_migration(stage: Stage) -> None:
    """Who may migrate it, and not start it, has it migrated only."""
    (migrate,) = (each for each in OPERATIONS if str(each) == "migration.migrate")
    caller = stage.caller(stage.user("mover", "MIGRATE_VM"))
    how = {"node": "n2", "wait_for_shutdown": True}
    for start, outcome in ((False, "allowed"), (True, "not permitted")):
        case = Case({"name": HERE, "how": {**how, "start_after": start}}, (), HERE)
        assert stage.outcome(caller, migrate, case) == outcome
