"""Sizes and durations, for any input."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcvirt.errors import BadArgument
from mcvirt.units import GIB, KIB, MAX_DURATION, MAX_SIZE, MIB, TIB, format_size, parse_duration, parse_size

UNITS = {"B": 1, "kB": 1000, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 * MIB),
        ("8GiB", 8 * GIB),
        ("1.5 gib", 3 * GIB // 2),
        (" 1kB ", 1000),
        ("0.5KiB", 512),
        ("1TB", 10**12),
    ],
)
def test_a_size_is_read_exactly(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "0",
        "-1",
        "+1",
        "1e3",
        "1.",
        ".5",
        "1,5GiB",
        "1 GiB 2",
        "GiB",
        "1Gi",
        "1.5B",
        "0.0001kB",
        "nan",
        "٣",
        "1" * 30,
        "1048577TiB",
        "0x10",
        "1\x00",
        "1\nGiB\n2",
    ],
)
def test_what_is_no_size_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(BadArgument) as caught:
        parse_size(text, what="memory")
    assert str(caught.value).startswith("memory: ")


@given(st.integers(1, 4000), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]), st.booleans())
def test_number_and_unit_give_their_product(number: int, unit: str, gap: str, upper: bool) -> None:
    text = f"{number}{gap}{unit.upper() if upper else unit.lower()}"
    assert parse_size(text) == number * UNITS[unit]


@given(st.integers(1, MAX_SIZE))
def test_a_shown_size_is_within_half_of_its_last_digit_and_never_1024(size: int) -> None:
    shown = format_size(size)
    number, unit = shown.split(" ")
    assert re.fullmatch(r"\d+(\.\d{1,2})?", number)
    off = abs(Fraction(number) * UNITS[unit] - size)
    assert off <= Fraction(UNITS[unit], 200)
    if off:
        assert unit == "TiB" or Fraction(number) < 1024


@given(st.integers(1, 2**20), st.sampled_from([KIB, MIB, GIB]))
def test_whole_sizes_survive_being_shown_and_read(number: int, factor: int) -> None:
    assert parse_size(format_size(number * factor)) == number * factor


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (MIB + KIB // 2, "1024.5 KiB"),
        (MIB - 1, "1.00 MiB"),
        (GIB - 1, "1.00 GiB"),
        (GIB + 1, "1.00 GiB"),
        (3 * TIB // 2, "1.5 TiB"),
        (5 * GIB // 4, "1.25 GiB"),
    ],
)
def test_a_size_is_shown_with_the_largest_fitting_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert 1 <= parse_size(text) <= MAX_SIZE
    except BadArgument:
        pass


@given(st.integers(0, 30000), st.sampled_from(["", "s", "m", "h", "d", " S", "D"]))
def test_a_duration_is_read_exactly(number: int, unit: str) -> None:
    factor = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit.strip().lower()]
    assert parse_duration(f"{number}{unit}") == number * factor


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        assert 0 <= parse_duration(text) <= MAX_DURATION
    except BadArgument:
        pass


@pytest.mark.parametrize("text", ["", "m", "1.5h", "-1s", "1w", "36501d", "999999999d", "1h30m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadArgument):
        parse_duration(text)
