"""kill -9 in every step: whatever the moment, the next start leaves everything whole, and nothing astray."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node.mcvirt_node import VOLUMES, McvirtNode

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces and libvirtd")

DISK = "8MiB"
DIES_WITHIN = 5.0


class CrashNode(McvirtNode):
    """A node whose mcvirtd can be told when to die."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, module="tests.node.crash_points")
        self.plan = directory / "plan"
        self.moments = directory / "moments"

    def start_daemon(self, **kwargs: object) -> None:  # type: ignore[override]
        super().start_daemon(env={"CRASH_PLAN": str(self.plan), "CRASH_LOG": str(self.moments)})

    def count(self, act: Callable[[], object]) -> list[str]:
        """The names of the moments in *act*."""
        self.moments.unlink(missing_ok=True)
        self.plan.write_text("count")
        act()
        self.plan.unlink()
        return self.moments.read_text().splitlines()

    def crash_at(self, moment: int, act: Callable[[], object]) -> bool:
        """Let mcvirtd die at that moment of *act*, and start it again; False if it did not die."""
        self.plan.write_text(str(moment))
        act()
        try:
            # The command is told of the lost connection before the end of the process can be seen here.
            self._daemon.wait(DIES_WITHIN) if self._daemon else None
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.plan.unlink()
        self.wait_daemon()
        self.start_daemon()
        return True


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashNode]:
    with CrashNode(tmp_path_factory.mktemp("crash")) as made:
        made.mcvirt("storage", "create", "data", "--type", "File", "--path", VOLUMES)
        made.mcvirt("network", "create", "lan", "--interface", "br0")
        yield made


# The questions between two deaths are asked by one process: a command for each would take most of the test's time.
_LOOK = """
import msgspec, sys
from mcvirt_client import Client
with Client.connect() as client:
    found = {"vms": client.vms.list(), "disks": client.hard_drives.list(), "tasks": client.tasks.list()}
    sys.stdout.write(msgspec.json.encode(found).decode())
"""
_CLEAN = """
from mcvirt_client import Client
with Client.connect() as client:
    for row in client.vms.list():
        if row.state.value in ("RUNNING", "PAUSED"):
            client.vms[row.name].stop()
        client.vms[row.name].delete()
    for disk in client.hard_drives.list():
        client.hard_drives.delete(disk.id)
"""


def look(node: McvirtNode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.python(_LOOK).stdout)
    return found


def names(node: McvirtNode) -> set[str]:
    return {row["name"] for row in look(node)["vms"]}


def assert_whole(node: McvirtNode) -> None:
    """Records, volumes and domains agree, and nothing is left to settle."""
    found = look(node)
    disks = {disk["volume"]: disk for disk in found["disks"]}
    volumes = {path.name for path in node.volumes.iterdir() if not path.name.startswith(".mcvirt-")}
    assert {Path(volume).stem for volume in volumes} == set(disks), "volumes and hard drives differ"
    domains = set(node.virsh("list", "--all", "--name").split())
    machines = {row["name"]: row for row in found["vms"]}
    assert domains == {name for name, row in machines.items() if row["node"]}, "domains and registered machines differ"
    for disk in disks.values():
        assert disk["vm"] is None or disk["vm"] in machines
    for row in machines.values():
        assert not row["missing"]
    assert not [task for task in found["tasks"] if task["state"] in ("RUNNING", "STUCK")]


def clean(node: McvirtNode) -> None:
    node.python(_CLEAN)
    assert_whole(node)


def create(node: McvirtNode, *, disks: bool = True) -> None:
    size = ("--disk-size", DISK) if disks else ()
    node.mcvirt("create", "web1", "--memory", "32", "--cpu-count", "1", *size, "--network", "lan", check=False)


