from __future__ import annotations

import io

from mcvirt.errors import SessionRefused, VmLocked
from mcvirt_client.cli.context import Session
from mcvirt_client.cli.main import run
from tests.unit.cli.fake import Client


def shell(monkeypatch, text: str, *flags: str, **answers):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    client = Client(**answers)
    made = []

    def connect(args, out):
        made.append(args.host)
        return client

    status = run(list(flags), Session(connect))  # type: ignore[arg-type]
    return status, client, made


def test_lines_share_a_session_and_quotes_work(monkeypatch, capsys):
    status, client, made = shell(
        monkeypatch, "stop web1\n\n# nothing\nmcvirt iso delete 'my image.iso'\nexit\nstop web2\n"
    )
    assert status == 0
    assert [(label, args[0]) for label, args, _ in client.calls] == [
        ("vms.stop", "web1"),
        ("isos.delete", "my image.iso"),
    ]
    assert made == [None]
    assert client.closed
    assert capsys.readouterr().out == ""


def test_trouble_is_said_and_the_next_line_runs(monkeypatch, capsys):
    status, client, _ = shell(
        monkeypatch, "start a\nfrob\nlist 'x\nlist --help\nstop b\n", vms__start=VmLocked(name="a")
    )
    assert status == 3
    assert [label for label, _, _ in client.calls] == ["vms.start", "vms.stop"]
    err = capsys.readouterr().err
    assert "locked" in err
    assert "no command 'frob'" in err
    assert "can't be split" in err


def test_flags_of_the_shell_are_those_of_its_lines(monkeypatch):
    _, _, made = shell(monkeypatch, "stop a\nstop b --host n2\n", "--host", "n1")
    assert made == ["n1", "n2"]


def test_a_session_that_has_ended_is_not_kept(monkeypatch):
    _, _, made = shell(monkeypatch, "whoami\nwhoami\n", auth__whoami=SessionRefused())
    assert made == [None, None]
