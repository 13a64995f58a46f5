"""The lab itself: what it tells when a test fails or a node does not come up, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.cache import ROOT, LabFailed
from tests.lab.ground import Ground, sweep
from tests.lab.machine import Machine
from tests.lab.node import Node
from tests.lab.system import cpio


def processes(directory: Path) -> dict[int, str]:
    """The command lines of processes that name *directory*, or live in it."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and int(process.name) != os.getpid():
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(directory) in words or (process / "cwd").readlink().is_relative_to(directory):
                    found[int(process.name)] = words
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def test_a_broken_daemon_fails_a_test_with_its_journal(idle_node: Node) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__).with_name("broken_daemon.py"))],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    journal = done.stdout.partition("journal of mcvirtd:")[2]
    assert "RuntimeError: broken on purpose" in journal, done.stdout
    whole = ROOT / "build/lab/test_machines_are_listed/node1.journal"
    assert "RuntimeError: broken on purpose" in whole.read_text()
    assert "systemd" in whole.read_text()


def test_two_runs_at_once_of_which_nothing_is_left_when_they_are_interrupted(idle_node: Node, tmp_path: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path; from tests.lab.lab import Lab\n"
        # A shell starts what is in its background with Ctrl-C ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with Lab(1, directory=Path(sys.argv[1])) as lab:\n"
        "    print(lab[1].succeed('sha256sum < /var/lib/mcvirt/node.json'), flush=True); sys.stdin.read()\n"
    )
    directories = {number: tmp_path / number.name for number in (signal.SIGINT, signal.SIGKILL)}
    with contextlib.ExitStack() as stack:
        runs = {
            number: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code, str(directory)],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )
            for number, directory in directories.items()
        }
        identities = {idle_node.succeed("sha256sum < /var/lib/mcvirt/node.json").strip().encode()}
        for run in runs.values():
            assert run.stdout is not None
            identities.add(run.stdout.readline().strip())
        assert len(identities) == 3 and b"" not in identities
        for number, run in runs.items():
            machines = [pid for pid, words in processes(directories[number]).items() if "qemu-system" in words]
            assert machines
            # They take no port of this machine, and so none can be in use.
            assert Path("/proc/self/ns/net").readlink() not in [
                Path(f"/proc/{pid}/ns/net").readlink() for pid in machines
            ]
            run.send_signal(number)
            run.wait(60)
    for directory in directories.values():
        idle_node.wait_until(lambda at=directory: not processes(at) and not at.exists(), within=15, what="nothing left")
    idle_node.mcvirt("list")


def test_what_a_killed_ground_leaves_is_swept(tmp_path: Path) -> None:
    ground = Ground.start(tmp_path / "run")
    other = Ground.start(tmp_path / "other")
    try:
        killed = os.pidfd_open(ground.pid)
        os.kill(ground.pid, signal.SIGKILL)
        assert ground.directory.exists()
        os.close(killed)
        ground._life = None
        labs_left = [path.name for path in tmp_path.iterdir()]
        assert sorted(labs_left) == ["other", "run"]
        while ground.directory.exists():
            sweep(tmp_path)
        assert other.directory.exists()
    finally:
        other.end()


def test_a_node_that_does_not_come_up_shows_its_console(idle_node: Node, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.mkdir()
    for name in ("vmlinuz", "id", "root.img"):
        (image / name).symlink_to(idle_node.machine.image / name)
    # The system's own initrd, but its first program is another: archives add up.
    init = "#!/bin/busybox sh\necho lab: this machine will never come up\n/bin/busybox sleep 1000\n"
    (image / "initrd").write_bytes(
        (idle_node.machine.image / "initrd").read_bytes() + cpio([("init", 0o100755, init.encode())])
    )
    ground = Ground.start(tmp_path / "run")
    try:
        lost = Node(Machine(ground, image, 1))
        lost.machine.new_disks()
        lost.machine.start()
        idle_node.wait_until(lambda: "never come up" in lost.machine.console(), what="its first words")
        with pytest.raises(LabFailed, match=r"(?s)no way in within 3 s.*this machine will never come up"):
            lost.log_in(within=3)
        lost.power_off()
        with pytest.raises(LabFailed, match="it is off"):
            lost.log_in(within=3)
    finally:
        ground.end()
