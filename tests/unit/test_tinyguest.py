"""What the tests' guest has written is judged as it should be."""

from __future__ import annotations

import struct

import pytest

from tests.node.tinyguest import LENGTH, RECORD_SIZE, RECORDS, record, written


def disk(serial: int, boots: int = 1) -> bytearray:
    """A disk after so many records, the second half of them in the last boot."""
    data = bytearray(LENGTH)
    data[512:528] = struct.pack("<4sIII", b"TINY", boots, serial, serial)
    for number in range(1, serial + 1):
        put(data, number, 1 if number <= serial // 2 else boots)
    return data


def at(number: int) -> int:
    return 64 * 512 + number % RECORDS * RECORD_SIZE


def put(data: bytearray, number: int, boots: int = 1) -> None:
    data[at(number) : at(number) + RECORD_SIZE] = record(number, boots)


@pytest.mark.parametrize("serial", [0, 1, RECORDS - 1, RECORDS, 3 * RECORDS + 5])
def test_all_is_there(serial: int) -> None:
    found = written(bytes(disk(serial)))
    assert found is not None and found.whole and (found.serial, found.ahead) == (serial, 0)


def test_nothing_was_written() -> None:
    assert written(bytes(LENGTH)) is None


@pytest.mark.parametrize("serial", [10, 100])
def test_what_is_missing_old_torn_or_elsewhere(serial: int) -> None:
    data = disk(serial)
    data[at(serial - 3) : at(serial - 3) + RECORD_SIZE] = (
        record(serial - 3 - RECORDS, 1) if serial > RECORDS else bytes(RECORD_SIZE)
    )
    data[at(serial - 5) + 1024 : at(serial - 5) + 1536] = bytes(512)
    put(data, serial - 6)
    data[at(serial - 7) : at(serial - 7) + RECORD_SIZE] = record(serial - 6, 1)
    found = written(bytes(data))
    assert found is not None and not found.whole
    assert found.lost == (serial - 7, serial - 3) and found.torn == (serial - 5,)


@pytest.mark.parametrize("serial", [10, 100])
def test_one_ahead_and_a_restart(serial: int) -> None:
    data = disk(serial, boots=2)
    put(data, serial + 1, 2)
    found = written(bytes(data))
    assert found is not None and found.whole and found.ahead == 1
    assert (serial // 2 + 1) in found.restarts


def test_what_was_taken_back() -> None:
    earlier, later = written(bytes(disk(100))), written(bytes(disk(90)))
    assert earlier is not None and later is not None
    assert later.whole and not later.after(earlier) and earlier.after(later)
