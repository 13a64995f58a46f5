"""What a storage backend can do on one node, whatever it keeps its volumes in."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

from mcvirtd.host.content import Progress

__all__ = ["Found", "Kind", "Progress", "Survey", "Volumes", "Written", "survey_of"]

Kind = Literal["file", "block"]
Written = Literal["raw", "qcow2"]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that somebody else made and that can be taken over: what a guest will see of it, in bytes."""

    size: int
    format: Written


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at together: ``check``, ``marked_with`` and ``free``; without marks and space if it is faulty."""

    faults: tuple[str, ...] = ()
    marks: frozenset[str] = frozenset()
    free: int = 0


class Volumes(Protocol):
    """The volumes of one backend on this node.

    A name is checked by the rules for volumes on every call (BadArgument). Sizes are bytes that a guest sees; what is
    asked for is rounded up to what the backend can do, and the size it became is returned. What fails or is cancelled
    (TaskCancelled) leaves things as they were; Failed says so where it could not. ``create`` and ``copy`` are whole or
    nothing even when the power fails: what they leave then is not in ``names`` or is kept from guests by
    ``activate``, and ``delete`` clears it away.
    """

    @property
    def kind(self) -> Kind:
        """How a hypervisor opens the volumes."""

    @property
    def format(self) -> Written:
        """How the volumes are written. It must be told to QEMU: a guest can write what looks like another format."""

    @property
    def location(self) -> str:
        """The directory or volume group, as operators know it."""

    def check(self) -> list[str]:
        """What is wrong with the location, a sentence each; empty if volumes can be kept there. Changes nothing."""

    def free(self) -> int:
        """The bytes that new volumes can take."""

    def survey(self) -> Survey:
        """All that a new volume depends on, looked at at once."""

    def total(self) -> int:
        """The bytes that the location can hold in all, whoever uses them."""

    def names(self) -> list[str]:
        """All volumes there, sorted, also those that somebody else made."""

    def exists(self, name: str) -> bool:
        """Whether ``names`` would have it."""

    def size(self, name: str) -> int:
        """The volume's size; VolumeNotFound if there is no such volume."""

    def path(self, name: str) -> str:
        """Where the hypervisor finds the volume; known before it exists."""

    def create(
        self, name: str, size: int, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        """Make a volume that reads as zeros; VolumeExists if there is one, NoSpaceLeft if it does not fit."""

    def create_bare(self, name: str, size: int) -> None:
        """Make a volume that may hold anything, for what is written before it is read, and never by a guest."""

    def grow(
        self, name: str, size: int, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        """Make a volume at least *size* long, the new part reading as zeros; one that is long enough stays so.

        A qcow2 volume must not be in use: there the hypervisor has to grow it.
        """

    def delete(self, name: str) -> None:
        """Delete the volume and what an interrupted ``create`` left of it; one that is not there is fine.

        VolumeInUse if something has a block volume open; VolumeUnusable if *name* is something else than a volume.
        """

    def activate(self, name: str) -> str:
        """Make the volume ready for use on this node and return its path.

        VolumeNotFound if there is none; VolumeUnusable if it is not whole, or not what it should be.
        """

    def deactivate(self, name: str) -> None:
        """Give up the volume on this node (its data stays); VolumeInUse if something has it open."""

    def check_import(self, name: str) -> Found:
        """What a volume that somebody else made is; VolumeUnusable, with the reason, if it can't be taken over."""

    def fill(
        self,
        name: str,
        chunks: Iterable[bytes],
        *,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> int:
        """Put *chunks*, as a guest is to see them, at the start of a volume just created; returns their length.

        What fails in the middle leaves the volume partly filled: delete it.
        """

    def copy(
        self, source: str, name: str, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> int:
        """Make volume *name* with the content of *source*, which must not be in use; as ``create`` otherwise."""

    def mark(self, backend_id: str) -> None:
        """Note in the location that it belongs to a backend, so that each node can see whether it looks at the same."""

    def unmark(self, backend_id: str) -> None:
        """Take the note away; none is fine."""

    def marked_with(self) -> frozenset[str]:
        """The backends whose notes are in the location."""


def survey_of(volumes: Volumes) -> Survey:
    """The survey, put together of what it is made of."""
    faults = tuple(volumes.check())
    return Survey(faults=faults) if faults else Survey(marks=volumes.marked_with(), free=volumes.free())
