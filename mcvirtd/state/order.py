"""Places in the one order of changes: values, what a member keeps of them, and how two histories are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

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


class Log(Protocol):
    """What a member keeps. Every method that changes something is durable when it returns, and all or nothing."""

    def position(self) -> Position:
        """The last entry."""

    def promised(self) -> Epoch:
        """The highest epoch that this member has heard of; it stores nothing of a lower one."""

    def promise(self, epoch: Epoch) -> None:
        """From now on store nothing of an epoch below this one."""

    def append(self, entry: Entry) -> None:
        """Store *entry*, make it true here, and promise its epoch. The caller has seen that it continues the log."""

    def epoch_of(self, revision: int) -> Epoch | None:
        """The epoch of the change with that revision, however long ago; None if there is none yet."""

    def after(self, revision: int, most: int | None = None) -> Sequence[Entry] | None:
        """The entries after that revision; None if not all of them are there any more.

        With *most* only the first of them, until their changes have that many characters.
        """

    def epochs(self) -> Sequence[tuple[Epoch, int]]:
        """All epochs of this history, the oldest first, each with its first revision. Never forgotten."""

    def snapshot(self) -> str:
        """The whole configuration as it is now."""

    def replace(self, snapshot: Snapshot, kept_aside: Sequence[Entry], kept_whole: str | None) -> None:
        """Take over a snapshot; *kept_aside* are entries of ours that are not in its history.

        *kept_whole* is a snapshot of what was here, where the log does not reach back far enough to tell what differs.
        """

    def members(self) -> Mapping[str, bool]:
        """All members by name, this one included, and whether each is away."""

    def marked(self, away: Sequence[str], back: Sequence[str]) -> str:
        """A change that marks members as away and as back."""

    def promotion(self, leader: str, number: int, away: Sequence[str]) -> str:
        """The first change of an epoch: it says who leads, and who is away."""


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
