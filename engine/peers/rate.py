"""A limit on bytes a second: a token bucket, pure; the caller has the clock and does the waiting."""

from __future__ import annotations

from engine.errors import InvalidArgument

MIN_RATE_BYTES_S = 1 << 20
BURST_S = 0.25
"""What was not used is saved up for so long."""


def check_rate(rate_bytes_s: int) -> int:
    """Itself, if it makes sense. Raises InvalidArgument."""
    if rate_bytes_s and not MIN_RATE_BYTES_S <= rate_bytes_s < 1 << 50:
        raise InvalidArgument(f"the least rate is {MIN_RATE_BYTES_S} bytes a second; 0 is no limit")
    return rate_bytes_s


class TokenBucket:
    """At most ``rate_bytes_s`` over any time but a burst. ``rate_bytes_s`` 0: no limit; may be set at any time."""

    def __init__(self, rate_bytes_s: int = 0) -> None:
        self.rate_bytes_s = rate_bytes_s
        self._level = 0.0
        self._at: float | None = None

    def take(self, size: int, now: float) -> float:
        """How many seconds to wait before sending ``size`` bytes, which are taken for sent then.

        Whoever comes next waits for those before, so that many who share a bucket are served in their order.
        """
        rate = self.rate_bytes_s
        if not rate:
            self._at = None
            return 0.0
        if self._at is None:
            self._level = rate * BURST_S
        else:
            self._level = min(rate * BURST_S, self._level + (now - self._at) * rate)
        self._at = now
        self._level -= size
        return max(0.0, -self._level / rate)
