from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcvirt.errors import VmLocked
from mcvirt.types.vm import AutoStart
from mcvirtd.cluster import autostart as autostart_module
from mcvirtd.cluster.autostart import Autostart
from mcvirtd.state.records import SettingsRecord
from mcvirtd.state.store import Store

SOON = 10.0


class Machines:
    """Stopped machines, which start when they are told to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.changed = threading.Condition()
        self.stopped: dict[str, AutoStart] = {}
        self.started: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.listing_fails: Exception | None = None
        self.libvirt: bool | Exception = True
        self.asked_for_libvirt = self.listed = 0
        self.autostart = Autostart(store=store, vms=self.vms, start=self.start, libvirt_ready=self.ready)

    def vms(self) -> dict[str, AutoStart]:
        if self.listing_fails is not None:
            raise self.listing_fails
        with self.changed:
            self.listed += 1
            self.changed.notify_all()
            return dict(self.stopped)

    def start(self, name: str) -> None:
        with self.changed:
            self.started.append(name)
            self.changed.notify_all()
            if name in self.fails:
                raise self.fails[name]
            del self.stopped[name]

    def ready(self, within: float) -> bool:
        with self.changed:
            self.asked_for_libvirt += 1
            self.changed.notify_all()
            if isinstance(self.libvirt, Exception):
                raise self.libvirt
            return self.changed.wait_for(lambda: self.libvirt is True, min(within, 0.05))

    def set(self, **fields: object) -> None:
        with self.changed:
            for name, value in fields.items():
                setattr(self, name, value)
            self.changed.notify_all()

    def interval(self, seconds: int) -> None:
        with self.store.change() as change:
            change.put(SettingsRecord(autostart_interval=seconds))

    def wait(self, predicate: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(predicate, SOON), self.started


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    store = Store(tmp_path / "state.db")
    made = Machines(store)
    made.interval(0)
    yield made
    made.autostart.stop()
    store.close()


ALL = {"boot": AutoStart.ON_BOOT, "never": AutoStart.NO_AUTOSTART, "poll": AutoStart.ON_POLL}


def test_at_the_start_both_kinds_are_started(machines: Machines) -> None:
    machines.stopped = dict(ALL)
    machines.autostart.start()
    machines.wait(lambda: len(machines.started) == 2)
    machines.autostart.stop()
    assert machines.started == ["boot", "poll"]


def test_a_new_interval_takes_effect_at_once_and_polls_start_one_kind_only(machines: Machines) -> None:
    machines.interval(7 * 86400)
    machines.autostart.start()
    machines.wait(lambda: machines.listed == 1)
    machines.set(stopped=dict(ALL))
    # Anything but at once would be in a week.
    machines.interval(1)
    machines.wait(lambda: "poll" in machines.started)
    machines.autostart.stop()
    assert "never" not in machines.started


def test_with_interval_zero_nothing_is_polled_until_it_is_set(machines: Machines) -> None:
    machines.autostart.start()
    machines.wait(lambda: machines.listed == 1)
    machines.set(stopped=dict(ALL))
    machines.interval(0)
    with machines.changed:
        assert not machines.changed.wait_for(lambda: machines.listed > 1, 0.3)
    machines.interval(1)
    machines.wait(lambda: "poll" in machines.started)


def test_polls_go_on_and_find_what_was_stopped_again(machines: Machines) -> None:
    machines.interval(1)
    machines.set(stopped=dict(ALL))
    machines.autostart.start()
    machines.wait(lambda: machines.started.count("poll") == 1)
    machines.set(stopped=dict(ALL))
    machines.wait(lambda: machines.started.count("poll") == 2)
    assert machines.started.count("boot") == 1


@pytest.mark.parametrize("error", [VmLocked(name="a"), ValueError("a defect")])
def test_one_that_fails_keeps_no_other_from_it(
    machines: Machines, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    machines.stopped = dict.fromkeys("abc", AutoStart.ON_BOOT)
    machines.fails = {"a": error}
    machines.autostart.start()
    machines.wait(lambda: len(machines.started) == 3)
    machines.autostart.stop()
    assert machines.started == ["a", "b", "c"]
    assert "virtual machine a could not be started by itself" in caplog.text


def test_a_listing_that_fails_ends_nothing(machines: Machines, caplog: pytest.LogCaptureFixture) -> None:
    machines.interval(1)
    machines.listing_fails = ValueError("a defect")
    machines.autostart.start()
    machines.wait(lambda: machines.asked_for_libvirt > 1)
    machines.set(stopped=dict(ALL), listing_fails=None)
    machines.wait(lambda: "poll" in machines.started)
    assert "could not be listed" in caplog.text


@pytest.mark.parametrize("away", [False, ValueError("a defect")])
def test_nothing_is_started_before_libvirt_can_be_used(machines: Machines, away: bool | Exception) -> None:
    machines.stopped = dict(ALL)
    machines.libvirt = away
    machines.autostart.start()
    machines.wait(lambda: machines.asked_for_libvirt > 1)
    assert machines.started == []
    machines.set(libvirt=True)
    machines.wait(lambda: len(machines.started) == 2)


@pytest.mark.parametrize("libvirt", [True, False])
def test_stopping_is_quick_and_starts_nothing_more(machines: Machines, libvirt: bool) -> None:
    machines.libvirt = libvirt
    machines.interval(3600)
    machines.autostart.start()
    machines.wait(lambda: machines.asked_for_libvirt > 0)
    begun = time.monotonic()
    machines.autostart.stop()
    assert time.monotonic() - begun < 5
    machines.set(libvirt=True, stopped=dict(ALL))
    machines.interval(1)
    assert machines.started == []


def test_stopping_what_was_never_started_is_no_error(machines: Machines) -> None:
    machines.autostart.stop()


def test_what_others_could_have_taken_over_waits_until_the_node_is_sure(machines: Machines) -> None:
    sure = False
    machines.autostart = Autostart(
        store=machines.store,
        vms=machines.vms,
        start=machines.start,
        libvirt_ready=machines.ready,
        sure=lambda: sure,
        bound=lambda name: name == "poll",
    )
    machines.stopped = {**ALL, "gone": AutoStart.ON_BOOT}
    machines.autostart.start()
    machines.wait(lambda: machines.started == ["poll"])
    assert machines.autostart.warnings()[0].endswith("boot, gone.")
    with machines.changed:
        del machines.stopped["gone"]  # another node has it by now
    sure = True
    machines.wait(lambda: "boot" in machines.started)
    machines.autostart.stop()
    assert machines.started == ["poll", "boot"]
    assert machines.autostart.warnings() == ()


def test_what_becoming_sure_takes_from_this_node_is_not_started(machines: Machines) -> None:
    """To be sure the node catches up with its leader, which may say that a machine is another node's by now."""

    def sure() -> bool:
        with machines.changed:
            machines.stopped.pop("gone", None)
        return True

    machines.autostart = Autostart(
        store=machines.store,
        vms=machines.vms,
        start=machines.start,
        libvirt_ready=machines.ready,
        sure=sure,
        bound=lambda name: name == "poll",
    )
    machines.stopped = {**ALL, "gone": AutoStart.ON_BOOT}
    machines.autostart.start()
    machines.wait(lambda: {"boot", "poll"} <= set(machines.started))
    machines.autostart.stop()
    assert sorted(machines.started) == ["boot", "poll"]
    assert machines.autostart.warnings() == ()


