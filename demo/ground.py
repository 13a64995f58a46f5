"""What the demo stands on: a private libvirtd, a bridge in a private network, and mcvirtd, all in one directory.

Two of them make a cluster when their bridges are connected.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.node.libvirt_host import HostFailed, Inside, LibvirtHost

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
BRIDGE = "br-demo"
CABLE = "cable"
START_WITHIN = 60.0
STOP_WITHIN = 30.0
SETTINGS = """\
[node]
name = "{name}"

[paths]
state = "{state}"
run = "{run}"
"""


class DemoFailed(Exception):
    """Something that the demo needs did not work."""


class Ground:
    """All of it, from ``with`` to the end of the block: then every process is ended, and the directory is left."""

    def __init__(
        self, directory: Path, installed: Path | None = None, *, name: str = "demo", address: str = ""
    ) -> None:
        """*installed* is the PREFIX whose commands are used instead of this tree's.

        *address* is what the bridge gets when it is connected to another.
        """
        self._installed = installed
        self.name = name
        self.address = address
        self.directory = directory
        self.run_directory = directory / "run"
        self.images = directory / "images"
        self.settings = directory / "mcvirtd.toml"
        self.log = directory / "mcvirtd.log"
        self._host = LibvirtHost(directory / "host", name, capabilities=CACHE / "capabilities")
        self._daemon: Inside | None = None

    def __enter__(self) -> Ground:
        try:
            # QEMU's user passes through.
            self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._host.start()
            self._host.run(["ip", "link", "add", "name", BRIDGE, "type", "bridge"])
            self._host.run(["ip", "link", "set", BRIDGE, "up"])
            self.images.mkdir()
            self.start_daemon()
        except HostFailed as error:
            self.close()
            raise DemoFailed(str(error)) from None
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End mcvirtd, then everything else."""
        daemon, self._daemon = self._daemon, None
        try:
            if daemon is not None:
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(STOP_WITHIN)
                except subprocess.TimeoutExpired:
                    pass  # it ends with its host
        finally:
            self._host.close()

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Inside:
        """Start the `mcvirt` command on the private machine."""
        if self._installed:
            return self._popen([str(self._installed / "bin/mcvirt"), *argv], stdin=stdin, stdout=stdout, stderr=stderr)
        code = "from mcvirt_client.cli.main import main; main()"
        return self._popen([sys.executable, "-c", code, *argv], stdin=stdin, stdout=stdout, stderr=stderr)

    def python(self, argv: Sequence[str]) -> Inside:
        """Start a Python program of this tree on the private machine."""
        return self._popen([sys.executable, str(ROOT / argv[0]), *argv[1:]], stdin=subprocess.DEVNULL, stdout=None)

    def run(self, argv: Sequence[str]) -> str:
        """What any program prints on the private machine; DemoFailed if it fails."""
        try:
            return self._host.run(argv).stdout
        except HostFailed as error:
            raise DemoFailed(str(error)) from None

    def log_tail(self, lines: int = 30) -> str:
        """The end of mcvirtd's log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _popen(
        self, argv: Sequence[str], *, stdin: int | None, stdout: int | None, stderr: int | None = None, **more: str
    ) -> Inside:
        environment = {
            **os.environ,
            # The example is in docs; installed commands take no notice.
            "PYTHONPATH": str(ROOT),
            "MCVIRT_RUN_DIR": str(self.run_directory),
            **more,
        }
        try:
            return self._host.popen(argv, stdin=stdin, stdout=stdout, stderr=stderr, env=environment)
        except HostFailed as error:
            raise DemoFailed(str(error)) from None

    def kill_daemon(self) -> None:
        """kill -9, and the end of mcvirtd."""
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            raise DemoFailed(f"mcvirtd does not run on {self.name}")
        daemon.send_signal(signal.SIGKILL)
        try:
            daemon.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"mcvirtd did not end on {self.name}") from None

    def connect(self, other: Ground) -> None:
        """Lay a cable from this bridge to the other one, and give both their addresses."""
        try:
            # Neither host sees the processes of the other, so the machine lays the cable.
            cable = ["ip", "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", str(other._host.pid)]
            laid = subprocess.run(  # noqa: S603
                ["nsenter", "--target", str(self._host.pid), "--net", "--", *cable],  # noqa: S607
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
            if laid.returncode:
                raise DemoFailed(f"the bridges can't be connected: {laid.stderr}")
            for ground in (self, other):
                ground._host.run(["ip", "link", "set", CABLE, "master", BRIDGE, "up"])
                ground._host.run(["ip", "address", "add", f"{ground.address}/24", "dev", BRIDGE])
        except HostFailed as error:
            raise DemoFailed(str(error)) from None

    def start_daemon(self) -> None:
        """Start mcvirtd and return when it says that it serves."""
        self.settings.write_text(
            SETTINGS.format(name=self.name, state=self.directory / "state", run=self.run_directory)
        )
        self.settings.chmod(0o644)
        address = self.directory / "notify"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as news, self.log.open("ab") as log:
            news.bind(str(address))
            command = [sys.executable, "-m", "mcvirtd.main"]
            if self._installed:
                command = [str(self._installed / "sbin/mcvirtd")]
            self._daemon = self._popen(
                [*command, "--settings", str(self.settings)],
                stdin=subprocess.DEVNULL,
                stdout=log.fileno(),
                stderr=log.fileno(),
                NOTIFY_SOCKET=str(address),
            )
            self._wait_until_ready(news, self._daemon)

    def _wait_until_ready(self, news: socket.socket, daemon: Inside) -> None:
        ended = os.pidfd_open(daemon.pid)
        deadline = time.monotonic() + START_WITHIN
        try:
            while (left := deadline - time.monotonic()) > 0:
                ready, _, _ = select.select([news.fileno(), ended], [], [], left)
                if news.fileno() in ready and b"READY=1" in news.recv(4096).split(b"\n"):
                    return
                if ended in ready:
                    raise DemoFailed(f"mcvirtd ended with status {daemon.wait()} while it was starting")
        finally:
            os.close(ended)
        raise DemoFailed(f"mcvirtd was not ready within {START_WITHIN:.0f} s")
