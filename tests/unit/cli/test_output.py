from __future__ import annotations

import io
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcvirt_client.cli.output import BOLD, NARROWEST, Output, cells, clean, pairs, table, terminal_width, wrap

BLANKS = Counter({" ": 10_000})
SGR = re.compile("\x1b\\[[0-9;]*m")
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
plain = st.text("abc -üß漢字", max_size=40)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(texts)
def test_clean_leaves_nothing_that_a_terminal_obeys(text):
    assert clean(text).isprintable()


def test_clean_says_where_something_was():
    assert clean("a\x1b[2Jb\x07\u202ec\nd") == "a?[2Jb??c d"
    assert clean("übung 漢字") == "übung 漢字"


@given(plain, st.integers(2, 50))
def test_wrapped_lines_fit_and_lose_nothing_but_blanks(text, width):
    lines = wrap(text, width)
    assert all(cells(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


rows = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.text("ABC xyz", min_size=1, max_size=12), min_size=n, max_size=n),
        st.lists(st.lists(plain, min_size=n, max_size=n), max_size=6),
    )
)


@settings(max_examples=200)
@given(rows, st.integers(NARROWEST, 200))
def test_tables_fit_any_terminal_and_keep_every_cell(data, width):
    headers, body = data
    text = table(headers, body, width=width, colours={})
    lines = SGR.sub("", text).split("\n")
    assert all(cells(line) <= width for line in lines)
    assert Counter("".join(cell for row in body for cell in row)) <= Counter(SGR.sub("", text)) + BLANKS


@given(rows)
def test_tables_without_a_terminal_have_one_line_a_row(data):
    headers, body = data
    lines = table(headers, body).split("\n")
    assert len(lines) == len(body) + 2
    for row, line in zip(body, lines[1:], strict=False):
        for cell in row:
            assert cell.rstrip() in line


def test_a_wide_table_is_aligned():
    assert table(("Name", "State"), [("a", "RUNNING"), ("long-name", "STOPPED")]) == (
        "Name       State\na          RUNNING\nlong-name  STOPPED\n"
    )


def test_a_narrow_terminal_wraps_the_widest_column():
    text = table(("Name", "Detail"), [("web1", "one two three four five six")], width=24)
    assert text == "Name  Detail\nweb1  one two three four\n      five six\n"


def test_a_very_narrow_terminal_gets_records():
    text = table(("Name", "State", "Node", "ID"), [("web1", "RUNNING", "n1", "x" * 30)], width=20)
    assert text.startswith("Name: web1\nState: RUNNING\nNode: n1\n")
    assert max(map(len, text.split("\n"))) <= 20


@given(st.lists(st.tuples(st.text("ABC", min_size=1, max_size=20), plain), max_size=5), st.integers(NARROWEST, 100))
def test_pairs_fit(data, width):
    assert all(cells(line) <= width for line in pairs(data, width=width).split("\n"))


def test_names_from_guests_can_not_paint():
    text = table(("Name",), [("\x1b[31mred\x1b[0m",)], colours={})
    assert SGR.sub("", text) == "Name\n?[31mred?[0m\n"
    assert text.count("\x1b") == 2  # the header's own
    assert f"\x1b[{BOLD}m" in text


def test_colour_only_on_a_terminal_that_wants_it():
    assert Output(stdout=Terminal(), environ={}).colour
    assert not Output(stdout=io.StringIO(), environ={}).colour
    assert not Output(stdout=Terminal(), environ={"NO_COLOR": "1"}).colour
    assert not Output(stdout=Terminal(), environ={"TERM": "dumb"}).colour


@pytest.mark.parametrize(("columns", "width"), [("40", 40), ("0", 80), ("no", 80), ("", 80), ("-3", 80)])
def test_columns_says_how_wide_the_terminal_is(columns, width):
    assert terminal_width(Terminal(), {"COLUMNS": columns}) == width
    assert terminal_width(io.StringIO(), {"COLUMNS": columns}) is None
