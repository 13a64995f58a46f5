from __future__ import annotations

import socket
from collections.abc import Mapping

import pytest

from mcvirt.errors import LeaderUnreachable, McvirtError, NodeUnreachable
from mcvirt.types.arrival import Whereabouts
from mcvirtd.cluster.peers import PeerStatus
from mcvirtd.cluster.reach import ANSWERS, ONLY_MACHINE, Reach, knock
from mcvirtd.cluster.standing import Standing
from mcvirtd.state.records import NodeRecord


class Cluster:
    def __init__(self) -> None:
        self.answering = {"n2", "n3"}
        self.machines: set[str] = set()
        self.said: dict[str, str | McvirtError] = {}
        self.asked: list[str] = []
        self.dying: dict[str, list[PeerStatus]] = {}
        self.leader = "n1"
        members = {name: NodeRecord(name=name, id=name, address=f"10.0.0.{name[1]}") for name in ("n2", "n3", "n4")}
        self.reach = Reach(
            node="n1",
            members=lambda: members,
            status=self.status,
            ask=self.ask,
            look=self.look,
            leader=lambda: self.leader,
            knock=lambda address, port: f"n{address[-1]}" in self.machines,
        )

    def status(self, node: str) -> PeerStatus:
        if self.dying.get(node):
            return self.dying[node].pop(0)
        return PeerStatus(reachable=node in self.answering, silent_for=0.0 if node in self.answering else None)

    def look(self, members: list[str], uuid: str) -> Mapping[str, Whereabouts | McvirtError]:
        self.asked = members
        return {name: Whereabouts(active=uuid == f"on {name}") for name in members}

    def ask(self, members: list[str], node: str) -> Mapping[str, str | McvirtError]:
        self.asked = members
        return {name: self.said.get(name, "") for name in members}


def test_who_answers_is_reached() -> None:
    assert "node 'n1' reaches it" in Cluster().reach.witness("n2")


def test_a_machine_without_a_daemon_is_on() -> None:
    cluster = Cluster()
    cluster.machines = {"n4"}
    assert cluster.reach.how("n4") == ONLY_MACHINE


def test_who_has_answered_so_far_and_does_not_now_is_gone_as_soon_as_that_is_known() -> None:
    cluster = Cluster()
    cluster.answering.remove("n2")
    cluster.dying["n2"] = [PeerStatus(reachable=True, silent_for=60.0) for _ in range(3)]
    assert cluster.reach.how("n2") == ""
    assert cluster.dying["n2"] == []
    # Its machine can't be reached, and all the same it answers a heartbeat meanwhile.
    cluster.dying["n3"] = [PeerStatus(reachable=True, silent_for=60.0) for _ in range(2)]
    assert cluster.reach.how("n3") == ANSWERS


def test_another_member_may_know() -> None:
    cluster = Cluster()
    cluster.said = {"n2": NodeUnreachable(node="n2", reason="late."), "n3": ANSWERS}
    assert cluster.reach.witness("n4") == f"node 'n3' reaches it ({ANSWERS})."
    assert cluster.asked == ["n2", "n3"]


def test_nobody_knows() -> None:
    cluster = Cluster()
    assert cluster.reach.witness("n4") == ""
    assert cluster.reach.witness("n9") == ""


def test_who_answers_is_asked_for_the_machine() -> None:
    cluster = Cluster()
    found = cluster.reach.whereabouts("on n3")
    assert found == {"n2": Whereabouts(), "n3": Whereabouts(active=True)}
    assert cluster.asked == ["n2", "n3"]


def test_leader() -> None:
    cluster = Cluster()
    cluster.reach.require_leader()
    cluster.leader = "n2"
    cluster.reach.require_leader()
    cluster.leader = "n4"
    with pytest.raises(LeaderUnreachable):
        cluster.reach.require_leader()


def test_a_port_that_nobody_listens_at_is_an_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert knock("127.0.0.1", port)
    assert knock("127.0.0.1", port)


class Replication:
    def __init__(self) -> None:
        self.alone = False
        self.heard: set[str] = set()
        self.leads = False

    def revision_of(self, member: str) -> int | None:
        return 1 if member in self.heard else None

    def catch_up(self) -> bool:
        return self.leads


@pytest.mark.parametrize(
    ("members", "heard", "leads", "sure"),
    [
        (("n1", "n2"), set(), True, False),
        (("n1", "n2"), {"n2"}, True, True),
        (("n1", "n2"), {"n2"}, False, False),
        (("n1", "n2", "n3"), set(), True, False),
        (("n1", "n2", "n3"), {"n3"}, True, False),
        (("n1", "n2", "n3"), {"n2", "n3"}, True, True),
        (("n1", "n2", "n3"), {"n2", "n3"}, False, False),
        (("n1", "n2", "n3", "n4", "n5"), {"n2", "n3", "n4"}, True, False),
    ],
)
def test_when_a_node_knows_what_has_become_of_the_cluster(
    members: tuple[str, ...], heard: set[str], leads: bool, sure: bool
) -> None:
    replication = Replication()
    replication.heard, replication.leads = heard, leads
    standing = Standing("n1", replication, lambda: members)
    assert standing.sure() is sure
    if sure:
        replication.heard, replication.leads = set(), False
        assert standing.sure(), "and stays sure"


def test_two_nodes_that_return_together_are_not_sure_before_they_hear_the_one_that_went_on() -> None:
    """By an operator's word n2 alone took over from n1, which led: the majority of n1 and n3 knows nothing of it."""
    replication = Replication()
    replication.heard, replication.leads = {"n3"}, True
    standing = Standing("n1", replication, lambda: ("n1", "n2", "n3"))
    assert not standing.sure()
    replication.heard, replication.leads = {"n2", "n3"}, False
    assert not standing.sure(), "n2 leads by now, and n1 has not caught up"
    replication.leads = True
    assert standing.sure()


def test_a_member_that_is_removed_is_not_waited_for() -> None:
    replication = Replication()
    replication.heard, replication.leads = {"n2"}, True
    members = ["n1", "n2", "n3"]
    standing = Standing("n1", replication, lambda: members)
    assert not standing.sure()
    members.remove("n3")
    assert standing.sure()


def test_a_cluster_of_one_is_sure() -> None:
    replication = Replication()
    replication.alone = True
    assert Standing("n1", replication, lambda: ("n1",)).sure()
