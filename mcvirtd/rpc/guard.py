"""The one interceptor: every call of every operation passes here, in this order.

identify -> check the arguments -> authorise -> route -> run, or start a task -> translate errors, log, audit.
Services hold no permission checks.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from mcvirt.errors import (
    BadArgument,
    InternalError,
    LoginsBusy,
    LoginSlowedDown,
    McvirtError,
    NotAMember,
    NotAuthenticated,
    NotPermitted,
    from_wire,
)
from mcvirt.permissions import Access, Permission
from mcvirt.rpc.codec import Reply
from mcvirt.rpc.contract import Operation, Vm, VmOfDisk
from mcvirtd.auth.audit import Audit
from mcvirtd.auth.caller import Caller, called_by
from mcvirtd.auth.rights import Rights
from mcvirtd.state.replication import going_on_without, noting_left_behind
from mcvirtd.tasks.engine import Tasks
from mcvirtd.tasks.task import Task, working_for

log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
# What an operation is about, for the log and the audit trail. Never anything that could be a secret.
_SUBJECTS = ("name", "vm", "disk", "user", "spec", "session", "task", "volume", "upload", "node")
# What else the audit trail names: to whom something was given, which hard drive a machine got.
_OTHERS = (
    *("vm", "disk", "user", "users", "permissions", "volume", "backend", "iso", "interface"),
    *("owner_is_off", "leader_is_off", "source", "destination"),
)
_LONGEST_ABOUT = 300


class Sessions(Protocol):
    """What the guard asks of the sessions."""

    def check(self, token: str, now: float) -> object:
        """Raise SessionRefused unless *token* is good."""


class Members(Protocol):
    """Knows the nodes of the cluster."""

    def check_version(self, name: str) -> None:
        """Raise NodeUnreachable unless this node and member *name* work together."""

    def is_member(self, caller: Caller) -> bool:
        """Whether the node that *caller* is is a member still."""


class Router(Protocol):
    """Knows which node an operation runs on."""

    def forward(self, operation: Operation, arguments: dict[str, Any], caller: Caller) -> bytes | None:
        """None if the operation runs here; otherwise the reply of the node that ran it."""


class Published:
    """An operation with the service's method that does it."""

    def __init__(self, operation: Operation, method: Callable[..., Any]) -> None:
        self.operation = operation
        self.method = method
        self.remote = operation.remote
        self.names = tuple(parameter.name for parameter in operation.parameters)
        self.arguments_type = operation.arguments_type()
        self.label = str(operation)
        self.subject = next((name for name in _SUBJECTS if name in self.names), None)
        self.others_named = [name for name in _OTHERS if name in self.names and name != self.subject]
        self.also = [(path.split("."), permission) for path, permission in self.remote.also.items()]
        # Nothing to authorise beyond the login, nothing to route and nothing to audit: most of all calls.
        self.plain = (
            self.remote.reads
            and isinstance(self.remote.needs, Access)
            and self.remote.on is None
            and not self.also
            and self.remote.runs_at is None
        )

    def read(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """The arguments, checked against the contract's types; BadArgument says which one is wrong and how."""
        if not isinstance(kwargs, dict) or not isinstance(args, list | tuple):
            raise BadArgument(what=self.label, why="the arguments are not a list and a map.")
        if args:
            if len(args) > len(self.names):
                raise BadArgument(what=self.label, why=f"it takes {len(self.names)} arguments, not {len(args)}.")
            given = dict(zip(self.names, args, strict=False))
            twice = [name for name in given if name in kwargs]
            if twice:
                raise BadArgument(what=self.label, why=f"{twice[0]} is given twice.")
            kwargs = {**given, **kwargs}
        if not kwargs and not self.names:
            return {}
        try:
            values = msgspec.convert(kwargs, self.arguments_type, strict=True)
        except msgspec.ValidationError as error:
            raise BadArgument(what=self.label, why=_plain(str(error))) from None
        return {name: getattr(values, name) for name in self.names}

    def target(self, arguments: dict[str, Any]) -> str:
        """What the call is about, in a word."""
        value = arguments.get(self.subject) if self.subject else None
        text = str(getattr(value, "name", value))[:200] if value is not None else ""
        return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)

    @staticmethod
    def wishes(caller: Caller) -> str:
        """What the caller wants to be passed over, for the audit trail."""
        found = [f"without {' '.join(caller.without)}"] if caller.without else []
        return ", ".join([*found, "ignoring DRBD"] if caller.ignore_drbd else found)

    def others(self, arguments: dict[str, Any]) -> str:
        """What else the call names, for the audit trail: "user bob, permissions CLONE_VM MIGRATE_VM"."""
        found = []
        for name in self.others_named:
            value = arguments[name]
            if value:
                found.append(f"{name} {' '.join(value[:20]) if isinstance(value, tuple) else value}")
        return ", ".join(found)[:_LONGEST_ABOUT]


