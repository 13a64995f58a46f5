"""Emptying nodes, as it crosses the wire. Sizes are in bytes."""

from __future__ import annotations

import msgspec


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted: the virtual machines off the node, or, with *back*, those that were moved off it back on it.

    *copy_storage* sends disks along that only one node has. With *partly* the others are moved where some can't be,
    *at_once* is how many move at the same time. Of each machine that runs, *bandwidth* (bytes a second) is what is sent
    at most, as in Migration, and *deadline* (seconds) how long that may take.
    """

    back: bool = False
    copy_storage: bool = False
    partly: bool = False
    at_once: int = 1
    bandwidth: int | None = None
    deadline: int | None = None


class DrainMove(msgspec.Struct, frozen=True, kw_only=True):
    """One machine on its way: while it runs (*online*), or registered elsewhere; about *size* is to be sent."""

    name: str
    source: str
    target: str
    online: bool
    copy_storage: bool = False
    size: int = 0


class Staying(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that can't go, or did not, and why."""

    name: str
    reason: str


class DrainPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Where each machine of *node* can go (or come from, with *back*), and which ones can't.

    *gone* were moved off the node, and are deleted or back by now.
    """

    node: str
    back: bool
    moves: tuple[DrainMove, ...]
    staying: tuple[Staying, ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all of them can go."""
        return not self.staying


class DrainReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was moved. *remembered* are all machines that `--return` would bring back to *node* now."""

    node: str
    back: bool
    moved: tuple[DrainMove, ...]
    remembered: tuple[str, ...] = ()
