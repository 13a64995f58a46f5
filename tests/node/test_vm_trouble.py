"""What fails half way leaves a machine that can be seen and repaired, and nothing astray."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.mcvirt_node import VOLUMES, McvirtNode
from tests.node.slow_volumes import LARGE
from tests.node.witness import create, furnish, image, refused, state, until, world

SLOW = str(LARGE // 1024 // 1024)
CREATE = ("--memory", "32", "--cpu-count", "1")
_BIN = Path(sys.executable).parent
_CLI = "import sys; from mcvirt_client.cli.main import main; sys.exit(main())"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, capabilities: Path) -> Iterator[McvirtNode]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces and libvirtd")
    with McvirtNode(
        tmp_path_factory.mktemp("trouble"), capabilities=capabilities, module="tests.node.slow_volumes"
    ) as made:
        furnish(made)
        yield made


@pytest.fixture(autouse=True)
def whole(node: McvirtNode) -> Iterator[None]:
    """After each test: no volume without a hard drive, no domain without a machine, nothing left to settle."""
    yield
    for row in node.json("list"):
        if row["state"] in ("RUNNING", "PAUSED"):
            node.mcvirt("stop", row["name"])
        node.mcvirt("delete", row["name"])
    assert node.json("hard-drive", "list") == []
    assert [path for path in node.volumes.rglob("*") if path.is_file() and not path.name.startswith(".mcvirt-")] == []
    assert node.virsh("list", "--all", "--name").split() == []
    assert node.json("task", "list", "--running") == []


def begin(node: McvirtNode, *argv: str, **more: object) -> subprocess.Popen[bytes]:
    return node.host.popen(
        [str(_BIN / "python"), "-c", _CLI, *argv],
        env={**os.environ, **node.client_env()},
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
    )


def running(node: McvirtNode) -> list[dict[str, str]]:
    return node.json("task", "list", "--running")


def test_no_room_for_the_disk(node: McvirtNode) -> None:
    small = VOLUMES + "/small"
    node.host.path(small).mkdir()
    node.host.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0711", "tmpfs", small])
    node.mcvirt("storage", "create", "small", "--type", "File", "--path", small)
    before = world(node)
    refused(node, "create", "full1", *CREATE, "--disk-size", "8", "--storage-backend", "small", says="free")
    assert world(node) == before
    # As many files as it takes: then not even a sparse file can be made, which only the attempt shows.
    node.host.run(["mount", "-o", "remount,nr_inodes=3", small])
    create(node, "base1")
    said = refused(
        node, "create", "full1", *CREATE, "--disk-size", "1", "--storage-backend", "small", "--network", "lan",
        status=1, unchanged=False,
    )  # fmt: skip
    assert "full1" in said and "mcvirt update full1" in said and "space" in said
    assert node.json("hard-drive", "list") == []
    assert node.host.run(["ls", small]).stdout == ""
    info = node.json("info", "full1")
    assert info["node"] == "node1" and any("disk 1 (1 MiB)" in warning for warning in info["warnings"])
    refused(node, "update", "base1", "--memory", "64", "--add-disk", "1", "--storage-backend", "small", status=1)
    # The repair, with another size.
    node.mcvirt("update", "full1", "--add-disk", "2", "--storage-backend", "data", "--add-network", "dmz")
    assert node.json("info", "full1")["warnings"] == []
    node.mcvirt("start", "full1")
    node.mcvirt("storage", "delete", "small")
    node.host.run(["umount", small])
    node.host.path(small).rmdir()


def test_libvirtd_is_not_there(node: McvirtNode) -> None:
    create(node, "away1", "--disk-size", "8", "--network", "lan")
    node.mcvirt("start", "away1")
    node.host.stop_libvirtd()
    until(lambda: state(node, "away1") == "UNKNOWN", "the loss of libvirtd")
    before = (node.json("list"), sorted(node.volumes.iterdir()))
    for argv in (
        ("create", "away2", *CREATE, "--disk-size", "8"),
        ("start", "away1"),
        ("stop", "away1"),
        ("delete", "away1"),
        ("update", "away1", "--memory", "64"),
        ("update", "away1", "--disk-id", "1", "--increase-disk", "8"),
        ("register", "away1"),
        ("unregister", "away1"),
        ("info", "away1", "--vnc-port"),
    ):
        refused(node, *argv, status=5, says="is libvirtd running", unchanged=False)
    assert (node.json("list"), sorted(node.volumes.iterdir())) == before
    assert any("does not answer" in warning for warning in node.json("info", "away1")["warnings"])
    node.host.start_libvirtd()
    until(lambda: state(node, "away1") == "RUNNING", "the return of libvirtd", within=30)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_libvirtd_goes_in_the_middle_of_create(node: McvirtNode, how: str) -> None:
    command = begin(node, "create", "mid1", *CREATE, "--disk-size", SLOW, "--network", "lan")
    task = until(lambda: running(node), "the task", within=10)[0]["id"]
    until(lambda: list(node.volumes.glob("*.part")), "the beginning of the disk", within=10)
    getattr(node.host, f"{how}_libvirtd")()
    until(lambda: state(node, "mid1") == "UNKNOWN", "the loss of libvirtd")
    node.mcvirt("task", "cancel", task)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 1 and b"cancelled" in errors
    node.host.start_libvirtd()
    until(lambda: node.json("info")[0]["status"] == "Local" and not running(node), "libvirtd", within=60)
    assert node.json("list") == []


def test_libvirtd_hangs_while_a_machine_starts(node: McvirtNode) -> None:
    create(node, "hang1", "--disk-size", "8")
    node.host.pause_libvirtd()
    command = begin(node, "start", "hang1")
    try:
        until(lambda: running(node), "the task", within=10)
        said = refused(node, "delete", "hang1", "--timeout", "40", unchanged=False)
        assert "in use by task" in said and "mcvirt task cancel" in said
        _, errors = command.communicate(timeout=60)
        assert command.returncode in (1, 5), errors
        assert errors.count(b"Error: ") == 1
    finally:
        node.host.resume_libvirtd()
        command.kill()
        command.communicate()
    until(lambda: state(node, "hang1") in ("STOPPED", "RUNNING"), "the return of libvirtd", within=60)
    until(lambda: not running(node), "the settling of what was begun", within=90)
    if state(node, "hang1") == "STOPPED":
        node.mcvirt("start", "hang1")


def test_cancelled_create_leaves_nothing(node: McvirtNode) -> None:
    before = world(node)
    task = node.mcvirt(
        "create", "cancel1", *CREATE, "--disk-size", "8", "--disk-size", SLOW, "--no-wait"
    ).stdout.strip()
    until(lambda: list(node.volumes.glob("*.part")), "the beginning of the disk", within=10)
    assert state(node, "cancel1") == "UNKNOWN"
    node.mcvirt("task", "cancel", task)
    said = refused(node, "task", "watch", task, status=1, says="was cancelled", unchanged=False)
    assert "undone" in said
    after = world(node)
    assert {key: after[key] for key in after if key != "revision"} == {
        key: before[key] for key in before if key != "revision"
    }
    assert next(each for each in node.json("task", "list") if each["id"] == task)["state"] == "CANCELLED"
    refused(node, "task", "cancel", task, says="over already")


def test_ctrl_c_asks_and_cancels(node: McvirtNode) -> None:
    leader, follower = pty.openpty()
    command = begin(
        node, "create", "ctrl1", *CREATE, "--disk-size", SLOW, stdin=follower, stderr=follower, start_new_session=True
    )
    os.close(follower)
    until(lambda: list(node.volumes.glob("*.part")), "the beginning of the disk", within=10)
    command.send_signal(2)
    seen = b""
    while b"[c]ancel" not in seen:
        assert select.select([leader], [], [], 20)[0], seen
        seen += os.read(leader, 4096)
    os.write(leader, b"c\n")
    assert command.wait(30) == 1
    os.close(leader)
    assert command.stdout is not None and command.stdout.read() == b""
    command.stdout.close()
    assert node.json("list") == []


def test_ctrl_c_without_a_terminal_detaches(node: McvirtNode) -> None:
    command = begin(node, "create", "ctrl2", *CREATE, "--disk-size", SLOW)
    until(lambda: list(node.volumes.glob("*.part")), "the beginning of the disk", within=10)
    command.send_signal(2)
    output, errors = command.communicate(timeout=30)
    task = running(node)[0]["id"]
    assert (command.returncode, output) == (130, b"") and task in errors.decode()
    node.mcvirt("task", "cancel", task)
    until(lambda: not running(node), "the end of the task", within=20)


def test_two_creations_of_one_name(node: McvirtNode) -> None:
    results: list[subprocess.CompletedProcess[str]] = []

    def make() -> None:
        results.append(node.mcvirt("create", "twin1", *CREATE, "--disk-size", "8", check=False))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.returncode for result in results) == [0, 3, 3, 3]
    assert sum("already a virtual machine called 'twin1'" in result.stderr for result in results) == 3
    assert len(node.json("hard-drive", "list")) == 1


def test_bridge_deleted_behind_our_back(node: McvirtNode) -> None:
    node.host.run(["ip", "link", "add", "br5", "type", "bridge"])
    node.mcvirt("network", "create", "five", "--interface", "br5")
    create(node, "five1", "--disk-size", "8", "--network", "five")
    node.host.run(["ip", "link", "delete", "br5"])
    refused(node, "start", "five1", says="br5")
    assert "br5" in node.mcvirt("network", "list").stderr
    node.host.run(["ip", "link", "add", "br5", "type", "bridge"])
    node.mcvirt("start", "five1")
    node.mcvirt("stop", "five1")
    node.mcvirt("delete", "five1")
    node.mcvirt("network", "delete", "five")


def test_volume_deleted_behind_our_back(node: McvirtNode) -> None:
    create(node, "lost1", "--disk-size", "8")
    image(node, "lost1").unlink()
    refused(node, "start", "lost1", says="missing")
    refused(node, "update", "lost1", "--disk-id", "1", "--increase-disk", "8", says="missing")
    node.mcvirt("update", "lost1", "--delete-disk", "1", "--add-disk", "8")  # which repairs it
    node.mcvirt("start", "lost1")


def test_delete_when_the_backend_is_away(node: McvirtNode) -> None:
    moved = node.volumes.with_name("elsewhere")
    create(node, "gone1", "--disk-size", "8")
    node.volumes.rename(moved)
    try:
        refused(node, "delete", "gone1", says="not available", unchanged=False)
        node.mcvirt("delete", "gone1", "--keep-disks")
    finally:
        moved.rename(node.volumes)
    (disk,) = node.json("hard-drive", "list")
    node.mcvirt("hard-drive", "delete", disk["id"])
