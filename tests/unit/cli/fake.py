"""A client that writes down what it is asked, and a way to run commands against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcvirt_client.cli.context import Session
from mcvirt_client.cli.main import run
from mcvirt_client.tasks import Follower


class Area:
    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        label = f"{self._name}.{operation}"

        def call(*args: Any, **kwargs: Any) -> Any:
            self._client.calls.append((label, args, kwargs))
            answer = self._client.answers.get(label)
            if isinstance(answer, BaseException):
                raise answer
            return answer(*args, **kwargs) if callable(answer) else answer

        return call


class Client:
    """Its *answers* are values, exceptions or functions by "area.operation"."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {label.replace("__", "."): answer for label, answer in answers.items()}
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.follower = Follower(lambda: self.tasks)
        self.closed = False
        self.passes_over: dict[str, Any] = {}
        self.away: set[str] = set()

    def __getattr__(self, area: str) -> Any:
        if area.startswith("_"):
            raise AttributeError(area)
        return Area(self, area)

    def go_on(self, **wishes: Any) -> None:
        self.passes_over = wishes

    def close(self) -> None:
        self.closed = True


def run_with(client: Client, line: str) -> int:
    """The exit status of the command *line* (without "mcvirt") against *client*."""
    return run(line.split(), Session(lambda args, out: client))  # type: ignore[arg-type, return-value]
