"""libvirt, in our own words: the only importer of the module.

Traps this file is built around. One event loop serves the whole process, and must be registered before the first
connection. Callbacks run in its thread, where a call to libvirtd that hangs would stop all keep-alives: so they only
leave notes, and the keeper thread asks. A connection never has two calls under way (see ``pool``): the keeper has one
of its own, which tells the events, calls take theirs from the pool, and each console has one. The keeper's is not
closed by name, but when nothing refers to it any more; its callbacks do, and are taken off before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import libvirt

from mcvirt.errors import DomainMissing, LibvirtFailed, LibvirtUnreachable, McvirtError
from mcvirtd.hypervisor import accelerator
from mcvirtd.hypervisor.console import Console, console_on
from mcvirtd.hypervisor.design import Accelerator
from mcvirtd.hypervisor.devices import DeviceNews
from mcvirtd.hypervisor.facts import DomainStats, HostFacts, stats_of, version_text
from mcvirtd.hypervisor.keeper import Call, Keeper, Link
from mcvirtd.hypervisor.pool import Lost, Pool
from mcvirtd.hypervisor.words import known_state, sentence, state_of
from mcvirtd.hypervisor.xml import read

log = logging.getLogger(__name__)

KEEPALIVE_INTERVAL = 5
KEEPALIVE_COUNT = 3

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
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            log.exception("libvirt's event loop failed once")
            threading.Event().wait(1)


class Hypervisor(Keeper):
    """libvirtd on this node. Every verb raises LibvirtUnreachable at once while there is no connection to it."""

    def __init__(self, uri: str, node: str) -> None:
        super().__init__(uri, node)
        self._devices = DeviceNews()
        # Held while a state is read *and* noted, so that an older answer never replaces a newer one.
        self._reading = threading.Lock()

    # --- the connection -------------------------------------------------------------------------------------------

    def _open(self) -> Link:
        link = Link(self._connection(), Pool(self._connection, _end, _is_alive, f"libvirt-{self.node}"))
        try:
            link.version = version_text(link.conn.getLibVersion())
            self._listen(link)
            self._read_all(link)
        except libvirt.libvirtError as error:
            self._drop(link)
            raise Lost(sentence(error)) from error
        except Lost:
            self._drop(link)
            raise
        return link

    def _connection(self) -> Any:
        _start_event_loop()
        try:
            conn = libvirt.open(self.uri)
            conn.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)
        except libvirt.libvirtError as error:
            raise Lost(sentence(error)) from error
        return conn

    def _listen(self, link: Link) -> None:
        def lost(_conn: Any, reason: int, _opaque: Any) -> None:
            words = {libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirtd stopped answering."}
            self._note_lost(link, words.get(reason, "libvirtd closed the connection."))

        def happened(_conn: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
            self._heard(link, domain.UUIDString(), event, detail)
            if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
                self._devices.note(domain.UUIDString())

        def removed(_conn: Any, domain: Any, _alias: str, _opaque: Any) -> None:
            self._devices.note(domain.UUIDString())

        def refused(_conn: Any, domain: Any, _alias: str, _opaque: Any) -> None:
            self._devices.note(domain.UUIDString(), refused=True)

        link.conn.registerCloseCallback(lost, None)
        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, happened),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, removed),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, refused),
        ):
            link.callbacks.append(link.conn.domainEventRegisterAny(None, event, callback, None))

    def _drop(self, link: Link) -> None:
        for callback in link.callbacks:
            with suppress(libvirt.libvirtError):  # of a dead connection: it is off on our side, which is what counts
                link.conn.domainEventDeregisterAny(callback)
        with suppress(libvirt.libvirtError):
            link.conn.unregisterCloseCallback()
        for console in list(link.consoles):
            console.lose()  # libvirt tells streams nothing of the end of their connection

    def _read(self, link: Link, uuid: str) -> None:
        self._look(link, link.conn, uuid)

    def _look(self, link: Link, conn: Any, uuid: str) -> None:
        """Note what the domain is now, asked on *conn*; *link* is given up when that can't be known."""
        try:
            with self._reading:
                try:
                    self._states.put(uuid, state_of(conn.lookupByUUIDString(uuid)))
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise
                    self._states.put(uuid, None)
                    self._devices.forget(uuid)
        except libvirt.libvirtError as error:
            self._note_lost(link, sentence(error))

    def _read_all(self, link: Link) -> None:
        try:
            with self._reading:
                kept = link.conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
                persistent = {domain.UUIDString() for domain in kept}
                states = {}
                for domain, facts in link.conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE):
                    uuid = domain.UUIDString()
                    code = (facts.get("state.state", 0), facts.get("state.reason", 0))
                    states[uuid] = known_state(domain, code, uuid in persistent)
                self._states.replace(states)
        except libvirt.libvirtError as error:
            raise Lost(sentence(error)) from error

    # --- asking ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _asking(self, action: str, uuid: str = "") -> Iterator[Call]:
        """Connections for one call after the other, in one thread; errors become ours."""
        link = self._live()
        try:
            conn = link.calls.take()
        except Lost as error:
            raise LibvirtUnreachable(node=self.node, uri=self.uri, reason=str(error)) from error
        call = Call(link, conn)
        try:
            yield call
        except libvirt.libvirtError as error:
            raise self._in_our_words(call, action, uuid, error) from error
        finally:
            if not call.kept:
                link.calls.give(conn)

    @contextmanager
    def _domain(self, uuid: str, action: str) -> Iterator[Any]:
        with self._asking(f"{action} domain {uuid}", uuid) as call:
            try:
                yield call.conn.lookupByUUIDString(uuid)
            finally:
                # The caller may look at the state as soon as the verb is back, before its event is here.
                if call.link.lost is None and _is_alive(call.conn):
                    self._look(call.link, call.conn, uuid)

    def _in_our_words(self, call: Call, action: str, uuid: str, error: Any) -> McvirtError:
        if call.link.lost is not None or not _is_alive(call.conn):
            self._note_lost(call.link, sentence(error))
            return LibvirtUnreachable(node=self.node, uri=self.uri, reason=sentence(error))
        if uuid and error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return DomainMissing(node=self.node, uuid=uuid)
        return LibvirtFailed(action=action, reason=sentence(error))

    # --- what is there (asked) ------------------------------------------------------------------------------------

    def description(self, uuid: str, *, secure: bool = False, inactive: bool = False) -> str:
        """libvirt's XML of a domain: as it runs, or (*inactive*) as it will start; with passwords if *secure*."""
        flags = libvirt.VIR_DOMAIN_XML_SECURE if secure else 0
        flags |= libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0
        with self._asking(f"describe domain {uuid}", uuid) as call:
            return str(call.conn.lookupByUUIDString(uuid).XMLDesc(flags))

    def vnc_port(self, uuid: str) -> int | None:
        """The TCP port on 127.0.0.1 that shows the domain's screen; None when it does not run or has none."""
        return read.vnc_port(self.description(uuid))

    def list_block_paths(self) -> Mapping[str, frozenset[str]]:
        """Every path on which a disk of *any* domain of this node stands, ours or not -> UUIDs of those domains."""
        with self._asking("list the disks of all domains") as call:
            return read.path_users(_descriptions(call.conn))

    def stats(self, uuid: str) -> DomainStats:
        """What a domain uses now."""
        with self._asking(f"measure domain {uuid}", uuid) as call:
            domain = call.conn.lookupByUUIDString(uuid)
            if not domain.isActive():
                return DomainStats(uuid=uuid)  # libvirt would tell what it used when it ran
            found = call.conn.domainListGetStats([domain], _STATS, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
            return next(iter(self._measured(found).values()), DomainStats(uuid=uuid))

    def all_stats(self) -> Mapping[str, DomainStats]:
        """What every running domain uses now, by UUID, asked in one call; nothing waits for a busy QEMU."""
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        with self._asking("measure the domains") as call:
            return self._measured(call.conn.getAllDomainStats(_STATS, flags))

    def _measured(self, found: list[tuple[Any, dict[str, Any]]]) -> dict[str, DomainStats]:
        measured = {}
        for domain, facts in found:
            uuid = domain.UUIDString()
            if "cpu.time" not in facts and facts.get("state.state") == libvirt.VIR_DOMAIN_RUNNING:
                # libvirt takes the bulk number from cgroups; where it has none, this one from /proc.
                with suppress(libvirt.libvirtError):  # ended since the list was made
                    facts["cpu.time"] = domain.info()[4]
            measured[uuid] = stats_of(uuid, facts)
        return measured

    def facts(self) -> HostFacts:
        """What this machine is, as libvirtd sees it."""
        with self._asking("tell about this machine") as call:
            info = call.conn.getInfo()
            return HostFacts(
                cpus=info[2],
                memory=info[1] * 1024 * 1024,
                qemu_version=version_text(call.conn.getVersion()),
            )

    def accelerator(self, setting: accelerator.Setting) -> tuple[Accelerator, str]:
        """What guests of this machine run with (kvm or tcg), and why, in words."""
        return accelerator.of_this_machine(setting, self._knows_kvm)

    def _knows_kvm(self) -> bool:
        try:
            with self._asking("tell about KVM") as call:
                call.conn.getDomainCapabilities(None, "x86_64", None, "kvm")
        except LibvirtFailed:
            return False
        return True

    # --- verbs ----------------------------------------------------------------------------------------------------

    def define(self, xml: str) -> str:
        """Define a domain, or define it anew, and return its UUID; a running one takes it over at its next start."""
        with self._asking("define the domain") as call:
            uuid = str(call.conn.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).UUIDString())
            self._look(call.link, call.conn, uuid)
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
        with self._asking(f"open the console of domain {uuid}", uuid) as call:
            domain = call.conn.lookupByUUIDString(uuid)
            stream = call.conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
            domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
            link, conn = call.link, call.conn
            call.kept = True
            console = console_on(_Stream(stream, lambda: link.calls.discard(conn)))
            link.consoles.add(console)
            if link.lost is not None:
                console.lose()
            return console


