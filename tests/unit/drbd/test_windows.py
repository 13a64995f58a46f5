"""Windows in which both sides may be Primary: opened, renewed, and closed by the guard when nobody renews them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mcvirt.errors import CommandFailed, Conflict, DrbdDeviceOpen, McvirtError
from mcvirtd.drbd import guard as program
from mcvirtd.drbd.guard import Guard
from mcvirtd.drbd.windows import Windows
from mcvirtd.host import leases as leases_module
from mcvirtd.host.leases import Leases

NAME = "mcvirt-hd-1"
REFUSED = CommandFailed(program="drbdadm", status=10, output="Can not clear allow_two_primaries")


class Kernel:
    """One side: *both* are Primary, *open* says whether a program has the device here."""

    def __init__(self) -> None:
        self.allowed = self.both = self.open = False
        self.up = True
        self.calls: list[str] = []

    def two_primaries(self, name: str, allow: bool) -> None:
        assert name == NAME
        self.calls.append("allow" if allow else "refuse")
        if not self.up or (not allow and self.both):
            raise REFUSED
        self.allowed = allow

    def secondary(self, name: str) -> None:
        self.calls.append("secondary")
        if self.open:
            raise DrbdDeviceOpen(name=name)
        self.both = False

    def is_up(self, name: str) -> bool:
        return self.up


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def started() -> list[Path]:
    return []


@pytest.fixture
def windows(tmp_path: Path, kernel: Kernel, started: list[Path]) -> Windows:
    return Windows(tmp_path / "windows", kernel, started.append)


@pytest.fixture
def guard(tmp_path: Path, kernel: Kernel) -> Guard:
    return Guard(Leases(tmp_path / "windows"), kernel)


def end(tmp_path: Path) -> None:
    """Nobody has renewed it for long enough."""
    Leases(tmp_path / "windows").end(NAME)


def test_it_is_guarded_and_written_down_before_the_kernel_is_told(windows: Windows, kernel: Kernel) -> None:
    seen: list[bool] = []
    windows._watch = lambda directory: seen.append((directory / NAME).exists())
    original = kernel.two_primaries
    kernel.two_primaries = lambda name, allow: (seen.append(windows.is_open(name)), original(name, allow))  # type: ignore
    windows.open(NAME)
    assert seen == [False, True] and kernel.allowed


def test_a_guard_that_is_there_is_not_started_again(
    windows: Windows, started: list[Path], tmp_path: Path
) -> None:
    windows.open(NAME)
    assert started == [tmp_path / "windows"]
    with Leases(tmp_path / "windows").looking_after() as only:
        assert only
        windows.open(NAME)
        with Leases(tmp_path / "windows").looking_after() as second:
            assert not second
    assert len(started) == 1


def test_without_a_guard_nothing_is_opened(windows: Windows, kernel: Kernel) -> None:
    def fail(_: Path) -> None:
        raise CommandFailed(program="systemd-run", status=1, output="no systemd")

    windows._watch = fail
    with pytest.raises(CommandFailed):
        windows.open(NAME)
    assert not kernel.calls and not windows.is_open(NAME)


def test_one_that_is_renewed_stays(windows: Windows, guard: Guard, kernel: Kernel, tmp_path: Path) -> None:
    windows.open(NAME)
    assert guard.sweep() and kernel.allowed
    end(tmp_path)
    windows.renew(NAME)
    assert guard.sweep() and kernel.allowed and windows.is_open(NAME)


def test_one_that_is_not_is_closed_and_can_not_be_renewed(
    windows: Windows, guard: Guard, kernel: Kernel, tmp_path: Path
) -> None:
    windows.open(NAME)
    end(tmp_path)
    assert not windows.is_open(NAME)
    assert not guard.sweep() and not kernel.allowed
    with pytest.raises(Conflict):
        windows.renew(NAME)
    assert kernel.calls == ["allow", "refuse"]


def test_the_side_without_the_guest_steps_back_first(
    windows: Windows, guard: Guard, kernel: Kernel, tmp_path: Path
) -> None:
    windows.open(NAME)
    end(tmp_path)
    kernel.both = kernel.open = True
    for _ in range(3):
        assert guard.sweep() and kernel.allowed, "the guest's side waits for the other one"
    kernel.open = False
    assert guard.sweep()
    assert not guard.sweep() and not kernel.allowed


def test_a_resource_that_is_down_has_no_window(windows: Windows, guard: Guard, kernel: Kernel, tmp_path: Path) -> None:
    windows.open(NAME)
    end(tmp_path)
    kernel.up = False
    assert not guard.sweep()


def test_closing_leaves_to_the_guard_what_the_kernel_refuses(
    windows: Windows, guard: Guard, kernel: Kernel, tmp_path: Path
) -> None:
    windows.close(NAME)
    assert not kernel.calls, "none was opened"
    windows.open(NAME)
    kernel.both = True
    windows.close(NAME)
    assert kernel.allowed and not windows.is_open(NAME)
    guard.sweep()
    assert not guard.sweep() and not kernel.allowed
    windows.open(NAME)
    windows.close(NAME)
    assert not kernel.allowed and not guard.sweep()


def test_after_a_boot_no_window_is_open(windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows.open(NAME)
    other = tmp_path / "boot_id"
    other.write_text("another\n")
    monkeypatch.setattr(leases_module, "_BOOT_ID", other)
    assert not windows.is_open(NAME)


@pytest.mark.parametrize("text", ["", "garbage", "\0" * 30])
def test_what_can_not_be_read_has_ended(
    windows: Windows, guard: Guard, kernel: Kernel, tmp_path: Path, text: str
) -> None:
    windows.open(NAME)
    (tmp_path / "windows" / NAME).write_text(text)
    assert not windows.is_open(NAME) and not guard.sweep() and not kernel.allowed


def test_a_file_that_is_no_window_is_no_command(guard: Guard, kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "windows").mkdir()
    (tmp_path / "windows" / "all").write_text("")
    assert not guard.sweep() and not kernel.calls
    with pytest.raises(McvirtError):
        Windows(tmp_path / "windows", kernel, lambda _: None).open("all")


def test_the_program_ends_when_it_is_needed_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "STAYS", 0.0)
    monkeypatch.setattr(program, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    leases = Leases(tmp_path)
    ended: list[int] = []
    leases.take("mcvirt-hd-2", 30.0)
    thread = threading.Thread(target=lambda: ended.append(program.main([str(tmp_path)])))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and leases.looked_after(), "one is open"
    leases.drop("mcvirt-hd-2")
    thread.join(20)
    assert ended == [0] and not leases.looked_after()


class Hanging(Kernel):
    """Commands for *stuck* do not end before *go_on* is set."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck: set[str] = set()
        self.done: list[tuple[str, bool]] = []
        self.reached, self.go_on = threading.Event(), threading.Event()

    def two_primaries(self, name: str, allow: bool) -> None:
        if name in self.stuck:
            self.reached.set()
            assert self.go_on.wait(20)
        self.done.append((name, allow))


