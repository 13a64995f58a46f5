"""Secrets are planted everywhere that takes one, and afterwards nothing that the node has written or shown has them."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mcvirt.errors import McvirtError
from mcvirt_client import Client
from tests.node.attacker import Denied, Network
from tests.node.mcvirt_node import McvirtNode

FIRST = "Planted-first-7f3a"
SECOND = "Planted-second-91cc"
THIRD = "Planted-third-5be0"
WRONG = "Planted-wrong-d2d2"
SHORT = "Pl-4nt"
FORGED = "Planted-forged-token-" + "x" * 22
ARGUMENT = "Planted-argument-08fe"


class _Watch:
    """Reads the command lines of all processes of this machine, over and over, until it is stopped."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.rounds = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        self.seen.add((entry / "cmdline").read_bytes())
                    except OSError:
                        continue
            self.rounds += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def story(node: McvirtNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Everything that has to do with secrets was done once; what was said, and the secrets."""
    home = tmp_path_factory.mktemp("home")
    said: list[str] = []
    watch = _Watch()
    network = Network(node)

    def secret_file(text: str) -> str:
        path = home / f"secret-{text}"
        path.write_text(text + "\n")
        path.chmod(0o600)
        return str(path)

    def mcvirt(*argv: str, status: int = 0, **env: str) -> str:
        ran = node.mcvirt(*argv, check=False, env={"HOME": str(home), "MCVIRT_DEBUG": "1", **env})
        assert ran.returncode == status, (argv, ran)
        said.append(ran.stdout + ran.stderr)
        return ran.stdout

    port = json.loads((node.run_dir / "endpoint.json").read_bytes())["port"]
    there = ("--host", f"localhost:{port}", "--ca-file", str(node.run_dir / "ca.pem"))
    try:
        mcvirt("user", "create", "alice", "--user-password-file", secret_file(FIRST))
        mcvirt("user", "create", "bob", "--user-password", ARGUMENT)
        generated = json.loads(node.mcvirt("user", "create", "carol", "--generate-password", "--json").stdout)
        mcvirt("user", "create", "dave", "--user-password-file", secret_file(SHORT), status=3)
        mcvirt(*there, "login", "alice", MCVIRT_PASSWORD=WRONG, status=4)
        mcvirt(*there, "login", "alice", MCVIRT_PASSWORD=FIRST)
        tokens = list(json.loads((home / ".mcvirt-auth").read_text()).values())
        mcvirt(*there, "whoami")
        mcvirt(
            *there,
            "user",
            "change-password",
            "--new-password-file",
            secret_file(SECOND),
            MCVIRT_PASSWORD=WRONG,
            status=3,
        )
        mcvirt(*there, "user", "change-password", "--new-password-file", secret_file(SECOND), MCVIRT_PASSWORD=FIRST)
        mcvirt("user", "change-password", "--target-user", "alice", "--new-password-file", secret_file(THIRD))
        mcvirt(*there, "whoami", status=4)
        mcvirt(*there, "--username", "alice", "--password-file", secret_file(THIRD), "list")
        mcvirt(*there, "login", "alice", MCVIRT_PASSWORD=THIRD)
        tokens += json.loads((home / ".mcvirt-auth").read_text()).values()
        said += _library(node, network, tokens[-1])
        mcvirt("create", "web1", "--memory", "64MiB", "--cpu-count", "1")
        mcvirt("start", "web1")
        with network.wire() as root:
            vnc = root.call("vm", "vnc", "web1")["ok"]["password"]
        argv = [seen for seen in _command_lines() if b"qemu-system" in seen and b"web1" in seen]
        mcvirt("info", "web1")
        mcvirt("info", "web1", "--json")
        mcvirt("list", "--json")
        mcvirt("delete", "web1", status=3)
        mcvirt("audit", "list", "--json")
        mcvirt("task", "list", "--json")
        mcvirt("session", "list", "--all", "--json")
        mcvirt("user", "list", "--json")
        passwords = [FIRST, SECOND, THIRD, WRONG, SHORT, ARGUMENT, generated["password"]]
        watch.stop()
        yield SimpleNamespace(
            home=home,
            said=said,
            watch=watch,
            qemu=argv,
            passwords=passwords,
            tokens=[*tokens, FORGED, network.root_token()],
            vnc=vnc,
        )
        mcvirt("stop", "web1")
    finally:
        watch.stop()
        network.close()


def _command_lines() -> list[bytes]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes())
            except OSError:
                continue
    return found


def _library(node: McvirtNode, network: Network, token: str) -> list[str]:
    """What the client library says of itself and of what went wrong, and what the wire answers."""
    said: list[str] = []
    client = Client.connect(run_dir=str(node.run_dir), token=token)

    def use() -> None:
        client.auth.whoami()
        said.append(repr(client) + repr(client._wire) + repr(client._wire._connection) + repr(client.auth))
        for wrong in (
            lambda: client.users.change_password(SECOND, None, WRONG),
            lambda: client.users.change_password(SHORT, None, THIRD),
            lambda: client.users.create("eve", SECOND),
            lambda: client.auth.login("alice", WRONG),
            lambda: client.auth.login(["alice"], [WRONG]),  # type: ignore[arg-type]
            lambda: client.users.create("eve", {WRONG: WRONG}),  # type: ignore[arg-type]
        ):
            try:
                wrong()
            except McvirtError as error:
                said.append(f"{error!r} {error} {error.fields}")
        client.close()

    network.run(use)
    with pytest.raises(Denied) as denied:
        network.wire(FORGED)
    said.append(str(denied.value))
    with network.wire() as wire, network.wire(None) as stranger:
        for reply in (
            wire.call("user", "create", "e", password=SECOND),
            wire.call("user", "create", name="eve", password=[SECOND]),
            wire.call("user", "create", name="eve", password="\0" + SECOND),
            wire.call("user", "create", name="eve", password=SECOND, more=SECOND),
            wire.call("user", "change_password", SECOND, "nobody", WRONG),
            stranger.call("auth", "login", "nobody", SECOND),
            stranger.call("auth", "login", user="alice", password=[WRONG]),
            stranger.call("auth", "login", "alice", WRONG, WRONG),
        ):
            said.append(json.dumps(reply))
    return said


def test_the_log_at_debug_has_none(node: McvirtNode, story: SimpleNamespace) -> None:
    log = node.log_path.read_text()
    assert "DEBUG" in log and "auth.login alice" in log
    assert [secret for secret in (*story.passwords, *story.tokens, story.vnc) if secret in log] == []
    assert "Traceback" not in log


def test_nothing_that_was_said_has_any(story: SimpleNamespace) -> None:
    said = "\n".join(story.said)
    assert "auth.login" in said and "user.change_password" in said  # the audit trail is among it
    assert [secret for secret in (*story.passwords, *story.tokens, story.vnc) if secret in said] == []


def test_no_command_line_has_any(story: SimpleNamespace) -> None:
    assert story.watch.rounds > 5 and story.qemu
    secrets = [secret.encode() for secret in (*story.passwords, *story.tokens, story.vnc)]
    for seen in story.watch.seen:
        shown = [secret for secret in secrets if secret in seen]
        if b"--user-password\0" in seen:
            shown.remove(ARGUMENT.encode())  # typed there, after a warning
        # The names of the test's own files have their content in them; they are paths, not passwords.
        assert [secret for secret in shown if b"secret-" + secret not in seen] == [], seen
    assert not any(secret in seen for seen in story.qemu for secret in secrets)


def _files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in directory.rglob("*"):
        try:
            facts = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(facts.st_mode):
            yield path, facts


def test_no_file_that_others_can_read_has_any(node: McvirtNode, story: SimpleNamespace) -> None:
    allowed = {
        **{secret: {f"secret-{secret}"} for secret in story.passwords},
        **{token: {".mcvirt-auth", "root.token"} for token in story.tokens},
        # libvirt keeps it with the domain, and gives it to QEMU over its monitor.
        story.vnc: {"web1.xml"},
    }
    found: dict[str, set[str]] = {}
    for directory in (node.directory, story.home):
        for path, facts in _files(directory):
            data = path.read_bytes()
            for secret, names in allowed.items():
                if secret.encode() in data:
                    assert not facts.st_mode & 0o077, f"{path} is readable: {stat.filemode(facts.st_mode)}"
                    found.setdefault(secret, set()).add(path.name)
                    assert path.name in names or (secret == story.vnc and path.name.startswith("state.db")), path
    assert "root.token" in found[story.tokens[-1]]  # the search does find


def test_what_mcvirt_keeps_is_for_root_alone(node: McvirtNode, story: SimpleNamespace) -> None:
    for path, facts in _files(node.state_dir):
        inside = path.relative_to(node.state_dir)
        # The CA's certificate and the node's own are what everybody is told anyway.
        assert not facts.st_mode & 0o077 or inside.suffix in (".pem", ".crt", ".iso"), f"{inside} {facts.st_mode:o}"
        assert facts.st_uid == 0
    others = {path.name for path, facts in _files(node.run_dir) if facts.st_mode & 0o077}
    assert others <= {"endpoint.json", "ca.pem"}
    for directory in (node.state_dir, node.run_dir):
        assert not directory.stat().st_mode & 0o022
        assert not any(path.stat().st_mode & 0o022 for path in directory.rglob("*") if path.is_dir())


def test_libvirt_was_not_told_more_than_the_vnc_password(node: McvirtNode, story: SimpleNamespace) -> None:
    logs = {str(path): path.read_text(errors="replace") for path, _ in _files(node.host.path("/var/log/libvirt"))}
    assert any("web1" in name for name in logs)
    for name, text in logs.items():
        assert [secret for secret in (*story.passwords, *story.tokens, story.vnc) if secret in text] == [], name
    assert story.vnc not in node.virsh("dumpxml", "web1")
