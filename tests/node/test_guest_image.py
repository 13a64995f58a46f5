"""The tiny guest boots from its ISO under plain QEMU, and says and does what the other tests rely on."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import guest
from tests.guest import build

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("qemu-system-x86_64", "xorriso", "apt-get"))),
    reason="needs qemu-system-x86_64, xorriso and apt-get",
)

MIB = 1 << 20
SOON = 30.0
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guest"


class Machine:
    """A QEMU with its serial port and QMP."""

    def __init__(self, directory: Path, machine: str, *arguments: str) -> None:
        # QEMU connects to us: the other way round nobody tells when it listens.
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "qmp"))
        listener.listen()
        listener.settimeout(SOON)
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-accel", "tcg", "-machine", machine, "-cpu", guest.CPU_MODEL),
                *("-m", str(guest.MEMORY_MIB), "-nodefaults", "-display", "none", "-serial", "stdio"),
                *("-qmp", f"unix:{directory / 'qmp'}", *arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._said = ""
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()
        with listener:
            self._qmp = listener.accept()[0]
        self._answers = self._qmp.makefile("r")
        self._answers.readline()
        self.qmp("qmp_capabilities")

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._changed:
                self._said += line.decode(errors="replace")
                self._changed.notify_all()

    def qmp(self, command: str, **arguments: object) -> Any:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = {"execute": command, "arguments": named}
        self._qmp.sendall(json.dumps(request).encode())
        while True:
            answer = json.loads(self._answers.readline())
            if "event" not in answer:
                assert "error" not in answer, answer
                return answer["return"]

    def lines(self, kind: str | None = None) -> list[guest.Line]:
        with self._changed:
            return guest.lines(self._said, kind)

    def forget(self) -> None:
        """Leave what was said so far out of lines() and wait()."""
        with self._changed:
            self._said = ""

    def wait(
        self, kind: str, fits: Callable[[guest.Line], bool] = lambda line: True, within: float = SOON
    ) -> guest.Line:
        """The first line of that kind that fits."""
        found: list[guest.Line] = []

        def heard() -> bool:
            found[:] = filter(fits, guest.lines(self._said, kind))
            return bool(found)

        with self._changed:
            assert self._changed.wait_for(heard, within), f"no such {kind!r} in:\n{self._said}"
        return found[0]

    def type(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self._answers.close()
        self._qmp.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.build(tmp_path_factory.mktemp("guest") / "guest.iso", CACHE)


Start = Callable[..., Machine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a machine and returns when its guest is ready."""
    with contextlib.ExitStack() as stack:

        def started(machine: str, *arguments: str) -> Machine:
            qemu = Machine(tmp_path, machine, *arguments)
            stack.callback(qemu.close)
            qemu.wait("ready", within=guest.READY_WITHIN)
            return qemu

        yield started


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def counter(disk: Path) -> tuple[int, int] | None:
    return guest.parse_counter(disk.read_bytes()[guest.COUNTER_OFFSET :][: guest.COUNTER_SIZE])


def q35(iso: Path, disk: Path) -> tuple[str, ...]:
    return (
        *("q35", "-smp", "2"),
        *("-drive", f"if=none,id=cd,media=cdrom,readonly=on,file={iso}", "-device", "ide-cd,drive=cd,id=cd0"),
        *("-drive", f"if=none,id=first,format=raw,file={disk}"),
        *("-device", "virtio-blk-pci,drive=first,serial=first-serial"),
        *("-nic", "user,model=virtio,mac=52:54:00:00:00:01,id=net0"),
        *("-device", "pcie-root-port,id=port1,chassis=1", "-device", "pcie-root-port,id=port2,chassis=2"),
    )