class Guard:
    """See the module. *vm_of_disk* names the virtual machine that has a disk, if one has."""

    def __init__(
        self,
        *,
        node: str,
        clock: Callable[[], float],
        sessions: Sessions,
        rights: Rights,
        tasks: Tasks,
        audit: Audit,
        router: Router,
        vm_of_disk: Callable[[str], str | None],
        members: Members | None = None,
        refuse_changes: Callable[[str], None] = lambda operation: None,  # noqa: ARG005
    ) -> None:
        """*refuse_changes* is asked before each operation that is no reading, and may raise."""
        self._node = node
        self._clock = clock
        self._sessions = sessions
        self._rights = rights
        self._tasks = tasks
        self._audit = audit
        self._router = router
        self._vm_of_disk = vm_of_disk
        self._members = members
        self._refuse_changes = refuse_changes

    def call(self, published: Published, caller: Caller, args: Any, kwargs: Any) -> Reply:
        """Answer one call. Whatever happens, the answer is a Reply."""
        target = ""
        others = ""
        reference = ""
        try:
            self._identify(published, caller)
        except McvirtError as error:
            # Not into the audit trail: strangers could fill it, and it knows no one who could be named there.
            log.info("%s from %s refused: %s", published.label, caller.address, type(error).__name__)
            return _answer(error)
        except Exception:
            return self._hide(published, caller, target, others, secrets.token_hex(4))
        try:
            arguments = published.read(args, kwargs)
            if published.plain:
                with called_by(caller):
                    return Reply(ok=msgspec.Raw(_encode(published.method(**arguments))))
            target = published.target(arguments)
            others = ", ".join(filter(None, (published.others(arguments), published.wishes(caller))))
            self._authorise(published, caller, arguments)
            if not published.remote.reads:
                self._refuse_changes(published.label)
            reference = secrets.token_hex(4)
            forwarded = self._router.forward(published.operation, arguments, caller)
            if forwarded is not None:
                return self._handed_on(published, caller, target, msgspec.json.decode(forwarded, type=Reply), reference)
            log.debug("%s %s by %s begins [%s]", published.label, target, caller.user, reference)
            if published.remote.task:
                return self._start(published, caller, arguments, target, others)
            direct = Task(published.label, target, caller.user, self._node)
            with _at_work(caller), working_for(direct), noting_left_behind() as away:
                value = published.method(**arguments)
            reply = Reply(ok=msgspec.Raw(_encode(value)), away=tuple(sorted(away)))
        except McvirtError as error:
            return self._refuse(published, caller, target, error, reference, others=others)
        except Exception:
            return self._hide(published, caller, target, others, reference or secrets.token_hex(4))
        if not published.remote.reads:
            self._audit.record(caller, published.label, target, None, reference, others=others)
        return reply

    def _identify(self, published: Published, caller: Caller) -> None:
        needs_peer = published.remote.needs is Access.PEER
        if caller.joiner or published.remote.needs is Access.JOINER:
            if not (caller.joiner and published.remote.needs is Access.JOINER):
                raise NotAuthenticated(text="This is for the member that takes this node into its cluster, alone.")
        elif caller.peer:
            if self._members is None or not self._members.is_member(caller):
                raise NotAMember(node=self._node, name=caller.peer)
            if published.label.startswith("peer.") and published.label != "peer.heartbeat":
                self._members.check_version(caller.peer)
            if not needs_peer:
                raise NotAuthenticated(text=f"Node '{caller.peer}' is no user, and may not do this by itself.")
        elif needs_peer:
            raise NotAuthenticated(text="Only another node of the cluster may do this.")
        elif caller.via:
            if not caller.root and not self._rights.knows(caller.user):
                raise NotAuthenticated(text=f"Node '{self._node}' knows no user '{caller.user}'.")
        elif caller.token:
            self._sessions.check(caller.token, self._clock())
        elif not caller.root and published.remote.needs is not Access.ANYONE:
            raise NotAuthenticated(text="This needs a login. `mcvirt login` asks for a name and a password.")

    def _authorise(self, published: Published, caller: Caller, arguments: dict[str, Any]) -> None:
        if caller.root:
            return
        on = published.remote.on
        vm: str | None = None
        if isinstance(on, Vm):
            vm = arguments[on.argument]
        elif isinstance(on, VmOfDisk):
            vm = self._vm_of_disk(arguments[on.argument])
        needs = published.remote.needs
        instead = published.remote.instead
        enough = instead is not None and vm is not None and self._rights.allowed(caller, instead, vm)
        if not isinstance(needs, Access) and not enough:
            self._rights.require(caller, needs, vm)
        if not published.remote.reads:
            if caller.without:
                self._rights.require(caller, Permission.CAN_IGNORE_CLUSTER)
            if caller.ignore_drbd:
                self._rights.require(caller, Permission.CAN_IGNORE_DRBD)
        for path, permission in published.also:
            value: Any = arguments[path[0]]
            for name in path[1:]:
                value = getattr(value, name)
            if value is not None and value is not False and value not in ((), {}):
                self._rights.require(caller, permission, vm)

    def _handed_on(self, published: Published, caller: Caller, target: str, reply: Reply, reference: str) -> Reply:
        """Another node has answered; there is where it happened, and here is who asked."""
        if not published.remote.reads:
            error = from_wire(reply.error) if reply.error is not None else None
            detail = f"handed on as task {reply.task}" if reply.task else "handed on"
            self._audit.record(caller, published.label, target, error, reply.task or reference, detail=detail)
        return reply

    def _start(
        self, published: Published, caller: Caller, arguments: dict[str, Any], target: str, others: str
    ) -> Reply:
        def work() -> bytes:
            with _at_work(caller):
                return _encode(published.method(**arguments))

        def ended(task: Task, error: McvirtError | None) -> None:
            self._audit.record(caller, published.label, target, error, task.id, others=others)

        task = self._tasks.start(published.label, target, caller.user, work, ended)
        return Reply(task=task.id)

    def _refuse(
        self, published: Published, caller: Caller, target: str, error: McvirtError, reference: str, *, others: str
    ) -> Reply:
        denied = isinstance(error, NotPermitted | NotAuthenticated)
        # Slowed down, nothing was tried; and whoever is slowed down could fill the trail with it.
        slowed = isinstance(error, LoginSlowedDown | LoginsBusy)
        if not slowed and (denied or (not published.remote.reads and reference)):
            self._audit.record(caller, published.label, target, error, reference, others=others)
        return _answer(error)

    def _hide(self, published: Published, caller: Caller, target: str, others: str, reference: str) -> Reply:
        log.exception("%s %s by %s failed [%s]", published.label, target, caller.user, reference)
        error = InternalError(node=self._node, reference=reference)
        if not published.remote.reads:
            self._audit.record(caller, published.label, target, error, reference, others=others)
        return _answer(error)


@contextmanager
def _at_work(caller: Caller) -> Iterator[None]:
    with called_by(caller), going_on_without(caller.without):
        yield


def _answer(error: McvirtError) -> Reply:
    return Reply(error=msgspec.to_builtins(error.to_wire(), enc_hook=str))


def _plain(text: str) -> str:
    """msgspec's sentence, in words for operators: 'Expected `int`, got `str` - at `$.spec.memory`'."""
    what, separator, where = text.partition(" - at `$")
    place = where.rstrip("`").lstrip(".") if separator else ""
    what = what.replace("`", "'")
    sentence = what[:1].lower() + what[1:]
    return f"{place}: {sentence}." if place else f"{sentence}."
