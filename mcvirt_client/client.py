"""The client library: one object with everything that a daemon offers.

from mcvirt_client import Client

with Client.connect() as client:
    for row in client.vms.list():
        print(row.name, row.state.value)
    client.vms["web1"].start()
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import msgspec

from mcvirt.errors import AnswerLost, McvirtError, NodeUnreachable, NotAuthenticated, SessionRefused
from mcvirt.rpc.proxy import make_client
from mcvirt.rpc.transport import CALL_TIMEOUT, Connection, client_context, configure
from mcvirt_client import discovery
from mcvirt_client.tasks import Detached, Follower

if TYPE_CHECKING:
    import ssl

    from mcvirt.api.auth import AuditApi, AuthApi, GroupApi, UserApi
    from mcvirt.api.cluster import NodeApi
    from mcvirt.api.drain import DrainApi
    from mcvirt.api.membership import ClusterApi
    from mcvirt.api.migration import MigrationApi
    from mcvirt.api.move import MoveApi
    from mcvirt.api.network import NetworkApi
    from mcvirt.api.split_brain import SplitBrainApi
    from mcvirt.api.storage import HardDriveApi, IsoApi, StorageApi
    from mcvirt.api.task import TaskApi
    from mcvirt.api.verification import VerificationApi
    from mcvirt.rpc.contract import Operation
    from mcvirt.types.auth import LoginResult
    from mcvirt.types.task import TaskRef
    from mcvirt_client.handles import Vms

T = TypeVar("T")

_CONTRACTS = {
    "vms": ("vm", "VmApi"),
    "migrations": ("migration", "MigrationApi"),
    "hard_drives": ("storage", "HardDriveApi"),
    "storage": ("storage", "StorageApi"),
    "isos": ("storage", "IsoApi"),
    "networks": ("network", "NetworkApi"),
    "drbd": ("drbd", "DrbdApi"),
    "users": ("auth", "UserApi"),
    "groups": ("auth", "GroupApi"),
    "auth": ("auth", "AuthApi"),
    "audit": ("auth", "AuditApi"),
    "nodes": ("cluster", "NodeApi"),
    "cluster": ("membership", "ClusterApi"),
    "tasks": ("task", "TaskApi"),
    "verification": ("verification", "VerificationApi"),
    "split_brain": ("split_brain", "SplitBrainApi"),
    "drains": ("drain", "DrainApi"),
    "moves": ("move", "MoveApi"),
}


def log_in(endpoint: discovery.Endpoint, username: str, password: str) -> LoginResult:
    """A new session on the daemon at *endpoint*; raises LoginFailed, LoginSlowedDown or LoginsBusy."""
    from mcvirt.api.auth import AuthApi

    configure()
    connection = Connection(
        endpoint.host, endpoint.port, client_context(endpoint.ca_pem), {}, node=endpoint.node, timeout=CALL_TIMEOUT
    )
    try:
        return make_client(AuthApi, connection, _no_tasks).login(username, password)
    finally:
        connection.close()


def _no_tasks(task: str, operation: Operation) -> msgspec.Raw:
    raise TypeError(f"{operation} became task {task}, and is not one")


class _Wire:
    """A connection that gets its token when it is first needed, and once more if the daemon's door refuses it.

    If the daemon can't be reached, and its CA has been exchanged since its file was read, the new one counts.
    """

    def __init__(
        self, endpoint: discovery.Endpoint, token: str | None, renew: Callable[[], str] | None, timeout: float
    ) -> None:
        self._endpoint = endpoint
        self._context: ssl.SSLContext | None = None
        self._connection: Connection | None = None
        self._renew = renew
        self._timeout = timeout
        self.token = token
        self.node = endpoint.node
        self.away: set[str] = set()
        self.wishes: dict[str, Any] = {}

    def call(self, object_id: str, method: str, arguments: dict[str, Any], *, timeout: float | None = None) -> bytes:
        connection = self._connection or self._open()
        try:
            return connection.call(object_id, method, arguments, timeout=timeout)
        except AnswerLost:
            raise
        except NodeUnreachable:
            # There was no connection, so the call was not made.
            endpoint = discovery.read_again(self._endpoint)
            if endpoint == self._endpoint:
                raise
            self.close()
            self._endpoint, self._context = endpoint, None
            return self._open().call(object_id, method, arguments, timeout=timeout)
        except SessionRefused:
            # The handshake was refused, so the call was not made, and can be made with a new session.
            if self._renew is None:
                raise
            self.close()
            self.token = None
            return self._open().call(object_id, method, arguments, timeout=timeout)

    def _open(self) -> Connection:
        if self.token is None:
            if self._renew is None:
                raise NotAuthenticated(text=f"Log in to {self._endpoint.key} first: no user name or token was given.")
            renew, self._renew = self._renew, None
            self.token = renew()
        if self._context is None:
            configure()
            self._context = client_context(self._endpoint.ca_pem)
        credentials = {"token": self.token, **self.wishes}
        self._connection = Connection(
            self._endpoint.host, self._endpoint.port, self._context, credentials, node=self.node, timeout=self._timeout
        )
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def another(self) -> _Wire:
        made = _Wire(self._endpoint, self.token, None, self._timeout)
        made.wishes = self.wishes
        return made


class Client:
    """A daemon's operations, by area; see the contracts in mcvirt.api for what each does.

    It connects with the first call. Operations that take a while are followed to their end and return their result;
    `start_only` returns at once instead. Errors are the classes of mcvirt.errors. One thread at a time; `another()`
    gives a second thread a client of its own.
    """

    vms: Vms
    migrations: MigrationApi
    hard_drives: HardDriveApi
    storage: StorageApi
    isos: IsoApi
    networks: NetworkApi
    users: UserApi
    groups: GroupApi
    auth: AuthApi
    audit: AuditApi
    nodes: NodeApi
    cluster: ClusterApi
    tasks: TaskApi
    verification: VerificationApi
    split_brain: SplitBrainApi
    drains: DrainApi
    moves: MoveApi

    def __init__(
        self,
        endpoint: discovery.Endpoint,
        *,
        token: str | None = None,
        renew: Callable[[], str] | None = None,
        timeout: float | None = None,
        call_timeout: float = CALL_TIMEOUT,
        _wire: _Wire | None = None,
    ) -> None:
        """*renew* gives a token when there is none, or when the daemon refuses the one that there is.

        *timeout* is how many seconds tasks are waited for, *call_timeout* how many for each answer of the daemon.
        """
        self.endpoint = endpoint
        self._wire = _wire or _Wire(endpoint, token, renew, call_timeout)
        self._own_session = False
        self.follower = Follower(lambda: self.tasks)
        self.follower.away = self._wire.away
        self.follower.timeout = timeout

    @classmethod
    def connect(
        cls,
        host: str | None = None,
        port: int | None = None,
        *,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        ca_file: str | None = None,
        run_dir: str | None = None,
        timeout: float | None = None,
        call_timeout: float = CALL_TIMEOUT,
    ) -> Self:
        """A client of the daemon on this machine, or on *host*.

        Who it is: *token*; else *username* with *password*, in a session that ends with the client; else, on the
        node itself, root; else the session that `mcvirt login` has cached. *timeout* is how many seconds tasks are
        waited for. Raises NotAuthenticated, BadArgument or NodeUnreachable.
        """
        endpoint = discovery.find(host, port, ca_file=ca_file, run_dir=run_dir)
        if token is not None:
            return cls(endpoint, token=token, timeout=timeout, call_timeout=call_timeout)
        if username is not None:
            session = log_in(endpoint, username, password or "")
            client = cls(endpoint, token=session.token, timeout=timeout, call_timeout=call_timeout)
            client._own_session = True
            return client
        found = discovery.read_root_token(endpoint)
        if found is None:
            from mcvirt_client.credentials import TokenCache

            found = TokenCache().get(endpoint.key)
        if found is None:
            raise NotAuthenticated(text=f"Log in to {endpoint.key} first, with `mcvirt login` or a user name.")
        return cls(endpoint, token=found, timeout=timeout, call_timeout=call_timeout)

    @property
    def token(self) -> str | None:
        """The token of the session, once there is one."""
        return self._wire.token

    @property
    def away(self) -> set[str]:
        """The nodes without which changes were made; they take them over when they are back. It may be cleared."""
        return self._wire.away

    def go_on(self, *, without: Sequence[str] = (), ignore_drbd: bool = False) -> None:
        """From now on, go on *without* nodes of which you have made sure that they are off, and past DRBD's warnings.

        A leader among those nodes that does not answer is replaced. What is changed needs CAN_IGNORE_CLUSTER then, or
        CAN_IGNORE_DRBD, and the audit trail says that it was done so.
        """
        wishes: dict[str, Any] = {"without": list(without)} if without else {}
        self._wire.wishes = {**wishes, "ignore_drbd": True} if ignore_drbd else wishes
        self._wire.close()

    def end_session_on_close(self) -> None:
        """The session was made for this client only: close() is to log out."""
        self._own_session = True

    def close(self) -> None:
        """Close the connection; a session that this client has logged in by itself ends too."""
        if self._own_session and self._wire.token is not None:
            self._own_session = False
            try:
                self.auth.logout()
            except McvirtError:
                pass  # it will expire
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        try:
            module, contract = _CONTRACTS[name]
        except KeyError:
            raise AttributeError(f"Client has no attribute {name!r}") from None
        api = getattr(importlib.import_module(f"mcvirt.api.{module}"), contract)
        made: Any = make_client(api, cast(Connection, self._wire), self.follower)
        if name == "vms":
            from mcvirt_client.handles import Vms

            made = Vms(made)
        self.__dict__[name] = made
        return made

    def another(self) -> Self:
        """A client with the same session and a connection of its own."""
        return type(self)(self.endpoint, timeout=self.follower.timeout, _wire=self._wire.another())

    def start_only(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> TaskRef:
        """Call *operation*, such as `client.vms.start`, and return its task instead of waiting for it."""
        before, self.follower.wait = self.follower.wait, False
        try:
            operation(*args, **kwargs)
        except Detached as detached:
            return detached.ref
        finally:
            self.follower.wait = before
        raise TypeError(f"{operation} is not a task")

    def wait_for(self, task: str, result: type[T]) -> T:
        """The result of *task* as a value of type *result*, once it is done; raises the task's error."""
        return msgspec.json.decode(self.follower.follow(task), type=result)
