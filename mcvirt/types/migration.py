"""Migrations as they cross the wire. Sizes are in bytes."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted: the machine on *node*.

    *max_downtime* is in milliseconds, *bandwidth* in bytes a second, *deadline* in seconds; all three are for *online*.
    Of *bandwidth* whole MiB count, and it is refused if there are none.
    """

    node: str
    online: bool = False
    wait_for_shutdown: bool = False
    start_after: bool = False
    copy_storage: bool = False
    max_downtime: int | None = None
    bandwidth: int | None = None
    deadline: int | None = None


class MigrationCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at before a migration: fine, or what stands against it.

    *transient*: that may be over by itself in a while, as a node that is just starting is.
    """

    name: str
    ok: bool
    text: str
    transient: bool = False


class MigrationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a migration would do. *size* is what has to be copied, *seconds* how long that may take (None: unknown)."""

    name: str
    source: str
    target: str
    online: bool
    checks: tuple[MigrationCheck, ...]
    steps: tuple[str, ...]
    size: int
    seconds: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing stands against it."""
        return all(check.ok for check in self.checks)


class MigrationReport(msgspec.Struct, frozen=True, kw_only=True):
    """A migration that was done. *downtime* is in milliseconds, None where the guest did not run (or it was not told).

    *size* is how much was sent.
    """

    source: str
    target: str
    online: bool
    seconds: float
    downtime: int | None = None
    size: int | None = None
    at: datetime
    by: str


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A machine waits for its guest to shut down, to be migrated then; *by* is who asked for it."""

    node: str
    start_after: bool = False
    copy_storage: bool = False
    by: str = ""
