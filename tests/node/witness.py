"""What others than mcvirt see of a node: the guest itself, virsh, the directory of volumes."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests import guest
from tests.guest import build
from tests.node.mcvirt_node import _BIN, _CLI, VOLUMES, McvirtNode

PATIENCE = 90.0
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guest"
MIB = 1024 * 1024


def furnish(node: McvirtNode, *, iso: bool = False) -> None:
    """Give the node a storage backend, two networks and, if wanted, the tiny Linux."""
    if iso:
        build.build(node.directory / "linux.iso", CACHE)
        node.mcvirt("iso", "add", str(node.directory / "linux.iso"), "--from-path")
    node.host.run(["ip", "link", "add", "br1", "type", "bridge"])
    node.host.run(["ip", "link", "set", "br1", "up"])
    node.mcvirt("storage", "create", "data", "--type", "File", "--path", VOLUMES)
    node.mcvirt("network", "create", "lan", "--interface", "br0")
    node.mcvirt("network", "create", "dmz", "--interface", "br1")


def create(node: McvirtNode, name: str, *more: str, memory: str = "32") -> None:
    node.mcvirt("create", name, "--memory", memory, "--cpu-count", "1", *more)


def until(fits: Callable[[], Any], what: str, within: float = PATIENCE) -> Any:
    """The first true value of *fits*, asked again whenever a little time has passed."""
    deadline = time.monotonic() + within
    while not (found := fits()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        select.select([], [], [], 0.1)
    return found


def state(node: McvirtNode, name: str) -> str:
    """The state in `mcvirt list`, or MISSING."""
    row = next(row for row in node.json("list") if row["name"] == name)
    return "MISSING" if row["missing"] else str(row["state"])


def image(node: McvirtNode, name: str, slot: int = 1) -> Path:
    """The file of a machine's disk, for this machine."""
    disk = next(disk for disk in node.json("info", name)["disks"] if disk["slot"] == slot)
    volume = next(each["volume"] for each in node.json("hard-drive", "list") if each["id"] == disk["id"])
    return node.volumes / volume


def world(node: McvirtNode) -> dict[str, Any]:
    """All that a refused command must leave as it was."""
    domains = sorted(node.virsh("list", "--all", "--name").split())
    described = "; ".join(f"dumpxml {name} --security-info; dumpxml {name} --inactive" for name in domains)
    return {
        "domains": node.virsh(described) if domains else "",
        "volumes": {path.name: path.stat().st_size for path in node.volumes.rglob("*") if path.is_file()},
        "isos": sorted(path.name for path in (node.state_dir / "iso").rglob("*")),
        "revision": revision(node),
    }


def revision(node: McvirtNode) -> int:
    """How many changes the configuration has seen, from a copy of the state file: mcvirtd lets nobody at its own."""
    with tempfile.TemporaryDirectory() as directory:
        for end in ("", "-wal"):
            if (source := node.state_dir / f"state.db{end}").exists():
                shutil.copy(source, directory)
        with contextlib.closing(sqlite3.connect(f"{directory}/state.db")) as db:
            return int(db.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()[0])


def refused(node: McvirtNode, *argv: str, status: int = 3, says: str = "", unchanged: bool = True, **more: Any) -> str:
    """The sentence with which the command is refused: one line on stderr, nothing on stdout, nothing changed."""
    before = world(node) if unchanged else None
    result = node.mcvirt(*argv, check=False, **more)
    said = result.stderr.splitlines()
    assert result.returncode == status, f"{argv}: status {result.returncode}: {result.stdout}{result.stderr}"
    assert result.stdout == "", result.stdout
    errors = [line for line in said if line.startswith("Error: ")]
    assert len(errors) == 1 and len(said) <= 2, result.stderr
    sentence = errors[0].removeprefix("Error: ")
    assert says.lower() in sentence.lower(), f"{argv}: {sentence}"
    assert "Traceback" not in sentence and "inside mcvirtd" not in sentence, sentence
    if before is not None:
        after = world(node)
        assert after == before, f"{argv} was refused and changed something: {sentence}"
    return sentence


class Screen:
    """A machine's serial console, through `mcvirt console`: what the guest says, and what is typed at it."""

    def __init__(self, node: McvirtNode, name: str) -> None:
        self.said = ""
        self._process = node.host.popen(
            [str(_BIN / "python"), "-c", _CLI, "console", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **node.client_env()},
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.type("\x1d")  # ctrl-]
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def ended(self, within: float = PATIENCE) -> int:
        """The exit status of the console command."""
        while self._more(within):
            pass
        return int(self._process.wait(within))

    def forget(self) -> None:
        self.said = ""

    def wait(
        self, kind: str, fits: Callable[[guest.Line], bool] = lambda line: True, within: float = PATIENCE
    ) -> guest.Line:
        """The first line of that kind that fits, since the beginning or since `forget`."""
        deadline = time.monotonic() + within
        while True:
            for line in guest.lines(self.said, kind):
                if fits(line):
                    return line
            remaining = deadline - time.monotonic()
            assert remaining > 0 and self._more(remaining), f"no such {kind!r} in:\n{self.said}"

    def _more(self, within: float) -> bool:
        if not select.select([self._output], [], [], within)[0]:
            return False
        data = os.read(self._output, 65536)
        self.said += data.decode(errors="replace")
        return bool(data)


def boot(node: McvirtNode, name: str, *more: str, memory: str = "128") -> Screen:
    """Create a machine, start the tiny Linux on it, and return its console when the guest is ready."""
    create(node, name, *more, memory=memory)
    node.mcvirt("start", name, "--iso", "linux.iso")
    screen = Screen(node, name)
    screen.wait("ready")
    return screen


def tap(node: McvirtNode, name: str, mac: str) -> str:
    """The bridge that the adapter's tap device is on, as the kernel says."""
    device = re.search(rf"^\s*(\S+)\s.*{mac}", node.virsh("domiflist", name), re.MULTILINE)
    assert device is not None
    link = node.host.run(["ip", "-o", "link", "show", device[1]]).stdout
    master = re.search(r" master (\S+)", link)
    return master[1] if master else ""
