"""A node to measure in: mcvirtd with machines, and beside it a bare Pyro4 daemon, both reached over loopback."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from tests.bench import plain_daemon
from tests.bench.interleave import Command, Request, Timing
from tests.node.mcvirt_node import VOLUMES, McvirtNode

_REPOSITORY = Path(__file__).parent.parent.parent
_SCRIPT = """\
#!{python}
import re
import sys
from mcvirt_client.cli.main import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""


class _Node(McvirtNode):
    """A node whose daemon is tests.bench.observed_daemon."""

    def start_daemon(self, *, env: Mapping[str, str] | None = None, wait: bool = True) -> None:
        started = self.host.popen

        def popen(argv: Any, **kwargs: Any) -> Any:
            observed = ["tests.bench.observed_daemon" if word == "mcvirtd.main" else word for word in argv]
            return started(observed, **kwargs)

        self.host.popen = popen  # type: ignore[method-assign]
        try:
            super().start_daemon(env=env, wait=wait)
        finally:
            self.host.popen = started  # type: ignore[method-assign]


class Scene:
    """Use it with `with`. *simulate*: hypervisor and storage in memory, for very many machines."""

    def __init__(self, directory: Path, *, simulate: bool) -> None:
        self.directory = directory
        self.samples = directory / "samples"
        self.node = _Node(directory / "node", "node1", simulate=simulate, log_level="INFO")
        self._plain: list[subprocess.Popen[Any]] = []
        self._environment: dict[str, str] = {}

    def __enter__(self) -> Scene:
        try:
            self.directory.mkdir(parents=True)
            self._environment = self._client_environment()
            os.environ["MCVIRT_BENCH_SAMPLES"] = str(self.samples)
            self.node.start()
            self.uri, self.ca = self._start_plain("plain")
            self._nodelay = self._start_plain("nodelay")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        os.environ.pop("MCVIRT_BENCH_SAMPLES", None)
        for process in self._plain:
            process.kill()
            process.communicate()
        self.node.close()

    def restart_unobserved(self) -> None:
        """From now on without any clocks in the daemon."""
        os.environ.pop("MCVIRT_BENCH_SAMPLES", None)
        self.node.stop_daemon()
        self.node.start_daemon()

    def _client_environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MCVIRT", "PYRO"))}
        env.update(MCVIRT_RUN_DIR=str(self.node.run_dir), HOME=str(self.directory))
        # As operators run it: the console script that pip has made, if that runs what is in this directory.
        self._mcvirt = Path(sys.executable).parent / "mcvirt"
        where = [sys.executable, "-c", "import mcvirt_client; print(mcvirt_client.__file__)"]
        found = subprocess.run(where, env=env, cwd="/", check=False, capture_output=True, text=True).stdout.strip()
        if found != str(_REPOSITORY / "mcvirt_client/__init__.py"):
            env["PYTHONPATH"] = str(_REPOSITORY)
            self._mcvirt = self.directory / "mcvirt"
        if not self._mcvirt.exists():
            self._mcvirt = self.directory / "mcvirt"
            self._mcvirt.write_text(_SCRIPT.format(python=sys.executable))
            self._mcvirt.chmod(0o755)
        return env

    def _start_plain(self, kind: str) -> tuple[str, str]:
        directory = self.directory / kind
        directory.mkdir()
        process = self.popen(["-m", "tests.bench.plain_daemon", str(directory), kind], stdout=subprocess.PIPE)
        self._plain.append(process)
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], 60)
        uri = process.stdout.readline().decode().strip() if readable else ""
        if not uri:
            raise RuntimeError("the bare Pyro4 daemon did not start")
        return uri, str(directory / plain_daemon.CA)

    # --- what runs in it --------------------------------------------------------------------------------------------

    def popen(self, argv: list[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start this Python in the node, where the client library and the tests can be imported."""
        env = {**self._environment, "PYTHONPATH": str(_REPOSITORY)}
        return self.node.host.popen([sys.executable, *argv], env=env, **kwargs)

    def python(self, argv: list[str], input: bytes = b"") -> bytes:
        """Run this Python in the node, and give what it printed."""
        process = self.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        output, _ = process.communicate(input, timeout=240)
        if process.returncode:
            raise RuntimeError(f"{argv} ended with status {process.returncode}\n{self.node.log_tail()}")
        return bytes(output)

    def fill(self, count: int) -> list[float]:
        """Create *count* machines; the milliseconds that each took the client library."""
        output = self.python(["-m", "tests.bench.fill", str(count), VOLUMES])
        return msgspec.json.decode(output, type=list[float])

    def creations(self) -> list[tuple[float, float]]:
        """Of each creation until now: its milliseconds, and those of them that it waited for libvirt and volumes."""
        lines = [line.split() for line in self.samples.read_text().splitlines()]
        return [(float(whole), float(waited)) for whole, waited in lines]

    def time(self, commands: list[Command], rounds: int) -> dict[str, Timing]:
        """The timings of commands, in turns, by their names."""
        request = msgspec.json.encode(Request(commands=commands, rounds=rounds))
        output = self.python(["-m", "tests.bench.interleave"], request)
        return {timing.name: timing for timing in msgspec.json.decode(output, type=list[Timing])}

    # --- commands to time -------------------------------------------------------------------------------------------

    def mcvirt(self, *words: str, expected: str) -> Command:
        """The mcvirt command."""
        argv = [str(self._mcvirt), *words]
        return Command(name="mcvirt " + " ".join(words), argv=argv, env=self._environment, expected=expected)

    def completion(self, line: str, *, expected: str) -> Command:
        """What the operator's shell runs when the tabulator key is pressed after *line*."""
        env = {
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
            "IFS": "\013",
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
            "_ARGCOMPLETE_SHELL": "bash",
            "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        }
        return Command(
            name=line, argv=[str(self._mcvirt)], env={**self._environment, **env}, expected=expected, answer=8
        )

    def plain(self) -> Command:
        """The yardstick."""
        return self._plain_client("plain", self.uri, self.ca)

    def plain_nodelay(self) -> Command:
        """A quicker one than Pyro4 is by itself, for information."""
        return self._plain_client("nodelay", *self._nodelay)

    def _plain_client(self, name: str, uri: str, ca: str) -> Command:
        argv = [sys.executable, str(Path(__file__).with_name("plain_client.py")), uri, ca]
        return Command(name=name, argv=argv, env=self._environment, expected=plain_daemon.NAMES[-1])

    def virsh(self, *words: str, expected: str) -> Command:
        """What libvirt's own client takes, for information."""
        argv = ["/usr/bin/virsh", "--connect", self.node.host.uri, *words]
        return Command(name="virsh", argv=argv, env=self._environment, expected=expected)
