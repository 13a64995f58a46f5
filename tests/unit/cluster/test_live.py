"""What nodes know of each other's domains: whatever order, loss or restart there is, in the end it is the truth."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest

from mcvirt.types.cluster import NodeInfo
from mcvirt.types.drbd import ResourceState
from mcvirt.types.peer import LiveVersion
from mcvirt.types.vm import PowerState
from mcvirtd.cluster.live import Live
from mcvirtd.hypervisor.states import DomainState, Subscriber


def info(revision: int = 1) -> NodeInfo:
    return NodeInfo(
        name="n1",
        id="the-id",
        address=None,
        status="Local",
        version="1",
        revision=revision,
        cpu_count=1,
        cpu_percent=None,
        memory=1,
        memory_used=1,
        accelerator="tcg",
        accelerator_reason="",
        libvirt="",
        vms_running=0,
        vms=0,
    )


class Hypervisor:
    def __init__(self) -> None:
        self.connected = True
        self.states: Mapping[str, DomainState] = {}
        self.subscribers: list[Subscriber] = []

    def domains(self) -> Mapping[str, DomainState]:
        return self.states

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        self.subscribers.append(subscriber)
        return lambda: None

    def put(self, uuid: str, condition: str | None) -> None:
        states = dict(self.states)
        state = None
        if condition is None:
            states.pop(uuid, None)
        else:
            number = None if condition == "stopped" else 1
            state = states[uuid] = DomainState(uuid=uuid, name=uuid, condition=condition, id=number)  # type: ignore[arg-type]
        self.states = MappingProxyType(states)
        for subscriber in self.subscribers:
            subscriber(uuid, state)

    def truth(self) -> dict[str, PowerState]:
        words = {"stopped": PowerState.STOPPED, "running": PowerState.RUNNING, "paused": PowerState.PAUSED}
        return {uuid: words[state.condition] for uuid, state in self.states.items()}


class Node:
    def __init__(self) -> None:
        self.hypervisor = Hypervisor()
        self.told = 0
        self.reachable = True
        self.restart()

    def restart(self) -> None:
        self.live = Live(
            hypervisor=self.hypervisor, info=info, reachable=lambda node: self.reachable, changed=self._changed
        )
        self.hypervisor.subscribers.clear()
        self.live.stop()  # nobody looks but the subscriber
        self.live.start()

    def _changed(self) -> None:
        self.told += 1


def beat(sender: Node, receiver: Node) -> bool:
    """A heartbeat and its answer; whether there is more to tell."""
    have = receiver.live.hear("sender", sender.live.news_for("receiver"))
    return sender.live.acknowledged("receiver", have)


def test_only_what_is_new_is_told() -> None:
    one, two = Node(), Node()
    one.hypervisor.put("a", "running")
    one.hypervisor.put("b", "stopped")
    assert not beat(one, two)
    assert one.live.news_for("receiver").domains == {}
    one.hypervisor.put("b", "paused")
    assert one.live.news_for("receiver").domains == {"b": "PAUSED"}
    assert one.live.news_for("third").domains == {"a": "RUNNING", "b": "PAUSED"}
    assert not beat(one, two)
    known = two.live.of("sender")
    assert (known.states, known.age, known.silent) == ({"a": PowerState.RUNNING, "b": PowerState.PAUSED}, None, False)


def test_where_a_domain_is_of_those_that_answer() -> None:
    one, two = Node(), Node()
    one.hypervisor.put("a", "paused")
    beat(one, two)
    assert two.live.found_at("a", "receiver") == {"sender": PowerState.PAUSED}
    two.hypervisor.put("a", "stopped")
    assert two.live.found_at("a", "receiver") == {"sender": PowerState.PAUSED, "receiver": PowerState.STOPPED}
    two.reachable = False
    assert two.live.found_at("a", "receiver") == {"receiver": PowerState.STOPPED}


def test_a_change_is_announced_once() -> None:
    one = Node()
    one.hypervisor.put("a", "running")
    one.hypervisor.put("a", "running")
    assert one.told == 1
    one.hypervisor.put("a", None)
    assert one.told == 2


def test_what_is_known_of_a_silent_node_has_an_age() -> None:
    one, two = Node(), Node()
    one.hypervisor.put("a", "running")
    beat(one, two)
    two.reachable = False
    known = two.live.of("sender")
    assert (known.states["a"], known.silent) == (PowerState.RUNNING, True)
    assert known.age is not None
    unknown = two.live.of("another")
    assert (unknown.states, unknown.info, unknown.age, unknown.silent) == ({}, None, None, True)


def test_one_that_has_forgotten_is_told_all_again() -> None:
    one, two = Node(), Node()
    one.hypervisor.put("a", "running")
    beat(one, two)
    two.restart()
    assert beat(one, two)  # it says that it has nothing
    assert not beat(one, two)
    assert two.live.of("sender").states == one.hypervisor.truth()
    two.live.forget("sender")
    assert beat(one, two)
    assert not beat(one, two)
    assert two.live.of("sender").states == one.hypervisor.truth()


def test_nothing_of_an_earlier_life_is_kept() -> None:
    one, two = Node(), Node()
    one.hypervisor.put("a", "running")
    beat(one, two)
    one.hypervisor.states = {}
    one.restart()
    beat(one, two)
    assert two.live.of("sender").states == {}


@pytest.mark.parametrize("seed", range(50))
def test_any_history_ends_in_the_truth(seed: int) -> None:
    """Changes, lost answers, late and repeated heartbeats, restarts of both."""
    chance = random.Random(seed)
    one, two = Node(), Node()
    late = []
    for _ in range(300):
        match chance.randrange(8):
            case 0 | 1 | 2:
                one.hypervisor.put(chance.choice("abcdef"), chance.choice(["running", "stopped", "paused", None]))
            case 3:
                beat(one, two)
            case 4:
                two.live.hear("sender", one.live.news_for("receiver"))  # the answer is lost
            case 5:
                late.append(one.live.news_for("receiver"))
            case 6 if late:
                two.live.hear("sender", late.pop(chance.randrange(len(late))))
            case 7 if chance.random() < 0.1:
                late.clear()  # what an earlier process sent has ended with its connections
                chance.choice([one, two]).restart()
    late.clear()
    for _ in range(3):
        if not beat(one, two):
            break
    assert two.live.of("sender").states == one.hypervisor.truth(), f"seed {seed}"


def test_a_node_that_knows_nothing_of_a_life_does_not_begin_in_its_middle() -> None:
    one, two = Node(), Node()
    one.hypervisor.put("a", "running")
    one.live.acknowledged("receiver", LiveVersion(life=one.live.news_for("x").life, version=1))
    one.hypervisor.put("b", "running")
    assert two.live.hear("sender", one.live.news_for("receiver")) == LiveVersion()
    assert two.live.of("sender").states == {}


def test_states_of_drbd_are_told_like_domains_and_only_what_is_new() -> None:
    woken: list[int] = []
    one = Live(hypervisor=Hypervisor(), info=info, reachable=lambda node: True, changed=lambda: woken.append(1))
    two = Live(hypervisor=Hypervisor(), info=info, reachable=lambda node: True, changed=lambda: None)

    def beat() -> set[str]:
        news = one.news_for("n2")
        one.acknowledged("n2", two.hear("n1", news))
        return set(news.resources)

    up = ResourceState(name="r1", role="Secondary")
    one.note_resources({"r1": up, "r2": ResourceState(name="r2")})
    assert len(woken) == 1
    assert beat() == {"r1", "r2"}
    assert two.drbd("n1") == two.of("n1").resources == {"r1": up, "r2": ResourceState(name="r2")}
    assert beat() == set()
    one.note_resources({"r1": up, "r2": ResourceState(name="r2")})
    one.note_resources({"r1": ResourceState(name="r1", done=1.5), "r2": ResourceState(name="r2")}, at_once=False)
    assert len(woken) == 1
    assert beat() == {"r1"}
    one.note_resources({})
    assert len(woken) == 2
    beat()
    assert two.drbd("n1") == {}
    assert two.drbd("n9") == {}


def test_the_use_of_a_node_is_told_once() -> None:
    """It is measured now and then only; who may not have got it gets the next one."""
    node = Node()
    node.hypervisor.put("a", "running")
    first = node.live._info = info(1)
    assert node.live.news_for("n2").info is first
    node.live.acknowledged("n2", LiveVersion(life=node.live._life, version=1))
    assert node.live.news_for("n2").info is None and node.live.news_for("n3").info is first
    second = node.live._info = info(2)
    assert node.live.news_for("n2").info is second
    assert node.live.news_for("n2").info is None
    node.live.acknowledged("n2", LiveVersion())  # it has forgotten
    assert node.live.news_for("n2").info is second
