"""The domains of this node as last seen, kept in memory, and everyone who waits for one to change."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

log = logging.getLogger(__name__)

Condition = Literal["running", "paused", "stopping", "stopped", "crashed", "sleeping", "unknown"]


class DomainState(msgspec.Struct, frozen=True, kw_only=True):
    """One domain of libvirt. *id* is libvirt's number of a running domain; *reason* a word on how it came to be so."""

    uuid: str
    name: str
    condition: Condition
    reason: str = ""
    persistent: bool = True
    id: int | None = None

    @property
    def running(self) -> bool:
        """Whether the guest's processors run."""
        return self.condition == "running"

    @property
    def active(self) -> bool:
        """Whether there is a QEMU process, be the guest running or not."""
        return self.id is not None


Predicate = Callable[[DomainState | None], bool]
Subscriber = Callable[[str, DomainState | None], None]


class DomainStates:
    """A map from UUID to state. Subscribers are called one after the other, by a thread of this object's own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._states: dict[str, DomainState] = {}
        self._snapshot: Mapping[str, DomainState] = MappingProxyType({})
        self._subscribers: list[Subscriber] = []
        self._news: deque[tuple[str, DomainState | None]] = deque()
        self._closed = False
        self._announcer: threading.Thread | None = None

    def all(self) -> Mapping[str, DomainState]:
        """Every domain, by UUID: a snapshot that does not change any more."""
        return self._snapshot

    def get(self, uuid: str) -> DomainState | None:
        """The domain with this UUID, or None."""
        return self._snapshot.get(uuid)

    def put(self, uuid: str, state: DomainState | None) -> None:
        """Note what *uuid* is now; None when there is no such domain."""
        with self._changed:
            if self._states.get(uuid) == state:
                return
            if state is None:
                del self._states[uuid]
            else:
                self._states[uuid] = state
            self._tell([(uuid, state)])

    def replace(self, states: Mapping[str, DomainState]) -> None:
        """Note that *states* are all the domains there are."""
        with self._changed:
            gone = [(uuid, None) for uuid in self._states if uuid not in states]
            news = [(uuid, state) for uuid, state in states.items() if self._states.get(uuid) != state]
            if gone or news:
                self._states = dict(states)
                self._tell([*gone, *news])

    def _tell(self, news: list[tuple[str, DomainState | None]]) -> None:
        self._snapshot = MappingProxyType(dict(self._states))
        self._news.extend(news)
        self._changed.notify_all()

    def wait_for(self, uuid: str, predicate: Predicate, within: float) -> bool:
        """Return True as soon as *predicate* holds for the domain's state, False if it does not in *within* seconds."""
        deadline = time.monotonic() + within
        with self._changed:
            while not predicate(self._states.get(uuid)):
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._closed:
                    return False
                self._changed.wait(remaining)
            return True

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Have *subscriber* called with UUID and new state (None: gone) at each change; the result ends that."""
        with self._changed:
            self._subscribers.append(subscriber)
            if self._announcer is None:
                self._announcer = threading.Thread(target=self._announce, name="domain-states", daemon=True)
                self._announcer.start()

        def unsubscribe() -> None:
            with self._changed:
                if subscriber in self._subscribers:
                    self._subscribers.remove(subscriber)

        return unsubscribe

    def close(self) -> None:
        """Wake all who wait, and call nobody any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._announcer is not None and self._announcer is not threading.current_thread():
            self._announcer.join(5)

    def _announce(self) -> None:
        while True:
            with self._changed:
                while not self._news and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                uuid, state = self._news.popleft()
                subscribers = list(self._subscribers)
            for subscriber in subscribers:
                try:
                    subscriber(uuid, state)
                except Exception:
                    log.exception("a subscriber to the states of domains failed for domain %s", uuid)
