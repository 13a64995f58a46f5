"""What the command imports before it does anything: the larger part of what `mcvirt list` takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

FORBIDDEN = {
    *("getpass", "shlex", "readline", "subprocess", "asyncio", "concurrent.futures", "dataclasses"),
    *(
        "argcomplete",
        "pathlib",
        "urllib.parse",
        "tempfile",
        "shutil",
        "locale",
        "typing_extensions",
        "importlib.metadata",
    ),
    *("email", "http.client", "difflib", "fractions", "mcvirt.api.storage", "mcvirt.api.auth", "mcvirt.api.task"),
    *("mcvirt_client.cli.progress", "mcvirt_client.cli.shell", "mcvirt_client.cli.manpage", "cryptography", "lxml"),
}

LIST = """
import json, os, sys
from mcvirt_client.cli import main
from mcvirt.rpc import transport
class Answer:
    flags = 0
    data = b'{"ok": [{"name": "web1", "state": "RUNNING", "node": "n1", "memory": 1, "cpu_count": 1, "disk_size": 1}]}'
transport.Connection._connect = lambda self, timeout: None
transport.Pyro4.core.Proxy._pyroInvoke = lambda *args, **kwargs: Answer
status = main.run(["list"])
sys.stderr.write(json.dumps([status, sorted(sys.modules)]))
"""
USAGE = """
import json, sys
from mcvirt_client.cli import main
status = main.run(["lst"])
sys.stderr.write("\\n" + json.dumps([status, sorted(sys.modules)]))
"""


def modules_of(script, tmp_path):
    (tmp_path / "endpoint.json").write_text('{"host": "127.0.0.1", "port": 1, "node": "n1"}')
    (tmp_path / "root.token").write_text("token")
    from mcvirtd.cluster import certificates

    key = certificates.new_key()
    import datetime

    made = certificates.authority(key, datetime.datetime.now(datetime.UTC)).certificate
    (tmp_path / "ca.pem").write_bytes(certificates.pem(made))
    env = {**os.environ, "MCVIRT_RUN_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    prelude = "from mcvirt_client.cli.main import skip_typing_extensions; skip_typing_extensions()\n"
    ran = subprocess.run(
        [sys.executable, "-S", "-c", prelude + script], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    status, modules = json.loads(ran.stderr.splitlines()[-1])
    return status, ran.stdout, set(modules)


@pytest.mark.parametrize(("script", "status"), [(LIST, 0)])
def test_list_imports_nothing_slow(tmp_path, script, status):
    got, out, modules = modules_of(script, tmp_path)
    assert got == status
    assert "web1" in out
    assert modules & FORBIDDEN == set()


@pytest.mark.parametrize(("redirected", "status"), [(">&-", 0), ("<&-", 0), ("2>&-", 0), (">/dev/full", 1)])
def test_closed_and_full_streams_make_no_traceback(tmp_path, redirected, status):
    script = tmp_path / "mcvirt"
    script.write_text("from mcvirt_client.cli.main import main\nmain()\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        ["sh", "-c", f'"$0" "$1" --version {redirected}', sys.executable, str(script)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == status
    assert "Traceback" not in ran.stderr
    assert ran.stderr.count("\n") == status


def test_bad_usage_does_not_import_the_wire(tmp_path):
    got, _, modules = modules_of(USAGE, tmp_path)
    assert got == 2
    assert not modules & {"Pyro4", "ssl", "mcvirt_client.client"}
