"""The hypervisor against a real libvirtd with real QEMU guests."""

from __future__ import annotations

import gc
import shutil
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from mcvirt.errors import DeadlinePassed, DomainMissing, LibvirtFailed, LibvirtUnreachable
from mcvirtd.hypervisor.design import (
    BUSES,
    GRAPHICS_DRIVERS,
    AdapterDesign,
    DiskDesign,
    DomainDesign,
    Machine,
)
from mcvirtd.hypervisor.libvirt import Hypervisor
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.hypervisor.xml.cdrom import cdrom_xml
from mcvirtd.hypervisor.xml.disk import disk_xml
from mcvirtd.hypervisor.xml.domain import domain_xml
from mcvirtd.hypervisor.xml.interface import interface_xml
from tests.node import tinyguest
from tests.node.libvirt_host import LibvirtHost

PATIENCE = 60.0


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    # Not pytest's directory: the path of a unix socket has at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="mcvirt-node-"))
    try:
        with LibvirtHost(directory, "hv1") as host:
            host.run(["ip", "link", "add", "br0", "type", "bridge"])
            host.run(["ip", "link", "set", "br0", "up"])
            yield host
    finally:
        shutil.rmtree(directory)


def uri_of(host: LibvirtHost) -> str:
    return f"qemu+unix:///system?socket={host.path('/run/libvirt/libvirt-sock')}"


@pytest.fixture(scope="module")
def hypervisor(host: LibvirtHost) -> Iterator[Hypervisor]:
    hypervisor = Hypervisor(uri_of(host), "hv1")
    assert hypervisor.connect(PATIENCE)
    yield hypervisor
    hypervisor.close()


class Guest:
    """A tiny guest, and what a test asks about it."""

    def __init__(self, hypervisor: Hypervisor, design: DomainDesign, disk: Path) -> None:
        self.hypervisor = hypervisor
        self.design = design
        self.uuid = design.uuid
        self.disk = disk

    @property
    def state(self) -> DomainState | None:
        return self.hypervisor.state(self.uuid)

    def becomes(self, condition: str) -> bool:
        return self.hypervisor.wait_for(
            self.uuid, lambda state: state is not None and state.condition == condition, PATIENCE
        )

    def run(self) -> None:
        """Start it and return when it is up."""
        assert self.hypervisor.start(self.uuid)
        assert self.says(b".")

    def says(self, what: bytes, typing: bytes = b"") -> bool:
        with self.hypervisor.open_console(self.uuid) as console:
            console.write(typing)
            return until(lambda said: what in said, console.read)


def until(enough: Callable[[bytes], bool], read: Callable[[float], bytes]) -> bool:
    said = b""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        said += read(deadline - time.monotonic())
        if enough(said):
            return True
    return False


@pytest.fixture
def guest(host: LibvirtHost, hypervisor: Hypervisor) -> Iterator[Guest]:
    directory = Path(tempfile.mkdtemp(dir=host.directory))
    disk = directory / "disk.raw"
    tinyguest.install(disk)
    identity = str(uuid.uuid4())
    design = DomainDesign(
        uuid=identity,
        name=f"tiny-{identity[:8]}",
        memory=64 * 1024 * 1024,
        cpu_count=1,
        machine="pc",
        accelerator="tcg",
        disks=(DiskDesign(source=str(disk), slot=1, disk_id="hd-one", kind="file"),),
        vnc_password="geheim",
        serial_log=str(directory / "serial.log"),
    )
    assert hypervisor.define(domain_xml(design)) == identity
    yield Guest(hypervisor, design, disk)
    hypervisor.wait_connected(PATIENCE)
    try:
        hypervisor.destroy(identity)
    except DomainMissing:
        return
    hypervisor.undefine(identity)


# --- life ---------------------------------------------------------------------------------------------------------


