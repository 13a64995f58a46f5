"""What the daemon does now and then."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mcvirtd.maintenance import Chore, Maintenance

SOON = 10.0


class Work:
    def __init__(self) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self) -> None:
        self.begun.release()
        assert self.go_on.acquire(timeout=SOON)

    def happens(self) -> bool:
        return self.begun.acquire(timeout=SOON)


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.go_on.release(10)


def test_a_chore_that_is_hurried_does_not_wait_for_its_time(work: Work) -> None:
    other: list[str] = []
    chores = [Chore("work", 3600.0, work, first=3600.0), Chore("other", 3600.0, lambda: other.append(""), first=3600.0)]
    maintenance = Maintenance(chores)
    maintenance.hurry("work")  # before it has begun
    maintenance.start()
    assert work.happens()
    maintenance.hurry("work")  # while it is being done
    work.go_on.release()
    assert work.happens()
    work.go_on.release()
    maintenance.hurry("nobody knows that one")
    assert not work.begun.acquire(timeout=0.2)
    maintenance.stop()
    assert other == []


def test_a_chore_that_hangs_keeps_only_its_own_lane_waiting(work: Work) -> None:
    done = {lane: threading.Semaphore(0) for lane in ("", "migrations")}
    chores = [
        Chore("stuck", 3600.0, work, lane="settle"),
        Chore("behind", 3600.0, done[""].release, lane="settle"),
        Chore("other", 3600.0, done["migrations"].release, first=3600.0, lane="migrations"),
    ]
    maintenance = Maintenance(chores)
    maintenance.start()
    assert work.happens()
    for _ in range(2):
        maintenance.hurry("other")
        assert done["migrations"].acquire(timeout=SOON)
    assert not done[""].acquire(blocking=False)
    work.go_on.release()
    assert done[""].acquire(timeout=SOON)
    maintenance.stop()