class _Stream:
    """A libvirt stream as a console wants it: errors mean that the other end is gone."""

    def __init__(self, stream: Any, release: Callable[[], None]) -> None:
        self._stream = stream
        self._release = release

    def listen(self, heard: Callable[[bool], None]) -> None:
        over = libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP
        self._stream.eventAddCallback(
            libvirt.VIR_STREAM_EVENT_READABLE | over, lambda _stream, events, _opaque: heard(bool(events & over)), None
        )

    def deafen(self) -> None:
        with suppress(libvirt.libvirtError):
            self._stream.eventRemoveCallback()

    def receive(self) -> bytes | None:
        with suppress(libvirt.libvirtError):
            data = self._stream.recv(65536)
            return None if data == _WOULD_BLOCK else data
        return b""

    def send(self, data: bytes) -> int:
        with suppress(libvirt.libvirtError):
            return int(self._stream.send(data))
        return 0

    def end(self) -> None:
        with suppress(libvirt.libvirtError):
            self._stream.abort()
        self._release()


def _descriptions(conn: Any) -> Iterator[tuple[str, str]]:
    for domain in conn.listAllDomains():
        for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
            try:
                yield domain.UUIDString(), domain.XMLDesc(flags)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # undefined since the list was made
                    raise


def _end(conn: Any) -> None:
    with suppress(libvirt.libvirtError):
        conn.close()


def _is_alive(conn: Any) -> bool:
    with suppress(libvirt.libvirtError):
        return bool(conn.isAlive())
    return False


def _affect(*, live: bool, config: bool) -> int:
    return int(live * libvirt.VIR_DOMAIN_AFFECT_LIVE | config * libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def _ignore_missing(verb: Callable[[], object]) -> None:
    try:
        verb()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_DEVICE_MISSING:
            raise
