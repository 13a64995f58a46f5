"""Long stories that need little of the machine: each runs on a node of its own while the other tests go on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.lab.cache import LabFailed
from tests.lab.lab import Lab
from tests.lab.node import Node

Story = Callable[[Node], None]
NAME = "alongside"


class Alongside:
    """A story that has begun, with a fresh node."""

    def __init__(self, story: Story, evidence: Callable[[Node], str]) -> None:
        """Begin it. Of a story that fails, *evidence* is asked for a note while its node is still there."""
        self._story = story
        self._evidence = evidence
        self._error: BaseException | None = None
        # If we end before it does, the node ends with us.
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with Lab(1) as lab:
                try:
                    self._story(lab[1])
                except BaseException as error:
                    error.add_note(self._evidence(lab[1]))
                    raise
        except BaseException as error:
            self._error = error

    def result(self, *, within: float) -> None:
        """Return when it has ended, and raise what it raised."""
        self._thread.join(within)
        if self._thread.is_alive():
            raise LabFailed(f"{self._story.__name__}: not done within {within:.0f} s")
        if self._error is not None:
            raise self._error
