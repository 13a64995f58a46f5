"""Users, groups, permissions and sessions, by the command, as different people."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node.mcvirt_node import McvirtNode
from tests.node.witness import create


class Person:
    """Somebody with a home of their own and no way to the root token."""

    def __init__(self, node: McvirtNode, name: str, home: Path) -> None:
        self.node, self.name, self.home = node, name, home
        (home / "password").write_text(f"secret of {name}\n")
        (home / "password").chmod(0o600)
        made = node.mcvirt("user", "create", name, "--user-password-file", str(home / "password"))
        assert made.stdout == f"{name}\n"

    def mcvirt(self, *argv: str, status: int = 0) -> Any:
        result = self.node.mcvirt(
            *argv, "--username", self.name, "--password-file", str(self.home / "password"), check=False
        )
        assert result.returncode == status, f"{argv}: {result.returncode}: {result.stdout}{result.stderr}"
        return result


@pytest.fixture(scope="module")
def alice(node: McvirtNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    create(node, "web1")
    create(node, "web2")
    yield Person(node, "alice", tmp_path_factory.mktemp("alice"))


def test_users(node: McvirtNode, alice: Person) -> None:
    made = node.mcvirt("user", "create", "bob", "--generate-password").stdout.splitlines()
    assert made[0] == "bob" and len(made[1]) >= 10
    assert {user["name"] for user in node.json("user", "list")} >= {"alice", "bob"}
    assert "User Type" in node.mcvirt("user", "list").stdout and made[1] not in node.log_path.read_text()
    assert node.mcvirt("user", "create", "bob", "--generate-password", check=False).returncode == 3
    assert "Deleted user" in node.mcvirt("user", "delete", "bob").stderr
    assert node.mcvirt("user", "delete", "bob", check=False).returncode == 3


def test_rights_on_one_machine(node: McvirtNode, alice: Person) -> None:
    said = alice.mcvirt("start", "web1", status=4).stderr
    assert "'alice'" in said and "CHANGE_VM_POWER_STATE" in said
    node.mcvirt("permission", "web1", "--add-user", "alice")
    alice.mcvirt("start", "web1")
    alice.mcvirt("start", "web2", status=4)
    alice.mcvirt("delete", "web1", status=4)
    alice.mcvirt("permission", "web1", "--add-user", "alice", status=4)
    alice.mcvirt("create", "mine1", "--memory", "32", "--cpu-count", "1", status=4)
    assert "alice" in node.mcvirt("info", "web1").stdout
    alice.mcvirt("stop", "web1")
    node.mcvirt("permission", "web1", "--delete-user", "alice")
    alice.mcvirt("start", "web1", status=4)
    node.mcvirt("permission", "web1", "--add-owner", "alice")
    alice.mcvirt("start", "web1")
    alice.mcvirt("stop", "web1")
    node.mcvirt("permission", "web1", "--delete-owner", "alice")
    node.mcvirt("user", "add-permission", "alice", "modify_vm", "--virtual-machine", "web2")
    alice.mcvirt("update", "web2", "--memory", "48")
    alice.mcvirt("update", "web1", "--memory", "48", status=4)
    node.mcvirt("user", "remove-permission", "alice", "MODIFY_VM", "--virtual-machine", "web2")
    alice.mcvirt("update", "web2", "--memory", "32", status=4)


def test_groups(node: McvirtNode, alice: Person) -> None:
    node.mcvirt("group", "create", "operators")
    node.mcvirt("group", "add-permission", "operators", "CREATE_VM", "MODIFY_VM")
    node.mcvirt("group", "add-user", "operators", "alice")
    alice.mcvirt("create", "mine1", "--memory", "32", "--cpu-count", "1")
    alice.mcvirt("delete", "mine1")
    assert node.mcvirt("group", "delete", "operators", check=False).returncode == 3
    node.mcvirt("group", "remove-user", "operators", "alice")
    node.mcvirt("group", "remove-permission", "operators", "MODIFY_VM")
    (group,) = [group for group in node.json("group", "list") if group["name"] == "operators"]
    assert group["permissions"] == ["CREATE_VM"] and group["users"] == []
    node.mcvirt("group", "delete", "operators")
    assert {group["name"] for group in node.json("group", "list")} == {"user", "owner"}


def test_superusers(node: McvirtNode, alice: Person) -> None:
    assert "CREATE_VM" in node.mcvirt("permission", "--list").stdout
    node.mcvirt("permission", "--global", "--add-superuser", "alice")
    alice.mcvirt("network", "create", "lan", "--interface", "br0")
    alice.mcvirt("network", "delete", "lan")
    node.mcvirt("permission", "--global", "--delete-superuser", "alice")
    alice.mcvirt("network", "create", "lan", "--interface", "br0", status=4)


def test_deleted_machine_takes_its_grants_along(node: McvirtNode, alice: Person) -> None:
    create(node, "temp1")
    node.mcvirt("permission", "temp1", "--add-owner", "alice")
    node.mcvirt("delete", "temp1")
    create(node, "temp1")
    alice.mcvirt("start", "temp1", status=4)
    node.mcvirt("delete", "temp1")


def test_sessions(node: McvirtNode, alice: Person) -> None:
    home = {"HOME": str(alice.home)}
    password = ("--password-file", str(alice.home / "password"))
    node.mcvirt("login", "alice", *password, env=home)
    cache = alice.home / ".mcvirt-auth"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600 and "secret" not in cache.read_text()
    assert "alice" in node.mcvirt("whoami", "--username", "alice", *password, env=home).stdout
    listed = node.mcvirt("session", "list", "--user", "alice").stdout
    sessions = re.findall(r"^(\S+)\s+alice", listed, re.MULTILINE)
    assert sessions
    ended = node.mcvirt("session", "revoke", "--user", "alice").stderr
    assert re.match(r"\d+ sessions? ended", ended)
    assert not re.findall(r"^(\S+)\s+alice", node.mcvirt("session", "list", "--user", "alice").stdout, re.MULTILINE)
    node.mcvirt("login", "alice", *password, env=home)
    node.mcvirt("logout", env=home)
    assert node.mcvirt("session", "revoke", "nosuch", check=False).returncode == 3


def test_passwords(node: McvirtNode, alice: Person) -> None:
    (alice.home / "new").write_text("another secret of alice\n")
    changed = node.mcvirt(
        "user", "change-password", "--target-user", "alice", "--new-password-file", str(alice.home / "new")
    )
    assert "Updated password" in changed.stderr
    said = alice.mcvirt("list", status=4).stderr
    assert "wrong" in said
    (alice.home / "new").replace(alice.home / "password")
    alice.mcvirt("list")
    assert "another secret" not in node.log_path.read_text()


def test_audit(node: McvirtNode, alice: Person) -> None:
    alice.mcvirt("stop", "web1", status=4)
    entries = node.json("audit", "list", "--user", "alice")
    last = [entry for entry in entries if entry["operation"] == "vm.stop"][-1]
    assert (last["target"], last["result"], last["user"]) == ("web1", "NotPermitted", "alice") and last["address"]
    assert "Operation" in node.mcvirt("audit", "list", "--target", "web1", "--limit", "5").stdout
    alice.mcvirt("audit", "list", status=4)
