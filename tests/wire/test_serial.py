"""RFC 1982 arithmetic over 32 bits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire.serial import in_window, serial_add, serial_distance, serial_lt

serials = st.integers(0, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("left", "right", "before"),
    [
        (0, 1, True),
        (1, 0, False),
        (5, 5, False),
        (0xFFFFFFFF, 0, True),
        (0, 0xFFFFFFFF, False),
        (0, 0x7FFFFFFF, True),
        (0, 0x80000000, False),  # undefined in the RFC: neither is before the other
        (0x80000000, 0, False),
    ],
)
def test_order(left, right, before):
    assert serial_lt(left, right) is before


@given(serials, st.integers(1, 0x7FFFFFFF))
def test_what_is_added_comes_after(serial, count):
    later = serial_add(serial, count)
    assert serial_lt(serial, later)
    assert not serial_lt(later, serial)
    assert serial_distance(serial, later) == count
    assert serial_distance(later, serial) == -count
    assert serial_add(later, -count) == serial


@given(serials, st.integers(0, 1000), st.integers(-2000, 2000))
def test_a_window_holds_what_lies_within_it_also_across_the_wrap(first, size, offset):
    last = serial_add(first, size - 1)
    assert in_window(serial_add(first, offset), first, last) is (0 <= offset < size)


def test_an_empty_window_holds_nothing():
    assert not in_window(7, 7, 6)