@pytest.mark.parametrize("who", ["guard", "close", "open"])
def test_a_command_that_hangs_keeps_only_its_own_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setattr(program, "CLOSE_WITHIN", 0.2)
    kernel, other = Hanging(), "mcvirt-hd-2"
    windows = Windows(tmp_path / "windows", kernel, lambda _: None)
    guard = Guard(Leases(tmp_path / "windows"), kernel)
    windows.open(other)
    if who != "open":
        windows.open(NAME)
    kernel.stuck = {NAME}
    if who == "guard":
        end(tmp_path)
    acts = {"guard": guard.sweep, "close": lambda: windows.close(NAME), "open": lambda: windows.open(NAME)}
    hanging = threading.Thread(target=acts[who], daemon=True)
    hanging.start()
    assert kernel.reached.wait(20)
    others = threading.Thread(target=lambda: (windows.renew(other), windows.close(other)), daemon=True)
    others.start()
    others.join(20)
    assert (other, False) in kernel.done and not Leases(tmp_path / "windows").exists(other)
    windows.open(other)
    Leases(tmp_path / "windows").end(other)
    guard.sweep()
    assert not Leases(tmp_path / "windows").exists(other), "the guard closes it all the same"
    kernel.go_on.set()
    hanging.join(20)
    assert not hanging.is_alive()


def test_one_that_is_being_opened_is_not_closed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "CLOSE_WITHIN", 0.2)
    kernel = Hanging()
    kernel.stuck = {NAME}
    windows = Windows(tmp_path / "windows", kernel, lambda _: None)
    guard = Guard(Leases(tmp_path / "windows"), kernel)
    opening = threading.Thread(target=lambda: windows.open(NAME), daemon=True)
    opening.start()
    assert kernel.reached.wait(20)
    end(tmp_path)
    assert guard.sweep() and kernel.done == []
    kernel.go_on.set()
    opening.join(20)
    guard._closing[NAME].join(20)
    assert kernel.done == [(NAME, True), (NAME, False)] and not guard.sweep()