def test_what_is_not_settled_is_started_once_it_is(machines: Machines) -> None:
    """Of those that may be on another node, and of those that may have come to this one."""
    unsettled = {"boot", "new", "gone"}
    machines.autostart = Autostart(
        store=machines.store,
        vms=machines.vms,
        start=machines.start,
        libvirt_ready=machines.ready,
        unsettled=lambda name: name in unsettled,
        coming=lambda: frozenset({"new"}),
    )
    machines.stopped = {**ALL, "gone": AutoStart.ON_BOOT}
    machines.autostart.start()
    machines.wait(lambda: machines.started == ["poll"])
    with machines.changed:
        del machines.stopped["gone"]  # it is on the other node
        machines.stopped["new"] = AutoStart.ON_BOOT
    unsettled.clear()
    machines.wait(lambda: len(machines.started) == 3)
    machines.autostart.stop()
    assert machines.started == ["poll", "boot", "new"]


def test_what_failed_with_the_node_is_tried_again_some_times(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start goes on as a task, whose end comes later; a disk may just have been catching up."""
    monkeypatch.setattr(autostart_module, "_AGAIN_AFTER", (0.02, 0.02, 0.02))
    monkeypatch.setattr(autostart_module, "_ASK_AGAIN", 0.01)
    ends: dict[str, bool | None] = {}

    def start(name: str) -> str:
        with machines.changed:
            machines.started.append(name)
            machines.changed.notify_all()
            task = f"{name}{machines.started.count(name)}"
            if name == "now":
                raise VmLocked(name=name)
            ends.setdefault(task, True)
            if ends[task] is False:
                del machines.stopped[name]
            return task

    machines.autostart = Autostart(
        store=machines.store,
        vms=machines.vms,
        start=start,
        libvirt_ready=machines.ready,
        failed=lambda task: ends[task],
    )
    ends |= {"good1": False, "second1": True, "second2": False, "slow1": None}
    machines.stopped = dict.fromkeys(("good", "second", "never", "now", "slow"), AutoStart.ON_BOOT)
    machines.autostart.start()
    machines.wait(lambda: machines.started.count("never") == 4 and machines.started.count("now") == 4)
    with machines.changed:
        assert not machines.changed.wait_for(lambda: len(machines.started) > 12, 0.2)
    machines.autostart.stop()
    counts = {name: machines.started.count(name) for name in ("good", "second", "never", "now", "slow")}
    assert counts == {"good": 1, "second": 2, "never": 4, "now": 4, "slow": 1}


def test_what_somebody_has_started_meanwhile_is_not_started_again(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been stopped since, and that was meant."""
    monkeypatch.setattr(autostart_module, "_AGAIN_AFTER", (0.5, 0.5, 0.5))
    monkeypatch.setattr(autostart_module, "_ASK_AGAIN", 0.01)
    machines.fails = {"boot": VmLocked(name="boot"), "other": VmLocked(name="other")}
    machines.stopped = {"boot": AutoStart.ON_BOOT, "other": AutoStart.ON_BOOT}
    machines.autostart.start()
    machines.wait(lambda: len(machines.started) == 2)
    seen = machines.listed
    with machines.changed:
        del machines.stopped["boot"]
        assert machines.changed.wait_for(lambda: machines.listed > seen + 1, SOON)
        machines.stopped["boot"] = AutoStart.ON_BOOT
    machines.wait(lambda: machines.started.count("other") == 3)
    machines.autostart.stop()
    assert machines.started.count("boot") == 1


def test_one_that_waits_again_and_again_is_given_up_after_as_many_tries(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autostart_module, "_AGAIN_AFTER", (0.02, 0.02, 0.02))
    monkeypatch.setattr(autostart_module, "_ASK_AGAIN", 0.01)
    seen: list[int] = []

    def unsettled(_: str) -> bool:
        """For a moment after each start."""
        seen.append(len(machines.started))
        return seen.count(seen[-1]) == 1

    machines.fails = {"boot": VmLocked(name="boot")}
    machines.stopped = {"boot": AutoStart.ON_BOOT}
    machines.autostart = Autostart(
        store=machines.store,
        vms=machines.vms,
        start=machines.start,
        libvirt_ready=machines.ready,
        unsettled=unsettled,
    )
    machines.autostart.start()
    machines.wait(lambda: machines.started.count("boot") == 4)
    with machines.changed:
        assert not machines.changed.wait_for(lambda: machines.started.count("boot") > 4, 0.3)
    machines.autostart.stop()
