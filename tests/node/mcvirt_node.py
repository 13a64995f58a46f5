"""One node for tests, the demo and the benchmarks: a private libvirtd with a real mcvirtd beside it, and its CLI."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tests.node.libvirt_host import LibvirtHost

BRIDGE = "br0"
# Where the node sees the directory for volumes: QEMU's own user must be able to get there.
VOLUMES = "/var/lib/libvirt/volumes"
_BIN = Path(sys.executable).parent
_CLI = "import sys; from mcvirt_client.cli.main import main; sys.exit(main())"


class NodeFailed(Exception):
    """mcvirtd did not start or stop as it should; the end of its log is in the text."""


class McvirtNode:
    """A node in namespaces of its own. Use it with `with`, or `start` and `close`."""

    def __init__(
        self,
        directory: Path,
        name: str = "node1",
        *,
        simulate: bool = False,
        capabilities: Path | None = None,
        settings: str = "",
        deadline: float = 60.0,
        module: str = "mcvirtd.main",
        port: int = 0,
        log_level: str = "DEBUG",
    ) -> None:
        """*module* is what is run as the daemon: mcvirtd itself, or a test's wrapping of it. *port* 0 is any.

        With *simulate* there is no libvirtd.
        """
        self.directory = directory.absolute()
        self.name = name
        self.host = LibvirtHost(self.directory / "host", name, capabilities=capabilities)
        self.run_dir = self.directory / "mcvirt-run"
        self.state_dir = self.directory / "mcvirt-state"
        self.volumes = self.host.path(VOLUMES)
        self.log_path = self.directory / "mcvirtd.log"
        self.settings_path = self.directory / "mcvirtd.toml"
        # What mcvirtd, and commands on the node, have in their environment besides the usual.
        self.env: dict[str, str] = {}
        self._simulate = simulate
        self._settings = settings
        self._deadline = deadline
        self._module = module
        self._port = port
        self._log_level = log_level
        self._daemon: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> McvirtNode:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the host, its bridge and mcvirtd."""
        self.start_host()
        try:
            self.start_daemon()
        except BaseException:
            self.close()
            raise

    def start_host(self) -> None:
        """Start the host and its bridge, and write the settings."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.volumes.mkdir(parents=True, exist_ok=True)
        self.settings_path.write_text(
            f'[node]\nname = "{self.name}"\n[listen]\nport = {self._port}\n[log]\nlevel = "{self._log_level}"\n'
            f'[paths]\nstate = "{self.state_dir}"\nrun = "{self.run_dir}"\n{self._settings}'
        )
        self.settings_path.chmod(0o600)
        self.host.start(libvirt=not self._simulate)
        try:
            for argv in (["link", "add", BRIDGE, "type", "bridge"], ["link", "set", BRIDGE, "up"]):
                self.host.run(["ip", *argv])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End everything that was started; the directory stays."""
        try:
            if self._daemon is not None and self._daemon.poll() is None:
                self.stop_daemon()
        finally:
            self.host.close()
            if self._log is not None:
                self._log.close()

    # --- mcvirtd ----------------------------------------------------------------------------------------------------

    def start_daemon(self, *, env: Mapping[str, str] | None = None, wait: bool = True) -> None:
        """Start mcvirtd and return when it says that it serves (by systemd's protocol)."""
        if self._log is None:
            self._log = self.log_path.open("ab")
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        notify.bind(str(path))
        argv = [str(_BIN / "python"), "-m", self._module, "--settings", str(self.settings_path)]
        if self._simulate:
            argv.append("--simulate")
        self._daemon = self.host.popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "NOTIFY_SOCKET": str(path), "PYTHONPATH": _repository(), **self.env, **(env or {})},
        )
        try:
            if wait:
                self._wait_ready(notify)
        finally:
            notify.close()

    def _wait_ready(self, notify: socket.socket) -> None:
        assert self._daemon is not None
        deadline = time.monotonic() + self._deadline
        while True:
            readable, _, _ = select.select([notify], [], [], 0.1)
            if readable and b"READY=1" in notify.recv(4096):
                return
            if self._daemon.poll() is not None:
                raise NodeFailed(f"mcvirtd ended with status {self._daemon.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise NodeFailed(f"mcvirtd was not ready in time:\n{self.log_tail()}")

    @property
    def daemon_pid(self) -> int:
        """mcvirtd's process, as this machine numbers it."""
        assert self._daemon is not None
        return int(getattr(self._daemon, "outer_pid", self._daemon.pid))

    @property
    def daemon_runs(self) -> bool:
        """Whether there is a process of mcvirtd."""
        return self._daemon is not None and self._daemon.poll() is None

    def stop_daemon(self, number: signal.Signals = signal.SIGTERM, within: float = 30.0) -> int:
        """Send mcvirtd a signal, wait for its end, and return its status."""
        daemon, self._daemon = self._daemon, None
        assert daemon is not None
        daemon.send_signal(number)
        try:
            return daemon.wait(within)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(10)
            raise NodeFailed(f"mcvirtd did not end within {within} s:\n{self.log_tail()}") from None

    def pause_daemon(self) -> None:
        """Stop mcvirtd from doing anything (SIGSTOP), its connections staying open; `resume_daemon` goes on."""
        os.kill(self.daemon_pid, signal.SIGSTOP)

    def resume_daemon(self) -> None:
        """Let a paused mcvirtd go on; nothing happens to one that is not paused, or not there."""
        if self._daemon is not None and self._daemon.poll() is None:
            # What carried it into the namespaces stops with it, and would never see its end.
            for pid in (self._daemon.pid, self.daemon_pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def kill_daemon(self) -> None:
        """kill -9."""
        self.stop_daemon(signal.SIGKILL)

    def wait_daemon(self, within: float = 30.0) -> int:
        """Wait until mcvirtd has ended by itself, and return its status."""
        daemon, self._daemon = self._daemon, None
        assert daemon is not None
        return daemon.wait(within)

    def log_tail(self, lines: int = 60) -> str:
        """The end of mcvirtd's log."""
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    # --- the CLI ----------------------------------------------------------------------------------------------------

    def mcvirt(
        self,
        *argv: str,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run the real mcvirt command in the node, as root."""
        result = self.host.run(
            [str(_BIN / "python"), "-c", _CLI, *argv],
            timeout=timeout,
            check=False,
            input=input,
            env={**os.environ, **self.client_env(), **(env or {})},
        )
        if check and result.returncode:
            said = f"{result.stdout}{result.stderr}\n{self.log_tail()}"
            raise AssertionError(f"mcvirt {' '.join(argv)}: status {result.returncode}\n{said}")
        return result

    def client_env(self) -> dict[str, str]:
        """What a client of this node needs in its environment."""
        own = {"MCVIRT_RUN_DIR": str(self.run_dir), "HOME": str(self.directory), "PYTHONPATH": _repository()}
        return {**own, **self.env}

    def json(self, *argv: str) -> Any:
        """The value that a command prints with --json."""
        return json.loads(self.mcvirt(*argv, "--json").stdout)

    def python(self, code: str, *, check: bool = True, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run Python *code* in the node, where the client library finds the daemon."""
        result = self.host.run(
            [str(_BIN / "python"), "-c", code], timeout=timeout, check=False, env={**os.environ, **self.client_env()}
        )
        if check and result.returncode:
            raise AssertionError(f"{result.stdout}{result.stderr}\n{self.log_tail()}")
        return result

    def virsh(self, *argv: str, check: bool = True) -> str:
        """What virsh says of the node's libvirt."""
        return self.host.virsh(*argv, check=check)


def _repository() -> str:
    return str(Path(__file__).parent.parent.parent)
