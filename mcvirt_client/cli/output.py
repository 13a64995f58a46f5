"""What is printed: data to stdout, talk to stderr, and never a control character that somebody else wrote."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TextIO

RED, GREEN, YELLOW, BOLD, DIM = "31", "32", "33", "1", "2"
GAP = 2
NARROWEST = 6

Paint = dict[str, dict[str, str]]
"""Column header -> cell text -> colour."""


def clean(text: str) -> str:
    """*text* in one line, with control and invisible characters replaced by '?'."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char in "\t\n" else "?" for char in text)


def paint(text: str, colour: str) -> str:
    """*text* in *colour*, for a terminal."""
    return f"\x1b[{colour}m{text}\x1b[0m"


def about(size: int) -> str:
    """*size* bytes, short rather than exact: for what changes while it is read."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.1f} {unit}" if unit != "B" else f"{size} B"
        number /= 1024
    return f"{number:.1f} TiB"


def cells(text: str) -> int:
    """How many cells of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def wrap(text: str, width: int) -> list[str]:
    """*text* in lines of at most *width* cells (2 at least), broken at blanks where there are any."""
    if cells(text) <= width:
        return [text]
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        rest = word
        if line and cells(line) + 1 + cells(rest) <= width:
            line += " " + rest
            continue
        if line:
            lines.append(line)
        while cells(rest) > width:
            cut = _fitting(rest, width)
            lines.append(rest[:cut])
            rest = rest[cut:]
        line = rest
    if line:
        lines.append(line)
    return lines or [""]


def _fitting(text: str, width: int) -> int:
    used = 0
    for index, char in enumerate(text):
        used += cells(char)
        if used > width:
            return max(1, index)
    return len(text)


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    colours: Paint | None = None,
) -> str:
    """A table with one line a row, no wider than *width* where one is given.

    Columns that are too wide are wrapped; where even that does not fit, each row becomes lines of 'header: value'.
    *colours* None means none at all, headers included.
    """
    body = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(cells, column)) for column in zip(headers, *body, strict=True)]
    room = None if width is None else width - GAP * (len(widths) - 1)
    if room is not None and sum(widths) > room:
        if room < NARROWEST * len(widths):
            return _records(headers, body, width or NARROWEST)
        widths = _shrink(widths, room)
    painted = [(colours or {}).get(header, {}) for header in headers]
    heading = [BOLD] * len(headers) if colours is not None else [""] * len(headers)
    lines = _lines(headers, widths, heading)
    for row in body:
        lines += _lines(row, widths, [by_text.get(cell, "") for by_text, cell in zip(painted, row, strict=True)])
    return "\n".join(lines) + "\n"


def _lines(row: Sequence[str], widths: list[int], colours: list[str]) -> list[str]:
    wrapped = [wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    last = len(row) - 1
    for number in range(max(map(len, wrapped))):
        line = ""
        for index, parts in enumerate(wrapped):
            part = parts[number] if number < len(parts) else ""
            filling = "" if index == last else " " * (widths[index] - cells(part) + GAP)
            line += (paint(part, colours[index]) if colours[index] and part else part) + filling
        lines.append(line.rstrip())
    return lines


def _shrink(widths: list[int], room: int) -> list[int]:
    """The widest columns give way first; none becomes narrower than NARROWEST."""
    limit = max(widths)
    while sum(min(width, limit) for width in widths) > room:
        limit -= 1
    shrunk = [min(width, limit) for width in widths]
    spare = room - sum(shrunk)
    for index, width in enumerate(widths):
        more = min(spare, width - shrunk[index])
        if more > 0:
            shrunk[index] += more
            spare -= more
    return shrunk


def _records(headers: Sequence[str], rows: list[list[str]], width: int) -> str:
    lines: list[str] = []
    for row in rows:
        for header, cell in zip(headers, row, strict=True):
            lines += wrap(f"{header}: {cell}".rstrip(), max(2, width))
        lines.append("")
    return "\n".join(lines[:-1]) + "\n" if lines else ""


def pairs(rows: Sequence[tuple[str, str]], *, width: int | None = None, colours: Paint | None = None) -> str:
    """Names and values, one pair a line, no wider than *width* where one is given."""
    first = max((cells(name) for name, _ in rows), default=0)
    lines: list[str] = []
    for name, text in rows:
        value = clean(text)
        if width is not None and width - first - GAP < NARROWEST:
            lines += wrap(f"{name}: {value}".rstrip(), max(2, width))
            continue
        colour = (colours or {}).get(name, {}).get(value, "")
        parts = [value] if width is None else wrap(value, width - first - GAP)
        for number, part in enumerate(parts):
            label = name if number == 0 else ""
            line = label + " " * (first - cells(label) + GAP) + (paint(part, colour) if colour else part)
            lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


class Output:
    """Where one command prints to, and how."""

    def __init__(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.json = json
        self.quiet = quiet
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self._environ = os.environ if environ is None else environ

    def value(self, value: Any, text: Callable[[], str]) -> None:
        """Print *value*: as JSON where that was asked for, else what *text* makes of it."""
        if self.json:
            import msgspec

            self.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
        else:
            self.stdout.write(text())

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], colours: Paint | None = None) -> str:
        """A table for this stdout."""
        return table(headers, rows, width=self.width, colours=(colours or {}) if self.colour else None)

    def pairs(self, rows: Sequence[tuple[str, str]], colours: Paint | None = None) -> str:
        """Names and values for this stdout."""
        return pairs(rows, width=self.width, colours=(colours or {}) if self.colour else None)

    def say(self, text: str) -> None:
        """Tell the person something; not with --quiet."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Tell the person something that must not be missed."""
        self.stdout.flush()
        self.stderr.write(clean(text) + "\n")
        self.stderr.flush()

    @property
    def width(self) -> int | None:
        """The width of the terminal that stdout is; None where it is none, and nothing needs to fit."""
        return terminal_width(self.stdout, self._environ)

    @property
    def colour(self) -> bool:
        """Whether stdout is a terminal that wants colour."""
        return self.stdout.isatty() and not self._environ.get("NO_COLOR") and self._environ.get("TERM") != "dumb"


def terminal_width(stream: TextIO, environ: Mapping[str, str]) -> int | None:
    """The width of the terminal that *stream* is, or None; $COLUMNS has the last word."""
    if not stream.isatty():
        return None
    columns = environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
