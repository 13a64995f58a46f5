"""Replicated hard drives whose two sides have gone different ways, as it crosses the wire."""

from __future__ import annotations

from datetime import datetime

import msgspec


class SplitSide(msgspec.Struct, frozen=True, kw_only=True):
    """One side: *written* is how many bytes it has written since the split, None where nothing is known of it.

    *primary*: the virtual machine runs on it. *age*: its node is silent, and this is so many seconds old.
    """

    node: str
    connection: str
    written: int | None
    primary: bool
    age: int | None = None


class SplitUndo(msgspec.Struct, frozen=True, kw_only=True):
    """The data that a side had, kept on *node* while the data of node *kept* went on. *by* whom, and when."""

    node: str
    kept: str
    made: datetime
    by: str


class SplitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A hard drive that is *split*, or of which a side's earlier data is still kept (*undo*)."""

    disk: str
    vm: str | None
    slot: int | None
    split: bool
    sides: tuple[SplitSide, ...]
    undo: SplitUndo | None = None
