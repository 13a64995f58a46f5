"""Each reason against a node, alone and all at once."""

from __future__ import annotations

from typing import Any

import pytest

from mcvirt.types.membership import JoinerFacts, Place
from mcvirtd.cluster import suitability
from mcvirtd.cluster.suitability import ClusterFacts

PLACE = Place(name="node2", address="192.0.2.2", port=9090)


def cluster(**fields: Any) -> ClusterFacts:
    return ClusterFacts(
        **{
            "here": "node1",
            "members": {"node1": "192.0.2.1", "node3": "192.0.2.3"},
            "ids": {"node1": "id-1", "node3": "id-3"},
            "version": "12.1.0",
            "kinds": ("vm", "node"),
            "bridges": {"lan": "br0", "wan": "br1"},
            **fields,
        }
    )


def node(**fields: Any) -> JoinerFacts:
    return JoinerFacts(
        **{
            "name": "node2",
            "id": "id-2",
            "version": "12.1.3",
            "kinds": ("vm", "node", "more"),
            "address": "192.0.2.2",
            "port": 9090,
            "time": 0.0,
            "members": 1,
            "machines": (),
            "domains": (),
            "libvirt": "",
            "disks": (),
            "backends": (),
            "tasks": (),
            "unreached": {},
            "bridges": {"br0": "", "br1": ""},
            **fields,
        }
    )


def faults(of: ClusterFacts | None = None, gap: float = 0.0, **fields: Any) -> list[str]:
    return suitability.faults(suitability.checks(of or cluster(), node(**fields), place=PLACE, clock_gap=gap))


def test_a_blank_node_suits() -> None:
    assert faults() == []


def test_backends_of_the_cluster_are_no_reason_and_are_named() -> None:
    found = suitability.checks(cluster(backends=("ssd", "nfs")), node(), place=PLACE, clock_gap=0)
    assert not suitability.faults(found)
    assert any("left out of ssd, nfs" in check.text for check in found)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "node3"}, "a member called 'node3'"),
        ({"id": "id-3"}, "copied from member 'node3'"),
        ({"address": "192.0.2.3"}, "member 'node3' has its address"),
        ({"address": "192.0.2.9"}, "it is at 192.0.2.9:9090 now"),
        ({"port": 1}, "192.0.2.2:1 now"),
        ({"version": "12.3.0"}, "does not work together"),
        ({"version": "11.1.0"}, "does not work together"),
        ({"kinds": ("vm",)}, "does not work together"),
        ({"members": 2}, "in a cluster of 2 nodes already"),
        ({"machines": ("web1",), "domains": ("web1",)}, "virtual machines: web1."),
        ({"domains": ("strange",)}, "domains that mcvirt did not make: strange"),
        ({"libvirt": "libvirt does not answer."}, "it can't be known"),
        ({"disks": ("hd-1",)}, "hard drives: hd-1"),
        ({"backends": ("own",)}, "must be deleted there first: own"),
        ({"tasks": ("vm.create web1",)}, "at work: vm.create web1"),
        ({"bridges": {"br0": "", "br1": "There is no br1."}}, "network 'wan' can't be had there: There is no br1."),
        ({"unreached": {"node3": "timed out."}}, "does not reach member 'node3'"),
    ],
)
def test_each_reason(fields: dict[str, Any], said: str) -> None:
    found = faults(**fields)
    assert len(found) == 1 and said in found[0], found


@pytest.mark.parametrize(("gap", "good"), [(5.0, True), (-5.0, True), (5.1, False), (-3600.0, False)])
def test_clocks(gap: float, good: bool) -> None:
    found = faults(gap=gap)
    assert (found == []) is good
    assert good or ("ahead of" in found[0]) is (gap > 0)


def test_a_member_without_address_can_take_nobody_in() -> None:
    assert "`mcvirt node --set-ip-address" in faults(cluster(members={"node1": None}, ids={}))[0]


def test_all_reasons_are_told_at_once() -> None:
    found = faults(gap=99, name="node3", members=3, machines=("a", "b"), disks=("d",), unreached={"node1": "x."})
    assert len(found) == 6


def test_many_names_are_cut_short() -> None:
    (found,) = faults(machines=tuple(f"vm{number:03}" for number in range(30)))
    assert "vm009, and 20 more" in found and "vm010" not in found


@pytest.mark.parametrize(
    ("one", "other", "good"),
    [
        ("12.0.0", "12.0.9", True),
        ("12.0.0", "12.1", True),
        ("12.0.0", "12.2.0", False),
        ("x", "x", True),
        ("x", "1", False),
    ],
)
def test_neighbours(one: str, other: str, good: bool) -> None:
    assert suitability.neighbours(one, other) is suitability.neighbours(other, one) is good
