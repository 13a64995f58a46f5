"""Networks: names for bridges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcvirt.errors import AlreadyExists, BadArgument, InUse, NotFound, SeveralReasons
from mcvirtd.host.network import bridge_faults
from mcvirtd.network.service import NetworkService
from mcvirtd.state.records import VmRecord
from mcvirtd.state.store import Store


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """What the kernel shows of a bridge br0 and a card eth0."""
    for name in ("br0", "eth0"):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "flags").write_text("0x1003\n")
        (tmp_path / "net" / name / "address").write_text("52:54:00:00:00:01\n")
    (tmp_path / "net/br0/bridge").mkdir()
    return tmp_path / "net"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.db")
    yield made
    made.close()


@pytest.fixture
def networks(store: Store, sys: Path) -> NetworkService:
    return NetworkService(store=store, bridge_faults=lambda name: bridge_faults(name, sys))


def put_vm(store: Store, name: str, adapters: dict[str, str]) -> None:
    with store.change() as change:
        change.put(VmRecord(name=name, id=name, uuid=name, memory=1, cpu_count=1, nodes=("n1",), adapters=adapters))


def test_create_and_list(networks: NetworkService, store: Store) -> None:
    lan = networks.create("lan", "br0")
    assert (lan.name, lan.interface, lan.used_by, lan.problem) == ("lan", "br0", (), "")
    networks.create("dmz", "br0")
    put_vm(store, "web2", {"00:16:3e:00:00:01": "lan", "00:16:3e:00:00:02": "lan"})
    put_vm(store, "web1", {"00:16:3e:00:00:03": "lan"})
    assert [(each.name, each.used_by) for each in networks.list()] == [("dmz", ()), ("lan", ("web1", "web2"))]


def test_existing_name(networks: NetworkService) -> None:
    networks.create("lan", "br0")
    with pytest.raises(AlreadyExists, match="'lan'"):
        networks.create("lan", "br0")


@pytest.mark.parametrize("name", ["", "default", "-a", "a b", "x" * 65])
def test_bad_names(networks: NetworkService, name: str) -> None:
    with pytest.raises(BadArgument, match="network name"):
        networks.create(name, "br0")


@pytest.mark.parametrize(
    ("interface", "words"),
    [("eth0", "not a bridge"), ("br9", "Its bridges are: br0"), ("../br0", "interface name"), ("", "interface name")],
)
def test_bad_interfaces(networks: NetworkService, interface: str, words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        networks.create("lan", interface)
    assert networks.list() == ()


def test_says_what_to_do(networks: NetworkService) -> None:
    with pytest.raises(BadArgument, match="Set up a bridge"):
        networks.create("lan", "br9")


def test_all_reasons_at_once(networks: NetworkService) -> None:
    with pytest.raises(SeveralReasons, match=r"reserved.*not a bridge"):
        networks.create("default", "eth0")


def test_bridge_that_went_away_is_a_problem_in_the_list(networks: NetworkService, sys: Path) -> None:
    networks.create("lan", "br0")
    (sys / "br0/bridge").rmdir()
    assert "not a bridge" in networks.list()[0].problem
    assert "not a bridge" in networks.bridge_problem("br0")
    networks.delete("lan")


def test_delete(networks: NetworkService, store: Store) -> None:
    networks.create("lan", "br0")
    put_vm(store, "web1", {"00:16:3e:00:00:01": "lan"})
    put_vm(store, "web2", {"00:16:3e:00:00:02": "lan"})
    with pytest.raises(InUse, match=r"'web1', virtual machine 'web2'"):
        networks.delete("lan")
    put_vm(store, "web1", {})
    put_vm(store, "web2", {"00:16:3e:00:00:02": "dmz"})
    networks.delete("lan")
    assert networks.list() == ()
    with pytest.raises(NotFound, match="'lan'"):
        networks.delete("lan")
