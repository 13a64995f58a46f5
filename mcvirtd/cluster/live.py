"""What changes by itself: the states of domains and of DRBD's resources, and the use of nodes. Every node keeps all.

Each node tells the others with its heartbeats, at once when a domain changes, and only what they do not have yet.
Questions are answered from here: they wait for nobody.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from mcvirt.types.cluster import NodeInfo
from mcvirt.types.drbd import ResourceState
from mcvirt.types.peer import LiveNews, LiveVersion
from mcvirt.types.vm import PowerState
from mcvirtd.hypervisor.states import DomainState, Subscriber

log = logging.getLogger(__name__)
LOOK_EVERY = 2.0
MEASURE_EVERY = 4.0


class Hypervisor(Protocol):
    """What is asked of this node's hypervisor."""

    @property
    def connected(self) -> bool:
        """Whether libvirtd answers."""

    def domains(self) -> Mapping[str, DomainState]:
        """Every domain by UUID, as last known."""

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Be told of changes; the result ends that."""


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of another node; *age* is how many seconds old it is, None if it is as good as now."""

    states: Mapping[str, PowerState] = {}
    resources: Mapping[str, ResourceState] = {}
    info: NodeInfo | None = None
    libvirt: bool = False
    age: int | None = None
    silent: bool = True


class _Facts:
    """What one other node has said."""

    def __init__(self, life: str) -> None:
        self.version = LiveVersion(life=life)
        self.states: dict[str, PowerState] = {}
        self.resources: dict[str, ResourceState] = {}
        self.info: NodeInfo | None = None
        self.libvirt = True
        self.at = time.monotonic()


