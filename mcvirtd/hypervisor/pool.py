"""Connections for calls: each carries one call at a time, and waits for its next one when that is over.

libvirt's client (9.0 at least) crashes the whole process when a connection with two calls under way is given up
because libvirtd stopped answering; with one call, nothing happens but an error.
Besides, libvirtd works on five calls of one connection at a time and lets the others wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

MOST_IDLE = 4


class Lost(Exception):
    """There is no connection; the text says why."""


class Pool:
    """Connections to one libvirtd, made when they are needed."""

    def __init__(
        self,
        make: Callable[[], Any],
        end: Callable[[Any], None],
        is_alive: Callable[[Any], bool],
        name: str = "libvirt",
    ) -> None:
        """*make* gives a new connection or raises Lost."""
        self._make = make
        self._end = end
        self._is_alive = is_alive
        self._name = name
        self._changed = threading.Condition()
        self._idle: list[Any] = []
        self._waiting = 0
        self._abandoned: str | None = None

    def take(self) -> Any:
        """A connection that nobody else uses, until ``give`` or ``discard``.

        Raises Lost when none can be made, and at once when the pool is or becomes abandoned: a new connection to a
        libvirtd that has stopped answering would wait for ever, so that another thread waits for it.
        """
        failures: list[Lost] = []
        with self._changed:
            if self._abandoned is None and not self._idle:
                threading.Thread(target=self._add, args=(failures,), name=f"{self._name}-open", daemon=True).start()
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._idle or failures or self._abandoned is not None)
            finally:
                self._waiting -= 1
            if self._abandoned is not None:
                raise Lost(self._abandoned)
            if not self._idle:
                raise failures[0]
            return self._idle.pop()

    def give(self, conn: Any) -> None:
        """Give back a connection on which no call is under way."""
        with self._changed:
            wanted = self._waiting > 0 or len(self._idle) < MOST_IDLE
            if wanted and self._abandoned is None and self._is_alive(conn):
                self._idle.append(conn)
                self._changed.notify_all()
                return
        self._end(conn)

    def discard(self, conn: Any) -> None:
        """End a connection that was taken."""
        self._end(conn)

    def abandon(self, why: str) -> None:
        """Make no more connections, and wake all who wait for one."""
        with self._changed:
            if self._abandoned is not None:
                return
            self._abandoned = why
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for conn in idle:
            self._end(conn)

    def _add(self, failures: list[Lost]) -> None:
        try:
            conn = self._make()
        except Lost as error:
            with self._changed:
                failures.append(error)
                self._changed.notify_all()
            return
        self.give(conn)
