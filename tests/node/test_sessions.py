"""Who may come in, for how long, and what they may do there: over real TLS, and through the real command."""

from __future__ import annotations

import json
import sqlite3
import stat
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcvirt import api
from mcvirt.permissions import Access, Permission
from mcvirt.rpc.contract import Operation, operations
from mcvirtd.auth.login import Login
from mcvirtd.auth.passwords import Passwords
from mcvirtd.auth.throttle import LoginThrottle
from mcvirtd.auth.tokens import Sessions, token_hash
from mcvirtd.state.records import UserRecord
from tests.node.attacker import Denied, Network, Wire
from tests.node.mcvirt_node import BRIDGE, McvirtNode
from tests.node.test_wire import plausible

ELSEWHERE = "10.99.0.1"
PASSWORD = "correct horse 1"


@pytest.fixture(scope="module", autouse=True)
def reachable(sim_node: McvirtNode) -> None:
    """The node listens on all of its addresses, of which one is not loopback."""
    sim_node.host.run(["ip", "address", "add", f"{ELSEWHERE}/24", "dev", BRIDGE])
    listen(sim_node, "0.0.0.0")


def listen(node: McvirtNode, address: str) -> None:
    text = node.settings_path.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("address = ")]
    lines.insert(lines.index("[listen]") + 1, f'address = "{address}"')
    node.stop_daemon()
    node.settings_path.write_text("\n".join(lines) + "\n")
    node.start_daemon()


@pytest.fixture(scope="module")
def users(sim_node: McvirtNode, network: Network, reachable: None) -> None:
    with network.wire() as root:
        for name in ("alice", "bob", "carol", "dave"):
            root.call("user", "create", name, PASSWORD)


@pytest.fixture(autouse=True)
def clean_log(sim_node: McvirtNode) -> Iterator[None]:
    """No test makes the daemon stumble."""
    before = sim_node.log_path.stat().st_size
    yield
    assert b"Traceback" not in sim_node.log_path.read_bytes()[before:]


def log_in(network: Network, user: str, password: str = PASSWORD, address: str = "127.0.0.1") -> dict[str, Any]:
    """The reply to a login."""
    with network.wire(None, address) as wire:
        return wire.call("auth", "login", user, password)


def token_of(network: Network, user: str, address: str = "127.0.0.1") -> str:
    reply = log_in(network, user, address=address)
    assert "ok" in reply, reply
    return str(reply["ok"]["token"])


def refused(reply: dict[str, Any]) -> tuple[str, int]:
    """The name and the exit status of the error in *reply*."""
    assert "error" in reply, reply
    return reply["error"]["name"], reply["error"]["exit_code"]


def door(network: Network, token: str, address: str = "127.0.0.1") -> str:
    """The error with which the daemon's door refuses *token*."""
    with pytest.raises(Denied) as denied:
        network.wire(token, address).close()
    return str(denied.value.error["name"])


# --- no token, and wrong ones -----------------------------------------------------------------------------------------


def test_nobody_can_do_nothing_but_log_in(network: Network, users: None) -> None:
    with network.wire(None) as wire:
        for contract in api.contracts():
            for operation in operations(contract).values():
                reply = wire.call(operation.object_id, operation.name)
                if operation.remote.needs is Access.ANYONE:
                    assert str(operation) == "auth.login"
                else:
                    assert refused(reply) == ("NotAuthenticated", 4)


def test_forged_tokens(sim_node: McvirtNode, network: Network, users: None) -> None:
    root, alice = network.root_token(), token_of(network, "alice")
    hashed = __import__("hashlib").sha256(alice.encode()).hexdigest()
    forged = [
        *(
            token
            for good in (root, alice)
            for token in (good[:-1], good + "A", good.swapcase(), good[::-1], good + "\n")
        ),
        *("x", " ", "\0", "A" * 43, "é" * 43, "A" * 60000, hashed, hashed[:43], "root", "alice", "null"),
    ]
    for token in forged:
        assert door(network, token) == "SessionRefused", token
    with network.wire(alice) as wire:
        assert wire.call("auth", "whoami")["ok"]["user"] == "alice"


def test_roots_token_is_good_on_the_node_only(network: Network, sim_node: McvirtNode, users: None) -> None:
    assert door(network, network.root_token(), ELSEWHERE) == "NotAuthenticated"
    with network.wire(token_of(network, "alice", ELSEWHERE), ELSEWHERE) as wire:
        assert wire.call("auth", "whoami")["ok"]["user"] == "alice"


