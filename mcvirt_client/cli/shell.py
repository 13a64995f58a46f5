"""The interactive shell: one command a line, one session for all of them."""

from __future__ import annotations

import gc
import socket
import sys
from typing import TYPE_CHECKING

from mcvirt_client.cli.main import dispatch
from mcvirt_client.cli.parser import Parser, add_globals
from mcvirt_client.cli.report import Stop, UsageError, guarded

if TYPE_CHECKING:
    from mcvirt_client.cli.context import Session


class Leave(Stop):
    """The shell is to end."""


def shell(argv: list[str], session: Session) -> int:
    """Read commands until `exit` or the end of the input; *argv* are global flags for all of them.

    What goes wrong is said, and the next line is read. Where nobody types, the exit status is that of the first line
    that failed, and the lines after it still run.
    """
    gc.enable()
    parser = Parser(prog="mcvirt", add_help=False, allow_abbrev=False)
    add_globals(parser)
    args = parser.parse_args(argv)
    prompt = f"mcvirt@{args.host or socket.gethostname()}> "
    typed = sys.stdin.isatty()
    if typed:
        import readline  # noqa: F401 - gives input() line editing
    worst = 0
    while True:
        try:
            line = input(prompt) if typed else _next_line()
        except EOFError:
            if typed:
                sys.stdout.write("\n")
            return worst
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            continue
        left, status = run_line(line, argv, session)
        if left:
            return worst
        if not typed:
            worst = worst or status


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def run_line(line: str, globals_before: list[str], session: Session) -> tuple[bool, int]:
    """Run one line; whether it leaves the shell, and its exit status."""
    left = False

    def work() -> int | None:
        nonlocal left
        import shlex

        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UsageError(f"This line can't be split into words: {error}.", "") from None
        if not words:
            return 0
        if words[0] == "mcvirt":  # pasted from a manual
            words = words[1:]
        if not words:
            return 0
        try:
            return dispatch([*globals_before, *words], session)
        except Leave:
            left = True
            return 0

    status = guarded(work)
    return left, status
