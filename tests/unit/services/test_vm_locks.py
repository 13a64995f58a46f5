"""What the operations on virtual machines hold while they are at work."""

from __future__ import annotations

from typing import Any, cast

import pytest

from mcvirt.types.vm import VmChange
from mcvirtd.tasks.locks import Locks
from mcvirtd.vm.service import VmService


class Worker:
    """Stands for the classes that do the work; remembers which locks are held meanwhile."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self.held: set[str] = set()
        self.images: list[str | None] = []

    def start(self, name: str, iso: str | None) -> None:
        self._note(iso)

    def plan(self, name: str, change: VmChange) -> None:
        self._note(change.iso)

    def carry_out(self, plan: None) -> None:
        pass

    def machine(self, name: str) -> None:
        pass

    def info(self, machine: None) -> None:
        pass

    def _note(self, iso: str | None) -> None:
        self.images.append(iso)
        self.held = {name for name in ("vm:web1", "iso:boot.iso", "iso:") if self._locks.holder(name)}


@pytest.fixture
def worker() -> Worker:
    return Worker(Locks())


@pytest.fixture
def service(worker: Worker) -> VmService:
    parts: Any = dict.fromkeys(
        (
            *("store", "hypervisor", "domains", "designs", "creation", "changes", "power", "deletion", "view"),
            *("consoles", "failover", "registration"),
        ),
        cast(Any, worker),
    )
    return VmService(locks=worker._locks, node="n1", **parts)


def test_an_image_is_held_while_it_is_put_into_a_drive(service: VmService, worker: Worker) -> None:
    service.start("web1", "boot")
    assert worker.held == {"vm:web1", "iso:boot.iso"} and worker.images == ["boot.iso"]
    service.update("web1", VmChange(iso="boot"))
    assert worker.held == {"vm:web1", "iso:boot.iso"} and worker.images == ["boot.iso"] * 2


@pytest.mark.parametrize("iso", [None, ""])
def test_no_image_is_held_otherwise(service: VmService, worker: Worker, iso: str | None) -> None:
    service.start("web1", iso)
    service.update("web1", VmChange(iso=iso))
    assert worker.held == {"vm:web1"} and worker.images[1] == iso
