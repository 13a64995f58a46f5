"""The private libvirtd that tests, demo and bench stand on."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.libvirt_host import HostFailed, LibvirtHost


@pytest.fixture
def directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="mcvirt-node-"))
    yield directory
    shutil.rmtree(directory)


def ends(pid: int, within: float = 20.0) -> bool:
    """Wait for the end of a process, which may be over already."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within)[0])
    finally:
        os.close(descriptor)


def test_what_runs_inside_sees_its_own_machine_and_ends_with_it(directory: Path) -> None:
    with LibvirtHost(directory, "alone") as host:
        assert host.run(["hostname"]).stdout == "alone\n"
        assert host.run(["ls", "/run/libvirt/libvirt-sock"]).stdout
        assert host.path("/run/libvirt/libvirt-sock").is_socket()
        assert host.virsh("list", "--all", "--name").strip() == ""
        assert [line.split()[0] for line in host.run(["ip", "-brief", "link"]).stdout.splitlines()] == ["lo"]
        assert host.run(["false"], check=False).returncode == 1
        with pytest.raises(HostFailed, match="no-such-program"):
            host.run(["no-such-program"])
        program = host.popen(["sleep", "1000"])
        program.send_signal(signal.SIGTERM)
        assert program.wait(10) == -signal.SIGTERM
        left = host.popen(["sleep", "1000"])
        pids = [host.pid, host.daemon_pid("libvirtd"), host.daemon_pid("virtlogd"), left.outer_pid]
        assert all(pids)
    assert all(ends(pid) for pid in pids)
    left.wait(10)
    assert str(directory) not in Path("/proc/self/mounts").read_text()


def test_a_start_that_fails_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = LibvirtHost(directory, "broken")
    monkeypatch.setattr("tests.node.libvirt_host._LIBVIRTD_CONF", "host_uuid = '{uuid}\nnonsense\n")
    started: list[int] = []
    start = host._start_daemon

    def note(program: str) -> None:
        started.append(host.pid)
        start(program)

    monkeypatch.setattr(host, "_start_daemon", note)
    with pytest.raises(HostFailed, match="libvirtd failed"):
        host.start()
    assert len(started) == 2 and ends(started[0])


def test_nothing_is_left_when_the_owner_is_killed(directory: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.node.libvirt_host import LibvirtHost\n"
        "host = LibvirtHost(Path(sys.argv[2]), 'orphan')\n"
        "host.start()\n"
        "print(host.pid, host.daemon_pid('libvirtd'), host.daemon_pid('virtlogd'), flush=True)\n"
        "sys.stdin.read()\n"
    )
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(root), str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdin is not None and owner.stdout is not None
    pids = [int(number) for number in owner.stdout.readline().split()]
    assert len(pids) == 3 and all(pids)
    owner.kill()
    owner.wait()
    owner.stdin.close()
    owner.stdout.close()
    assert all(ends(pid) for pid in pids)
