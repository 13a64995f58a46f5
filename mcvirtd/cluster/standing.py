"""Whether this node knows, since mcvirtd was started, what has become of the cluster meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol


class Replication(Protocol):
    """The replication of the store."""

    @property
    def alone(self) -> bool:
        """Whether this node is all of its cluster."""

    def revision_of(self, member: str) -> int | None:
        """How far a member was when it was last heard of; None if it never was since the start."""

    def catch_up(self) -> bool:
        """Be where the leader is; False if it can't be reached."""


class Standing:
    """A node that was off may have been replaced: as the leader, and for machines that others could go on with.

    It is sure of its records once it has heard every member, none of which knows of a newer leader, and is where its
    leader is. Fewer would not do: by an operator's word one member alone may have gone on, and only that one knows.
    From then on it stays sure: as long as mcvirtd runs the node is not off, and nothing of it is taken over. *members*
    are all, this node included.
    """

    def __init__(self, node: str, replication: Replication, members: Callable[[], Collection[str]]) -> None:
        self._node = node
        self._replication = replication
        self._members = members
        self._sure = False

    def sure(self) -> bool:
        """Whether that is so; may ask the leader."""
        if not self._sure:
            self._sure = self._found_out()
        return self._sure

    def _found_out(self) -> bool:
        if self._replication.alone:
            return True
        others = [name for name in self._members() if name != self._node]
        heard = all(self._replication.revision_of(name) is not None for name in others)
        return heard and self._replication.catch_up()
