"""What is said, and asked about, before anything is done that could do harm to a cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from mcvirt.types.cluster import NodeInfo
from mcvirt.types.membership import ConflictInfo
from mcvirt_client.cli.context import Context
from tests.unit.cli.fake import Client, run_with


def node(name: str, status: str, *, leader: bool = False) -> NodeInfo:
    return NodeInfo(
        name=name,
        id=name,
        address=None,
        status=status,
        version="",
        revision=0,
        cpu_count=0,
        cpu_percent=None,
        memory=0,
        memory_used=0,
        accelerator="",
        accelerator_reason="",
        libvirt="",
        vms_running=0,
        vms=0,
        leader=leader,
    )


@pytest.fixture
def client() -> Client:
    return Client(nodes__list=(node("n1", "Unreachable", leader=True), node("n2", "Local"), node("n3", "Unreachable")))


def asked(client: Client) -> list[str]:
    return [label for label, _, _ in client.calls if label != "nodes.list"]


def test_without_a_terminal_it_must_be_accepted_beforehand(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(client, "reset web1 --ignore-failed-nodes") == 2
    said = capsys.readouterr().err
    assert "these nodes do not answer: n1, n3" in said
    assert "Node n1 leads the cluster" in said
    assert "--accept-failed-nodes-warning" in said
    assert asked(client) == []


@pytest.mark.parametrize("accepted", ["--accept-failed-nodes-warning", "--yes"])
def test_accepted_beforehand(client: Client, accepted: str) -> None:
    assert run_with(client, f"reset web1 --ignore-failed-nodes {accepted}") == 0
    assert client.passes_over == {"without": ["n1", "n3"], "ignore_drbd": False}
    assert asked(client) == ["vms.reset"]


@pytest.mark.parametrize(("answer", "status"), [("yes", 0), ("y", 3), ("", 3)])
def test_somebody_is_asked(client: Client, monkeypatch: pytest.MonkeyPatch, answer: str, status: int) -> None:
    monkeypatch.setattr(Context, "interactive", property(lambda self: True))
    monkeypatch.setattr(Context, "answer", lambda self, question: answer)
    assert run_with(client, "reset web1 --ignore-failed-nodes") == status
    assert asked(client) == (["vms.reset"] if status == 0 else [])


def test_where_all_answer_nothing_is_asked_or_passed_over() -> None:
    client = Client(nodes__list=(node("n1", "Local"), node("n2", "Connected")))
    assert run_with(client, "reset web1 --ignore-failed-nodes") == 0
    assert client.passes_over == {}


def test_drbd_is_passed_over() -> None:
    client = Client()
    assert run_with(client, "reset web1 --ignore-drbd") == 0
    assert client.passes_over == {"without": [], "ignore_drbd": True}


def failing_over(client: Client, monkeypatch: pytest.MonkeyPatch, answer: str) -> int:
    info: Any = type("Info", (), {"node": "n1"})()
    client.answers |= {"vms.info": info, "vms.failover": info}
    monkeypatch.setattr(Context, "interactive", property(lambda self: True))
    monkeypatch.setattr(Context, "answer", lambda self, question: answer)
    return run_with(client, "failover web1 --start --quiet")


def test_failover_has_the_nodes_name_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    assert failing_over(client, monkeypatch, "n1") == 0
    assert client.calls[-1] == ("vms.failover", ("web1", "n1", True), {})
    client = Client()
    assert failing_over(client, monkeypatch, "yes") == 3
    assert "vms.failover" not in asked(client)


def test_conflicts_are_shown_before_they_are_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    kept = ConflictInfo(id=7, time=datetime.now(UTC), leader="n1", epoch=1, revision=9, what=("user alice",))
    client = Client(cluster__conflicts=(kept,), cluster__clear_conflicts=1)
    assert run_with(client, "cluster conflicts --clear") == 2
    assert "user alice" in capsys.readouterr().err
    assert asked(client) == ["cluster.conflicts"]
    assert run_with(client, "cluster conflicts --clear --yes --node n2") == 0
    assert client.calls[-1] == ("cluster.clear_conflicts", ((7,), "n2"), {})
    assert run_with(Client(cluster__conflicts=()), "cluster conflicts --clear") == 0
