"""Asking storage that may never answer: a dead NFS server holds whoever touches it, for hours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class _Question(Generic[T]):
    def __init__(self, ask: Callable[[], T]) -> None:
        self.answered = threading.Event()
        self._ask = ask
        self.answer: T | None = None

    def run(self) -> None:
        try:
            self.answer = self._ask()
        finally:
            self.answered.set()


class Looking(Generic[T]):
    """Asks many at once and waits for a limited time; at most one thread is ever held up for each."""

    def __init__(self, within: float = 5.0) -> None:
        self._within = within
        self._lock = threading.Lock()
        self._asked: dict[str, _Question[T]] = {}

    def at(self, questions: Mapping[str, Callable[[], T]]) -> dict[str, T | None]:
        """The answers by key; None for those that did not come in time."""
        asked = {key: self._ask(key, question) for key, question in questions.items()}
        deadline = time.monotonic() + self._within
        for question in asked.values():
            question.answered.wait(max(0.0, deadline - time.monotonic()))
        return {key: question.answer for key, question in asked.items()}

    def _ask(self, key: str, ask: Callable[[], T]) -> _Question[T]:
        with self._lock:
            held_up = self._asked.get(key)
            if held_up is not None and not held_up.answered.is_set():
                return held_up
            question = self._asked[key] = _Question(ask)
        threading.Thread(target=question.run, name=f"look-{key}", daemon=True).start()
        return question
