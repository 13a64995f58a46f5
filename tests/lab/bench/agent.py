"""What runs in a node of `make bench-lab`, started before anything is measured and connected to all it needs.

It reads a line of JSON (`{"do": ..., ...}`), does that, and answers with one: how many seconds it took, by this node's
clock, and what there is to know. So no start of a Python program is measured, which takes seconds on an emulated node:
neither ours, nor those of the commands that are the yardstick. Those are run as an operator would run them: LVM's and
DRBD's programs as programs, by a shell; libvirt through a connection that is open; on the other node by its agent.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt  # this is no part of mcvirtd

from mcvirt.types.migration import Migration
from mcvirt.types.vm import DiskSpec, Machine, StorageType, VmSpec
from mcvirt_client import Client

HANDS, LIBVIRT = 7001, 7002
_LIBVIRT_SOCKET = "/run/libvirt/libvirt-sock"
_FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    | libvirt.VIR_MIGRATE_AUTO_CONVERGE
    | libvirt.VIR_MIGRATE_UNSAFE
)


class Agent:
    """On this node, whose address is *here*; the other one's is *there*."""

    def __init__(self, here: str, there: str) -> None:
        self._there = there
        self._client = Client.connect(timeout=600)
        self._libvirt = libvirt.open("qemu:///system")
        self._far: socket.socket | None = None
        _listen(here, HANDS, self._lend_hands)
        _listen(here, LIBVIRT, _relay)
        self._client.vms.list()

    # --- by mcvirt ----------------------------------------------------------------------------------------------------

    def create(self, name: str, size: int, backend: str, memory: int) -> dict[str, Any]:
        """A machine with a replicated disk."""
        disk = DiskSpec(size=size, storage_type=StorageType.DRBD, backend=backend)
        spec = VmSpec(name=name, memory=memory, cpu_count=1, disks=(disk,), machine=Machine.PC)
        return _timed(lambda: self._client.vms.create(spec))

    def delete(self, name: str) -> dict[str, Any]:
        """It is gone, with its disk."""
        return _timed(lambda: self._client.vms.delete(name))

    def verify_all(self) -> dict[str, Any]:
        """Every replicated disk."""
        return _timed(self._client.verification.verify_all)

    def migrate(self, name: str, node: str, online: bool) -> dict[str, Any]:
        """To the other node."""
        steps: list[Any] = []
        begun = time.time()
        self._client.follower.progress = lambda info: steps.append((time.time() - begun, info))
        how = Migration(node=node, online=online)
        measured = _timed(lambda: steps.append(self._client.migrations.migrate(name, how)))
        report = steps.pop()
        times = {step.name: round(at, 3) for at, info in reversed(steps) for step in info.steps}
        return {**measured, "downtime": report.downtime, "by_mcvirtd": report.seconds, "steps": times}

    def watch_split(self, disk: str) -> dict[str, Any]:
        """How long after the kernel's own message of it a split brain is in the list of mcvirt here."""
        before = len(_stamps("Split-Brain detected"))
        deadline = time.monotonic() + 120
        while not any(drive.disk == disk and drive.split_brain for drive in self._client.drbd.list()):
            if time.monotonic() > deadline:
                raise RuntimeError("it was not shown")
            time.sleep(0.02)
        listed = time.monotonic()
        # The kernel's messages have a clock of their own, which a message of ours is compared with.
        mark = f"mark {listed}"
        Path("/dev/kmsg").write_text(mark + "\n")
        ahead = _stamps(re.escape(mark))[-1] - listed
        return {"seconds": listed - (_stamps("Split-Brain detected")[before] - ahead)}

    # --- by hand ------------------------------------------------------------------------------------------------------

    def hands(self, here: str, there: str) -> dict[str, Any]:
        """A script on each of the nodes, at the same time."""
        return _timed(lambda: self._both(here, there))

    def verify_by_hand(self, resources: list[str]) -> dict[str, Any]:
        """All of these, begun together, until all are over."""
        begin = " ".join(f"drbdadm -- --start=0 verify {name} &" for name in resources)
        return _timed(lambda: _shell(f"{begin} wait; while grep -q cs:Verify /proc/drbd; do sleep 0.05; done"))

    def define(self, xml: str) -> dict[str, Any]:
        """A domain in libvirt."""
        return _timed(lambda: self._libvirt.defineXML(xml))

    def undefine(self, name: str) -> dict[str, Any]:
        """It is not there any more."""
        return _timed(lambda: self._libvirt.lookupByName(name).undefine())

    def create_by_hand(self, here: str, there: str, xml: str) -> dict[str, Any]:
        """A script on each node, and then the domain on both."""

        def act() -> None:
            far = libvirt.open(f"qemu+tcp://{self._there}:{LIBVIRT}/system")
            self._both(here, there)
            self._libvirt.defineXML(xml)
            far.defineXML(xml)
            far.close()

        return _timed(act)

    def online_by_hand(self, name: str, resource: str, encrypted: bool) -> dict[str, Any]:
        """Both Primary, the guest sent with the flags that mcvirtd gives, and one Primary again."""
        flags = _FLAGS | (libvirt.VIR_MIGRATE_TLS if encrypted else 0)
        found: dict[str, Any] = {}
        allow, refuse = (f"drbdadm net-options --allow-two-primaries={word} {resource}" for word in ("yes", "no"))

        def act() -> None:
            self._both(allow, allow)
            self._over_there(f"drbdadm primary {resource}")
            far = libvirt.open(f"qemu+tcp://{self._there}:{LIBVIRT}/system")
            domain = self._libvirt.lookupByName(name)
            moved = domain.migrate3(far, {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{self._there}"}, flags)
            found["downtime"] = moved.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED).get("downtime")
            far.close()
            _shell(f"drbdadm secondary {resource}")
            self._both(refuse, refuse)

        return {**_timed(act), **found}

    def offline_by_hand(self, name: str, resource: str) -> dict[str, Any]:
        """One Primary after the other, and the domain defined there and no more here."""

        def act() -> None:
            _shell(f"drbdadm secondary {resource}")
            self._over_there(f"drbdadm primary {resource}")
            domain = self._libvirt.lookupByName(name)
            far = libvirt.open(f"qemu+tcp://{self._there}:{LIBVIRT}/system")
            far.defineXML(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE))
            domain.undefine()
            far.close()

        return _timed(act)

    # --- the other node -----------------------------------------------------------------------------------------------

    def _both(self, here: str, there: str) -> None:
        far = threading.Thread(target=self._over_there, args=(there,))
        far.start()
        _shell(here)
        far.join()

    def _over_there(self, script: str) -> None:
        if self._far is None:
            self._far = socket.create_connection((self._there, HANDS))
            self._far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._far.sendall(json.dumps(script).encode() + b"\n")
        answer = self._far.makefile().readline()
        if answer != '""\n':
            raise RuntimeError(f"the other node: {script}: {answer}")

    def _lend_hands(self, near: socket.socket) -> None:
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for line in near.makefile():
            said = ""
            try:
                _shell(json.loads(line))
            except RuntimeError as error:
                said = str(error)
            near.sendall(json.dumps(said).encode() + b"\n")


