"""What a failover would lose now: told by the source again and again, judged by its replica when it is asked (pure).

A source says how old the last instant is that its target has whole, and how much hosts have written since, at most. The
replica adds the time since it was told: that only makes the answer more cautious, as what arrived meanwhile makes the
truth younger. No clock of the other side is used where the source has said anything since the start.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

SAMPLES_MAX = 4096
"""At one each two seconds: a lag of two hours. Older instants have no figure in bytes."""


@dataclass(frozen=True, slots=True)
class Told:
    """``at``: when it came, in seconds of the replica's ``Clock.boottime``. ``lag_s`` None: nothing is complete."""

    at: float
    lag_s: float | None
    missing_bytes: int | None


class Written:
    """How much hosts have written since an instant, from samples of a counter that only grows."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)

    def sample(self, now: float, total_bytes: int) -> None:
        if self._samples and total_bytes < self._samples[-1][1]:
            self._samples.clear()  # it is counted anew
        self._samples.append((now, total_bytes))

    def since(self, instant: float) -> int | None:
        """At most so many bytes. None: nothing is known of that time."""
        before = None
        for at, total in self._samples:
            if at > instant:
                break
            before = total
        return None if before is None else self._samples[-1][1] - before


def complete_until(
    *, wall: float, boot: float, exact_until: float | None, told: Told | None, point_at: float | None
) -> float | None:
    """The instant until which nothing that was acknowledged is missing at the replica, by its wall clock ``wall``.

    Args:
        boot: now, by the clock that nobody sets.
        exact_until: until when it is known to have had everything, in its content as that is now.
        point_at: the instant of the newest recovery point, by the source's wall clock. None: there is none.
    """
    found = [] if exact_until is None else [min(exact_until, wall)]
    if told is not None and told.lag_s is not None:
        found.append(wall - (boot - told.at) - told.lag_s)
    elif point_at is not None:
        found.append(min(point_at, wall))
    return max(found, default=None)


def meaning(*, reachable: bool, lossless: bool, has_point: bool) -> str:
    """For people."""
    if not has_point:
        return "its first copy is not complete: there is nothing to fail over to"
    if reachable:
        return "its source answers: without flags it hands over, and nothing is lost"
    if lossless:
        return "its source does not answer; it has everything that was acknowledged, as long as its lease lasts"
    return "its source does not answer; what was acknowledged since then may be lost"
