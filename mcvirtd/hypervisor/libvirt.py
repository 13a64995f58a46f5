"""libvirt, in our own words: the only importer of the module.

Traps this file is built around. One event loop serves the whole process, and must be registered before the first
connection. Callbacks run in its thread, where a call to libvirtd that hangs would stop all keep-alives: so they only
leave notes, and the keeper thread asks. A connection is never closed under a call that another thread may have in
flight: its callbacks are taken off, which hold references to it, and the last reference closes it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import libvirt

from mcvirt.errors import DomainMissing, LibvirtFailed, LibvirtUnreachable, McvirtError
from mcvirtd.hypervisor import accelerator
from mcvirtd.hypervisor.console import Console
from mcvirtd.hypervisor.design import Accelerator
from mcvirtd.hypervisor.devices import DeviceNews
from mcvirtd.hypervisor.facts import DomainStats, HostFacts, stats_of, version_text
from mcvirtd.hypervisor.keeper import Keeper, Link, Lost
from mcvirtd.hypervisor.states import Condition, DomainState
from mcvirtd.hypervisor.xml import read

log = logging.getLogger(__name__)

KEEPALIVE_INTERVAL = 5
KEEPALIVE_COUNT = 3

_CONDITIONS: dict[int, Condition] = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "stopping",
    libvirt.VIR_DOMAIN_SHUTOFF: "stopped",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "sleeping",
}
_REASONS: dict[tuple[int, int], str] = {
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN): "shut down",
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED): "destroyed",
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED): "crashed",
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED): "migrated",
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED): "saved",
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_FAILED): "failed to start",
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_DAEMON): "lost while libvirtd was away",
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER): "paused",
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION): "migrating",
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR): "disk error",
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP): "starting",
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED): "migration failed",
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_MIGRATED): "migrated",
}
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
_STATS = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL | libvirt.VIR_DOMAIN_STATS_BALLOON

_WOULD_BLOCK = -2

_loop_lock = threading.Lock()
_loop: threading.Thread | None = None


def _start_event_loop() -> None:
    global _loop  # noqa: PLW0603 - libvirt itself has one event loop a process
    with _loop_lock:
        if _loop is None:
            libvirt.registerErrorHandler(lambda *_: None, None)  # the errors reach us as exceptions
            libvirt.virEventRegisterDefaultImpl()
            _loop = threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True)
            _loop.start()


def _run_event_loop() -> None:
    never = threading.Event()
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            log.exception("libvirt's event loop failed once")
            never.wait(1)


class Hypervisor(Keeper):
    """libvirtd on this node. Every verb raises LibvirtUnreachable at once while there is no connection to it."""

    def __init__(self, uri: str, node: str) -> None:
        super().__init__(uri, node)
        self._devices = DeviceNews()
        # Held while a state is read *and* noted, so that an older answer never replaces a newer one.
        self._reading = threading.Lock()

    # --- the connection -------------------------------------------------------------------------------------------

    def _open(self) -> Link:
        _start_event_loop()
        try:
            link = Link(libvirt.open(self.uri))
        except libvirt.libvirtError as error:
            raise Lost(_sentence(error)) from error
        try:
            self._listen(link)
            self._read_all(link)
        except libvirt.libvirtError as error:
            self._drop(link)
            raise Lost(_sentence(error)) from error
        except Lost:
            self._drop(link)
            raise
        return link

    def _listen(self, link: Link) -> None:

        def lost(_conn: Any, reason: int, _opaque: Any) -> None:
            words = {libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirtd stopped answering."}
            self._note_lost(link, words.get(reason, "libvirtd closed the connection."))

        def happened(_conn: Any, domain: Any, event: int, *_more: Any) -> None:
            self._touch(link, domain.UUIDString())
            if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
                self._devices.note(domain.UUIDString())

        def removed(_conn: Any, domain: Any, _alias: str, _opaque: Any) -> None:
            self._devices.note(domain.UUIDString())

        def refused(_conn: Any, domain: Any, _alias: str, _opaque: Any) -> None:
            self._devices.note(domain.UUIDString(), refused=True)

        link.conn.registerCloseCallback(lost, None)
        link.conn.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)
        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, happened),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, removed),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, refused),
        ):
            link.callbacks.append(link.conn.domainEventRegisterAny(None, event, callback, None))

    def _drop(self, link: Link) -> None:
        for callback in link.callbacks:
            try:
                link.conn.domainEventDeregisterAny(callback)
            except libvirt.libvirtError:
                pass  # of a dead connection: it is off on our side, which is what counts
        try:
            link.conn.unregisterCloseCallback()
        except libvirt.libvirtError:
            pass
        for console in list(link.consoles):
            console.lose()  # libvirt tells streams nothing of the end of their connection

    def _read(self, link: Link, uuid: str) -> None:
        """Note what the domain is now; the connection is given up when that can't be known."""
        try:
            with self._reading:
                try:
                    self._states.put(uuid, _state_of(link.conn.lookupByUUIDString(uuid)))
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise
                    self._states.put(uuid, None)
                    self._devices.forget(uuid)
        except libvirt.libvirtError as error:
            self._note_lost(link, _sentence(error))

    def _read_all(self, link: Link) -> None:
        try:
            with self._reading:
                kept = link.conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
                persistent = {domain.UUIDString() for domain in kept}
                states = {}
                for domain, facts in link.conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE):
                    uuid = domain.UUIDString()
                    code = (facts.get("state.state", 0), facts.get("state.reason", 0))
                    states[uuid] = _state(domain, uuid, code, uuid in persistent)
                self._states.replace(states)
        except libvirt.libvirtError as error:
            raise Lost(_sentence(error)) from error

    # --- asking ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _asking(self, action: str, uuid: str = "") -> Iterator[Link]:
        link = self._live()
        try:
            yield link
        except libvirt.libvirtError as error:
            raise self._in_our_words(link, action, uuid, error) from error

    @contextmanager
    def _domain(self, uuid: str, action: str) -> Iterator[Any]:
        with self._asking(f"{action} domain {uuid}", uuid) as link:
            try:
                yield link.conn.lookupByUUIDString(uuid)
            finally:
                # The caller may look at the state as soon as the verb is back, before its event is here.
                if link.lost is None:
                    self._read(link, uuid)

    def _in_our_words(self, link: Link, action: str, uuid: str, error: Any) -> McvirtError:
        if link.lost is not None or not link.conn.isAlive():
            self._note_lost(link, _sentence(error))
            return LibvirtUnreachable(node=self.node, uri=self.uri, reason=_sentence(error))
        if uuid and error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return DomainMissing(node=self.node, uuid=uuid)
        return LibvirtFailed(action=action, reason=_sentence(error))

    # --- what is there (asked) ------------------------------------------------------------------------------------

    def description(self, uuid: str, *, secure: bool = False, inactive: bool = False) -> str:
        """libvirt's XML of a domain: as it runs, or (*inactive*) as it will start; with passwords if *secure*."""
        flags = libvirt.VIR_DOMAIN_XML_SECURE if secure else 0
        flags |= libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0
        with self._asking(f"describe domain {uuid}", uuid) as link:
            return str(link.conn.lookupByUUIDString(uuid).XMLDesc(flags))

    def vnc_port(self, uuid: str) -> int | None:
        """The TCP port on 127.0.0.1 that shows the domain's screen; None when it does not run or has none."""
        return read.vnc_port(self.description(uuid))

    def list_block_paths(self) -> Mapping[str, frozenset[str]]:
        """Every path on which a disk of *any* domain of this node stands, ours or not -> UUIDs of those domains."""
        users: dict[str, set[str]] = {}
        with self._asking("list the disks of all domains") as link:
            for domain in link.conn.listAllDomains():
                for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
                    try:
                        paths = read.source_paths(domain.XMLDesc(flags))
                    except libvirt.libvirtError as error:
                        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                            raise
                        paths = frozenset()  # undefined since the list was made
                    for path in paths:
                        users.setdefault(path, set()).add(domain.UUIDString())
        return {path: frozenset(uuids) for path, uuids in users.items()}

    def stats(self, uuid: str) -> DomainStats:
        """What a domain uses now."""
        with self._asking(f"measure domain {uuid}", uuid) as link:
            domain = link.conn.lookupByUUIDString(uuid)
            if not domain.isActive():
                return DomainStats(uuid=uuid)  # libvirt would tell what it used when it ran
            found = link.conn.domainListGetStats([domain], _STATS, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
            return next(iter(self._measured(found).values()), DomainStats(uuid=uuid))

    def all_stats(self) -> Mapping[str, DomainStats]:
        """What every running domain uses now, by UUID, asked in one call; nothing waits for a busy QEMU."""
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        with self._asking("measure the domains") as link:
            return self._measured(link.conn.getAllDomainStats(_STATS, flags))

    def _measured(self, found: list[tuple[Any, dict[str, Any]]]) -> dict[str, DomainStats]:
        measured = {}
        for domain, facts in found:
            uuid = domain.UUIDString()
            if "cpu.time" not in facts and facts.get("state.state") == libvirt.VIR_DOMAIN_RUNNING:
                # libvirt takes the bulk number from cgroups; where it has none, this one from /proc.
                try:
                    facts["cpu.time"] = domain.info()[4]
                except libvirt.libvirtError:
                    pass  # ended since the list was made
            measured[uuid] = stats_of(uuid, facts)
        return measured

    def facts(self) -> HostFacts:
        """What this machine is, as libvirtd sees it."""
        with self._asking("tell about this machine") as link:
            info = link.conn.getInfo()
            return HostFacts(
                cpus=info[2],
                memory=info[1] * 1024 * 1024,
                libvirt_version=version_text(link.conn.getLibVersion()),
                qemu_version=version_text(link.conn.getVersion()),
            )

    def accelerator(self, setting: accelerator.Setting) -> tuple[Accelerator, str]:
        """What guests of this machine run with (kvm or tcg), and why, in words."""
        return accelerator.choose(
            setting,
            device_trouble=accelerator.device_trouble(),
            cpu_has_it=accelerator.cpu_has_it(),
            libvirt_knows_it=self._knows_kvm,
        )

    def _knows_kvm(self) -> bool:
        try:
            with self._asking("tell about KVM") as link:
                link.conn.getDomainCapabilities(None, "x86_64", None, "kvm")
        except LibvirtFailed:
            return False
        return True

    # --- verbs ----------------------------------------------------------------------------------------------------

    def define(self, xml: str) -> str:
        """Define a domain, or define it anew, and return its UUID; a running one takes it over at its next start."""
        with self._asking("define the domain") as link:
            uuid = str(link.conn.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).UUIDString())
            self._read(link, uuid)
            return uuid

    def undefine(self, uuid: str) -> None:
        """Remove the definition, saved state and firmware variables; no error if there is no such domain."""
        try:
            with self._domain(uuid, "undefine") as domain:
                domain.undefineFlags(_UNDEFINE)
        except DomainMissing:
            pass
        except LibvirtFailed:
            state = self._states.get(uuid)
            if state is not None and state.persistent:
                raise  # or else it was undefined already, and only runs on

    def start(self, uuid: str, *, paused: bool = False) -> bool:
        """Start a domain; False if it ran already. With *paused* its processors wait (``resume``)."""
        with self._domain(uuid, "start") as domain:
            return self._unless(
                lambda: domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0), domain.isActive
            )

    def resume(self, uuid: str) -> None:
        """Let the processors of a paused domain run."""
        with self._domain(uuid, "resume") as domain:
            domain.resume()

    def destroy(self, uuid: str) -> bool:
        """Switch a domain off, hard; False if it was off. Its QEMU has ended when this returns."""
        with self._domain(uuid, "stop") as domain:
            return self._unless(domain.destroy, lambda: not domain.isActive())

    def shutdown(self, uuid: str) -> bool:
        """Press the power button (ACPI) and return at once; False if the domain was off. The guest may ignore it."""
        with self._domain(uuid, "shut down") as domain:
            return self._unless(
                lambda: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN), lambda: not domain.isActive()
            )

    def reset(self, uuid: str) -> None:
        """Press the reset button of a running domain."""
        with self._domain(uuid, "reset") as domain:
            domain.reset()

    @staticmethod
    def _unless(verb: Callable[[], object], already: Callable[[], bool]) -> bool:
        try:
            verb()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID and already():
                return False
            raise
        return True

    # --- devices: *live* changes the running domain, *config* what it starts with next ------------------------------

    def attach_device(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        """Add the device that *xml* describes."""
        with self._domain(uuid, f"attach {read.describe_device(xml)} to") as domain:
            domain.attachDeviceFlags(xml, _affect(live=live, config=config))

    def update_device(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:
        """Change a device: the disc in the CD drive, the bridge of an adapter."""
        with self._domain(uuid, f"change {read.describe_device(xml)} of") as domain:
            domain.updateDeviceFlags(xml, _affect(live=live, config=config))

    def detach_device(self, uuid: str, xml: str, *, live: bool, config: bool, within: float = 30.0) -> None:
        """Take a device away, and return when it is gone; no error if it was not there.

        A running guest has to let go of it: DeadlinePassed if it has not in *within* seconds, and then the definition
        is left alone too.
        """
        what = read.describe_device(xml)
        with self._domain(uuid, f"detach {what} from") as domain:
            if live:
                since = self._devices.heard(uuid)
                _ignore_missing(lambda: domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE))
                self._devices.wait_until_gone(
                    uuid,
                    f"{what} from domain {uuid}",
                    lambda: bool(domain.isActive()) and read.has_device(domain.XMLDesc(), xml),
                    since,
                    within,
                )
            if config:
                _ignore_missing(lambda: domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG))

    def resize_block(self, uuid: str, target: str, size: int) -> None:
        """Tell a running domain that its disk *target* (vda) has *size* bytes now; a file is made as large."""
        with self._domain(uuid, f"resize disk {target} of") as domain:
            domain.blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

    # --- the serial console -----------------------------------------------------------------------------------------

    def open_console(self, uuid: str) -> Console:
        """The serial console of a running domain, taken from whoever has it now."""
        with self._asking(f"open the console of domain {uuid}", uuid) as link:
            domain = link.conn.lookupByUUIDString(uuid)
            stream = link.conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
            domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
            console = _console_on(stream)
            link.consoles.add(console)
            if link.lost is not None:
                console.lose()
            return console


