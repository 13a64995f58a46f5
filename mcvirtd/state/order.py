"""Places in the one order of changes: pure values, and how two histories are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

Message = dict[str, Any]


class Epoch(NamedTuple):
    """Who leads: ordered by number, then by name."""

    number: int
    leader: str


class Position(NamedTuple):
    """The last change that a member has stored; positions of one history are ordered like their changes."""

    epoch: Epoch
    revision: int


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A change in its place: the epoch it was ordered in, its revision, and the epoch of the one before."""

    epoch: Epoch
    revision: int
    before: Epoch
    change: str  # JSON

    @property
    def position(self) -> Position:
        """Where the log ends with this entry."""
        return Position(self.epoch, self.revision)


class Snapshot(msgspec.Struct, frozen=True):
    """A whole configuration, where it stands, and the epochs (with their first revisions) that led there."""

    position: Position
    epochs: list[tuple[Epoch, int]]
    content: str


def read_epoch(value: Any) -> Epoch | None:
    """The epoch that a message has as *value*, if it has one."""
    return None if value is None else Epoch(int(value[0]), str(value[1]))


def promised_in(answer: Message) -> Epoch:
    """The epoch that who gave *answer* has promised."""
    return Epoch(int(answer["promised"][0]), str(answer["promised"][1]))


def read_position(value: Any) -> Position:
    """The position that a message has as *value*."""
    return Position(Epoch(int(value[0][0]), str(value[0][1])), int(value[1]))


def last_common(mine: Sequence[tuple[Epoch, int]], last: int, theirs: Snapshot) -> int:
    """The last revision that is the same change in both histories: in the newest epoch that both have."""
    ends = {epoch: end for (epoch, _), end in _with_ends(theirs.epochs, theirs.position.revision)}
    for (epoch, _), end in reversed(list(_with_ends(mine, last))):
        if epoch in ends:
            return min(end, ends[epoch])
    return 0


def _with_ends(epochs: Sequence[tuple[Epoch, int]], last: int) -> Iterator[tuple[tuple[Epoch, int], int]]:
    for number, each in enumerate(epochs):
        following = epochs[number + 1][1] - 1 if number + 1 < len(epochs) else last
        yield each, following
