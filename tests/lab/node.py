"""What a test says to a node: commands that are to succeed or fail, conditions to wait for, and trouble to make."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab.cache import LabFailed
from tests.lab.machine import KVM, Machine
from tests.node import tinyguest

PATIENCE = 1.0 if KVM else 4.0
"""Everything takes so much longer here than on a real machine."""
LOGIN_WITHIN = 30.0 * PATIENCE
# A restored machine lives in the past, and would draw the random numbers that every other restored from the same state
# draws too. 0x5207 is RNDRESEEDCRNG.
_AWAKE = (
    "import fcntl, time; time.clock_settime(time.CLOCK_REALTIME, {now}); random = open('/dev/random', 'wb', 0); "
    "random.write(bytes.fromhex('{seed}')); fcntl.ioctl(random, 0x5207)"
)
# One program that looks again and again, since each that is started takes an emulated node longer than it waits.
_WAIT_FOR_GUEST = """
import mmap, os, struct, sys, time
device, boots, beyond, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
deadline = time.monotonic() + seconds
sector = mmap.mmap(-1, 512)  # aligned, as O_DIRECT wants it
while True:
    opened = os.open(device, os.O_RDONLY | os.O_DIRECT)
    os.preadv(opened, [sector], 512)
    os.close(opened)
    magic, booted, ticks = struct.unpack("<4sII", sector[:12])
    if magic == b"TINY" and booted == boots and ticks > beyond:
        print(ticks)
        break
    if time.monotonic() > deadline:
        sys.exit(f"{device}: {magic}, boot {booted}, tick {ticks}")
    time.sleep(0.1)