def test_a_defined_domain_is_known_at_once_and_definition_can_be_repeated(guest: Guest) -> None:
    state = guest.state
    assert state is not None
    assert (state.name, state.condition, state.persistent, state.id) == (guest.design.name, "stopped", True, None)
    assert guest.hypervisor.define(domain_xml(guest.design)) == guest.uuid
    assert guest.hypervisor.vnc_port(guest.uuid) is None
    assert "geheim" not in guest.hypervisor.description(guest.uuid)
    assert "geheim" in guest.hypervisor.description(guest.uuid, secure=True)


def test_a_guest_runs_talks_and_obeys_its_power_button(guest: Guest) -> None:
    guest.run()
    state = guest.state
    assert state is not None and state.running and state.active
    assert guest.hypervisor.start(guest.uuid) is False
    assert guest.says(b"x", typing=b"x")
    assert guest.hypervisor.vnc_port(guest.uuid) is not None
    boots, ticks = tinyguest.progress(guest.disk) or (0, 0)
    assert boots == 1 and ticks > 0
    assert guest.hypervisor.shutdown(guest.uuid) is True
    assert guest.becomes("stopped")
    assert guest.state is not None and guest.state.reason == "shut down"
    assert guest.hypervisor.shutdown(guest.uuid) is False
    log = Path(guest.design.serial_log or "").read_bytes()
    assert b"B." in log and b"x" in log and log.endswith(b"O")


def test_switching_off_and_reset(guest: Guest) -> None:
    guest.run()
    guest.hypervisor.reset(guest.uuid)
    assert guest.says(b"B.")
    assert guest.hypervisor.destroy(guest.uuid) is True
    assert guest.state is not None and guest.state.condition == "stopped"
    assert guest.hypervisor.destroy(guest.uuid) is False
    assert (tinyguest.progress(guest.disk) or (0, 0))[0] == 2


def test_undefining_twice_is_no_error_and_verbs_say_that_it_is_gone(guest: Guest) -> None:
    guest.hypervisor.undefine(guest.uuid)
    guest.hypervisor.undefine(guest.uuid)
    assert guest.state is None
    with pytest.raises(DomainMissing) as caught:
        guest.hypervisor.start(guest.uuid)
    assert caught.value.uuid == guest.uuid


def test_a_running_domain_that_is_undefined_runs_on_and_then_vanishes(guest: Guest) -> None:
    guest.run()
    guest.hypervisor.undefine(guest.uuid)
    assert guest.state is not None and guest.state.running and not guest.state.persistent
    guest.hypervisor.undefine(guest.uuid)
    guest.hypervisor.destroy(guest.uuid)
    assert guest.state is None


def test_nonsense_is_refused_in_libvirts_own_words_and_says_nothing_on_stderr(
    guest: Guest, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LibvirtFailed) as caught:
        guest.hypervisor.define("<domain type='qemu'><name>x</name></domain>")
    assert caught.value.action == "define the domain" and caught.value.reason
    assert capfd.readouterr().err == ""