def test_root_is_root_where_the_daemon_listens_on_one_address(sim_node: McvirtNode, users: None) -> None:
    listen(sim_node, ELSEWHERE)
    try:
        assert sim_node.json("whoami")["user"] == "root"
    finally:
        listen(sim_node, "0.0.0.0")


# --- the end of sessions ----------------------------------------------------------------------------------------------


def test_a_session_ends_on_open_connections_too(network: Network, users: None) -> None:
    with network.wire() as root:
        root.call("user", "create", "gone", PASSWORD)
        endings = {
            "revoke by id": lambda session: root.call("auth", "revoke", session),
            "new password": lambda _: root.call("user", "change_password", PASSWORD, "gone"),
            "revoke of user": lambda _: root.call("auth", "revoke", None, "gone"),
            "deletion": lambda _: root.call("user", "delete", "gone"),
        }
        for how, end in endings.items():
            token = token_of(network, "gone")
            with network.wire(token) as wire:
                (current,) = [each for each in wire.call("auth", "sessions")["ok"] if each.get("current")]
                reply = end(current["id"])
                assert "ok" in reply, (how, reply)
                assert refused(wire.call("auth", "whoami")) == ("SessionRefused", 4), how
            assert door(network, token) == "SessionRefused", how
        # A new user of the same name is somebody else.
        root.call("user", "create", "gone", PASSWORD)
        assert door(network, token) == "SessionRefused"
        root.call("user", "delete", "gone")


def test_logout(network: Network, users: None) -> None:
    token, other = token_of(network, "alice"), token_of(network, "alice")
    with network.wire(token) as wire:
        assert "ok" in wire.call("auth", "logout")
        assert refused(wire.call("vm", "list")) == ("SessionRefused", 4)
    assert door(network, token) == "SessionRefused"
    network.wire(other).close()


def test_sessions_outlive_the_daemon_and_expire(sim_node: McvirtNode, network: Network, users: None) -> None:
    lasting, idle, old = (token_of(network, "alice") for _ in range(3))
    root = network.root_token()
    assert sim_node.stop_daemon() == 0
    left = 5.0  # mcvirtd starts meanwhile
    with sqlite3.connect(sim_node.state_dir / "state.db") as db:
        sessions = [json.loads(data) for (data,) in db.execute("SELECT data FROM session")]
        assert not any(token in json.dumps(sessions) for token in (lasting, idle, old))
        for token, change in ((idle, {"idle_timeout": left}), (old, {"expires": time.time() + left})):
            (session,) = [each for each in sessions if each["token_hash"] == token_hash(token)]
            session |= {"last_used": time.time(), **change}
            db.execute("UPDATE session SET data = ? WHERE id = ?", (json.dumps(session).encode(), session["id"]))
    db.close()
    sim_node.start_daemon()
    assert door(network, root) == "SessionRefused"  # root's token is new with every start
    with network.wire(lasting) as wire:
        assert wire.call("auth", "whoami")["ok"]["user"] == "alice"
    with network.wire(old) as wire:
        deadline = time.monotonic() + left + 10
        while "ok" in (reply := wire.call("auth", "whoami")):  # used all the time, and over all the same
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        assert refused(reply) == ("SessionRefused", 4)
    assert door(network, old) == "SessionRefused"
    assert door(network, idle) == "SessionRefused"  # it was not used meanwhile


# --- the command's cache ----------------------------------------------------------------------------------------------


def remote(node: McvirtNode, home: Path, *argv: str, password: str | None = None) -> Any:
    """Run mcvirt as somebody who is not root of the node: the daemon is named, and the home is another one."""
    home.mkdir(exist_ok=True)
    port = json.loads((node.run_dir / "endpoint.json").read_bytes())["port"]
    flags = ("--host", f"localhost:{port}", "--ca-file", str(node.run_dir / "ca.pem"))
    env = {"HOME": str(home), **({} if password is None else {"MCVIRT_PASSWORD": password})}
    return node.mcvirt(*flags, *argv, check=False, env=env)


def test_the_cached_session(sim_node: McvirtNode, network: Network, users: None, tmp_path: Path) -> None:
    home = tmp_path / "home"
    cache = home / ".mcvirt-auth"
    assert remote(sim_node, home, "whoami").returncode == 4
    assert remote(sim_node, home, "login", "alice", password=PASSWORD + "x").returncode == 4
    assert not cache.exists()
    assert remote(sim_node, home, "login", "alice", password=PASSWORD).returncode == 0
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600
    assert PASSWORD not in cache.read_text()
    assert json.loads(remote(sim_node, home, "whoami", "--json").stdout)["user"] == "alice"
    cache.chmod(0o640)
    refused_file = remote(sim_node, home, "whoami")
    assert refused_file.returncode == 3 and "others may read it" in refused_file.stderr
    cache.chmod(0o600)
    # Revoked behind its back: said, and forgotten.
    with network.wire() as root:
        root.call("auth", "revoke", None, "alice")
    again = remote(sim_node, home, "whoami")
    assert again.returncode == 4 and "no longer valid" in again.stderr
    assert json.loads(cache.read_text()) == {}
    # Logging out ends it on the daemon, too.
    assert remote(sim_node, home, "login", "alice", password=PASSWORD).returncode == 0
    (token,) = json.loads(cache.read_text()).values()
    assert remote(sim_node, home, "logout").returncode == 0
    assert door(network, token) == "SessionRefused"
    assert json.loads(cache.read_text()) == {}


