from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mcvirt.errors import NodeUnreachable
from mcvirt_client.cli import completion
from mcvirt_client.cli.live import KINDS
from mcvirt_client.cli.manpage import every_command
from mcvirt_client.cli.parser import build
from tests.unit.cli.fake import Client


@pytest.fixture
def complete(tmp_path, monkeypatch):
    """Candidates for a line that ends at the cursor."""
    client = Client(vms__names=("db1", "web1", "web2"), networks__list=())
    hosts = []

    def connect(host, ca_file):
        hosts.append(host)
        return client

    monkeypatch.setattr(completion, "_client", connect)
    monkeypatch.setattr("argcomplete.finders.CompletionFinder._init_debug_stream", lambda self: None)
    out = tmp_path / "out"

    def ask(line: str) -> list[str]:
        out.write_text("")
        for name, value in {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
            "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
            "_ARGCOMPLETE_IFS": "\v",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line.encode())),
        }.items():
            monkeypatch.setenv(name, value)
        completion.answer()
        return sorted(word.strip() for word in out.read_text().split("\v") if word.strip())

    ask.client = client
    ask.hosts = hosts
    return ask


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("mcvirt st", ["start", "stop", "storage"]),
        ("mcvirt --json st", ["start", "stop", "storage"]),
        ("mcvirt --host n1 st", ["start", "stop", "storage"]),
        ("mcvirt network ", ["create", "delete", "list"]),
        ("mcvirt network cr", ["create"]),
        ("mcvirt nothing ", []),
        ("mcvirt network nothing ", []),
        ("mcvirt start we", ["web1", "web2"]),
        ("mcvirt start web1 d", ["db1"]),
        ("mcvirt --host n9 start we", ["web1", "web2"]),
        ("mcvirt list --me", ["--memory"]),
        ("mcvirt storage create x --type L", ["Lvm"]),
        ("mcvirt group add-permission g MODIFY_V", ["MODIFY_VM"]),
        ("mcvirt --ho", ["--host"]),
        ("mcvirt network --js", ["--json"]),
        ("mcvirt hard-drive attach hd-1 w", ["web1", "web2"]),
        ("mcvirt hard-drive create 5", []),
        ("mcvirt node ", ["drain"]),
        ("mcvirt node --set-i", ["--set-ip-address"]),
        ("mcvirt node --set-ip-address ", []),
        ("mcvirt node drain --ret", ["--return"]),
    ],
)
def test_candidates(complete, line, candidates):
    assert complete(line) == candidates


def test_the_host_that_was_typed_is_asked(complete):
    complete("mcvirt --host n9 start we")
    complete("mcvirt start --host=n8 we")
    assert complete.hosts == ["n9", "n8"]


def test_names_of_commands_ask_no_daemon(complete):
    complete("mcvirt st")
    complete("mcvirt network ")
    assert complete.client.calls == []


def test_trouble_is_silent(complete, capfd):
    complete.client.answers["vms.names"] = NodeUnreachable(node="n", reason="x")
    assert complete("mcvirt start we") == []
    assert capfd.readouterr() == ("", "")


def test_every_kind_of_name_has_a_source():
    used = {
        action.live
        for path, command in every_command()
        for action in build(path, command)._actions
        if hasattr(action, "live")
    }
    assert used == set(KINDS)


def test_the_script_is_bash(tmp_path):
    script = tmp_path / "mcvirt"
    made = subprocess.run(
        [sys.executable, "-m", "mcvirt_client.cli.completion"], capture_output=True, text=True, check=True
    )
    script.write_text(made.stdout)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_bash_gets_candidates_from_the_real_command(tmp_path):
    script = tmp_path / "completion"
    script.write_text(completion.SCRIPT)
    command = tmp_path / "mcvirt"
    command.write_text(f"#!{sys.executable}\nfrom mcvirt_client.cli.main import main\nmain()\n")
    command.chmod(0o755)
    asks = f'. {script}; COMP_LINE="mcvirt net"; COMP_POINT=10; _mcvirt_complete {command}; echo "${{COMPREPLY[@]}}"'
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(["bash", "-c", asks], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "network\n"
