"""Time for promises that something is kept until an instant: a step of the host's clock never ends one early.

The wall clock may be wrong when a daemon starts, be set forward by a mistake, or back. What is promised until an
instant has reached it only when the wall clock says so *and* so much time has really passed since this clock was
made. So forward steps of the wall clock lengthen a promise, until the next start at the latest; backward steps
lengthen it by what they took back; neither shortens one. What is void now may be valid again later, so nobody may
forget a promise because it looked void.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.files import Clock


class SteadyClock:
    """See the module."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall = clock.time()
        self._boot = clock.boottime()

    def time(self) -> float:
        """Seconds since the epoch, never ahead of what has really passed since the clock was made."""
        return min(self._clock.time(), self._wall + self._clock.boottime() - self._boot)

    def has_reached(self, instant: float | None) -> bool:
        """Whether a promise until ``instant`` is over; until None it never is."""
        return instant is not None and self.time() >= instant