"""


class Node:
    """One node of a lab, and the way in."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.name = machine.name
        self.address = f"10.9.0.{machine.number}"
        self._tables: dict[str, str] = {}

    def __repr__(self) -> str:
        return self.name

    # --- commands -----------------------------------------------------------------------------------------------

    def run(
        self, command: str, *, within: float = 60.0, input: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root to its end; LabFailed if it does not end (*within* is for a real machine)."""
        done = self._ssh(command, within=within, input=input)
        text = [part.decode(errors="replace") for part in (done.stdout, done.stderr)]
        return subprocess.CompletedProcess(command, done.returncode, *text)

    def _ssh(self, command: str, *, within: float, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        seconds = within * PATIENCE
        try:
            done = subprocess.run(
                [*self.ssh_argv(), command], input=input or b"", capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired as late:
            said = b"".join(filter(None, (late.stdout, late.stderr))).decode(errors="replace")
            raise LabFailed(f"{self.name}: {command}: not done within {seconds:.0f} s\n{said}{self._seen()}") from None
        if done.returncode == 255 and not self._master("check"):
            raise LabFailed(f"{self.name}: {command}: there is no way in{self._seen()}")
        return done

    def succeed(self, command: str, *, within: float = 60.0, input: bytes | None = None) -> str:
        """What a command prints on its standard output; it must end with status 0."""
        done = self.run(command, within=within, input=input)
        assert done.returncode == 0, f"{self.name}: {command}: status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def fail(self, command: str, *, within: float = 60.0) -> str:
        """What a command prints; it must end with another status than 0."""
        done = self.run(command, within=within)
        assert done.returncode != 0, f"{self.name}: {command}: should have failed\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def wait_until(self, condition: str | Callable[[], object], *, within: float = 60.0, what: str = "") -> None:
        """Return as soon as a command succeeds, or a call returns something true; LabFailed if that takes too long."""
        seconds = within * PATIENCE
        deadline = time.monotonic() + seconds
        last = ""
        while True:
            asked = time.monotonic()
            if isinstance(condition, str):
                done = self.run(condition, within=within)
                last, held = f"\n{done.stdout}{done.stderr}", done.returncode == 0
            else:
                held = bool(condition())
            if held:
                return
            if time.monotonic() > deadline:
                wanted = what or (condition if isinstance(condition, str) else "the condition")
                raise LabFailed(f"{self.name}: {wanted}: not so within {seconds:.0f} s{last}")
            # To ask is work for a node, too, and should not keep it from what is waited for.
            threading.Event().wait(max(0.2, time.monotonic() - asked))

    def python(self, code: str, *, within: float = 60.0) -> str:
        """What Python code prints that is run with mcvirt's own interpreter, as root."""
        return self.succeed("/usr/local/lib/mcvirt/current/bin/python3 -I -", input=code.encode(), within=within)

    def put(self, content: bytes, path: str, mode: int = 0o644) -> None:
        """Make the file *path* of the node; what was there is gone."""
        place = shlex.quote(path)
        self.succeed(f"mkdir -p $(dirname {place}) && cat > {place} && chmod {mode:o} {place}", input=content)

    def get(self, command: str, *, within: float = 60.0) -> bytes:
        """The bytes that a command prints; it must succeed."""
        done = self._ssh(command, within=within)
        assert done.returncode == 0, f"{self.name}: {command}: status {done.returncode}\n{done.stderr.decode()}"
        return done.stdout

    # --- mcvirt, and what lies under it ---------------------------------------------------------------------------

    def mcvirt(self, *words: str, within: float = 60.0) -> str:
        """What the mcvirt command prints; it must succeed."""
        return self.succeed(shlex.join(["mcvirt", *words]), within=within)

    def json(self, *words: str, within: float = 60.0) -> Any:
        """The value that a mcvirt command prints with --json."""
        return json.loads(self.mcvirt(*words, "--json", within=within))

    def virsh(self, *words: str) -> str:
        """What virsh says of the node's libvirt."""
        return self.succeed(shlex.join(["virsh", "-q", *words])).strip()

    def lvs(self) -> dict[str, dict[str, str]]:
        """LVM's volumes as LVM sees them: size in bytes, attributes, pool and tags, by group/name."""
        fields = "vg_name,lv_name,lv_size,lv_attr,pool_lv,lv_tags"
        report = json.loads(self.succeed(f"lvs --reportformat json --units b --nosuffix -o {fields}"))
        return {f"{row['vg_name']}/{row['lv_name']}": row for row in report["report"][0]["lv"]}

    def drbd(self, *resource: str) -> dict[str, dict[str, dict[str, str]]]:
        """What DRBD's kernel module has, by resource and kind: `drbd()["r"]["connection"]["connection"]`.

        The kinds are resource, connection, device and peer-device; a resource has one device here.
        """
        found: dict[str, dict[str, dict[str, str]]] = {}
        for line in self.succeed(shlex.join(["drbdsetup", "events2", "--now", "--statistics", *resource])).splitlines():
            _, kind, *fields = line.split()
            if fields:
                values = dict(field.split(":", 1) for field in fields if ":" in field)
                found.setdefault(values["name"], {})[kind] = values
        return found

    def unit(self, unit: str, name: str) -> str:
        """What systemd says of a unit."""
        return self.succeed(f"systemctl show -P {name} {unit}").strip()

    def journal(self, unit: str = "mcvirtd", *, lines: int = 200) -> str:
        """The end of what a unit has written, over all boots."""
        return self.run(f"journalctl --no-pager -o short-iso -n {lines} -u {unit}").stdout

    # --- the guest in one sector ------------------------------------------------------------------------------------

    def install_guest(self, device: str, *, greedy: bool = False) -> None:
        """Make a block device boot the guest that counts: see tests/node/tinyguest.py."""
        self.succeed(
            f"dd of={device} bs=512 count=2 iflag=fullblock oflag=direct status=none",
            input=(tinyguest.GREEDY if greedy else tinyguest.SECTOR) + bytes(512),
        )

    def guest(self, device: str) -> tuple[int, int] | None:
        """How often the guest on *device* has booted, and its ticks since then; None before the first."""
        read = f"dd if={device} bs=512 skip=1 count=1 iflag=direct status=none"
        magic, boots, ticks = struct.unpack("<4sII", self.get(read)[:12])
        return (boots, ticks) if magic == b"TINY" else None

    def wait_for_guest(self, device: str, *, boots: int, beyond: int = 0, within: float = 30.0) -> int:
        """Return the guest's ticks once it has booted so often and ticked further than *beyond*."""
        seconds = within * PATIENCE
        words = ["/usr/bin/python3", "-I", "-S", "-", device, str(boots), str(beyond), str(seconds)]
        done = self.run(shlex.join(words), within=within + 60, input=_WAIT_FOR_GUEST.encode())
        if done.returncode != 0:
            wanted = f"the guest on {device} in boot {boots} beyond tick {beyond}"
            raise LabFailed(f"{self.name}: {wanted}: not so within {seconds:.0f} s\n{done.stderr}")
        return int(done.stdout)

    def written(self, device: str) -> tinyguest.Written:
        """What the guest on *device* has written so far, as the disk has it; it must have booted."""
        found: list[tinyguest.Written | None] = []
        for _ in range(2):  # of a guest that runs, half a record may be seen; but not twice the same
            found.append(tinyguest.written(self._guests_disk(device)))
            if found[-1] is not None and found[-1].whole:
                break
        assert found[-1] is not None, f"{self.name}: no guest has written on {device}"
        return found[-1]

    def _guests_disk(self, device: str) -> bytes:
        size = tinyguest.RECORD_SIZE
        return self.get(f"dd if={device} bs={size} count={tinyguest.LENGTH // size} iflag=direct status=none")

    # --- trouble ----------------------------------------------------------------------------------------------------

    def cut(self, *, silently: bool = False) -> None:
        """Unplug it from the cluster's network; *silently*: the cable seems good, and nothing comes through."""
        if silently:
            self.machine.ground.ip("link", "set", f"n{self.machine.number}", "nomaster")
        else:
            self.machine.ask("set_link", name="lan", up=False)

    def heal(self) -> None:
        """Plug it in again, and let everything pass without delay."""
        self.plug_in()
        self.run("tc qdisc del dev eth1 root")

    def plug_in(self) -> None:
        """Its cable is in, and good."""
        self.machine.ground.ip("link", "set", f"n{self.machine.number}", "master", "lan")
        self.machine.ask("set_link", name="lan", up=True)

    def delay(self, milliseconds: int) -> None:
        """Let everything that it sends to the cluster wait for so long."""
        self.succeed(f"modprobe sch_netem; tc qdisc replace dev eth1 root netem delay {milliseconds}ms")

    def kill(self, unit: str = "mcvirtd") -> None:
        """Kill a daemon (SIGKILL), and not what it has started."""
        self.succeed(f"systemctl kill --kill-who=main --signal=KILL {unit}")

    def wait_restarted(self, times: int, unit: str = "mcvirtd", *, within: float = 30.0) -> None:
        """Return when systemd has restarted a daemon so often, or oftener, and it is ready."""
        self.wait_until(
            f"test $(systemctl show -P NRestarts {unit}) -ge {times} && systemctl is-active {unit}", within=within
        )

    def freeze(self, unit: str = "mcvirtd") -> None:
        """Let a daemon stop in its tracks: it keeps its connections, and answers nothing."""
        self.succeed(f"systemctl kill --kill-who=main --signal=STOP {unit}")

    def thaw(self, unit: str = "mcvirtd") -> None:
        """Let a frozen daemon go on."""
        self.succeed(f"systemctl kill --kill-who=main --signal=CONT {unit}")

    def fail_disk(self, volume: str) -> None:
        """Let every access to a logical volume (group/name) fail, in the kernel, also for who has it open."""
        name = self.succeed(f"lvs --noheadings -o lv_dm_path {volume}").strip()
        table = self.succeed(f"dmsetup table {name}")
        sectors = sum(int(line.split()[1]) for line in table.splitlines())
        self._tables[volume] = table
        self._load_table(name, f"0 {sectors} error\n")

    def repair_disk(self, volume: str) -> None:
        """Undo ``fail_disk``."""
        name = self.succeed(f"lvs --noheadings -o lv_dm_path {volume}").strip()
        self._load_table(name, self._tables.pop(volume))

    def _load_table(self, name: str, table: str) -> None:
        self.succeed(
            f"dmsetup suspend --noflush --nolockfs {name} && dmsetup load {name} && dmsetup resume {name}",
            input=table.encode(),
        )

    # --- power --------------------------------------------------------------------------------------------------------

    def power_off(self) -> None:
        """Let its power fail."""
        self.hang_up()
        self.machine.off()

    def boot(self, *, within: float = 60.0) -> None:
        """Switch it on, and return when all its units have started."""
        self.machine.start()
        self._wait_booted(within)

    def reboot(self, *, within: float = 90.0) -> None:
        """Shut it down in good order and boot it again; returns when all its units have started."""
        before = self.succeed("cat /proc/sys/kernel/random/boot_id")
        self.run("systemctl --no-block reboot")
        deadline = time.monotonic() + within * PATIENCE
        # The way in ends when the node does; it is the next boot's when the kernel says so.
        while True:
            self.hang_up()
            self.log_in(within=max(1.0, deadline - time.monotonic()))
            with contextlib.suppress(LabFailed):
                if (now := self.run("cat /proc/sys/kernel/random/boot_id", within=5).stdout) and now != before:
                    break
            if time.monotonic() > deadline:
                raise LabFailed(f"{self.name}: did not reboot{self._seen()}")
            threading.Event().wait(0.5)
        self._wait_booted(within)

    def _wait_booted(self, within: float) -> None:
        self.log_in(within=within * PATIENCE)
        self.run("systemctl is-system-running --wait", within=within)

    # --- the way in ---------------------------------------------------------------------------------------------------

    def ssh_argv(self, *options: str) -> list[str]:
        """The argument list that a command may be added to, to run it in the node."""
        # If the connection that is shared has ended, ProxyCommand keeps ssh from looking for a 10.8.0.1 elsewhere.
        return ["ssh", *self._options(), "-oControlMaster=no", "-oProxyCommand=false", *options, self._target()]

    def _target(self) -> str:
        return f"root@10.8.0.{self.machine.number}"

    def _options(self) -> list[str]:
        chosen = (
            *("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"),
            *(
                "ConnectTimeout=10",
                f"ControlPath={self.machine.here / 'ssh'}",
                f"IdentityFile={self.machine.image / 'id'}",
            ),
        )
        return ["-F", "/dev/null", *(f"-o{option}" for option in chosen)]

    def _master(self, what: str) -> bool:
        argv = ["ssh", *self._options(), "-O", what, self._target()]
        return subprocess.run(argv, capture_output=True, check=False, timeout=30).returncode == 0

    def log_in(self, *, within: float = LOGIN_WITHIN) -> None:
        """Make the connection that all commands share; LabFailed, with its console, if the node does not let us in."""
        deadline = time.monotonic() + within
        argv = self.machine.ground.inside(["ssh", "-fNM", *self._options(), self._target()])
        with tempfile.TemporaryFile() as errors:
            while not self._master("check"):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    left = max(5.0, min(30.0 * PATIENCE, deadline - time.monotonic()))
                    # It stays in the background, and so must not keep a pipe of ours open.
                    done = subprocess.run(
                        argv,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=errors,
                        check=False,
                        timeout=left,
                    )
                    if done.returncode == 0:
                        return
                if not self.machine.is_on:
                    raise LabFailed(f"{self.name}: it is off{self._seen()}")
                if time.monotonic() > deadline:
                    errors.seek(0)
                    said = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise LabFailed(f"{self.name}: no way in within {within:.0f} s: {' '.join(said)}{self._seen()}")
                threading.Event().wait(0.2)

    def hang_up(self) -> None:
        """End the connection that all commands share."""
        if (self.machine.directory / "ssh").exists():
            self._master("exit")
            (self.machine.directory / "ssh").unlink(missing_ok=True)

    def set_clock(self) -> None:
        """As NTP would: an emulated node's clock falls behind while the machine has no time for it."""
        self.succeed(f"date -s @{time.time():.3f}")

    def awake(self) -> None:
        """After it was restored: the right time, and random numbers of its own."""
        self.hang_up()
        self.log_in()
        code = _AWAKE.format(now=time.time(), seed=os.urandom(64).hex())
        self.succeed(f'python3 -c "{code}"')

    # --- when a test fails --------------------------------------------------------------------------------------------

    def _seen(self) -> str:
        return f"\n--- the console of {self.name}:\n{self.machine.console()}"

    def evidence(self, *, lines: int = 60) -> str:
        """The end of its journals and console, for a report."""
        parts = [f"console:\n{self.machine.console(15)}"]
        try:
            units = self.run("systemctl --no-pager --failed --plain --no-legend", within=15).stdout
            parts.insert(0, f"units that failed: {units.strip() or 'none'}")
            parts.append(f"journal of mcvirtd:\n{self.journal(lines=lines)}")
            others = self.run("journalctl --no-pager -q -o short-iso -b -p warning -n 20", within=15).stdout
            parts.append(f"warnings of all:\n{others}")
        except (LabFailed, OSError) as error:
            parts.append(f"its journal can't be had: {error}")
        return "\n".join(parts)


def save_journal(node: Node, directory: Path) -> None:
    """Write the whole journal and console of a node into *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(LabFailed, OSError):
        (directory / f"{node.name}.journal").write_bytes(
            node.get("journalctl --no-pager -o short-iso-precise", within=30)
        )
    with contextlib.suppress(OSError):
        (directory / f"{node.name}.console").write_bytes(node.machine.console_path.read_bytes())
