"""Moving one side of a machine's replicated hard drives to another node, as it crosses the wire. Sizes are in bytes."""

from __future__ import annotations

import msgspec

from mcvirt.types.migration import MigrationCheck


class MovePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a move would do. *source* is "" where the hard drives have one side only.

    *size* is what has to be copied, *seconds* how long that may take.
    """

    name: str
    source: str
    destination: str
    checks: tuple[MigrationCheck, ...]
    steps: tuple[str, ...]
    size: int
    seconds: int

    @property
    def ok(self) -> bool:
        """Whether nothing stands against it."""
        return all(check.ok for check in self.checks)


class MoveReport(msgspec.Struct, frozen=True, kw_only=True):
    """A move that was done: *disks* have a side on *destination* now, and none on *source* any more.

    *left*: node *source* deletes what it had of them as soon as it is back.
    """

    name: str
    source: str
    destination: str
    disks: tuple[str, ...]
    size: int
    seconds: float
    left: bool = False
