"""Sizes and durations: text <-> exact numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from mcvirt.errors import BadArgument

KIB = 1024
MIB = 1024**2
GIB = 1024**3
TIB = 1024**4
SECTOR = 512

_UNITS = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)", re.ASCII)
MAX_SIZE = 2**60


def parse_size(text: str, *, what: str = "size") -> int:
    """The number of bytes that *text* names; a bare number is MiB.

    Units: B kB MB GB TB (powers of 1000) and KiB MiB GiB TiB (powers of 1024), in any case. Raises BadArgument for
    anything else, for zero, for parts of a byte and for more than 1 EiB.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadArgument(what=what, why=f"'{text}' is not a size. Write a number and a unit, such as 512MiB or 8GiB.")
    number, unit = match.groups()
    factor = _UNITS.get(unit.lower()) if unit else MIB
    if factor is None:
        raise BadArgument(
            what=what, why=f"'{unit}' is not a unit. The units are B kB MB GB TB KiB MiB GiB TiB; none means MiB."
        )
    exact = Fraction(number) * factor
    if exact.denominator != 1:
        raise BadArgument(what=what, why=f"'{text}' is not a whole number of bytes.")
    size = exact.numerator
    if size < 1:
        raise BadArgument(what=what, why="a size must be more than zero.")
    if size > MAX_SIZE:
        raise BadArgument(what=what, why=f"'{text}' is more than 1 EiB.")
    return size


def format_size(size: int) -> str:
    """*size* bytes with the largest power-of-1024 unit in which two decimals are exact, else rounded to two."""
    if size < KIB:
        return f"{size} B"
    for factor, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= factor and (size * 100) % factor == 0:
            return f"{size / factor:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    for factor, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        # In hundredths, so that what would round up to 1024.00 of one unit is 1.00 of the next.
        hundredths = (size * 200 + factor) // (factor * 2)
        if hundredths >= 100:
            return f"{hundredths // 100}.{hundredths % 100:02d} {unit}"
    raise AssertionError("a KiB or more is at least 1.00 KiB")


MAX_DURATION = 36500 * 86400
_DURATION = re.compile(r"(\d{1,9})\s*(s|m|h|d)?", re.ASCII)


def parse_duration(text: str, *, what: str = "duration") -> int:
    """The number of seconds that *text* names: a number with s, m, h or d, or a bare number of seconds.

    Raises BadArgument for anything else and for more than 100 years.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise BadArgument(what=what, why=f"'{text}' is not a duration. Write a number and s, m, h or d, such as 90s.")
    seconds = int(match[1]) * {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if seconds > MAX_DURATION:
        raise BadArgument(what=what, why=f"'{text}' is more than 100 years.")
    return seconds
