"""One connection, kept: opened, followed until it breaks, and opened again; and the memory of what it told."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from mcvirt.errors import LibvirtUnreachable
from mcvirtd.hypervisor.console import Console
from mcvirtd.hypervisor.pool import Lost, Pool
from mcvirtd.hypervisor.states import DomainState, DomainStates, Predicate, Subscriber
from mcvirtd.hypervisor.words import DEFINED, LEAVES

log = logging.getLogger(__name__)

FIRST_RETRY = 0.2
LAST_RETRY = 5.0
# A libvirtd that has just started still finds out which of its guests live, and tells nobody of those that do not.
FIRST_REVIEW = 0.5
LAST_REVIEW = 60.0
# A guest stands still for a fraction of a second before it goes on elsewhere, and it all counts for those who use it:
# nobody asks libvirtd meanwhile, and tells all nodes, that it does. Where it goes on, or ends, is an event of its own.
STANDS_STILL_WITHIN = 2.0


class Link:
    """libvirtd from the making of a connection to its end: *conn*, for the keeper's own use, tells events and is the
    first to know of the end; *calls* has the connections for everybody else. *touched* are domains to look at, and
    when, and *version* is libvirtd's."""

    def __init__(self, conn: Any, calls: Pool) -> None:
        self.conn = conn
        self.calls = calls
        self.version = ""
        self.lost: str | None = None
        self.touched: dict[str, float] = {}
        self.callbacks: list[int] = []
        self.consoles: weakref.WeakSet[Console] = weakref.WeakSet()


class Call:
    """A connection that one thread has for itself; *kept* if it goes on to be used."""

    def __init__(self, link: Link, conn: Any) -> None:
        self.link = link
        self.conn = conn
        self.kept = False


class Keeper:
    """Keeps a connection from ``connect`` to ``close``, and answers from memory what was last known."""

    def __init__(self, uri: str, node: str) -> None:
        self.uri = uri
        self.node = node
        self._states = DomainStates()
        self._changed = threading.Condition()
        self._link: Link | None = None
        self._why_not = "it was not asked yet."
        self._attempts = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    # --- for subclasses to give -------------------------------------------------------------------------------------

    def _open(self) -> Link:
        """A new connection whose events are listened to, every domain being read; Lost if there is none."""
        raise NotImplementedError

    def _read(self, link: Link, uuid: str) -> None:
        """Note what a domain is now; on trouble, note that *link* is lost."""
        raise NotImplementedError

    def _read_all(self, link: Link) -> None:
        """Note what all domains are now; Lost if that can't be known."""
        raise NotImplementedError

    def _drop(self, link: Link) -> None:
        """Listen to *link* no longer, and let it go."""
        raise NotImplementedError

    # --- the connection ---------------------------------------------------------------------------------------------

    def connect(self, within: float = 10.0) -> bool:
        """Connect, and keep a connection from now on. Return whether the first attempt gave one in *within* seconds."""
        self._thread = threading.Thread(target=self._keep, name=f"libvirt-{self.node}", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._attempts > 0, within)
            return self._link is not None

    def close(self) -> None:
        """Give the connection up for good; whoever waits for a state is woken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._states.close()
        if self._thread is not None:
            self._thread.join(5)

    @property
    def connected(self) -> bool:
        """Whether libvirtd answers, as far as is known."""
        with self._changed:
            return self._is_live()

    def version(self) -> str:
        """libvirtd's, as 9.0.0; from memory, for it can't change without the connection's end."""
        return self._live().version

    def wait_connected(self, within: float) -> bool:
        """Return True as soon as there is a connection and every domain was read; False after *within* seconds."""
        with self._changed:
            return self._changed.wait_for(self._is_live, within)

    def _is_live(self) -> bool:
        return self._link is not None and self._link.lost is None

    def _live(self) -> Link:
        with self._changed:
            link = self._link
            if link is None or link.lost is not None:
                why = self._why_not if link is None else link.lost
                raise LibvirtUnreachable(node=self.node, uri=self.uri, reason=why)
            return link

    def _keep(self) -> None:
        retry = FIRST_RETRY
        while not self._closed:
            try:
                link = self._open()
            except Lost as error:
                self._note_attempt(None, str(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, retry)
                retry = min(retry * 2, LAST_RETRY)
                continue
            log.info("connected to libvirtd at %s", self.uri)
            retry = FIRST_RETRY
            self._note_attempt(link, "")
            self._follow(link)
            why = link.lost or "the connection was given up."
            self._note_attempt(None, why)
            link.calls.abandon(why)
            if not self._closed:
                log.warning("the connection to libvirtd at %s is lost: %s", self.uri, link.lost)
            self._drop(link)

    def _follow(self, link: Link) -> None:
        interval = FIRST_REVIEW
        review = time.monotonic() + interval
        while True:
            with self._changed:
                self._wait_for_touched(link, review)
                if self._closed or link.lost:
                    return
                now = time.monotonic()
                touched = [uuid for uuid, due in link.touched.items() if due <= now]
                for uuid in touched:
                    del link.touched[uuid]
            for uuid in touched:
                self._read(link, uuid)
            if time.monotonic() >= review:
                try:
                    self._read_all(link)
                except Lost as error:
                    self._note_lost(link, str(error))
                interval = min(interval * 2, LAST_REVIEW)
                review = time.monotonic() + interval

    def _note_attempt(self, link: Link | None, why_not: str) -> None:
        with self._changed:
            self._link = link
            self._why_not = why_not
            self._attempts += 1
            self._changed.notify_all()

    def _note_lost(self, link: Link, why: str) -> None:
        with self._changed:
            link.lost = link.lost or why
            self._changed.notify_all()

    def _wait_for_touched(self, link: Link, until: float) -> None:
        """Return when a domain is to be read, or at *until*, or when there is nothing to wait for any more."""
        while not self._closed and not link.lost:
            left = min(until, *link.touched.values()) - time.monotonic() if link.touched else until - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _touch(self, link: Link, uuid: str, after: float = 0.0) -> None:
        """Have the domain be read *after* as many seconds, unless it is for another reason before."""
        due = time.monotonic() + after
        with self._changed:
            link.touched[uuid] = min(due, link.touched.get(uuid, due))
            self._changed.notify_all()

    def _heard(self, link: Link, uuid: str, event: int, detail: int) -> None:
        """Have a domain of which libvirt told an event be read."""
        state = self._states.get(uuid)
        arrives = event == DEFINED and state is not None and state.active and not state.running
        self._touch(link, uuid, STANDS_STILL_WITHIN if arrives or (event, detail) == LEAVES else 0.0)

    # --- what is there (from memory) --------------------------------------------------------------------------------

    def domains(self) -> Mapping[str, DomainState]:
        """Every domain of this node by UUID, as last known (see ``connected``); a snapshot."""
        return self._states.all()

    def state(self, uuid: str) -> DomainState | None:
        """The domain with this UUID as last known, or None."""
        return self._states.get(uuid)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Have *subscriber* called with UUID and new state (None: gone) at each change; the result ends that.

        It is called from a thread of its own, one change after the other, and may call verbs.
        """
        return self._states.subscribe(subscriber)

    def wait_for(self, uuid: str, predicate: Predicate, within: float) -> bool:
        """Return True as soon as *predicate* holds for the domain's state, False if it does not in *within* seconds."""
        return self._states.wait_for(uuid, predicate, within)
