"""Facts, interfaces, and what systemd is told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from mcvirt.errors import BadArgument
from mcvirtd.host import facts, network, systemd


def interface(root: Path, name: str, *, flags: str = "0x1003", bridge: bool = False) -> Path:
    path = root / name
    path.mkdir()
    (path / "flags").write_text(flags + "\n")
    (path / "address").write_text("00:16:3e:00:00:01\n")
    if bridge:
        (path / "bridge").mkdir()
        (path / "brif").mkdir()
    return path


def test_bridges_and_their_members(tmp_path: Path) -> None:
    bridge = interface(tmp_path, "br0", bridge=True)
    member = interface(tmp_path, "eth0", flags="0x1002")
    (bridge / "brif" / "eth0").mkdir()
    (member / "master").symlink_to(bridge)
    (tmp_path / "bonding_masters").write_text("")
    found = network.interfaces(tmp_path)
    assert sorted(found) == ["br0", "eth0"]
    assert (found["br0"].is_bridge, found["br0"].up, found["br0"].members) == (True, True, ("eth0",))
    assert (found["eth0"].is_bridge, found["eth0"].up, found["eth0"].bridge) == (False, False, "br0")


def test_bridge_faults(tmp_path: Path) -> None:
    interface(tmp_path, "br0", bridge=True)
    interface(tmp_path, "eth0")
    assert network.bridge_faults("br0", tmp_path) == []
    assert "not a bridge" in network.bridge_faults("eth0", tmp_path)[0]
    assert "bridges are: br0" in network.bridge_faults("br1", tmp_path)[0]
    for bad in ("../br0", "", "x" * 16, ".."):
        with pytest.raises(BadArgument):
            network.bridge_faults(bad, tmp_path)


def test_this_machine_has_a_loopback() -> None:
    assert not network.interfaces()["lo"].is_bridge


@pytest.fixture(params=["path", "abstract"])
def heard(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    request.addfinalizer(listener.close)
    listener.settimeout(5)
    if request.param == "path":
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    else:
        listener.bind(f"\0mcvirt-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@mcvirt-test-{os.getpid()}")
    return listener


def test_systemd_is_told(heard: socket.socket) -> None:
    systemd.status("starting\nREADY=1")
    systemd.ready("serving")
    systemd.alive()
    systemd.stopping()
    told = [heard.recv(1000) for _ in range(4)]
    assert told == [b"STATUS=starting READY=1", b"READY=1\nSTATUS=serving", b"WATCHDOG=1", b"STOPPING=1"]


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1234", "@mcvirt-nobody-listens"])
def test_nobody_listening_is_no_trouble(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.ready()
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.ready()


def test_facts_of_a_machine(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  250 kB\nHugePages_Total: 0\n")
    (tmp_path / "stat").write_text("cpu  100 10 40 800 50 0 0 0 7 0\ncpu0 1 1 1 1\n")
    assert facts.memory(tmp_path) == facts.Memory(total=1_024_000, used=768_000)
    before = facts.cpu_times(tmp_path)
    assert before == facts.CpuTimes(busy=150, total=1000)
    (tmp_path / "stat").write_text("cpu  150 10 40 850 50 0 0 0 7 0\n")
    assert facts.cpu_percent(before, facts.cpu_times(tmp_path)) == 50.0
    assert facts.cpu_percent(before, before) == 0.0


def test_memory_of_a_guest_is_that_of_its_process(tmp_path: Path) -> None:
    assert facts.memory_of_guest("web1", tmp_path, tmp_path) == 0
    (tmp_path / "web1.pid").write_text("77")
    assert facts.memory_of_guest("web1", tmp_path, tmp_path) == 0, "it has just ended"
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "statm").write_text("9000 20 3 1 0 5 0\n")
    assert facts.memory_of_guest("web1", tmp_path, tmp_path) == 20 * os.sysconf("SC_PAGE_SIZE")


def test_facts_of_this_machine() -> None:
    assert facts.cpu_count() >= 1
    assert 0 < facts.memory().used < facts.memory().total
    assert len(facts.boot_id()) == 36
