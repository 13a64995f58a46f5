from __future__ import annotations

import argparse
import io
import os
import stat

import pytest

from mcvirt.errors import BadArgument, Failed, NodeUnreachable, NotAuthenticated, SessionRefused
from mcvirt_client import client as client_module
from mcvirt_client import discovery
from mcvirt_client.cli import login, parser
from mcvirt_client.cli.output import Output
from mcvirt_client.client import Client
from mcvirt_client.credentials import TokenCache

PEM = "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MCVIRT_RUN_DIR", str(tmp_path))
    for name in ("MCVIRT_CA_FILE", "MCVIRT_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "endpoint.json").write_text('{"host": "127.0.0.1", "port": 9090, "node": "n1"}')
    (tmp_path / "ca.pem").write_text(PEM)
    return tmp_path


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_the_cache_is_for_its_owner_alone(tmp_path, umask):
    cache = TokenCache(str(tmp_path / "auth"))
    before = os.umask(umask)
    try:
        cache.put("h:1", "t1")
        cache.put("h:2", "t2")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "auth").stat().st_mode) == 0o600
    assert (cache.get("h:1"), cache.get("h:2"), cache.get("h:3")) == ("t1", "t2", None)
    assert cache.drop("h:1")
    assert not cache.drop("h:1")
    assert (cache.get("h:1"), cache.get("h:2")) == (None, "t2")
    assert [path.name for path in tmp_path.iterdir()] == ["auth"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_cache_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "auth"
    path.write_text('{"h:1": "t"}')
    path.chmod(mode)
    with pytest.raises(BadArgument, match="others may read it"):
        TokenCache(str(path)).get("h:1")


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "real").write_text('{"h:1": "t"}')
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "auth").symlink_to(tmp_path / "real")
    with pytest.raises(BadArgument):
        TokenCache(str(tmp_path / "auth")).get("h:1")


@pytest.mark.parametrize("content", ["alice\n0123456789abcdef\n", "", "[]", '{"a": 1}', "\xff"])
def test_old_and_damaged_caches_hold_nothing(tmp_path, content):
    path = tmp_path / "auth"
    path.write_bytes(content.encode("latin-1"))
    path.chmod(0o600)
    assert TokenCache(str(path)).get("h:1") is None


def test_a_cache_that_can_not_be_written_is_a_sentence(tmp_path):
    with pytest.raises(Failed, match="could not be kept"):
        TokenCache(str(tmp_path / "no" / "auth")).put("h:1", "t")
    (tmp_path / f"auth.{os.getpid()}.tmp").write_text("planted")
    with pytest.raises(Failed):
        TokenCache(str(tmp_path / "auth")).put("h:1", "t")


def test_the_local_daemon_is_found(run_dir):
    found = discovery.find()
    assert (found.host, found.port, found.node, found.ca_pem, found.key) == (
        "127.0.0.1",
        9090,
        "n1",
        PEM,
        "127.0.0.1:9090",
    )
    assert discovery.read_root_token(found) is None
    (run_dir / "root.token").write_text("secret\n")
    assert discovery.read_root_token(found) == "secret"


def test_named_hosts_never_get_the_token_of_local_root(run_dir):
    (run_dir / "root.token").write_text("secret\n")
    found = discovery.find("127.0.0.1", 9090)
    assert discovery.read_root_token(found) is None


@pytest.mark.parametrize("content", ["", "{}", '{"host": 1}', "\x00"])
def test_a_damaged_endpoint_is_a_sentence(run_dir, content):
    (run_dir / "endpoint.json").write_text(content)
    with pytest.raises(NodeUnreachable):
        discovery.find()


def test_a_ca_that_is_missing_or_none_is_a_sentence(run_dir):
    (run_dir / "ca.pem").unlink()
    with pytest.raises(BadArgument, match="--ca-file"):
        discovery.find("n2")
    with pytest.raises(BadArgument, match="can't be read"):
        discovery.find("n2", ca_file="/nonexistent")
    (run_dir / "not.pem").write_text("hello")
    with pytest.raises(BadArgument, match="PEM"):
        discovery.find("n2", ca_file=str(run_dir / "not.pem"))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("n1", "n1", None),
        ("n1:99", "n1", 99),
        ("::1", "::1", None),
        ("[::1]:99", "::1", 99),
        ("[::1]", "::1", None),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
    ],
)
def test_hosts_with_and_without_ports(text, host, port):
    assert discovery.split_host(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", ":99", "n1:", "n1:0", "n1:65536", "n1:x", "a b", "u@n1", "n1/x", "[::1]:", "[::1]99"]
)
def test_what_is_no_host(text):
    with pytest.raises(BadArgument):
        discovery.split_host(text)


def options(*words: str) -> argparse.Namespace:
    made = parser.Parser(prog="x")
    parser.add_globals(made)
    return made.parse_args(words)


