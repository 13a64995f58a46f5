"""A tiny real Linux that boots from an ISO, speaks on its serial port and counts on its first disk."""

from tests.guest.speech import (
    BOOTED,
    COUNTER_OFFSET,
    COUNTER_SIZE,
    CPU_MODEL,
    MARK,
    MEMORY_MIB,
    READY,
    READY_WITHIN,
    Line,
    lines,
    parse_counter,
)

__all__ = [
    "BOOTED",
    "COUNTER_OFFSET",
    "COUNTER_SIZE",
    "CPU_MODEL",
    "MARK",
    "MEMORY_MIB",
    "READY",
    "READY_WITHIN",
    "Line",
    "lines",
    "parse_counter",
]