def test_says_what_it_is_made_of(iso: Path, start: Start, tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk", 8 * MIB)
    scsi = sparse(tmp_path / "scsi", 16 * MIB)
    machine = start(
        *q35(iso, disk),
        *("-device", "virtio-scsi-pci,id=scsi", "-drive", f"if=none,id=second,format=raw,file={scsi}"),
        *("-device", "scsi-hd,drive=second,serial=second-serial"),
        *("-nic", "user,model=e1000,mac=52:54:00:00:00:02"),
        *("-device", "virtio-rng-pci", "-device", "virtio-balloon-pci", "-device", "virtio-serial-pci"),
    )
    kinds = [line.kind for line in machine.lines()]
    assert kinds[:2] == ["booted", "memory"]
    assert "error" not in kinds[: kinds.index("ready")]
    (memory,) = machine.lines("memory")
    assert guest.MEMORY_MIB / 2 < memory.number("memory") / 1024 < guest.MEMORY_MIB
    assert memory.number("cpus") == 2
    assert [(line["name"], line.number("size"), line["serial"]) for line in machine.lines("disk")] == [
        ("vda", 8 * MIB, "first-serial"),
        ("sda", 16 * MIB, "second-serial"),
    ]
    cdroms = [(line["name"], line.number("size")) for line in machine.lines("cdrom")]
    assert cdroms == [("sr0", iso.stat().st_size)]
    macs = ("52:54:00:00:00:01", "52:54:00:00:00:02")
    assert {line["mac"] for line in machine.lines("nic")} == {*macs}
    # An e1000 takes its time to negotiate.
    machine.wait("nic", lambda line: (line["mac"], line["link"]) == (macs[0], "up"))
    machine.wait("nic", lambda line: (line["mac"], line["link"]) == (macs[1], "up"))


def test_counts_boots_and_ticks_on_its_first_disk_and_obeys(iso: Path, start: Start, tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk", 8 * MIB)
    machine = start(*q35(iso, disk))
    machine.wait("tick", lambda line: line["boots"] == "1" and line.number("ticks") >= 2)
    boots, ticks = counter(disk) or (0, 0)
    assert (boots, ticks >= 2) == (1, True)

    machine.type("echo Hello, \\  world")
    assert machine.wait("echo").text == "Hello, \\  world"

    machine.forget()
    machine.type("reboot")
    machine.wait("reboot")
    machine.wait("ready", within=guest.READY_WITHIN)
    machine.wait("tick", lambda line: (line["boots"], line["ticks"]) == ("2", "1"))

    machine.forget()
    machine.type("report")
    assert machine.wait("disk")["name"] == "vda"
    machine.type("poweroff")
    assert machine.process.wait(SOON) == 0
    assert (counter(disk) or (0, 0))[0] == 2


def test_acpi_power_button_powers_off(iso: Path, start: Start, tmp_path: Path) -> None:
    machine = start(*q35(iso, sparse(tmp_path / "disk", 8 * MIB)))
    machine.qmp("system_powerdown")
    assert machine.process.wait(SOON) == 0
    # The button is watched by a process of its own: a tick may still come after its last word.
    assert "poweroff" in [line.kind for line in machine.lines()[-3:]]


def test_says_what_is_plugged_resized_and_unplugged(iso: Path, start: Start, tmp_path: Path) -> None:
    machine = start(*q35(iso, sparse(tmp_path / "disk", 8 * MIB)))

    extra = str(sparse(tmp_path / "extra", 4 * MIB))
    machine.qmp("blockdev-add", driver="raw", node_name="extra", file={"driver": "file", "filename": extra})
    machine.qmp("device_add", driver="virtio-blk-pci", drive="extra", id="extra", bus="port1", serial="hot")
    assert machine.wait("disk", lambda line: line["serial"] == "hot").number("size") == 4 * MIB
    machine.qmp("block_resize", node_name="extra", size=6 * MIB)
    machine.wait("disk", lambda line: (line["name"], line.number("size")) == ("vdb", 6 * MIB))
    machine.qmp("device_del", id="extra")
    machine.wait("gone", lambda line: (line["kind"], line["name"]) == ("disk", "vdb"))

    machine.qmp("netdev_add", type="user", id="net1")
    mac = "52:54:00:00:00:09"
    machine.qmp("device_add", driver="virtio-net-pci", netdev="net1", id="nic1", bus="port2", mac=mac)
    card = machine.wait("nic", lambda line: line["mac"] == mac)
    machine.wait("nic", lambda line: (line["name"], line["link"]) == (card["name"], "up"))
    machine.qmp("set_link", name="nic1", up=False)
    machine.wait("nic", lambda line: (line["name"], line["link"]) == (card["name"], "down"))
    machine.qmp("device_del", id="nic1")
    machine.wait("gone", lambda line: (line["kind"], line["name"]) == ("nic", card["name"]))


def test_says_when_the_medium_changes(iso: Path, start: Start, tmp_path: Path) -> None:
    machine = start(*q35(iso, sparse(tmp_path / "disk", 8 * MIB)))
    machine.forget()
    machine.qmp("eject", id="cd0")
    machine.wait("cdrom", lambda line: line["size"] == "0")
    other = sparse(tmp_path / "other", 2 * MIB)
    machine.qmp("blockdev-change-medium", id="cd0", filename=str(other), format="raw")
    machine.wait("cdrom", lambda line: line.number("size") == 2 * MIB)


def test_boots_on_the_old_machine_with_ide_disks(iso: Path, start: Start, tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk", 8 * MIB)
    drive = f"if=ide,format=raw,file={disk}"
    machine = start("pc", "-cdrom", str(iso), "-drive", drive, "-nic", "user,model=e1000")
    assert [line["name"] for line in machine.lines("disk")] == ["sda"]
    assert [line["name"] for line in machine.lines("cdrom")] == ["sr0"]
    assert [line["name"] for line in machine.lines("nic")] == ["eth0"]
    machine.wait("tick", lambda line: line["ticks"] == "2")
    assert (counter(disk) or (0, 0))[0] == 1


def test_sees_a_usb_disk(iso: Path, start: Start, tmp_path: Path) -> None:
    stick = sparse(tmp_path / "stick", 4 * MIB)
    machine = start(
        *q35(iso, sparse(tmp_path / "disk", 8 * MIB)),
        *("-device", "qemu-xhci", "-drive", f"if=none,id=stick,format=raw,file={stick}"),
        *("-device", "usb-storage,drive=stick"),
    )
    machine.wait("disk", lambda line: (line["name"], line.number("size")) == ("sda", 4 * MIB))


def test_the_cloud_kernel_boots_too(start: Start, tmp_path: Path) -> None:
    iso = build.build(tmp_path / "cloud.iso", CACHE, kernel=build.CLOUD)
    machine = start(*q35(iso, sparse(tmp_path / "disk", 8 * MIB)))
    assert "-cloud-" in machine.lines("booted")[0]["kernel"]
    machine.wait("tick", lambda line: line["boots"] == "1")
    assert not machine.lines("error")


def test_leaves_a_disk_with_something_on_it_alone(iso: Path, start: Start, tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk", 8 * MIB)
    with disk.open("r+b") as file:
        file.seek(1080)
        file.write(b"\x53\xef")  # as an ext file system has it
    before = disk.read_bytes()
    machine = start(*q35(iso, disk))
    machine.wait("tick", lambda line: (line["boots"], line["ticks"]) == ("0", "2"))
    assert not machine.lines("error")
    assert disk.read_bytes() == before


def test_says_when_it_cannot_write(iso: Path, start: Start, tmp_path: Path) -> None:
    arguments = q35(iso, sparse(tmp_path / "disk", 8 * MIB))
    machine = start(*(word.replace("id=first,", "id=first,readonly=on,") for word in arguments))
    assert machine.wait("error").text == "cannot write to vda"


def test_two_builds_at_once_and_one_that_was_cut_short(iso: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / ".building-cut-short").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        isos = [tmp_path / f"{n}.iso" for n in range(2)]
        builds = [pool.submit(build.build, iso, cache, kernel=build.CLOUD) for iso in isos]
        built = [one.result() for one in builds]
    assert built[0].read_bytes() == built[1].read_bytes()
    assert sorted(path.suffix for path in cache.iterdir()) == [".iso", ".lock"]

    (image,) = cache.glob("*.iso")
    image.write_bytes(b"what the cache holds")
    again = build.build(tmp_path / "again.iso", cache, kernel=build.CLOUD)
    assert again.read_bytes() == b"what the cache holds"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MODULES", ("no_such_module",))
    with pytest.raises(build.BuildFailed, match="no_such_module"):
        build.build(tmp_path / "guest.iso", tmp_path / "cache", kernel=build.CLOUD)
    assert not (tmp_path / "guest.iso").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["guest.lock"]