class Live:
    """This node's facts, for others, and theirs. *info* measures this node; *reachable* says who answers now.

    *changed* is called when a domain here has changed, in a thread of its own; *wanted* says whether there is anybody
    for whom this node is to be measured.
    """

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        info: Callable[[], NodeInfo],
        reachable: Callable[[str], bool],
        changed: Callable[[], None],
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._hypervisor = hypervisor
        self._measure = info
        self._reachable = reachable
        self._changed = changed
        self._wanted = wanted
        self._life = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._version = 0
        self._domains: dict[str, tuple[str | None, int]] = {}
        self._resources: dict[str, tuple[ResourceState | None, int]] = {}
        self._seen: Mapping[str, DomainState] | None = None
        self._info: NodeInfo | None = None
        self._told: dict[str, NodeInfo | None] = {}
        self._acknowledged: dict[str, LiveVersion] = {}
        self._others: dict[str, _Facts] = {}
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin to look at this node."""
        self._look_at_domains()
        self._hypervisor.subscribe(self._on_domain)
        threading.Thread(target=self._look_on, name="live", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    # --- this node ----------------------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        measured = -MEASURE_EVERY
        while not self._stopping.is_set():
            try:
                self._look_at_domains()
                if self._wanted() and time.monotonic() - measured >= MEASURE_EVERY - LOOK_EVERY / 2:
                    measured = time.monotonic()
                    self._info = self._measure()
            except OSError as error:
                log.error("this node can't be measured now: %s", error)
            except Exception:
                log.exception("this node could not be looked at")
            self._stopping.wait(LOOK_EVERY)

    def _look_at_domains(self) -> None:
        domains = self._hypervisor.domains()
        if domains is self._seen:
            return
        self._seen = domains
        news = False
        with self._lock:
            for uuid in (*domains, *(uuid for uuid in self._domains if uuid not in domains)):
                news = self._note(uuid, domains.get(uuid)) or news
        if news:
            self._changed()

    def _on_domain(self, uuid: str, state: DomainState | None) -> None:
        with self._lock:
            news = self._note(uuid, state)
        if news:
            self._changed()

    def _note(self, uuid: str, state: DomainState | None) -> bool:
        power = None if state is None else power_state(state).value
        before = self._domains.get(uuid)
        if before is not None and before[0] == power:
            return False
        self._version += 1
        self._domains[uuid] = (power, self._version)
        return True

    def note_resources(self, states: Mapping[str, ResourceState], *, at_once: bool = True) -> None:
        """*states* are all of DRBD's resources here; others hear *at_once*, or with the next heartbeat."""
        news = False
        with self._lock:
            for name in (*states, *(name for name in self._resources if name not in states)):
                state, before = states.get(name), self._resources.get(name)
                if before is None or before[0] != state:
                    self._version += 1
                    self._resources[name] = (state, self._version)
                    news = True
        if news and at_once:
            self._changed()

    def news_for(self, node: str) -> LiveNews:
        """What *node* does not have yet of this node's facts."""
        with self._lock:
            has = self._acknowledged.get(node, LiveVersion())
            since = has.version if has.life == self._life else 0
            version = self._version
            domains, resources = {}, {}
            # It may not have got what it was told last; then it gets the next, which is not far.
            info = None if since and self._told.get(node) is self._info else self._info
            self._told[node] = info or self._told.get(node)
            if since != version:
                domains = {uuid: power for uuid, (power, changed) in self._domains.items() if changed > since}
                resources = {name: state for name, (state, changed) in self._resources.items() if changed > since}
        return LiveNews(
            life=self._life,
            since=since,
            version=version,
            domains=domains,
            resources=resources,
            info=info,
            libvirt=self._hypervisor.connected,
        )

    def acknowledged(self, node: str, have: LiveVersion) -> bool:
        """*node* has said how much it has of this node's facts; True if there is more by now."""
        with self._lock:
            self._acknowledged[node] = have
            return have.life != self._life or have.version != self._version

    # --- other nodes --------------------------------------------------------------------------------------------------

    def hear(self, node: str, news: LiveNews) -> LiveVersion:
        """Take in what *node* has said; the answer is how much of its facts is known now."""
        with self._lock:
            facts = self._others.get(node)
            if facts is None or facts.version.life != news.life:
                if news.since:
                    return LiveVersion()  # the beginning is missing
                facts = self._others[node] = _Facts(news.life)
            if news.since > facts.version.version:
                return facts.version
            if news.version >= facts.version.version:
                if news.domains:
                    states = dict(facts.states)
                    for uuid, power in news.domains.items():
                        if power is None:
                            states.pop(uuid, None)
                        else:
                            states[uuid] = PowerState(power)
                    facts.states = states  # readers hold no lock
                if news.resources:
                    both = {**facts.resources, **news.resources}
                    facts.resources = {name: state for name, state in both.items() if state is not None}
                facts.version = LiveVersion(life=news.life, version=news.version)
                facts.info, facts.libvirt, facts.at = news.info or facts.info, news.libvirt, time.monotonic()
            return facts.version

    def of(self, node: str) -> Known:
        """What is known of *node*, as of now."""
        facts = self._others.get(node)
        silent = not self._reachable(node)
        if facts is None:
            return Known(silent=silent)
        return Known(
            states=facts.states,
            resources=facts.resources,
            info=facts.info,
            libvirt=facts.libvirt,
            age=int(time.monotonic() - facts.at) if silent else None,
            silent=silent,
        )

    def found_at(self, uuid: str, node: str) -> Mapping[str, PowerState]:
        """The nodes that answer and have that domain, and what it does there; *node* is this one."""
        found = {name: facts.states[uuid] for name, facts in list(self._others.items()) if uuid in facts.states}
        found = {name: state for name, state in found.items() if self._reachable(name)}
        here = self._hypervisor.domains().get(uuid)
        return found if here is None else {**found, node: power_state(here)}

    def drbd(self, node: str) -> Mapping[str, ResourceState]:
        """DRBD's resources on *node*, which is not this one, as it said last."""
        facts = self._others.get(node)
        return {} if facts is None else facts.resources

    def heard(self, node: str) -> float | None:
        """When it was last heard, on the monotonic clock; None if it never was since this process began."""
        facts = self._others.get(node)
        return None if facts is None else facts.at

    def forget(self, node: str) -> None:
        """*node* is no member any more."""
        with self._lock:
            self._others.pop(node, None)
            self._acknowledged.pop(node, None)
            self._told.pop(node, None)


def power_state(state: DomainState) -> PowerState:
    """A domain's state in operators' words."""
    if state.condition == "paused":
        return PowerState.PAUSED
    return PowerState.RUNNING if state.active else PowerState.STOPPED
