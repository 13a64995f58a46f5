"""Calls of libvirt's, counted as they pass."""

from __future__ import annotations

import struct

import pytest

from mcvirtd.migration.calls import Calls

REMOTE, KEEPALIVE = 0x20008086, 0x6B656570


def message(program: int, body: int = 20) -> bytes:
    return struct.pack(">II", 8 + body, program) + bytes(body)


@pytest.mark.parametrize("piece", [1, 3, 8, 11, 1000])
def test_calls_are_counted_in_whatever_pieces_they_pass(piece: int) -> None:
    sent = message(REMOTE) + message(KEEPALIVE) + message(REMOTE, body=0) + message(KEEPALIVE) + message(REMOTE, 300)
    calls = Calls()
    for begin in range(0, len(sent), piece):
        calls.hear(memoryview(sent)[begin : begin + piece])
    assert calls.count == 3


def test_one_counts_before_all_of_it_has_passed() -> None:
    calls = Calls()
    calls.hear(memoryview(message(REMOTE, 100)[:7]))
    assert calls.count == 0
    calls.hear(memoryview(message(REMOTE, 100)[7:9]))
    assert calls.count == 1


def test_nonsense_is_taken_for_a_call() -> None:
    """Who is not sure that there was none does not let a guest run."""
    calls = Calls()
    calls.hear(memoryview(bytes(8)))
    assert calls.count == 1
