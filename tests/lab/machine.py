"""One machine under QEMU: started, saved, restored, switched off; it knows nothing of what runs in it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from mcvirtd.hypervisor import accelerator
from tests.lab import cache
from tests.lab.cache import LabFailed, run
from tests.lab.ground import Ground

MEMORY = int(os.environ.get("MCVIRT_LAB_MEMORY", "2048"))  # MiB
CPUS = int(os.environ.get("MCVIRT_LAB_CPUS", "2"))
LVM_DISK = os.environ.get("MCVIRT_LAB_DISK", "8G")
KVM = accelerator.device_trouble() is None and accelerator.cpu_has_it()
# Emulated, each level of page tables and each flush less is time gained.
CPU = "host" if KVM else "max,-la57,-smap,-smep,-pku,-umip"
ACCELERATOR = "kvm" if KVM else "tcg,thread=multi,tb-size=512"
KERNEL_ARGUMENTS = " ".join(
    (
        "root=/dev/vda rw console=ttyS0 quiet loglevel=4 net.ifnames=0 mitigations=off nokaslr apparmor=0 selinux=0",
        "audit=0 no_timer_check random.trust_cpu=on rcupdate.rcu_expedited=1 cryptomgr.notests panic=-1",
        "8250.nr_uarts=1 systemd.show_status=0",
        # The kernel measures the processor's counter when it boots. That goes wrong where an emulated processor is
        # kept from running meanwhile: a node's time then passes twice as fast, whenever it is restored.
        *([] if KVM else ["clocksource=acpi_pm tsc=unstable"]),
    )
)
ANSWER_WITHIN = 120.0


class Machine:
    """Machine number *number* of a lab: node1 is number 1."""

    def __init__(self, ground: Ground, image: Path, number: int) -> None:
        self.number = number
        self.name = f"node{number}"
        self.image = image
        self.ground = ground
        self.directory = ground.directory / self.name
        self.here = ground.here / self.name
        self.disks = (self.directory / "root.qcow2", self.directory / "lvm.qcow2")
        self.directory.mkdir(exist_ok=True)

    # --- disks --------------------------------------------------------------------------------------------------

    def new_disks(self) -> None:
        """A root disk as in the image, and an empty one for LVM."""
        root, lvm = self.disks
        self._new_disk(root, "-F", "raw", "-b", self.image / "root.img")
        self._new_disk(lvm, LVM_DISK)

    def disks_on_top_of(self, saved: Path) -> None:
        """Disks as in a saved state, which is not changed by what is written to them."""
        for disk in self.disks:
            self._new_disk(disk, "-F", "qcow2", "-b", saved / disk.name)

    @staticmethod
    def _new_disk(disk: Path, *how: str | Path) -> None:
        *options, last = how
        backing = [*options, last, disk] if options else [disk, last]
        disk.unlink(missing_ok=True)
        run(["qemu-img", "create", "-q", "-f", "qcow2", *backing], within=60)

    # --- power --------------------------------------------------------------------------------------------------

    def start(
        self,
        *,
        memory: Path | None = None,
        keep_memory: bool = False,
        state: Path | None = None,
        stopped: bool = False,
    ) -> None:
        """Switch it on. *memory* is the file behind its memory, written to only with *keep_memory*; it goes on from
        *state*, or boots, or does nothing yet (*stopped*). One that is on is LabFailed."""
        if self.is_on:
            raise LabFailed(f"{self.name} is on already")
        networks: list[str] = []
        for network, bridge in (("m", "mgmt"), ("n", "lan")):
            tap = f"{network}{self.number}"
            self.ground.tap(tap, bridge)
            address = f"52:54:00:{'08' if bridge == 'mgmt' else '09'}:00:{self.number:02x}"
            networks += [
                *("-netdev", f"tap,id={bridge},ifname={tap},script=no,downscript=no,vnet_hdr=on"),
                *("-device", f"virtio-net-pci,netdev={bridge},id={bridge},romfile=,mac={address}"),
            ]
        drives: list[str] = []
        for index, disk in enumerate(self.disks):
            # unsafe: should this machine's power fail, the lab is gone anyway. A node's flushes still order its writes.
            drive = f"file={disk},if=none,id=disk{index},format=qcow2,cache=unsafe,discard=unmap"
            drives += ["-drive", drive, "-device", f"virtio-blk-pci,drive=disk{index}"]
        backend = f"file,mem-path={memory},share={'on' if keep_memory else 'off'}" if memory else "ram"
        names = f"lab.node={self.number} systemd.hostname={self.name} systemd.machine_id={self.number:032x}"
        argv: list[str | Path] = [
            *("qemu-system-x86_64", "-name", self.name, "-nodefaults", "-no-user-config", "-display", "none"),
            *("-uuid", f"4c4c4544-0000-4000-8000-{self.number:012d}"),
            *("-machine", "pc,memory-backend=ram,hpet=off", "-accel", ACCELERATOR, "-cpu", CPU),
            *("-smp", str(CPUS), "-m", str(MEMORY), "-object", f"memory-backend-{backend},id=ram,size={MEMORY}M"),
            *("-kernel", self.image / "vmlinuz", "-initrd", self.image / "initrd"),
            *("-append", f"{KERNEL_ARGUMENTS} {names}"),
            *networks,
            *drives,
            *("-device", "virtio-rng-pci"),
            *("-serial", "chardev:console"),
            *("-chardev", f"file,id=console,append=on,path={self.console_path}"),
            *("-qmp", f"unix:{self.here / 'qmp'},server=on,wait=off"),
            *("-daemonize", *(["-incoming", "defer"] if state else []), *(["-S"] if stopped else [])),
        ]
        (self.directory / "qmp").unlink(missing_ok=True)
        run(self.ground.inside(argv), within=60, pass_fds=cache.held())
        if state is not None:
            self._transfer("migrate-incoming", f"exec:cat {state}")
            self.ask("cont")

    def save(self, state: Path) -> None:
        """Stop it for good; the state of its devices is then in *state*, its memory in the file it was started with."""
        self.ask("stop")
        self._transfer("migrate", f"exec:cat > {state}")
        self.off()

    def _transfer(self, command: str, uri: str) -> None:
        self._memory_stays(True)
        self.ask(command, uri=uri)
        deadline = time.monotonic() + ANSWER_WITHIN
        # There is no status at all before it has begun.
        while (said := self.ask("query-migrate")).get("status") != "completed":
            if said.get("status") == "failed" or time.monotonic() > deadline:
                raise LabFailed(f"{self.name}: {command}: {said}")
            threading.Event().wait(0.05)
        self._memory_stays(False)

    def _memory_stays(self, on: bool) -> None:
        self.ask("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": on}])

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        try:
            self._connected().close()
        except OSError:
            return False
        return True

    def off(self) -> None:
        """Cut its power: what it has not flushed is lost."""
        try:
            with self._connected() as connection:
                pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            process = os.pidfd_open(pid)
        except OSError:
            return
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            poll = select.poll()
            poll.register(process, select.POLLIN)
            if not poll.poll(30_000):
                raise LabFailed(f"{self.name}: process {pid} does not end")
        except ProcessLookupError:
            pass
        finally:
            os.close(process)

    # --- QEMU's monitor -----------------------------------------------------------------------------------------

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(ANSWER_WITHIN)
            connection.connect(str(self.here / "qmp"))
        except BaseException:
            connection.close()
            raise
        return connection

    def ask(self, command: str, **arguments: object) -> Mapping[str, object]:
        """What QEMU answers to a command of its monitor."""
        with self._connected() as connection, connection.makefile("rw") as lines:
            lines.readline()
            answer: dict[str, object] = {}
            for name, values in (("qmp_capabilities", {}), (command, arguments)):
                lines.write(json.dumps({"execute": name, "arguments": values}) + "\n")
                lines.flush()
                answer = {}
                while "return" not in answer:  # events come between
                    answer = json.loads(lines.readline() or '{"error": "it has ended"}')
                    if "error" in answer:
                        raise LabFailed(f"{self.name}: {name}: {answer['error']}")
        return answer["return"]  # type: ignore[return-value]

    def tell(self, line: str) -> None:
        """A command of QEMU's monitor for people; LabFailed with what it says, if it says anything."""
        if said := self.ask("human-monitor-command", **{"command-line": line}):
            raise LabFailed(f"{self.name}: {line}: {said}")

    # --- console ------------------------------------------------------------------------------------------------

    @property
    def console_path(self) -> Path:
        """Where its serial console is written."""
        return self.directory / "console.log"

    def console(self, lines: int = 40) -> str:
        """The end of what it has written on its serial console."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.console_path.read_text(errors="replace").splitlines()[-lines:])
        return "(nothing)"