def test_a_session_for_one_command_ends_with_it(
    sim_node: McvirtNode, network: Network, users: None, tmp_path: Path
) -> None:
    with network.wire() as root:
        root.call("auth", "revoke", None, "bob")
        secret = tmp_path / "password"
        secret.write_text(PASSWORD + "\n")
        ran = remote(sim_node, tmp_path / "home", "list", "--username", "bob", "--password-file", str(secret))
        assert ran.returncode == 0, ran.stderr
        assert not (tmp_path / "home/.mcvirt-auth").exists()
        assert root.call("auth", "sessions", "bob")["ok"] == []


# --- guessing ---------------------------------------------------------------------------------------------------------


def test_guessing_is_slowed_down_and_locks_nobody_out(network: Network, users: None) -> None:
    token_of(network, "carol", ELSEWHERE)  # it is known from there
    answers = [refused(log_in(network, "carol", f"guess {number}")) for number in range(6)]
    assert answers[:3] == [("LoginFailed", 4)] * 3
    assert answers[-1] == ("LoginSlowedDown", 4)
    # Not even the right password is looked at here now; from elsewhere it is as good as ever.
    assert refused(log_in(network, "carol")) == ("LoginSlowedDown", 4)
    token_of(network, "carol", ELSEWHERE)
    # A user who does not exist is slowed down in the same way.
    nobody = [refused(log_in(network, "nobody", f"guess {number}")) for number in range(6)]
    assert nobody[:3] == answers[:3] and nobody[-1] == answers[-1]


def test_guessing_many_names_slows_down_the_address(network: Network, users: None) -> None:
    names = [f"guessed{number}" for number in range(14)]
    answers = [refused(log_in(network, name, PASSWORD))[0] for name in names]
    assert answers[-1] == "LoginSlowedDown"
    assert refused(log_in(network, "dave"))[0] == "LoginSlowedDown"  # who has never been here
    token_of(network, "dave", ELSEWHERE)
    token_of(network, "alice")  # who has


class _Counted(Passwords):
    def __init__(self) -> None:
        super().__init__()
        self.verified: list[bool] = []

    def verify(self, stored: str | None, password: str) -> bool:
        self.verified.append(stored is not None)
        return super().verify(stored, password)


def test_a_name_that_nobody_has_costs_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mcvirt.errors import LoginFailed
    from mcvirtd.auth.session_store import StoreSessions
    from mcvirtd.state.store import Store

    passwords = _Counted()
    store = Store(tmp_path / "state.db")
    with store.change() as change:
        change.put(UserRecord(name="alice", password_hash=passwords.hash(PASSWORD)))
    login = Login(
        store=store,
        sessions=Sessions(StoreSessions(store)),
        passwords=passwords,
        throttle=LoginThrottle(),
        root_token="x" * 43,
        clock=time.time,
    )
    took: dict[str, list[float]] = {"alice": [], "nobody": []}
    for number in range(3):
        for user, times in took.items():
            begun = time.perf_counter()
            with pytest.raises(LoginFailed):
                login.log_in(user, f"guess {number}", f"10.0.{number}.1")
            times.append(time.perf_counter() - begun)
    store.close()
    # The hash is computed for both. How long it took is for the reader: this machine has other things to do, too.
    assert passwords.verified == [True, False] * 3
    with capsys.disabled():
        print({user: f"{statistics.median(times) * 1000:.0f} ms" for user, times in took.items()})


# --- permissions ------------------------------------------------------------------------------------------------------


def _operations() -> list[Operation]:
    return [each for contract in api.contracts() for each in operations(contract).values()]


