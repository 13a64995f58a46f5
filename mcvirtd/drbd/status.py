"""What `drbdsetup events2 --timestamps --statistics` says, made into values. Nothing is run or read here.

The words are those of DRBD 8.4 with drbd-utils 9: no JSON, one line for each event, fields as ``key:value``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from mcvirt.types.drbd import CHECKING, COPYING, ResourceState

__all__ = ["Event", "Picture", "Progress", "ResourceState", "parse", "parse_progress"]

_VERBS = ("exists", "create", "change", "destroy", "call", "response", "rename")
_KINDS = ("resource", "connection", "device", "peer-device", "helper", "path", "-")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\S+", re.ASCII)
_KIB = 1024

GAP = "gap"
"""The verb of an event that no kernel sent: what happened before it may not have been seen."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line. *verb* is exists, create, change, destroy, call or response; *at* its time as written by drbdsetup.

    *kind* is resource, connection, device, peer-device, helper, or "-" for the end of what exists.
    """

    verb: str
    kind: str
    resource: str = ""
    at: str = ""
    fields: Mapping[str, str] = {}

    @property
    def helper(self) -> str:
        """The name of the handler that was called or has answered, such as split-brain; "" of other events."""
        return self.fields.get("helper", "")


def parse(line: str) -> Event | None:
    """The event that *line* tells of; None if it tells of none that is known."""
    words = line.split()
    at = words.pop(0) if words and _TIME.fullmatch(words[0]) else ""
    if len(words) < 2 or words[0] not in _VERBS or words[1] not in _KINDS:
        return None
    fields = {key: value for key, colon, value in (word.partition(":") for word in words[2:]) if colon}
    name = fields.pop("name", "")
    if not name and words[1] != "-":
        return None
    return Event(verb=words[0], kind=words[1], resource=name, at=at, fields=fields)


class Picture:
    """All resources, as the events so far tell; `state` is one of them, None if there is none of that name.

    A line tells what differs from what the same program told of the same object before, whatever its verb. Until all
    that exists was told, its lines are from the moment in which the program began, and come between news.
    """

    def __init__(self) -> None:
        self._facts: dict[str, dict[str, dict[str, str]]] = {}
        self._told: dict[tuple[str, str], dict[str, str]] = {}
        self._in_the_news: set[tuple[str, str]] = set()
        self._split: set[str] = set()
        self.complete = False

    def apply(self, event: Event) -> str | None:
        """Take in an event; the result is the resource that it may have changed."""
        if event.kind == "-":
            self.complete = True
            return None
        if event.kind == "helper":
            if event.verb == "call" and event.helper == "split-brain":
                self._split.add(event.resource)
            return event.resource
        key = event.resource, event.kind
        if event.verb == "destroy":
            self._told.pop(key, None)
            self._in_the_news.add(key)
            self._destroyed(event)
            return event.resource
        told = self._told[key] = {**self._told.get(key, {}), **event.fields}
        if event.verb != "exists":
            self._in_the_news.add(key)
        elif key in self._in_the_news:
            return event.resource  # it is older than that
        self._facts.setdefault(event.resource, {})[event.kind] = told
        if event.kind == "peer-device" and told.get("replication", "Off") != "Off":
            self._split.discard(event.resource)  # they have taken each other's data
        return event.resource

    def _destroyed(self, event: Event) -> None:
        if event.kind == "resource":
            # If it comes again, its sides are as split as they were.
            self._facts.pop(event.resource, None)
        else:
            self._facts.get(event.resource, {}).pop(event.kind, None)

    def split(self, resource: str) -> None:
        """Know, from elsewhere, that the resource's sides have refused each other's data."""
        self._split.add(resource)

    def joined(self, resource: str) -> None:
        """Know, from elsewhere, that they are one again."""
        self._split.discard(resource)

    def names(self) -> tuple[str, ...]:
        """All resources."""
        return tuple(name for name, facts in self._facts.items() if "resource" in facts)

    def state(self, resource: str) -> ResourceState | None:
        """What the resource is now."""
        facts = self._facts.get(resource)
        if not facts or "resource" not in facts:
            return None
        itself, link = facts["resource"], facts.get("connection", {})
        device, peer = facts.get("device", {}), facts.get("peer-device", {})
        replication = peer.get("replication", "Off")
        connection = link.get("connection", "StandAlone")
        return ResourceState(
            name=resource,
            minor=_number(device.get("minor")),
            role=itself.get("role", "Unknown"),
            peer_role=link.get("role", "Unknown"),
            connection=connection,
            replication=replication,
            disk=device.get("disk", "Diskless"),
            peer_disk=peer.get("peer-disk", "DUnknown"),
            size=(_number(device.get("size")) or 0) * _KIB,
            out_of_sync=(_number(peer.get("out-of-sync")) or 0) * _KIB,
            done=_percent(peer.get("done")) if replication in (*CHECKING, *COPYING) else None,
            open={"yes": True, "no": False}.get(device.get("open", "")),
            suspended=itself.get("suspended", "no") != "no",
            resync_suspended=peer.get("resync-suspended", "no"),
            split_brain=resource in self._split,
        )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _percent(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


READ_WRAPS = 2**32 * 512
"""The kernel counts sectors in 32 bits."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a verification or a resync is, which no event tells; *out_of_sync* in bytes.

    *read* is how many bytes of this side's disk were read, by anybody; it begins anew after each READ_WRAPS bytes.
    *left* is what is still to be read or copied, *done* the percentage that is not.
    """

    out_of_sync: int
    read: int | None = None
    left: int | None = None
    done: float | None = None
    seconds_left: int | None = None


_DEVICE = re.compile(r"\s*(\d+): cs:", re.ASCII)
_OUT_OF_SYNC = re.compile(r"\boos:(\d+)", re.ASCII)
_READ = re.compile(r"\bdr:(\d+)", re.ASCII)
_DONE = re.compile(r"(?:sync'ed|verified):\s*([\d.]+)%(?: \((\d+)/\d+\)([KM]))?", re.ASCII)
_LEFT = re.compile(r"finish: (\d+):(\d\d):(\d\d)", re.ASCII)


def parse_progress(text: str) -> dict[int, Progress]:
    """What /proc/drbd of DRBD 8.4 says of each minor."""
    found: dict[int, Progress] = {}
    minor: int | None = None
    for line in text.splitlines():
        if match := _DEVICE.match(line):
            minor = int(match[1])
        if minor is None:
            continue
        before = found.get(minor, Progress(out_of_sync=0))
        if match := _OUT_OF_SYNC.search(line):
            read = _READ.search(line)
            before = Progress(out_of_sync=int(match[1]) * _KIB, read=int(read[1]) * _KIB if read else None)
        if match := _DONE.search(line):
            left = int(match[2]) * (_KIB if match[3] == "K" else _KIB**2) if match[2] else None
            before = msgspec.structs.replace(before, done=float(match[1]), left=left)
        if match := _LEFT.search(line):
            seconds = int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3])
            before = msgspec.structs.replace(before, seconds_left=seconds)
        found[minor] = before
    return found
