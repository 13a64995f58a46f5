"""A configuration that is larger than a message may be, handed from member to member in parts.

The member that has it keeps the text from the first part to the last, and only one such text; whoever asks for a part
of another one begins anew. The member that gets it puts the parts together: nothing is changed before all are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mcvirt.errors import Failed
from mcvirtd.state.order import Log, Position, Snapshot

# Characters of a part: far below the smallest limit of a message (2 MiB), however they are encoded.
SIZE = 256 * 1024
# More than this is no configuration.
MOST = 1024 * 1024 * 1024


def split(text: str) -> Sequence[str]:
    """The parts of *text*: one at least."""
    return [text[start : start + SIZE] for start in range(0, len(text) or 1, SIZE)]


class Found:
    """What there is of a text of *size* characters (None: all of it is there)."""

    def __init__(self, beginning: str = "", size: object = None) -> None:
        self._parts: list[str] = []
        self.length = 0
        self._size = len(beginning) if size is None else int(str(size))
        if beginning:
            self.add(beginning)

    @property
    def missing(self) -> bool:
        """Whether more is to come."""
        return self.length < self._size

    @property
    def text(self) -> str:
        """All that there is."""
        return "".join(self._parts)

    def add(self, part: object) -> bool:
        """Take in the next part; False if it is none."""
        if not isinstance(part, str) or not part:
            return False
        if self.length + len(part) > MOST:
            raise Failed(text="The configuration that another node sends does not end.")
        self._parts.append(part)
        self.length += len(part)
        return True


class Offered:
    """The snapshot that a member is handing out. Nothing is lost with it: it can be made again."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None

    def begin(self, log: Log) -> dict[str, Any]:
        """A snapshot of *log*, or, with the size of the whole, the first part of one.

        Several members that catch up meanwhile get the same one, as long as what was changed since is still in the log.
        """
        snapshot = self._snapshot
        if snapshot is None or not _leads_on(snapshot.position, log):
            snapshot = Snapshot(log.position(), list(log.epochs()), log.snapshot())
        if len(snapshot.content) <= SIZE:
            return {"snapshot": snapshot}
        self._snapshot = snapshot
        first = msgspec.structs.replace(snapshot, content=snapshot.content[:SIZE])
        return {"snapshot": first, "size": len(snapshot.content)}

    def part(self, position: Position, offset: int) -> dict[str, Any]:
        """The part from *offset* of the snapshot of *position*; nothing if that is not the one that is kept."""
        snapshot = self._snapshot
        if snapshot is None or snapshot.position != position or offset < 0:
            return {}
        if offset + SIZE >= len(snapshot.content):
            self._snapshot = None
        return {"part": snapshot.content[offset : offset + SIZE]}


def _leads_on(position: Position, log: Log) -> bool:
    """Whether who is at *position* needs only entries to be where *log* is.

    Not after a promotion: compared with an older snapshot, changes that both have would look like conflicts.
    """
    return position.epoch == log.position().epoch and log.after(position.revision, 1) is not None