def test_a_user_without_rights_is_refused_every_operation(network: Network, users: None) -> None:
    with network.wire(token_of(network, "alice")) as wire, network.wire() as root:
        before = root.call("node", "list")["ok"][0]["revision"]
        for operation in _operations():
            if not isinstance(operation.remote.needs, Permission):
                continue
            arguments = {p.name: plausible(operation.hints[p.name]) for p in operation.parameters}
            reply = wire.call(operation.object_id, operation.name, **arguments)
            assert refused(reply) == ("NotPermitted", 4), operation
        for call in (
            ("auth", "sessions", "bob"),
            ("auth", "sessions", None, True),
            ("auth", "revoke", None, "bob"),
            ("user", "change_password", PASSWORD, "bob"),
        ):
            assert refused(wire.call(*call)) == ("NotPermitted", 4), call
        assert root.call("node", "list")["ok"][0]["revision"] == before


MUTATING = [
    "create web9 --memory 256MiB --cpu-count 1",
    "update web1 --memory 512MiB",
    "delete web1",
    "start web1",
    "stop web1",
    "shutdown web1",
    "reset web1",
    "lock web1 --lock",
    "register web1",
    "unregister web1",
    "hard-drive create 8MiB",
    "iso delete debian.iso",
    "storage create more --type File --path /srv/more",
    "storage delete data",
    "network create dmz --interface br0",
    "network delete lan",
    "user create eve --generate-password",
    "user delete bob",
    "user add-permission alice CREATE_VM",
    "user remove-permission bob CREATE_VM",
    "group create ops",
    "group delete user",
    "permission --global --add-superuser alice",
    "permission web1 --add-owner alice",
    "session revoke --user bob",
    "audit list",
]


@pytest.fixture(scope="module")
def machines(sim_node: McvirtNode, users: None) -> None:
    for name in ("web1", "web2"):
        sim_node.mcvirt("create", name, "--memory", "256MiB", "--cpu-count", "1")


def test_the_command_of_a_user_without_rights(
    sim_node: McvirtNode, network: Network, machines: None, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    flags = ("--username", "alice", "--password-file", str(secret), "--yes")
    whole = remote(sim_node, tmp_path / "home", *flags, *MUTATING[0].split())
    assert whole.returncode == 4, whole.stderr
    assert remote(sim_node, tmp_path / "home", "login", "alice", password=PASSWORD).returncode == 0
    with network.wire() as root:
        before = root.call("node", "list")["ok"][0]["revision"]
        for line in MUTATING:
            ran = remote(sim_node, tmp_path / "home", "--yes", *line.split())
            assert (ran.returncode, ran.stdout) == (4, ""), f"{line}: {ran}"
            last = ran.stderr.splitlines()[-1]
            assert last.startswith("Error: User 'alice' does not have the permission "), ran.stderr
        assert root.call("node", "list")["ok"][0]["revision"] == before


def test_a_right_on_one_machine(sim_node: McvirtNode, network: Network, machines: None) -> None:
    sim_node.mcvirt("user", "add-permission", "bob", "CHANGE_VM_POWER_STATE", "--virtual-machine", "web1")
    try:
        with network.wire(token_of(network, "bob")) as wire:
            assert state(wire, wire.call("vm", "start", "web1")) == "DONE"
            assert refused(wire.call("vm", "start", "web2")) == ("NotPermitted", 4)
            assert refused(wire.call("vm", "start", "nothing")) == ("NotPermitted", 4)
            assert refused(wire.call("vm", "delete", "web1")) == ("NotPermitted", 4)
            assert refused(wire.call("vm", "set_lock", "web1", True)) == ("NotPermitted", 4)
            # Starting it from an image is changing it.
            assert refused(wire.call("vm", "start", "web1", "some.iso")) == ("NotPermitted", 4)
            assert state(wire, wire.call("vm", "stop", "web1")) == "DONE"
            sim_node.mcvirt("user", "remove-permission", "bob", "CHANGE_VM_POWER_STATE", "--virtual-machine", "web1")
            assert refused(wire.call("vm", "start", "web1")) == ("NotPermitted", 4)  # at once, in this session
    finally:
        sim_node.mcvirt("user", "list")


def state(wire: Wire, reply: dict[str, Any]) -> str:
    """How the task of *reply* ended."""
    seen = -1
    while True:
        news = wire.call("task", "follow", reply["task"], seen)["ok"]
        if news["info"]["state"] in ("DONE", "FAILED", "CANCELLED", "STUCK"):
            return str(news["info"]["state"])
        seen = news["info"]["version"]


def test_tasks_of_others_are_not_there(network: Network, machines: None) -> None:
    with network.wire() as root, network.wire(token_of(network, "alice")) as wire:
        task = root.call("vm", "start", "web2")["task"]
        assert state(root, {"task": task}) == "DONE"
        for call in (("follow", task), ("cancel", task)):
            assert refused(wire.call("task", *call)) == ("NotFound", 3)
        assert wire.call("task", "list")["ok"] == []