class Logins:
    """Stands for the daemon's login."""

    def __init__(self, monkeypatch):
        self.seen: list[tuple[str, str]] = []
        monkeypatch.setattr(login, "log_in", self)

    def __call__(self, endpoint, username, password):
        self.seen.append((username, password))
        return argparse.Namespace(token=f"token-{len(self.seen)}")


class Door:
    """Stands for the connection: refuses the tokens in *bad* in the handshake, and answers "who" otherwise."""

    opened: list[str]

    def __init__(self, monkeypatch, *bad: str):
        door = self
        self.opened = []

        class Connection:
            def __init__(self, host, port, context, credentials, *, node="", timeout=0.0):
                self.token = credentials["token"]
                door.opened.append(self.token)

            def call(self, object_id, method, arguments, *, timeout=None):
                if self.token in bad:
                    raise SessionRefused
                return b'{"ok": {"token": "", "user": "u", "superuser": true, "permissions": [], "node": "n1"}}'

            def close(self):
                pass

        monkeypatch.setattr(client_module, "Connection", Connection)
        monkeypatch.setattr(client_module, "client_context", lambda pem: None)


def test_root_on_the_node_needs_no_login(run_dir, monkeypatch):
    (run_dir / "root.token").write_text("root-token")
    logins, door = Logins(monkeypatch), Door(monkeypatch)
    login.connect(options(), Output()).auth.whoami()
    assert (logins.seen, door.opened) == ([], ["root-token"])


def test_username_is_who_it_is_even_for_root(run_dir, monkeypatch):
    (run_dir / "root.token").write_text("root-token")
    (run_dir / "pw").write_text("word\n")
    logins, door = Logins(monkeypatch), Door(monkeypatch)
    login.connect(options("-U", "alice", "--password-file", str(run_dir / "pw")), Output()).auth.whoami()
    assert (logins.seen, door.opened) == ([("alice", "word")], ["token-1"])


def test_a_kept_session_is_used(run_dir, monkeypatch):
    TokenCache().put("127.0.0.1:9090", "kept")
    logins, door = Logins(monkeypatch), Door(monkeypatch)
    login.connect(options(), Output()).auth.whoami()
    assert (logins.seen, door.opened) == ([], ["kept"])


def test_a_kept_session_that_is_refused_is_dropped_and_asked_for_again(run_dir, monkeypatch):
    TokenCache().put("127.0.0.1:9090", "kept")
    TokenCache().put("other:1", "other")
    logins, door = Logins(monkeypatch), Door(monkeypatch, "kept")
    monkeypatch.setattr(login, "_ask_username", lambda endpoint: "alice")
    monkeypatch.setenv("MCVIRT_PASSWORD", "word")
    err = io.StringIO()
    login.connect(options("--cache-credentials"), Output(stderr=err)).auth.whoami()
    assert "no longer valid" in err.getvalue()
    assert logins.seen == [("alice", "word")]
    assert door.opened == ["kept", "token-1"]
    assert TokenCache().get("127.0.0.1:9090") == "token-1"
    assert TokenCache().get("other:1") == "other"


def test_a_new_session_that_is_refused_is_not_asked_for_for_ever(run_dir, monkeypatch):
    logins, _ = Logins(monkeypatch), Door(monkeypatch, "token-1", "token-2")
    monkeypatch.setenv("MCVIRT_PASSWORD", "word")
    with pytest.raises(SessionRefused):
        login.connect(options("-U", "alice"), Output()).auth.whoami()
    assert len(logins.seen) == 1


def test_where_nobody_can_be_asked_it_is_a_sentence(run_dir, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(NotAuthenticated, match="mcvirt login"):
        login.connect(options(), Output()).auth.whoami()
    with pytest.raises(NotAuthenticated, match="password"):
        login.connect(options("-U", "a"), Output()).auth.whoami()


def test_a_password_on_the_command_line_works_and_warns(run_dir, monkeypatch):
    logins, _ = Logins(monkeypatch), Door(monkeypatch)
    err = io.StringIO()
    login.connect(options("-U", "a", "--password", "pw"), Output(stderr=err)).auth.whoami()
    assert logins.seen == [("a", "pw")]
    assert "can see a password" in err.getvalue()
    assert "pw" not in err.getvalue().replace("--password", "")


def test_the_library_says_what_it_needs(run_dir):
    with pytest.raises(NotAuthenticated, match="mcvirt login"):
        Client.connect()


def test_a_session_of_its_own_ends_with_the_client(run_dir, monkeypatch):
    Door(monkeypatch)
    calls = []
    monkeypatch.setattr(client_module, "log_in", lambda *a: argparse.Namespace(token="t"))
    with Client.connect(username="a", password="b") as client:
        client.__dict__["auth"] = argparse.Namespace(logout=lambda: calls.append("logout"))
    assert calls == ["logout"]