def _stamps(what: str) -> list[float]:
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    return [float(found) for found in re.findall(r"(?m)^\[\s*([\d.]+)\].*" + what, said)]


def _timed(act: Callable[[], object]) -> dict[str, Any]:
    begun = time.monotonic()
    act()
    return {"seconds": time.monotonic() - begun}


def _shell(script: str) -> None:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script}: status {done.returncode}: {done.stdout}{done.stderr}")


def _listen(address: str, port: int, serve: Callable[[socket.socket], None]) -> None:
    door = socket.create_server((address, port))

    def take() -> None:
        while True:
            near, _ = door.accept()
            threading.Thread(target=serve, args=(near,), daemon=True).start()

    threading.Thread(target=take, daemon=True).start()


def _relay(near: socket.socket) -> None:
    far = socket.socket(socket.AF_UNIX)
    far.connect(_LIBVIRT_SOCKET)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def carry(one: socket.socket, other: socket.socket) -> None:
        while piece := one.recv(65536):
            other.sendall(piece)
        other.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=carry, args=(near, far), daemon=True).start()
    carry(far, near)


def main() -> None:
    libvirt.registerErrorHandler(lambda *_: None, None)
    agent = Agent(*sys.argv[1:])
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        try:
            answer = getattr(agent, wanted.pop("do"))(**wanted)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
