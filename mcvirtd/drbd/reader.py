"""What the kernel says of this node's resources, kept in memory, and everyone who waits for it to change.

One program runs for as long as mcvirtd does and prints every event. Nothing is asked again and again, and nothing that
ends before anyone looks is missed: `Reader.follow` remembers every event from its beginning on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import msgspec

from mcvirt.errors import DeadlinePassed, DrbdUnavailable, McvirtError, TaskCancelled
from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd.status import GAP, Event, Picture, Progress, parse
from mcvirtd.host.drbd_numbers import device_size

log = logging.getLogger(__name__)

Predicate = Callable[[ResourceState | None], bool]
Subscriber = Callable[[Event, ResourceState | None], None]
Source = Callable[[Callable[[str], None], threading.Event], int]
"""Calls its first argument with each line, until the second is set or the program ends."""

AGAIN_AFTER = (0.2, 1.0, 5.0, 15.0)
LOOK_FOR_CANCEL = 0.2


class Followed:
    """The events of one resource since the beginning of `Reader.follow`."""

    def __init__(self, resource: str, changed: threading.Condition) -> None:
        self.resource = resource
        self._changed = changed
        self._events: list[Event] = []

    @property
    def events(self) -> tuple[Event, ...]:
        """All events so far; one with the verb GAP stands where some may not have been seen.

        Its fields are the replication and the out-of-sync at its end, if there is the resource then.
        """
        with self._changed:
            return tuple(self._events)

    def wait(
        self,
        predicate: Callable[[Sequence[Event]], bool],
        within: float,
        cancel: threading.Event | None = None,
    ) -> tuple[Event, ...]:
        """Return the events as soon as *predicate* holds for them; DeadlinePassed with the last one if it does not."""

        def late() -> DeadlinePassed:
            last = _said(self._events[-1]) if self._events else "nothing"
            return _late(self.resource, within, f"what was seen last is {last}.")

        _wait(self._changed, lambda: predicate(self._events), within, cancel, late)
        return self.events


class Reader:
    """The states of all resources here. Subscribers are called in order, by one thread at a time: they must be quick.

    *split* are resources whose sides have refused each other's data before this reader began. *device_size* is asked
    how long a minor is.
    """

    def __init__(
        self,
        source: Source,
        split: Callable[[], Sequence[str]] = tuple,
        device_size: Callable[[int], int] = device_size,
    ) -> None:
        self._source = source
        self._split = split
        self._device_size = device_size
        self._changed = threading.Condition()
        self._hearing = threading.RLock()
        self._picture = Picture()
        self._complete = False
        self._states: Mapping[str, ResourceState] = MappingProxyType({})
        self._followed: list[Followed] = []
        self._subscribers: list[Subscriber] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read."""
        self._thread = threading.Thread(target=self._read_on, name="drbd", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the program that is read from, and wake all who wait."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10)

    # --- what is ------------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the states are as the kernel says now."""
        return self._complete

    def wait_alive(self, within: float) -> bool:
        """Whether the states are as the kernel says, waiting for that at most *within* seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._complete or self._stop.is_set(), within) and self._complete

    def require_alive(self, within: float = 0.0) -> None:
        """DrbdUnavailable unless the states are as the kernel says, at the latest after *within* seconds."""
        if not self.wait_alive(within):
            raise DrbdUnavailable(reason="its events can't be read now; the log of mcvirtd says why.")

    def state(self, resource: str) -> ResourceState | None:
        """The resource as it is; None if the kernel has none of that name."""
        return self._sized(self._states.get(resource))

    def all(self) -> Mapping[str, ResourceState]:
        """All resources: a snapshot that does not change any more."""
        return self._states

    def wait(
        self, resource: str, predicate: Predicate, within: float, cancel: threading.Event | None = None
    ) -> ResourceState:
        """Return the state as soon as *predicate* holds for it; DeadlinePassed, saying what it is, if it does not.

        *predicate* is called with None while there is no such resource; if it holds then, the result is an empty state.
        """
        _wait(
            self._changed,
            lambda: self._complete and predicate(self._states.get(resource)),
            within,
            cancel,
            lambda: _late(resource, within, self._why(resource)),
        )
        return self._states.get(resource) or ResourceState(name=resource)

    def _why(self, resource: str) -> str:
        if not self._complete:
            return "DRBD's events can't be read now; the log of mcvirtd says why."
        return describe(self._states.get(resource))

    @contextlib.contextmanager
    def follow(self, resource: str) -> Iterator[Followed]:
        """Remember every event of the resource from now on, whether or not anybody waits for it."""
        followed = Followed(resource, self._changed)
        with self._changed:
            self._followed.append(followed)
        try:
            yield followed
        finally:
            with self._changed:
                self._followed.remove(followed)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Have *subscriber* called with each event and the state after it; the result ends that."""
        with self._changed:
            self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            with self._changed:
                if subscriber in self._subscribers:
                    self._subscribers.remove(subscriber)

        return unsubscribe

    def measure(self, progress: Mapping[int, Progress]) -> None:
        """Have the states of what goes on say how far it is, and wake who waits for that."""
        with self._changed:
            states = dict(self._states)
            for name, state in states.items():
                measured = progress.get(state.minor or 0)
                if measured is not None and (state.checking or state.copying):
                    states[name] = msgspec.structs.replace(
                        state,
                        out_of_sync=measured.out_of_sync,
                        done=measured.done,
                        seconds_left=measured.seconds_left,
                    )
            self._states = MappingProxyType(states)
            self._changed.notify_all()

    def measure_sizes(self) -> None:
        """Have the states say how long the devices are now, for `all`."""
        with self._changed:
            sized = {name: self._sized(state) or state for name, state in self._states.items()}
            self._states = MappingProxyType(sized)

    def _sized(self, state: ResourceState | None) -> ResourceState | None:
        """The same with the device's length as it is now: that it has grown is no event of its own."""
        if state is None or state.minor is None:
            return state
        size = self._device_size(state.minor)
        return state if size in (0, state.size) else msgspec.structs.replace(state, size=size)

    def split(self, resource: str) -> bool:
        """Know, from elsewhere, that the resource's sides have refused each other's data, as if the kernel said it.

        False, and nothing is changed, if they have taken each other's data by now.
        """
        with self._hearing:
            before = self._picture.state(resource)
            if before is not None and before.connected:
                return False
            self._picture.split(resource)
            state = self._picture.state(resource)
            if self._complete and before is not None and state is not None and not before.split_brain:
                said = Event(verb="call", kind="helper", resource=resource, fields={"helper": "split-brain"})
                self._announce([(said, state)])
            return True

    def joined(self, resource: str) -> None:
        """Know, from elsewhere, that there are no two sides any more that could have split."""
        with self._hearing:
            self._picture.joined(resource)
            before, state = self._states.get(resource), self._picture.state(resource)
            if self._complete and before is not None and before.split_brain and state is not None:
                self._announce([(Event(verb="change", kind="resource", resource=resource, fields={}), state)])

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        tries = 0
        while not self._stop.is_set():
            self._begin()
            try:
                status = self._source(self._hear, self._stop)
                if self._stop.is_set():
                    return
                log.error("the program that tells DRBD's events has ended with status %d; it is started again", status)
            except McvirtError as error:
                log.error("DRBD's events can't be read: %s", error)
            except Exception:
                log.exception("DRBD's events can't be read")
            tries = 0 if self._complete else tries + 1
            with self._changed:
                self._complete = False
                self._changed.notify_all()
            self._stop.wait(AGAIN_AFTER[min(tries, len(AGAIN_AFTER) - 1)])

    def _begin(self) -> None:
        with self._hearing:
            self._picture = Picture()
            for resource in self._split():
                self._picture.split(resource)

    def _hear(self, line: str) -> None:
        event = parse(line)
        if event is not None:
            with self._hearing:
                self._take(event)

    def _take(self, event: Event) -> None:
        resource = self._picture.apply(event)
        if not self._picture.complete:
            return
        if not self._complete:
            self._take_whole_picture()
            return
        if resource is not None:
            self._announce([(event, self._sized(self._picture.state(resource)))])

    def _take_whole_picture(self) -> None:
        """What exists is known: after a pause, who follows hears that something may have been missed."""
        names = self._picture.names()
        states = {name: state for name in names if (state := self._sized(self._picture.state(name))) is not None}
        touched = dict.fromkeys((*self._states, *states, *(followed.resource for followed in self._followed)))
        with self._changed:
            self._complete = True
            self._states = MappingProxyType(states)
        self._announce([(_gap(name, states.get(name)), states.get(name)) for name in touched])

    def _announce(self, news: Sequence[tuple[Event, ResourceState | None]]) -> None:
        with self._changed:
            states = dict(self._states)
            for event, state in news:
                if state is None:
                    states.pop(event.resource, None)
                else:
                    states[event.resource] = state
                for followed in self._followed:
                    if followed.resource == event.resource:
                        followed._events.append(event)
            self._states = MappingProxyType(states)
            subscribers = list(self._subscribers)
            self._changed.notify_all()
        for event, state in news:
            for subscriber in subscribers:
                try:
                    subscriber(event, state)
                except Exception:
                    log.exception("a subscriber to DRBD's events failed for %s", event.resource)


def describe(state: ResourceState | None) -> str:
    """What a resource is, as a sentence."""
    if state is None:
        return "the kernel of this node has no such resource."
    split = ", and the two sides have split" if state.split_brain else ""
    return (
        f"it is {state.role} here with the data {state.disk}; the connection is {state.connection} "
        f"({state.replication}), the other side {state.peer_role} with the data {state.peer_disk}{split}."
    )


def _gap(name: str, state: ResourceState | None) -> Event:
    fields = {} if state is None else {"replication": state.replication, "out-of-sync": f"{state.out_of_sync // 1024}"}
    return Event(verb=GAP, kind="resource", resource=name, fields=fields)


def _said(event: Event) -> str:
    fields = " ".join(f"{key}:{value}" for key, value in event.fields.items())
    return f"'{event.verb} {event.kind} {fields}'"


def _late(resource: str, within: float, why: str) -> DeadlinePassed:
    return DeadlinePassed(what=f"what is waited for of DRBD resource {resource}", seconds=within, why=why)


def _wait(
    changed: threading.Condition,
    holds: Callable[[], bool],
    within: float,
    cancel: threading.Event | None,
    late: Callable[[], DeadlinePassed],
) -> None:
    deadline = time.monotonic() + within
    with changed:
        while not holds():
            if cancel is not None and cancel.is_set():
                raise TaskCancelled(by="")
            left = deadline - time.monotonic()
            if left <= 0:
                raise late()
            changed.wait(left if cancel is None else min(left, LOOK_FOR_CANCEL))
