from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mcvirt import __version__
from mcvirt.api.cluster import NodeApi
from mcvirt.errors import BadArgument, LibvirtUnreachable, NotPermitted
from mcvirtd.cluster.node_service import NodeService
from mcvirtd.host.facts import CpuTimes, Memory
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.state.records import NodeRecord
from tests.unit.services.world import World


class Host:
    """A machine whose processors do what the test says."""

    def __init__(self) -> None:
        self.times = CpuTimes(busy=0, total=0)

    def cpu_count(self) -> int:
        return 4

    def memory(self) -> Memory:
        return Memory(total=8 << 30, used=3 << 30)

    def cpu_times(self) -> CpuTimes:
        return self.times


class Libvirt:
    def __init__(self) -> None:
        self.away = False
        self.known: dict[str, DomainState] = {}

    def domains(self) -> Mapping[str, DomainState]:
        return self.known

    def version(self) -> str:
        if self.away:
            raise LibvirtUnreachable(node="n1", uri="qemu:///system", reason="it is away.")
        return "9.0.0"


class Node(World):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.host, self.libvirt = Host(), Libvirt()
        with self.store.change() as change:
            change.put(NodeRecord(name="n1", id="the-id", address="192.0.2.1"))
        self.service = NodeService(
            store=self.store,
            node="n1",
            hypervisor=self.libvirt,
            accelerator=lambda: ("tcg", "there is no /dev/kvm"),
            host=self.host,
            warnings=lambda: ("The certificate ends soon.",),
        )
        self.publish(NodeApi, self.service)
        self.user("plain")
        self.user("operator", "MANAGE_NODE")

    def info(self) -> dict[str, Any]:
        (row,) = self.call("plain", "node.list")
        assert isinstance(row, dict)
        return row


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def test_a_node_is_shown_with_its_facts(node: Node) -> None:
    node.vm("web1", uuid="u1", node="n1")
    node.vm("web2", uuid="u2", node="n1")
    node.vm("away", uuid="u3", node="n2")
    node.vm("nowhere", uuid="u4")
    for uuid, number in (("u1", 1), ("u2", None), ("u3", 3), ("foreign", 4)):
        node.libvirt.known[uuid] = DomainState(
            uuid=uuid, name=uuid, condition="running" if number else "stopped", id=number
        )
    assert node.info() == {
        "name": "n1",
        "id": "the-id",
        "address": "192.0.2.1",
        "status": "Local",
        "version": __version__,
        "revision": node.store.revision,
        "cpu_count": 4,
        "cpu_percent": None,
        "memory": 8 << 30,
        "memory_used": 3 << 30,
        "accelerator": "tcg",
        "accelerator_reason": "there is no /dev/kvm",
        "libvirt": "9.0.0",
        "vms_running": 1,
        "vms": 2,
        "warnings": ["The certificate ends soon."],
        "age": None,
        "leader": True,
        "lag": 0,
    }


def test_without_libvirt_the_rest_is_still_shown(node: Node) -> None:
    node.libvirt.away = True
    info = node.info()
    assert (info["accelerator"], info["libvirt"], info["memory"]) == ("unknown", "", 8 << 30)
    assert any("can't be reached" in warning for warning in info["warnings"])


def test_the_processors_use_is_that_since_it_was_last_asked_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    for seconds, busy, total, percent in (
        (0.5, 1, 2, None),
        (2, 25, 100, 25.0),
        (2.5, 99, 100, 25.0),
        (4, 125, 200, 100.0),
    ):
        monkeypatch.setattr("mcvirtd.cluster.node_service.time.monotonic", lambda now=start + seconds: now)
        node.host.times = CpuTimes(busy=busy, total=total)
        assert node.info()["cpu_percent"] == percent


def test_the_real_machine_can_be_asked(node: Node) -> None:
    service = NodeService(store=node.store, node="n1", hypervisor=node.libvirt, accelerator=lambda: ("tcg", "because"))
    (info,) = service.list()
    assert info.cpu_count >= 1
    assert 0 < info.memory_used < info.memory


def test_the_interval_is_set_within_bounds_by_who_may(node: Node) -> None:
    assert node.call("plain", "node.settings") == {"autostart_interval": 300}
    for seconds in (0, 604800, 60):
        node.call("operator", "node.set_autostart_interval", seconds=seconds)
        assert node.call("plain", "node.settings") == {"autostart_interval": seconds}
    for wrong in (-1, 604801, 10**30):
        with pytest.raises(BadArgument):
            node.call("operator", "node.set_autostart_interval", seconds=wrong)
    with pytest.raises(NotPermitted):
        node.call("plain", "node.set_autostart_interval", seconds=5)
    assert node.call("plain", "node.settings") == {"autostart_interval": 60}
