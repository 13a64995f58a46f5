"""What the node that a machine is to come to looks at: beforehand, and once more when it is to come."""

from __future__ import annotations

import msgspec
import pytest

from mcvirt.errors import LibvirtUnreachable, McvirtError
from mcvirt.types.arrival import Traveller
from mcvirtd.hypervisor.simulated import SimulatedHypervisor
from mcvirtd.state.records import DiskRecord, NodeRecord, VmRecord
from tests.unit.migration.test_arrivals import Target, target
from tests.unit.vm.world import MIB

__all__ = ["target"]

NEEDS = 64 * MIB
ONLINE = {"online": True, "accelerator": "tcg", "machine_type": "q35"}
STARTS = {"starts": True}
RESTS: dict[str, object] = {}


class Away:
    """Storage that is not there yet."""

    def available(self, disk: DiskRecord) -> str:
        return f"the volume of {disk.id} is not there."


def against(target: Target, **how: object) -> dict[str, str]:
    """What stands against it, by what was looked at."""
    place = target.arrivals.examine(msgspec.structs.replace(target.traveller(), **how))
    found = {check.name: check.text for check in place.checks if not check.ok}
    assert bool(place.disks) == (not found)
    return found


@pytest.mark.parametrize("how", [ONLINE, STARTS, RESTS])
def test_what_can_come_may(target: Target, how: dict[str, object]) -> None:
    assert against(target, **how) == {}


@pytest.mark.parametrize("how", [ONLINE, STARTS])
def test_who_runs_here_at_once_needs_free_memory(target: Target, how: dict[str, object]) -> None:
    target.free = NEEDS - MIB
    assert against(target, **how) == {
        "Memory": "The machine needs 64 MiB of memory, and node 'n1' has 63 MiB left.",
    }
    target.free = NEEDS
    assert against(target, **how) == {}


def test_who_rests_here_needs_none_now(target: Target) -> None:
    target.free = 0
    assert against(target) == {}


def test_who_needs_more_than_there_will_ever_be_can_never_start_here(target: Target) -> None:
    with target.world.store.change() as change:
        change.edit(VmRecord, "web1", memory=2**35)
    assert "more than" in against(target)["Memory"]


def test_its_image_must_be_here(target: Target) -> None:
    with target.world.store.change() as change:
        change.edit(VmRecord, "web1", iso="a.iso")
    assert against(target) == {}
    target.world.isos.names.discard("a.iso")
    assert against(target) == {"ISO image": "There is no ISO image called 'a.iso'."}


def test_what_it_runs_with_must_be_here(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str]] = []

    def cannot_take(_: SimulatedHypervisor, kind: str, machine_type: str, cpu: str) -> str:
        asked.append((kind, machine_type, cpu))
        return "its processor lacks features."

    monkeypatch.setattr(SimulatedHypervisor, "cannot_take", cannot_take)
    assert against(target) == {}, "it is off, and starts with what there is"
    assert against(target, **ONLINE, cpu="<cpu/>") == {
        "Processor": "The guest can't go on running on node 'n1': its processor lacks features."
    }
    assert asked == [("qemu", "q35", "<cpu/>")]
    assert "The guest runs on kvm" in against(target, **{**ONLINE, "accelerator": "kvm"})["Processor"]


def test_what_may_pass_is_told_apart(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.free = 0

    def away() -> None:
        raise LibvirtUnreachable(node="n1", uri="", reason="it is just starting.")

    monkeypatch.setattr(target.world.domains, "require_libvirt", away)
    with target.world.store.change() as change:
        change.edit(DiskRecord, target.disk.id, nodes=("n1", "n2"))
    target.arrivals._disks = Away()  # type: ignore[assignment]
    checks = target.arrivals.examine(msgspec.structs.replace(target.traveller(), starts=True, copied=())).checks
    assert {check.name for check in checks if not check.ok} == {"libvirt", "Memory", "Hard drives"}
    assert {check.name for check in checks if check.transient} == {"libvirt", "Hard drives"}


# --- when it is to come -----------------------------------------------------------------------------------------------


def other(target: Target, name: str = "web2", node: str = "n3") -> Traveller:
    """Another machine, of another node, which needs as much."""
    uuid = target.uuid[:-4] + "beef"
    with target.world.store.change() as change:
        change.put(NodeRecord(name=node, id=node, address="10.0.0.3"))
        change.put(msgspec.structs.replace(target.world.record(), name=name, uuid=uuid, node=node, nodes=(node,)))
    return Traveller(name=name, uuid=uuid, starts=True)


def expect(target: Target, traveller: Traveller, **how: object) -> McvirtError | None:
    return target.told(lambda: target.arrivals.expect(msgspec.structs.replace(traveller, **how)))


def test_memory_is_looked_at_again_when_it_is_to_come(target: Target) -> None:
    assert against(target, starts=True) == {}
    target.free = NEEDS - MIB
    assert "63 MiB left." in str(expect(target, target.traveller(), starts=True))
    assert not target.arrivals.expects("web1") and target.world.journal_rows() == []
    assert expect(target, target.traveller()) is None


def test_two_do_not_get_the_same_memory(target: Target) -> None:
    second = other(target, node="n2")
    target.free = 2 * NEEDS - MIB
    assert expect(target, target.traveller(), starts=True) is None
    assert expect(target, target.traveller(), starts=True) is None, "asked for again, it is the same memory"
    assert against(target, starts=True) == {}
    assert "63 MiB left, with what is kept free for web1." in str(expect(target, second))
    place = target.arrivals.examine(second)
    assert [check.name for check in place.checks if not check.ok] == ["Memory"]
    # A part of it has come by now, and so is not free any more.
    target.used["web1"], target.free = 60 * MIB, NEEDS + 4 * MIB
    assert expect(target, second) is None


def test_who_does_not_come_leaves_its_memory_to_others(target: Target) -> None:
    second = other(target, node="n2")
    target.free = NEEDS
    assert expect(target, target.traveller(), starts=True) is None
    assert expect(target, second) is not None
    assert target.told(lambda: target.arrivals.abandon(target.traveller())) is None
    assert expect(target, second) is None


def test_who_comes_to_rest_after_all_leaves_its_memory_to_others(target: Target) -> None:
    second = other(target, node="n2")
    target.free = NEEDS
    assert expect(target, target.traveller(), starts=True) is None
    assert expect(target, target.traveller()) is None
    assert expect(target, second) is None


def test_nothing_is_kept_free_for_a_machine_whose_node_was_removed(target: Target) -> None:
    second = other(target)
    target.free = NEEDS
    assert expect(target, target.traveller(), starts=True) is None
    with target.world.store.change() as change:
        change.delete(NodeRecord, "n2")
        change.edit(VmRecord, "web2", node="n2")  # so that the same caller may send it
    assert expect(target, second) is None