def crash_everywhere(
    node: CrashNode, prepare: Callable[[], object], act: Callable[[], object], verify: Callable[[], object], least: int
) -> None:
    """Count the moments of *act*, then die at each in turn, each time from the same beginning."""
    clean(node)
    prepare()
    moments = node.count(act)
    assert len(moments) >= least, moments
    for number, moment in enumerate(moments, 1):
        clean(node)
        prepare()
        died = node.crash_at(number, act)
        try:
            assert died or number > len(moments) - 4, f"mcvirtd did not die at moment {number} ({moment})"
            assert_whole(node)
            verify()
        except AssertionError as error:
            raise AssertionError(f"after kill -9 at moment {number} of {len(moments)}, {moment}: {error}") from error
    clean(node)


def test_create(node: CrashNode) -> None:
    def verify() -> None:
        if "web1" not in names(node):
            return  # it died before the record was there
        info = node.json("info", "web1")
        whole = len(info["disks"]) == 1 and len(info["adapters"]) == 1
        assert whole or any("not finished" in warning for warning in info["warnings"]), info
        if info["node"] is None:
            node.mcvirt("register", "web1")
        if not info["disks"]:
            node.mcvirt("update", "web1", "--add-disk", DISK)
        if not info["adapters"]:
            node.mcvirt("update", "web1", "--add-network", "lan")
        repaired = node.json("info", "web1")
        assert repaired["warnings"] == [] and len(repaired["disks"]) == len(repaired["adapters"]) == 1, repaired

    crash_everywhere(node, lambda: None, lambda: create(node), verify, least=16)


def test_delete(node: CrashNode) -> None:
    def verify() -> None:
        if "web1" in names(node):  # it died before the deletion was written down
            info = node.json("info", "web1")
            assert len(info["disks"]) == 1 and info["node"] == "node1", info

    crash_everywhere(node, lambda: create(node), lambda: node.mcvirt("delete", "web1", check=False), verify, least=12)


def test_update(node: CrashNode) -> None:
    """Adding, growing and removing disks at once: all of it, or nothing but what must be finished."""

    def prepare() -> None:
        create(node)
        node.mcvirt("update", "web1", "--add-disk", DISK)

    def act() -> None:
        node.mcvirt(
            "update",
            "web1",
            "--memory",
            "48",
            "--add-disk",
            "4MiB",
            "--delete-disk",
            "2",
            "--disk-id",
            "1",
            "--increase-disk",
            "8MiB",
            check=False,
        )

    def verify() -> None:
        info = node.json("info", "web1")
        sizes = [disk["size"] // 2**20 for disk in info["disks"]]
        if info["memory"] == 32 * 2**20:
            assert sizes == [8, 8], info
        else:
            assert info["memory"] == 48 * 2**20 and sorted(sizes) in ([4, 8], [4, 16]), info

    crash_everywhere(node, prepare, act, verify, least=20)


def test_start_and_stop(node: CrashNode) -> None:
    def cycle() -> None:
        node.mcvirt("start", "web1", check=False)
        node.mcvirt("stop", "web1", check=False)

    def verify() -> None:
        state = node.json("info", "web1")["state"]
        domain = node.virsh("domstate", "web1").strip()
        assert (state, domain) in (("RUNNING", "running"), ("STOPPED", "shut off"))

    crash_everywhere(node, lambda: create(node), cycle, verify, least=12)


def test_register_and_unregister(node: CrashNode) -> None:
    def cycle() -> None:
        node.mcvirt("unregister", "web1", check=False)
        node.mcvirt("register", "web1", check=False)

    def verify() -> None:
        if node.json("info", "web1")["node"] is None:
            node.mcvirt("register", "web1")

    crash_everywhere(node, lambda: create(node), cycle, verify, least=10)


def test_hard_drives(node: CrashNode) -> None:
    def prepare() -> None:
        create(node, disks=False)

    def act() -> None:
        made = node.mcvirt("hard-drive", "create", DISK, "--json", check=False)
        if made.returncode:
            return
        disk = json.loads(made.stdout)["id"]
        node.mcvirt("hard-drive", "attach", disk, "web1", check=False)
        node.mcvirt("hard-drive", "detach", disk, check=False)
        node.mcvirt("hard-drive", "delete", disk, check=False)

    crash_everywhere(node, prepare, act, lambda: None, least=16)
