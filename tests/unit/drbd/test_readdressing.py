"""Replicated hard drives of nodes whose cluster addresses change."""

from __future__ import annotations

import msgspec
import pytest

from mcvirt.errors import CommandFailed
from mcvirtd.drbd.config import parse_addresses, resource_name
from mcvirtd.state.records import DiskRecord, NodeRecord
from tests.unit.drbd.test_disks import BROKEN, make
from tests.unit.drbd.world import Pair

SHOWN = """resource mcvirt-hd-1 {
    net {
        shared-secret   \t"s3cret";
    }
    _remote_host {
        address\t\t\tipv4 10.9.0.2:7789;
    }
    _this_host {
        address\t\t\tipv6 [fd00::1]:7789;
        volume 0 {
            device\t\t\tminor 1;
        }
    }
}
"""


def move(pair: Pair, node: str = "n2", address: str = "10.0.1.2") -> None:
    with pair.store.change() as change:
        change.edit(NodeRecord, node, address=address)


def adjusted(pair: Pair, node: str) -> list[str]:
    return [name for verb, name in pair.kernels[node].calls if verb == "adjust"]


@pytest.fixture
def disk(pair: Pair) -> DiskRecord:
    record = make(pair)
    for readdressing in pair.readdressings.values():
        readdressing.follow()
    assert adjusted(pair, "n1") == adjusted(pair, "n2") == []
    return record


def connected(pair: Pair, disk: DiskRecord) -> bool:
    return all(kernel.resources[resource_name(disk.id)].connected for kernel in pair.kernels.values())


def test_what_the_kernel_shows() -> None:
    assert parse_addresses(SHOWN) == {"ipv4 10.9.0.2:7789", "ipv6 [fd00::1]:7789"}
    assert parse_addresses("resource r {\n    _this_host {\n    }\n}\n") == frozenset()


@pytest.mark.parametrize("moved", ["n1", "n2"])
def test_both_sides_move_each_when_it_knows(pair: Pair, disk: DiskRecord, moved: str) -> None:
    move(pair, moved)
    pair.readdressings["n1"].follow()
    assert not connected(pair, disk)  # the other node is away
    pair.readdressings["n2"].follow()
    assert connected(pair, disk)
    name = resource_name(disk.id)
    assert "10.0.1.2" in {pair.kernels["n1"].files[name].local.address, pair.kernels["n1"].files[name].peer.address}
    for node in ("n1", "n2"):
        pair.readdressings[node].follow()
        assert adjusted(pair, node) == [name]


def test_one_that_died_between_the_file_and_the_kernel_moves_when_it_is_back(pair: Pair, disk: DiskRecord) -> None:
    move(pair)
    pair.kernels["n1"].fail_next("adjust", BROKEN)
    pair.readdressings["n1"].follow()
    pair.legs["n2"].readdress(disk.id)
    after = pair.after_power_loss()
    after.readdressings["n1"].follow()
    assert connected(after, disk)
    after.store.close()


def test_what_fails_is_tried_again(pair: Pair, disk: DiskRecord) -> None:
    move(pair)
    pair.kernels["n1"].fail_next("adjust", CommandFailed(program="drbdadm", status=10, output="no"))
    for _ in range(2):
        for node in ("n1", "n2"):
            pair.readdressings[node].follow()
    assert connected(pair, disk)


def test_what_is_cut_off_stays_so_and_knows_the_address_later(pair: Pair, disk: DiskRecord) -> None:
    name = resource_name(disk.id)
    pair.kernels["n1"].disconnect(name)
    move(pair)
    pair.readdressings["n1"].follow()
    assert adjusted(pair, "n1") == []
    assert pair.kernels["n1"].files[name].peer.address == "10.0.1.2"
    assert pair.kernels["n1"].resources[name].connection == "StandAlone"


def test_a_migration_is_waited_for(pair: Pair, disk: DiskRecord) -> None:
    name = resource_name(disk.id)
    kernel = pair.kernels["n1"]
    kernel.resources[name] = msgspec.structs.replace(kernel.resources[name], role="Primary", peer_role="Primary")
    move(pair)
    pair.readdressings["n1"].follow()
    assert adjusted(pair, "n1") == []
    kernel.resources[name] = msgspec.structs.replace(kernel.resources[name], peer_role="Secondary")
    pair.moving.add(name)  # as before and after that
    pair.readdressings["n1"].follow()
    assert adjusted(pair, "n1") == []
    pair.moving.clear()
    pair.readdressings["n1"].follow()
    assert adjusted(pair, "n1") == [name]


def test_before_the_kernel_is_read_nothing_is_decided(pair: Pair, disk: DiskRecord) -> None:
    move(pair)
    pair.kernels["n1"].alive = False
    pair.readdressings["n1"].follow()
    pair.kernels["n1"].alive = True
    pair.readdressings["n1"].follow()
    assert adjusted(pair, "n1") == [resource_name(disk.id)]


def test_a_deleted_one_does_not_come_back(pair: Pair, disk: DiskRecord) -> None:
    pair.drives.delete(disk.id)
    assert pair.legs["n1"].readdress(disk.id)
    assert pair.orphans() == []
