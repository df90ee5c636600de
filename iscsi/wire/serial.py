"""Serial number arithmetic over 32 bits (RFC 1982), for CmdSN, StatSN, DataSN and R2TSN (RFC 7143 section 4.2.2.1)."""

from __future__ import annotations

MASK = 0xFFFFFFFF
HALF = 0x80000000


def serial_add(serial: int, count: int) -> int:
    """``serial`` advanced by ``count`` (which may be negative), wrapped."""
    return (serial + count) & MASK


def serial_distance(start: int, end: int) -> int:
    """How far ``end`` lies behind ``start``: -2**31 .. 2**31 - 1, negative when it comes before."""
    return ((end - start + HALF) & MASK) - HALF


def serial_lt(left: int, right: int) -> bool:
    """Whether ``left`` comes before ``right``. Exactly half the circle apart is undefined in RFC 1982; here False."""
    return 0 < ((right - left) & MASK) < HALF


def in_window(serial: int, first: int, last: int) -> bool:
    """Whether ``first <= serial <= last``. The window is empty when ``last`` is ``first - 1`` (section 4.2.2.1)."""
    size = serial_distance(first, last) + 1
    return size > 0 and (serial - first) & MASK < size
