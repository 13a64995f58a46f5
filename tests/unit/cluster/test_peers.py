"""Who is told that another node answers again."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import msgspec
import pytest

from mcvirt.errors import NodeUnreachable
from mcvirt.types.peer import Beat, BeatAnswer
from mcvirtd.cluster.peers import Peers, _Link
from mcvirtd.state.records import NodeRecord


class Connection:
    """Answers a heartbeat, unless it is *down*."""

    def __init__(self) -> None:
        self.down = False

    def call(self, object_id: str, operation: str, arguments: dict[str, Any], timeout: float) -> bytes:
        if self.down:
            raise NodeUnreachable(node="n2", reason="no.")
        answer = msgspec.Raw(msgspec.json.encode(BeatAnswer(version="1")))
        return msgspec.json.encode({"ok": answer})


def test_a_member_that_answers_again_is_told_of_once() -> None:
    told: list[str] = []

    def heard(node: str, answer: BeatAnswer) -> None:
        told.append(f"{answer.version} of {node}")

    peers = Peers(members=None, context=ssl.create_default_context, say=lambda _: Beat(version="1"), heard=heard)  # type: ignore[arg-type]
    peers.returned = lambda node: told.append(f"{node} is back")
    connection: Any = Connection()
    link = _Link("n2", NodeRecord(name="n2", id="n2"), lambda: connection)
    peers._beat_once(link, connection)
    peers._beat_once(link, connection)
    connection.down = True
    with pytest.raises(NodeUnreachable):
        peers._beat_once(link, connection)
    link.silent("no.")
    connection.down = False
    peers._beat_once(link, connection)
    # What it said is taken in first.
    assert told == ["1 of n2", "n2 is back", "1 of n2", "1 of n2", "n2 is back"]


def test_who_waits_for_a_node_goes_on_with_its_next_answer() -> None:
    peers = Peers(
        members=None,  # type: ignore[arg-type]
        context=ssl.create_default_context,
        say=lambda _: Beat(version="1"),
        heard=lambda *_: None,
    )
    connection: Any = Connection()
    link = _Link("n2", NodeRecord(name="n2", id="n2"), lambda: connection)
    assert not peers.wait_for("n2", 60)  # no member
    peers._links["n2"] = link
    peers._beat_once(link, connection)
    # It has answered, but nobody knows whether it still does.
    assert not peers.wait_for("n2", 0.01)
    link.wake.clear()

    def beat() -> None:
        link.wake.wait(60)
        peers._beat_once(link, connection)

    beating = threading.Thread(target=beat)
    beating.start()
    assert peers.wait_for("n2", 60)
    beating.join()
