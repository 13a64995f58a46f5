from __future__ import annotations

import errno
import json

import pytest

from mcvirt import errors
from mcvirt_client.cli.report import Declined, UsageError, guarded
from tests.unit.cli.fake import Client, run_with


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (errors.VmNotFound(name="web1"), 3, "There is no virtual machine called 'web1'."),
        (errors.VmIncomplete(name="web1", reason="No disk."), 1, "web1"),
        (errors.NotPermitted(user="a", permission="CREATE_VM", scope=""), 4, "CREATE_VM"),
        (errors.LoginFailed(), 4, "wrong"),
        (errors.NodeUnreachable(node="n1", reason="gone."), 5, "n1"),
        (errors.RemoteError(name="NewError", text="Something new."), 1, "Something new. (NewError)"),
        (errors.InternalError(node="n1", reference="ab12"), 1, "ab12"),
        (UsageError("Wrong."), 2, "Wrong."),
        (Declined(), 3, "Nothing was changed."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (ZeroDivisionError("x"), 1, "ZeroDivisionError"),
        (OSError(errno.EACCES, "Permission denied", "/etc/x"), 1, "/etc/x"),
        (RecursionError(), 1, "RecursionError"),
    ],
)
def test_every_error_is_one_line_and_a_status(capsys, error, status, text):
    def work():
        raise error

    assert guarded(work) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert text in err
    assert "Traceback" not in err


def test_a_closed_pipe_is_quiet(capsys):
    def work():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert guarded(work) == 141
    assert capsys.readouterr() == ("", "")


def test_who_debugs_sees_where(capsys, monkeypatch):
    monkeypatch.setenv("MCVIRT_DEBUG", "1")

    def work():
        raise ZeroDivisionError

    assert guarded(work) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_a_daemon_says_is_cleaned(capsys):
    def work():
        raise errors.Failed(text="bad \x1b[2J news")

    assert guarded(work) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_start_goes_in_order_and_the_first_failure_ends_it(capsys):
    def start(name, iso=None):
        if name == "b":
            raise errors.VmLocked(name="b")

    client = Client(vms__start=start)
    assert run_with(client, "start a b c") == 1  # not 3: something was changed
    assert [args for _, args, _ in client.calls] == [("a",), ("b",)]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split("\n")[:2] == ["Successfully started VM a", "Error while starting VM b"]
    assert "locked" in err


def test_two_changes_of_rights_of_which_the_second_is_refused(capsys):
    def remove_users(name, users, vm=None):
        raise errors.Conflict(text="They are not in it.")

    client = Client(groups__remove_users=remove_users)
    assert run_with(client, "permission web1 --add-user a --delete-owner a") == 1
    assert run_with(client, "permission web1 --delete-owner a") == 3
    assert "They are not in it" in capsys.readouterr().err


def test_refused_at_the_first_means_that_nothing_was_changed(capsys):
    def start(name, iso=None):
        raise errors.VmLocked(name=name)

    assert run_with(Client(vms__start=start), "start a b") == 3


def test_start_with_json_says_what_was_done(capsys):
    def start(name, iso=None):
        if name == "b":
            raise errors.VmLocked(name="b")

    assert run_with(Client(vms__start=start), "--json start a b c") == 1
    assert json.loads(capsys.readouterr().out) == {"operation": "start", "done": ["a"], "tasks": {}}


def test_nothing_named_is_nothing_done():
    client = Client()
    assert run_with(client, "stop") == 0
    assert client.calls == []


def test_quiet_says_nothing(capsys):
    assert run_with(Client(), "stop a --quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_bad_usage_calls_nobody(capsys):
    client = Client()
    for line in ("update web1", "update web1 --new-network x", "update web1 --increase-disk 5GiB", "permission web1"):
        assert run_with(client, line) == 2
    assert client.calls == []
    assert capsys.readouterr().err.count("\n") == 4


@pytest.mark.parametrize("size", ["0", "-5", "1.5B", "12parsecs", "9999999999TiB", "x"])
def test_sizes_that_are_none_are_refused(size):
    client = Client()
    assert run_with(client, f"create web1 --cpu-count 1 --memory={size}") == 3
    assert client.calls == []


def test_what_was_done_without_a_node_says_so_with_a_status_of_its_own(capsys):
    client = Client(networks__delete=lambda *args, **kwargs: client.away.update(("node2", "node3")))
    assert run_with(client, "network delete backbone") == errors.EXIT_NODE_AWAY == 6
    err = capsys.readouterr().err
    assert (
        err.splitlines()[-1]
        == "Nodes 'node2', 'node3' are away and have not got this; they take it over when they are back."
    )
    assert client.away == set()
    client.answers["networks.delete"] = None
    assert run_with(client, "network delete backbone") == 0
