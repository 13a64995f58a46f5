"""Commands that are shown, run and held to what they should do."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from demo.ground import DemoFailed, Ground
from tests.node.libvirt_host import Inside

COMMAND_WITHIN = 120.0


def say(text: str) -> None:
    """Print *text* before anything that a command prints after it."""
    print(text, flush=True)


def finish(process: Inside, what: str, *, given: str | None = None, status: int = 0) -> str:
    """Wait for the end of *process*, which must have *status*; returns what it printed, if that was asked for."""
    try:
        printed, _ = process.communicate(None if given is None else given.encode(), COMMAND_WITHIN)
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"{what} did not end within {COMMAND_WITHIN:.0f} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != status:
        raise DemoFailed(f"{what} ended with status {process.returncode}, and should have with {status}")
    return (printed or b"").decode()


def until(condition: Callable[[], bool], what: str, within: float) -> None:
    """Ask again until it is so; each question is a command, and takes its time by itself."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"not within {within:.0f} s: {what}")


class Shell:
    """Where commands are typed: a node, and the prompt that tells it from the others."""

    def __init__(self, ground: Ground, prompt: str = "$") -> None:
        self._ground = ground
        self._prompt = prompt

    def mcvirt(self, *words: str, status: int = 0) -> None:
        """Show and run one command."""
        self.type(f"mcvirt {' '.join(words)}")
        finish(self._ground.popen(words, stdin=subprocess.DEVNULL), f"`mcvirt {words[0]}`", status=status)
        if status:
            say(f"(exit status {status})")

    def secret(self, *words: str) -> str:
        """Show and run a command that prints a secret; only the beginning of that is shown."""
        self.type(f"mcvirt {' '.join(words)}")
        process = self._ground.popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        secret = finish(process, f"`mcvirt {words[0]}`").strip()
        say(shortened(secret))
        return secret

    def tell(self, secret: str, *words: str) -> None:
        """Show and run a command that reads a secret from its standard input."""
        self.type(f"echo {shortened(secret)} | mcvirt {' '.join(words)}")
        finish(self._ground.popen(words, stdin=subprocess.PIPE), f"`mcvirt {words[0]}`", given=secret + "\n")

    def ask(self, *words: str) -> Any:
        """What a command answers with --json; nothing is shown."""
        nothing = subprocess.DEVNULL
        process = self._ground.popen([*words, "--json"], stdin=nothing, stdout=subprocess.PIPE, stderr=nothing)
        return json.loads(finish(process, f"`mcvirt {words[0]} --json`"))

    def type(self, line: str) -> None:
        """Show a line as if it were typed here."""
        say(f"\n{self._prompt} {line}")


def shortened(secret: str) -> str:
    """As much of a secret as may be seen."""
    return secret[:12] + "..."
