"""The leader's turns: the right to make the next change, which one member has at a time."""

from __future__ import annotations

import secrets
import threading
import time


class Turns:
    """The leader's turns, one at a time; a turn of another member is a lease that ends by itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder = ""
        self._until = 0.0

    def take(self, within: float, lease: float | None = None) -> str:
        """A new turn's ID, or '' if there was none in time."""
        deadline = time.monotonic() + within
        with self._changed:
            while self._holder and time.monotonic() < self._until:
                left = min(deadline, self._until) - time.monotonic()
                if deadline <= time.monotonic():
                    return ""
                self._changed.wait(max(0.01, left))
            self._holder = secrets.token_hex(8)
            self._until = time.monotonic() + (lease if lease is not None else 3600.0)
            return self._holder

    def keep(self, turn: str) -> bool:
        """Whether the turn is still its holder's; if so, it no longer ends by itself."""
        with self._changed:
            if self._holder != turn or time.monotonic() >= self._until:
                return False
            self._until = time.monotonic() + 3600.0
            return True

    def give(self, turn: str) -> None:
        """The turn is over."""
        with self._changed:
            if self._holder == turn:
                self._holder = ""
                self._changed.notify_all()
