"""The demo: real commands, each shown before it runs, on a machine that is real but for being private."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo.ground import BRIDGE, CACHE, DemoFailed, Ground
from demo.steps import Shell, finish, say
from demo.together import Together
from tests.guest.build import BuildFailed, build
from tests.guest.speech import MARK, READY

EXAMPLE = "docs/example.py"
READY_WITHIN = 120.0
LEAVE_CONSOLE = b"\x1d"  # ctrl-]
GREETING = "hello from the console"
ESCAPES = re.compile(r"\x1b(\[[0-9;?=]*[A-Za-z]|.)")


class Demo:
    """The steps. Each raises DemoFailed if it does not do what it shows."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._shell = Shell(ground)

    def console(self, name: str) -> None:
        """Show the serial console until the guest is up, and talk to it."""
        self._shell.type(f"mcvirt console {name}")
        process = self._ground.popen(["console", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None
        try:
            # Who comes late to the console hears no `ready`, but the guest goes on ticking.
            self._hear(process, f"{READY}\r\n", f"{MARK} tick")
            process.stdin.write(f"echo {GREETING}\n".encode())
            process.stdin.flush()
            self._hear(process, f"{MARK} echo {GREETING}\r\n")
            process.stdin.write(LEAVE_CONSOLE)
            process.stdin.flush()
            if status := process.wait(30):
                raise DemoFailed(f"`mcvirt console` ended with status {status}")
        finally:
            process.kill()
            process.communicate()

    def _hear(self, process: subprocess.Popen[bytes], *awaited: str) -> None:
        assert process.stdout is not None
        heard = b""
        deadline = time.monotonic() + READY_WITHIN
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([process.stdout], [], [], left)[0]:
                break
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                raise DemoFailed("the console was closed")
            # The firmware and the boot loader clear the screen, and would clear what the demo has shown.
            shown = ESCAPES.sub("", piece.decode(errors="replace"))
            sys.stdout.write("".join(char for char in shown if char.isprintable() or char == "\n"))
            sys.stdout.flush()
            heard += piece
            if any(text.encode() in heard for text in awaited):
                return
        raise DemoFailed(f"the guest did not say '{awaited[0].strip()}' within {READY_WITHIN:.0f} s")

    def example(self) -> None:
        """Show and run the example of the client library."""
        self._shell.type(f"python3 {EXAMPLE}")
        finish(self._ground.python([EXAMPLE]), "the example")

    def run(self, iso: Path) -> None:
        """All steps."""
        mcvirt = self._shell.mcvirt
        mcvirt("storage", "create", "local", "--type", "File", "--path", str(self._ground.images))
        mcvirt("network", "create", "lan", "--interface", BRIDGE)
        mcvirt("iso", "add", str(iso), "--from-path")
        mcvirt("create", "web1", "--memory", "256", "--cpu-count", "1", "--disk-size", "1GiB", "--network", "lan")
        mcvirt("start", "web1", "--iso", iso.name)
        self.console("web1")
        mcvirt("list")
        mcvirt("info", "web1")
        self.example()
        mcvirt("shutdown", "web1", "--wait")
        mcvirt("delete", "web1", "--yes")
        mcvirt("list")


def main() -> int:
    """Run the demo; returns the exit status."""
    if os.geteuid() != 0:
        print("The demo needs root: it makes namespaces and a network bridge of its own.", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    started = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="mcvirt-demo-"))
    # QEMU's user passes through.
    directory.chmod(0o711)
    first = Ground(directory / "node1", name="node1", address="10.77.0.1")
    second = Ground(directory / "node2", name="node2", address="10.77.0.2")
    try:
        say("Building a small Linux on an ISO image from Debian's kernel and busybox ...")
        iso = build(directory / "guest.iso", CACHE / "guest")
        say("Starting a libvirtd and an mcvirtd of the demo's own ...")
        with first:
            Demo(first).run(iso)
            say("\nStarting a second node, blank, with a libvirtd and an mcvirtd of its own ...")
            with second:
                first.connect(second)
                Together(first, second).run()
    except KeyboardInterrupt:
        print("\nStopped; nothing is left behind.", file=sys.stderr)
        return 130
    except (DemoFailed, BuildFailed) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        for ground in (first, second):
            print(f"\nThe end of mcvirtd's log on {ground.name}:\n{ground.log_tail()}", file=sys.stderr)
        return 1
    finally:
        # A second Ctrl-C would only leave something behind, and may have already.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for ground in (second, first):
            ground.close()
        shutil.rmtree(directory, ignore_errors=True)
    say(f"\nThe demo ended well after {time.monotonic() - started:.0f} s; nothing is left behind.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