def test_a_missing_bridge_stops_a_start_and_leaves_the_domain_stopped(guest: Guest) -> None:
    adapters = (AdapterDesign(mac="00:16:3e:00:00:01", bridge="nobridge"),)
    design = DomainDesign(
        **{f: getattr(guest.design, f) for f in guest.design.__struct_fields__} | {"adapters": adapters}
    )
    guest.hypervisor.define(domain_xml(design))
    with pytest.raises(LibvirtFailed, match="nobridge"):
        guest.hypervisor.start(guest.uuid)
    assert guest.state is not None and guest.state.condition == "stopped"


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_qemu_starts_every_kind_of_part(host: LibvirtHost, hypervisor: Hypervisor, machine: Machine) -> None:
    """Nothing boots here; that QEMU opened every disk and made every device is what counts."""
    directory = Path(tempfile.mkdtemp(dir=host.directory))
    disks = []
    for slot, bus in enumerate(BUSES, 1):
        if (machine, bus) == ("pc", "sata"):
            continue  # libvirt has no room for a SATA controller there that it would add by itself
        image = directory / f"{bus}.img"
        form: Literal["raw", "qcow2"] = "qcow2" if bus == "scsi" else "raw"
        host.run(["qemu-img", "create", "-q", "-f", form, str(image), "1M"])
        disks.append(DiskDesign(source=str(image), slot=slot, disk_id=f"hd-{bus}", kind="file", format=form, bus=bus))
    (directory / "a disc.iso").write_bytes(bytes(4096))
    for number, driver in enumerate(GRAPHICS_DRIVERS):
        design = DomainDesign(
            uuid=str(uuid.uuid4()),
            name=f"parts-{machine}-{driver}",
            memory=64 * 1024 * 1024,
            cpu_count=2,
            machine=machine,
            accelerator="tcg",
            disks=tuple(disks) if number == 0 else (),
            iso=str(directory / "a disc.iso"),
            boot_from_iso=True,
            adapters=(AdapterDesign(mac="00:16:3e:00:00:03", bridge="br0"),),
            graphics_driver=driver,
            vnc_password="geheim",
            windows=number % 2 == 1,
            autodeflate=True,
            serial_log=str(directory / "serial.log"),
        )
        identity = hypervisor.define(domain_xml(design))
        try:
            hypervisor.start(identity, paused=True)
            state = hypervisor.state(identity)
            assert state is not None and state.condition == "paused" and state.active
            assert (hypervisor.vnc_port(identity) is None) == (driver == "none")
            hypervisor.destroy(identity)
        finally:
            hypervisor.undefine(identity)


# --- devices ------------------------------------------------------------------------------------------------------


def test_discs_are_changed_in_a_running_guest(guest: Guest) -> None:
    first, second = guest.disk.with_name("a.iso"), guest.disk.with_name("b.iso")
    first.write_bytes(bytes(4096))
    second.write_bytes(bytes(4096))
    guest.run()
    for disc in (first, second, None):
        text = cdrom_xml("pc", None if disc is None else str(disc))
        guest.hypervisor.update_device(guest.uuid, text, live=True, config=True)
        for inactive in (False, True):
            said = guest.hypervisor.description(guest.uuid, inactive=inactive)
            assert [path for path in (first, second) if str(path) in said] == ([] if disc is None else [disc])


def test_disks_and_adapters_come_and_go_in_a_running_guest(guest: Guest) -> None:
    image = guest.disk.with_name("second.raw")
    image.write_bytes(bytes(1024 * 1024))
    disk = disk_xml(DiskDesign(source=str(image), slot=2, disk_id="hd-two", kind="file"), "pc")
    adapter = interface_xml(AdapterDesign(mac="00:16:3e:00:00:02", bridge="br0"))
    guest.run()
    guest.hypervisor.attach_device(guest.uuid, disk, live=True, config=True)
    guest.hypervisor.attach_device(guest.uuid, adapter, live=True, config=True)
    assert guest.hypervisor.list_block_paths()[str(image)] == {guest.uuid}
    guest.hypervisor.resize_block(guest.uuid, "vdb", 2 * 1024 * 1024)
    assert image.stat().st_size == 2 * 1024 * 1024
    for device, trace in ((disk, str(image)), (adapter, "00:16:3e:00:00:02")):
        guest.hypervisor.detach_device(guest.uuid, device, live=True, config=True, within=PATIENCE)
        for inactive in (False, True):
            assert trace not in guest.hypervisor.description(guest.uuid, inactive=inactive)
        guest.hypervisor.detach_device(guest.uuid, device, live=True, config=True)
    assert str(image) not in guest.hypervisor.list_block_paths()


