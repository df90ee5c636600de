"""The token bucket on a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.peers.rate import BURST_S, TokenBucket

RATE = 1_000_000


def test_without_a_limit_nobody_waits():
    bucket = TokenBucket()
    assert bucket.take(1 << 40, 0.0) == 0.0


def test_who_sends_more_than_was_saved_up_waits_for_the_rest():
    bucket = TokenBucket(RATE)
    assert bucket.take(int(RATE * BURST_S), 5.0) == 0.0
    assert bucket.take(RATE, 5.0) == pytest.approx(1.0)
    assert bucket.take(RATE, 6.0) == pytest.approx(1.0), "the second before paid for the first"


def test_a_limit_may_come_and_go():
    bucket = TokenBucket(RATE)
    bucket.take(10 * RATE, 0.0)
    bucket.rate_bytes_s = 0
    assert bucket.take(RATE, 0.1) == 0.0
    bucket.rate_bytes_s = RATE
    assert bucket.take(2 * RATE, 0.2) == pytest.approx(2 - BURST_S)


@given(st.lists(st.tuples(st.integers(1, 300_000), st.floats(0, 0.5)), min_size=1, max_size=60))
def test_over_any_time_no_more_than_the_rate_and_one_burst_passes(turns: list[tuple[int, float]]):
    bucket, now, sent = TokenBucket(RATE), 0.0, 0
    for size, pause in turns:
        now += pause
        now += bucket.take(size, now)  # waited, and sent then
        sent += size
        assert sent <= RATE * (now + BURST_S) + 1
