"""Volumes in memory, with faults on demand: for tests of scale and of what goes wrong, never for real use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from mcvirt import names
from mcvirt.errors import (
    FileFailed,
    NoSpaceLeft,
    VolumeExists,
    VolumeInUse,
    VolumeNotFound,
    VolumeUnusable,
)
from mcvirt.units import GIB
from mcvirtd.host.content import Pace, whole_sectors
from mcvirtd.storage.volumes import Found, Kind, Progress, Survey, Written, survey_of

_T = TypeVar("_T")


class SimulatedVolumes:
    """Volumes of which only the names, the sizes and what was filled in are kept. Safe for use by many threads.

    What a test may set: *faults* (what ``check`` says), *open* (names in use), *unusable* (name to reason).
    What it may read: *calls*, each verb that was called with its first argument.
    """

    def __init__(
        self, location: str = "/simulated", *, capacity: int = 1024 * GIB, kind: Kind = "file", format: Written = "raw"
    ) -> None:
        self.kind, self.format, self.location = kind, format, location
        self.capacity = capacity
        self.faults: list[str] = []
        self.open: set[str] = set()
        self.unusable: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self._sizes: dict[str, int] = {}
        self._contents: dict[str, bytes] = {}
        self._marks: set[str] = set()
        self._failures: dict[str, list[tuple[BaseException, bool]]] = {}
        self._lock = threading.RLock()

    def fail_next(self, verb: str, error: BaseException, *, done: bool = False) -> None:
        """Let the next call of *verb* raise *error*: before anything is done, or, if *done*, after all is.

        The latter is a lost answer, or a crash at the worst moment. Several calls queue up.
        """
        self._failures.setdefault(verb, []).append((error, done))

    def content(self, name: str) -> bytes:
        """What ``fill`` put in the volume."""
        return self._contents.get(name, b"")

    def check(self) -> list[str]:
        return self._do("check", "", lambda: list(self.faults))

    def free(self) -> int:
        return self._do("free", "", lambda: self.capacity - sum(self._sizes.values()))

    def survey(self) -> Survey:
        return survey_of(self)

    def total(self) -> int:
        return self.capacity

    def names(self) -> list[str]:
        return self._do("names", "", lambda: sorted(self._sizes))

    def exists(self, name: str) -> bool:
        return self._do("exists", name, lambda: names.volume_name(name) in self._sizes)

    def size(self, name: str) -> int:
        return self._do("size", name, lambda: self._known(name))

    def path(self, name: str) -> str:
        return f"{self.location}/{names.volume_name(name)}"

    def create(
        self, name: str, size: int, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        rounded = whole_sectors(size)

        def act() -> int:
            if names.volume_name(name) in self._sizes:
                raise VolumeExists(name=name, location=self.location)
            self._make_room("create", name, rounded)
            pace = Pace(rounded, progress, cancel)
            pace.at(0)
            pace.at(rounded)
            self._sizes[name] = rounded
            return rounded

        return self._do("create", name, act)

    def create_bare(self, name: str, size: int) -> None:
        self.create(name, size)

    def grow(
        self, name: str, size: int, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        rounded = whole_sectors(size)

        def act() -> int:
            before = self._known(name)
            self._make_room("grow", name, rounded - before)
            Pace(rounded, progress, cancel).at(0)
            self._sizes[name] = max(before, rounded)
            return self._sizes[name]

        return self._do("grow", name, act)

    def delete(self, name: str) -> None:
        def act() -> None:
            if names.volume_name(name) in self.open:
                raise VolumeInUse(name=name, location=self.location)
            self._sizes.pop(name, None)
            self._contents.pop(name, None)

        self._do("delete", name, act)

    def activate(self, name: str) -> str:
        def act() -> str:
            self._known(name)
            if name in self.unusable:
                raise VolumeUnusable(name=name, location=self.location, reason=self.unusable[name])
            return self.path(name)

        return self._do("activate", name, act)

    def deactivate(self, name: str) -> None:
        def act() -> None:
            self._known(name)
            if name in self.open:
                raise VolumeInUse(name=name, location=self.location)

        self._do("deactivate", name, act)

    def check_import(self, name: str) -> Found:
        def act() -> Found:
            self.activate(name)
            return Found(size=self._known(name), format=self.format)

        return self._do("check_import", name, act)

    def fill(
        self,
        name: str,
        chunks: Iterable[bytes],
        *,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> int:
        def act() -> int:
            size, data = self._known(name), b""
            pace = Pace(size, progress, cancel)
            for chunk in chunks:
                pace.at(len(data))
                data += chunk
                if len(data) > size:
                    reason = f"there is more content than its {size} bytes."
                    raise FileFailed(action="fill", path=self.path(name), reason=reason)
            pace.at(len(data))
            self._contents[name] = data
            return len(data)

        return self._do("fill", name, act)

    def copy(
        self, source: str, name: str, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        def act() -> int:
            size = self.create(name, self._known(source), progress=progress, cancel=cancel)
            self._contents[name] = self.content(source)
            return size

        return self._do("copy", name, act)

    def mark(self, backend_id: str) -> None:
        names.object_id(backend_id, "sb", "storage backend")
        self._do("mark", backend_id, lambda: self._marks.add(backend_id))

    def unmark(self, backend_id: str) -> None:
        self._do("unmark", backend_id, lambda: self._marks.discard(backend_id))

    def marked_with(self) -> frozenset[str]:
        return self._do("marked_with", "", lambda: frozenset(self._marks))

    def _do(self, verb: str, argument: str, act: Callable[[], _T]) -> _T:
        with self._lock:
            self.calls.append((verb, argument))
            error, done = self._failures[verb].pop(0) if self._failures.get(verb) else (None, False)
            if error is not None and not done:
                raise error
            result = act()
            if error is not None:
                raise error
            return result

    def _known(self, name: str) -> int:
        size = self._sizes.get(names.volume_name(name))
        if size is None:
            raise VolumeNotFound(name=name, location=self.location)
        return size

    def _make_room(self, action: str, name: str, needed: int) -> None:
        if needed > self.capacity - sum(self._sizes.values()):
            raise NoSpaceLeft(action=action, path=self.path(name))
