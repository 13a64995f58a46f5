"""Gathering all that stands against something, so that it can be said at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mcvirt.errors import Refused, SeveralReasons


class Reasons:
    """The refusals gathered so far, each sentence once."""

    def __init__(self) -> None:
        self._found: dict[str, Refused] = {}

    def add(self, error: Refused) -> None:
        """One more."""
        self._found.setdefault(str(error), error)

    @contextmanager
    def gather(self) -> Iterator[None]:
        """A refusal that ends the block is gathered, and goes no further."""
        try:
            yield
        except Refused as error:
            self.add(error)

    def raise_all(self) -> None:
        """Raise what was gathered as one error, if anything was."""
        if self._found:
            raise SeveralReasons.of(list(self._found.values()))

    def sentences(self) -> list[str]:
        """All of them."""
        return list(self._found)