def test_a_guest_that_keeps_a_device_is_not_waited_for_for_ever(guest: Guest) -> None:
    image = guest.disk.with_name("second.raw")
    image.write_bytes(bytes(1024 * 1024))
    disk = disk_xml(DiskDesign(source=str(image), slot=2, disk_id="hd-two", kind="file"), "pc")
    assert guest.hypervisor.start(guest.uuid, paused=True)  # it can't let go of anything
    guest.hypervisor.attach_device(guest.uuid, disk, live=True, config=True)
    with pytest.raises(DeadlinePassed):
        guest.hypervisor.detach_device(guest.uuid, disk, live=True, config=True, within=0.2)
    assert str(image) in guest.hypervisor.description(guest.uuid, inactive=True)
    guest.hypervisor.resume(guest.uuid)
    assert guest.says(b"D")


def test_stats_of_all_domains_in_one_call(guest: Guest) -> None:
    guest.run()
    everything = guest.hypervisor.all_stats()
    assert everything[guest.uuid].cpu_time > 0 and everything[guest.uuid].rss > 1024 * 1024
    assert guest.hypervisor.stats(guest.uuid).cpu_time >= everything[guest.uuid].cpu_time
    guest.hypervisor.destroy(guest.uuid)
    assert guest.hypervisor.stats(guest.uuid).cpu_time == 0
    assert guest.uuid not in guest.hypervisor.all_stats()


def test_many_callers_at_a_time_disturb_nobody(guest: Guest) -> None:
    guest.run()
    texts: list[str] = []

    def ask() -> None:
        for _ in range(20):
            texts.append(guest.hypervisor.description(guest.uuid))
            guest.hypervisor.define(domain_xml(guest.design))
            assert guest.uuid in guest.hypervisor.all_stats()

    callers = [threading.Thread(target=ask) for _ in range(12)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE)
    assert len(texts) == 12 * 20


def test_facts_and_accelerator(hypervisor: Hypervisor) -> None:
    facts = hypervisor.facts()
    assert facts.cpus > 0 and facts.memory > 0 and facts.qemu_version.count(".") == 2
    assert hypervisor.version().count(".") == 2
    assert hypervisor.accelerator("tcg")[0] == "tcg"
    choice, reason = hypervisor.accelerator("auto")
    assert choice in ("kvm", "tcg") and reason


# --- the console --------------------------------------------------------------------------------------------------


def test_a_console_can_be_taken_over_and_ends_with_the_guest(guest: Guest) -> None:
    guest.run()
    first = guest.hypervisor.open_console(guest.uuid)
    second = guest.hypervisor.open_console(guest.uuid)
    assert until(lambda said: b"." in said, second.read)
    deadline = time.monotonic() + 20
    while not first.ended and time.monotonic() < deadline:
        first.read(PATIENCE)
    guest.hypervisor.destroy(guest.uuid)
    deadline = time.monotonic() + PATIENCE
    while not second.ended and time.monotonic() < deadline:
        second.read(1)
    assert second.ended and second.read(0) == b""
    first.close()
    second.close()
    second.close()
    second.write(b"nobody hears this")


# --- events and trouble -------------------------------------------------------------------------------------------


def test_what_others_do_with_virsh_is_seen(guest: Guest, host: LibvirtHost) -> None:
    seen: list[tuple[str, str | None]] = []
    gone = threading.Event()

    def note(uuid: str, state: DomainState | None) -> None:
        if uuid == guest.uuid:
            seen.append((uuid, state.condition if state else None))
            if state is None:
                gone.set()

    stop = guest.hypervisor.subscribe(note)
    host.virsh("start", guest.uuid)
    assert guest.becomes("running")
    host.virsh("suspend", guest.uuid)
    assert guest.becomes("paused")
    host.virsh("destroy", guest.uuid)
    assert guest.becomes("stopped")
    host.virsh("undefine", guest.uuid)
    assert gone.wait(PATIENCE)
    told = [condition for _, condition in seen if condition in ("running", "paused", None)]
    assert told[-3:] == ["running", "paused", None]  # a start may be seen as a pause, too
    stop()


