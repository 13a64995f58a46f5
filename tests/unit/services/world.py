"""A daemon's inside without its network: the real store, guard, rights and services, and a clock to set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from mcvirt.api.auth import AuditApi, AuthApi, GroupApi, UserApi
from mcvirt.api.task import TaskApi
from mcvirt.errors import from_wire
from mcvirt.rpc.codec import Reply
from mcvirt.rpc.contract import Operation, operations
from mcvirtd.auth.audit import Audit
from mcvirtd.auth.caller import Caller, called_by
from mcvirtd.auth.groups import GroupService
from mcvirtd.auth.login import Login
from mcvirtd.auth.passwords import Passwords
from mcvirtd.auth.rights import Rights
from mcvirtd.auth.service import AuditService, AuthService
from mcvirtd.auth.session_store import StoreSessions
from mcvirtd.auth.throttle import LoginThrottle
from mcvirtd.auth.tokens import Sessions
from mcvirtd.auth.users import UserService
from mcvirtd.rpc.guard import Guard, Published
from mcvirtd.state.records import GroupRecord, UserRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.engine import Tasks
from mcvirtd.tasks.service import TaskService
from mcvirtd.tasks.transaction import Journal

ROOT_TOKEN = "root-" + "r" * 43
ROOT = Caller(user="root", root=True, address="127.0.0.1")
ADDRESS = "192.0.2.7"


class Here:
    """A router that runs everything here, unless it is told what another node answered."""

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.asked: list[tuple[str, dict[str, Any], str]] = []

    def forward(self, operation: Operation, arguments: dict[str, Any], caller: Caller) -> bytes | None:
        self.asked.append((str(operation), arguments, caller.user))
        return self.answer


class FastPasswords(Passwords):
    """For tests of what is not about passwords: a "hash" costs nothing."""

    def hash(self, password: str) -> str:
        return "plain:" + password

    def verify(self, stored: str | None, password: str) -> bool:
        return stored == "plain:" + password


class World:
    def __init__(self, directory: Path, *, passwords: Passwords | None = None) -> None:
        self.now = 1_800_000_000.0
        self.monotonic = 1000.0
        self.store = Store(directory / "state.db")
        self.journal = Journal(self.store)
        self.tasks = Tasks(self.store, self.journal, "n1")
        self.rights = Rights(self.store)
        self.audit = Audit(self.store, "n1")
        self.sessions = Sessions(StoreSessions(self.store))
        self.passwords = passwords or FastPasswords()
        self.throttle = LoginThrottle(clock=lambda: self.monotonic)
        self.login = Login(
            store=self.store,
            sessions=self.sessions,
            passwords=self.passwords,
            throttle=self.throttle,
            root_token=ROOT_TOKEN,
            clock=self.clock,
        )
        self.router = Here()
        self.disks: dict[str, str | None] = {"hd-used": "web1", "hd-free": None}
        self.guard = Guard(
            node="n1",
            clock=self.clock,
            sessions=self.login,
            rights=self.rights,
            tasks=self.tasks,
            audit=self.audit,
            router=self.router,
            vm_of_disk=self.disks.get,
        )
        self.auth = AuthService(
            store=self.store,
            sessions=self.sessions,
            login=self.login,
            rights=self.rights,
            node="n1",
            clock=self.clock,
        )
        self.users = UserService(
            store=self.store,
            rights=self.rights,
            sessions=self.sessions,
            passwords=self.passwords,
            login=self.login,
        )
        self.groups = GroupService(store=self.store, rights=self.rights)
        self.trail = AuditService(self.audit)
        self.task_service = TaskService(tasks=self.tasks, rights=self.rights)
        self._published: dict[str, Published] = {}
        for contract, service in (
            (AuthApi, self.auth),
            (UserApi, self.users),
            (GroupApi, self.groups),
            (AuditApi, self.trail),
            (TaskApi, self.task_service),
        ):
            self.publish(contract, service)

    def clock(self) -> float:
        return self.now

    def close(self) -> None:
        self.tasks.close(5)
        self.store.close()

    def publish(self, contract: type, service: object) -> None:
        for name, operation in operations(contract).items():
            self._published[str(operation)] = Published(operation, getattr(service, name))

    # --- who there is -------------------------------------------------------------------------------------------------

    def user(
        self,
        name: str,
        *permissions: str,
        superuser: bool = False,
        on: dict[str, tuple[str, ...]] | None = None,
        password: str = "old password",
    ) -> str:
        with self.store.change() as change:
            change.put(
                UserRecord(
                    name=name,
                    password_hash="plain:" + password,
                    superuser=superuser,
                    permissions=permissions,
                    vm_permissions=on or {},
                )
            )
        return name

    def group(
        self, name: str, *permissions: str, users: tuple[str, ...] = (), on: dict[str, tuple[str, ...]] | None = None
    ) -> str:
        with self.store.change() as change:
            change.put(GroupRecord(name=name, id="gp-" + name, permissions=permissions, users=users, vm_users=on or {}))
        return name

    def vm(self, name: str, **fields: Any) -> str:
        values: dict[str, Any] = {"id": "vm-" + name, "uuid": "uuid-" + name, "memory": 1, "cpu_count": 1}
        with self.store.change() as change:
            change.put(VmRecord(name=name, nodes=("n1",), **{**values, **fields}))
        return name

    def caller(self, name: str) -> Caller:
        """A caller with a session of *name*'s."""
        if name == "root":
            return ROOT
        token, session = self.sessions.issue(name, address=ADDRESS, now=self.now)
        return Caller(user=name, session=session.id, token=token, address=ADDRESS)

    def as_(self, name: str) -> AbstractContextManager[None]:
        """What is called in the block is called by *name*."""
        return called_by(ROOT if name == "root" else Caller(user=name, address=ADDRESS))

    # --- calling ------------------------------------------------------------------------------------------------------

    def reply(self, caller: Caller, operation: str, *args: Any, **kwargs: Any) -> Reply:
        return self.guard.call(self._published[operation], caller, args, kwargs)

    def call(self, caller: Caller | str, operation: str, *args: Any, **kwargs: Any) -> Any:
        """The value (as plain data), or the error that came back, raised."""
        who = self.caller(caller) if isinstance(caller, str) else caller
        reply = self.reply(who, operation, *args, **kwargs)
        if reply.task is not None:
            news = self.tasks.news(reply.task, wait=10)
            while news.info.finished is None:
                news = self.tasks.news(reply.task, news.info.version, 10)
            reply = Reply(ok=news.result, error=news.info.error)
        if reply.error is not None:
            raise from_wire(reply.error)
        return msgspec.json.decode(reply.ok)


def recorder(contract: type, record: Callable[[str, dict[str, Any]], Any]) -> object:
    """A service of *contract* whose every operation only tells *record* about it."""

    def method(label: str) -> Callable[..., Any]:
        def run(_self: object, **arguments: Any) -> Any:
            return record(label, arguments)

        return run

    made = {name: method(str(operation)) for name, operation in operations(contract).items()}
    return type(f"Recorded{contract.__name__}", (), made)()
