"""A hypervisor in memory, for tests of scale and of faults (`mcvirtd --simulate`). No guest ever runs on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from mcvirt.errors import LibvirtFailed, LibvirtUnreachable
from mcvirt.units import GIB, MIB
from mcvirtd.hypervisor.console import Console
from mcvirtd.hypervisor.facts import DomainStats, HostFacts
from mcvirtd.hypervisor.moving import JobProgress, JobResult, Journey, Route
from mcvirtd.hypervisor.states import DomainState, DomainStates, Predicate, Subscriber
from mcvirtd.hypervisor.xml.read import marked_uuid, source_paths
from mcvirtd.hypervisor.xml.tree import from_text

_SIMULATED_CPUS = 64


class SimulatedHypervisor:
    """Keeps the descriptions it is given, and what is switched on.

    A test may set *connected* to False, and may let the next call of a verb fail with `fail_next`.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.connected = True
        self._states = DomainStates()
        self._descriptions: dict[str, str] = {}
        self._failures: dict[str, list[Exception]] = {}
        self._lock = threading.RLock()
        self._ids = 0

    def fail_next(self, verb: str, error: Exception) -> None:
        """Let the next call of *verb* raise *error* before it does anything."""
        self._failures.setdefault(verb, []).append(error)

    def _begin(self, verb: str) -> None:
        if not self.connected:
            raise LibvirtUnreachable(node=self.node, uri="simulate:", reason="it is simulated to be away.")
        failures = self._failures.get(verb)
        if failures:
            raise failures.pop(0)

    def close(self) -> None:
        """The end of the simulation."""
        self._states.close()

    def wait_connected(self, within: float) -> bool:  # noqa: ARG002
        return self.connected

    def domains(self) -> Mapping[str, DomainState]:
        return self._states.all()

    def state(self, uuid: str) -> DomainState | None:
        return self._states.get(uuid)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        return self._states.subscribe(subscriber)

    def wait_for(self, uuid: str, predicate: Predicate, within: float) -> bool:
        return self._states.wait_for(uuid, predicate, within)

    def _known(self, uuid: str, action: str) -> DomainState:
        state = self._states.get(uuid)
        if state is None:
            raise LibvirtFailed(action=action, reason="there is no such domain.")
        return state

    def description(self, uuid: str, *, secure: bool = False, inactive: bool = False) -> str:  # noqa: ARG002
        self._begin("description")
        self._known(uuid, "describe a domain")
        return self._descriptions[uuid]

    def vnc_port(self, uuid: str) -> int | None:
        state = self._known(uuid, "find the display")
        return 5900 + state.id if state.id is not None else None

    def list_block_paths(self) -> Mapping[str, frozenset[str]]:
        self._begin("list_block_paths")
        found: dict[str, frozenset[str]] = {}
        for uuid, text in list(self._descriptions.items()):
            for path in source_paths(text):
                found[path] = found.get(path, frozenset()) | {uuid}
        return found

    def stats(self, uuid: str) -> DomainStats:
        self._begin("stats")
        return DomainStats(uuid=uuid, rss=64 * MIB if self._known(uuid, "measure a domain").active else 0)

    def all_stats(self) -> Mapping[str, DomainStats]:
        self._begin("all_stats")
        return {uuid: DomainStats(uuid=uuid, rss=64 * MIB) for uuid, state in self.domains().items() if state.active}

    def facts(self) -> HostFacts:
        self._begin("facts")
        return HostFacts(cpus=_SIMULATED_CPUS, memory=1024 * GIB, qemu_version="simulated")

    def version(self) -> str:
        self._begin("version")
        return "simulated"

    def define(self, xml: str) -> str:
        self._begin("define")
        root = from_text(xml)
        uuid, name = str(root.findtext("uuid")), str(root.findtext("name"))
        with self._lock:
            for state in self._states.all().values():
                if state.name == name and state.uuid != uuid:
                    raise LibvirtFailed(action="define a domain", reason=f"there is another domain '{name}'.")
            self._descriptions[uuid] = xml
            if self._states.get(uuid) is None:
                self._states.put(uuid, DomainState(uuid=marked_uuid(xml) or uuid, name=name, condition="stopped"))
        return uuid

    def undefine(self, uuid: str) -> None:
        self._begin("undefine")
        with self._lock:
            self._descriptions.pop(uuid, None)
            self._states.put(uuid, None)

    def start(self, uuid: str, *, paused: bool = False) -> bool:
        self._begin("start")
        with self._lock:
            state = self._known(uuid, "start a domain")
            if state.active:
                return False
            self._ids += 1
            started = DomainState(uuid=uuid, name=state.name, condition="paused" if paused else "running", id=self._ids)
            self._states.put(uuid, started)
        return True

    def resume(self, uuid: str) -> None:
        self._begin("resume")
        with self._lock:
            state = self._known(uuid, "resume a domain")
            self._states.put(uuid, DomainState(uuid=uuid, name=state.name, condition="running", id=state.id))

    def destroy(self, uuid: str) -> bool:
        self._begin("destroy")
        with self._lock:
            state = self._known(uuid, "switch a domain off")
            if not state.active:
                return False
            self._states.put(uuid, DomainState(uuid=uuid, name=state.name, condition="stopped"))
        return True

    def shutdown(self, uuid: str) -> bool:
        self._begin("shutdown")
        return self.destroy(uuid)

    def reset(self, uuid: str) -> None:
        self._begin("reset")
        self._known(uuid, "reset a domain")

    def attach_device(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:  # noqa: ARG002
        self._begin("attach_device")

    def update_device(self, uuid: str, xml: str, *, live: bool, config: bool) -> None:  # noqa: ARG002
        self._begin("update_device")

    def detach_device(self, uuid: str, xml: str, *, live: bool, config: bool, within: float = 30.0) -> None:  # noqa: ARG002
        self._begin("detach_device")

    def resize_block(self, uuid: str, target: str, size: int) -> None:  # noqa: ARG002
        self._begin("resize_block")

    def open_console(self, uuid: str) -> Console:
        self._known(uuid, "open a console")
        console = Console(len, lambda: None)
        console.feed(b"simulated\r\n")
        return console

    # --- moving: a simulated guest does not -------------------------------------------------------------------------

    def look(self, uuid: str) -> DomainState | None:
        self._begin("look")
        return self._states.get(uuid)

    def running_description(self, uuid: str) -> str:
        return self.description(uuid)

    def guests_user(self) -> tuple[int, int]:
        return 0, 0

    def cannot_take(self, kind: str, machine_type: str, cpu: str) -> str:  # noqa: ARG002
        self._begin("cannot_take")
        return ""

    def send(self, uuid: str, route: Route, journey: Journey) -> JobResult:  # noqa: ARG002
        self._begin("send")
        raise LibvirtFailed(action=f"migrate domain {uuid}", reason="guests that are simulated stay where they are.")

    def job(self, uuid: str) -> JobProgress | None:  # noqa: ARG002
        return None

    def is_busy(self, uuid: str) -> bool:  # noqa: ARG002
        return False

    def set_max_downtime(self, uuid: str, milliseconds: int) -> None:  # noqa: ARG002
        return None

    def abort_job(self, uuid: str) -> None:  # noqa: ARG002
        self._begin("abort_job")