@pytest.mark.parametrize("ending", ["kill_libvirtd", "stop_libvirtd"])
def test_libvirtd_ends_and_comes_back(guest: Guest, host: LibvirtHost, ending: str) -> None:
    guest.run()
    console = guest.hypervisor.open_console(guest.uuid)
    getattr(host, ending)()
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(LibvirtUnreachable):
            guest.hypervisor.define(domain_xml(guest.design))
    assert time.monotonic() - began < 1
    assert guest.state is not None  # as last known
    while not console.ended and time.monotonic() < began + 20:
        console.read(PATIENCE)
    console.close()
    host.start_libvirtd()
    assert guest.hypervisor.wait_connected(PATIENCE)
    assert guest.state is not None and guest.state.running
    host.virsh("destroy", guest.uuid)
    assert guest.becomes("stopped")
    guest.run()


def test_what_happened_while_libvirtd_was_away_is_known_afterwards(guest: Guest, host: LibvirtHost) -> None:
    guest.run()
    host.kill_libvirtd()
    host.run(["pkill", "-KILL", "-f", f"guest={guest.design.name}"])
    host.start_libvirtd()
    assert guest.becomes("stopped")


def test_reconnecting_often_leaves_no_connections_behind(hypervisor: Hypervisor, host: LibvirtHost) -> None:
    connections = []
    for _ in range(3):
        link = hypervisor._live()
        connections.append(weakref.ref(link.conn))
        del link
        host.kill_libvirtd()
        host.start_libvirtd()
        deadline = time.monotonic() + PATIENCE
        while hypervisor._link is None or hypervisor._link.conn is connections[-1]():
            assert hypervisor.wait_connected(deadline - time.monotonic())
            if hypervisor.connected and hypervisor._live().conn is connections[-1]():
                with hypervisor._changed:  # the end of the old one is not noticed yet
                    hypervisor._changed.wait(1)
    gc.collect()
    assert [connection() for connection in connections] == [None, None, None]


def test_a_libvirtd_that_stops_answering_is_given_up(
    guest: Guest, host: LibvirtHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcvirtd.hypervisor.libvirt.KEEPALIVE_INTERVAL", 1)
    other = Hypervisor(uri_of(host), "hv1")
    assert other.connect(PATIENCE)
    host.pause_libvirtd()
    errors: list[Exception] = []

    def ask() -> None:
        try:
            other.define(domain_xml(guest.design))
        except Exception as error:
            errors.append(error)

    try:
        # Many at a time: two calls on one connection would end the process here.
        callers = [threading.Thread(target=ask) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(PATIENCE)
        assert [type(error) for error in errors] == [LibvirtUnreachable] * len(callers)
        began = time.monotonic()
        with pytest.raises(LibvirtUnreachable):
            other.define(domain_xml(guest.design))
        assert time.monotonic() - began < 0.5
    finally:
        host.resume_libvirtd()
    assert other.wait_connected(PATIENCE)
    other.close()
    with pytest.raises(LibvirtUnreachable):
        other.facts()


def test_without_libvirtd_everything_says_so_at_once(tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    hypervisor = Hypervisor(uri, "hv9")
    began = time.monotonic()
    assert not hypervisor.connect(PATIENCE)
    with pytest.raises(LibvirtUnreachable) as caught:
        hypervisor.facts()
    assert (caught.value.node, caught.value.uri) == ("hv9", uri)
    assert hypervisor.domains() == {}
    hypervisor.close()
    assert time.monotonic() - began < 5


def test_two_nodes_in_one_process_see_their_own_domains(guest: Guest) -> None:
    directory = Path(tempfile.mkdtemp(prefix="mcvirt-node-"))
    try:
        with LibvirtHost(directory, "hv2") as other_host:
            other = Hypervisor(uri_of(other_host), "hv2")
            assert other.connect(PATIENCE)
            assert guest.uuid not in other.domains()
            other.define(domain_xml(guest.design))
            other.undefine(guest.uuid)
            assert guest.state is not None
            other.close()
    finally:
        shutil.rmtree(directory)
