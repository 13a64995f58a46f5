"""Comparing the two sides of replicated hard drives, as it crosses the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

Result = Literal["clean", "differences", "interrupted", "skipped"]
"""How a verification ended. Only the first is a pass: an interrupted one has not seen everything."""


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """One verification of the hard drive *disk*, which is disk *slot* of *vm*. Bytes *out_of_sync*.

    *by* is the user, or "schedule"; *node* began it. *reason* says why it was interrupted or skipped.
    """

    disk: str
    vm: str | None
    slot: int | None
    result: Result
    out_of_sync: int = 0
    reason: str = ""
    started: datetime
    ended: datetime
    by: str
    node: str


class VerificationState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a replicated hard drive: *failed* keeps its machine from being started. *runs*: newest last."""

    disk: str
    vm: str | None
    slot: int | None
    nodes: tuple[str, ...]
    failed: bool
    out_of_sync: int
    runs: tuple[Verification, ...]


class VerifySettings(msgspec.Struct, frozen=True, kw_only=True):
    """When verifications begin by themselves (see `mcvirt verify --schedule`), how many at once, and how fast each.

    *schedule* "off": never. *rate* in bytes a second; 0: as fast as a resync may be.
    """

    schedule: str
    concurrency: int
    rate: int


class Resynced(msgspec.Struct, frozen=True, kw_only=True):
    """What a resync has done: *copied* bytes from node *source*."""

    disk: str
    source: str
    copied: int