def _console_on(stream: Any) -> Console:
    listening = threading.Lock()  # held by whoever takes the callback off, which may be done once only

    def deafen() -> None:
        if not listening.acquire(blocking=False):
            return
        try:
            stream.eventRemoveCallback()
        except libvirt.libvirtError:
            pass  # its connection is gone

    def send(data: bytes) -> int:
        try:
            return int(stream.send(data))
        except libvirt.libvirtError:
            return 0

    def hang_up() -> None:
        deafen()
        try:
            stream.abort()
        except libvirt.libvirtError:
            pass  # the other end was first

    console = Console(send, hang_up, deafen)

    def heard(_stream: Any, events: int, _opaque: Any) -> None:
        over = bool(events & (libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP))
        try:
            while (data := stream.recv(65536)) != _WOULD_BLOCK:
                if not data:
                    over = True
                    break
                console.feed(data)
        except libvirt.libvirtError:
            over = True
        if over:
            # An ended stream is readable for ever: with the callback on, the event loop would spin.
            console.lose()

    events = libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP
    stream.eventAddCallback(events, heard, None)
    return console


def _affect(*, live: bool, config: bool) -> int:
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if live else 0
    return flags | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if config else 0)


def _ignore_missing(verb: Callable[[], object]) -> None:
    try:
        verb()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_DEVICE_MISSING:
            raise


def _state_of(domain: Any) -> DomainState:
    code, reason = domain.state()
    return _state(domain, domain.UUIDString(), (code, reason), bool(domain.isPersistent()))


def _state(domain: Any, uuid: str, code: tuple[int, int], persistent: bool) -> DomainState:
    number = domain.ID()
    return DomainState(
        uuid=uuid,
        name=domain.name(),
        condition=_CONDITIONS.get(code[0], "unknown"),
        reason=_REASONS.get(code, ""),
        persistent=persistent,
        id=number if number > 0 else None,
    )


def _sentence(error: Any) -> str:
    text = str(error.get_error_message() or error).strip()
    return text if text.endswith((".", "!", "?")) else text + "."
