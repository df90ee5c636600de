"""What a mirror decides by itself, as pure policies: given figures and instants, never looking at a clock.

``Cadence`` (asynchronous): when the next recovery point has to begin so that the promise holds, what is to be expected,
and whether that deserves an alarm. ``ModeSwitch`` (adaptive): when a mirror may be synchronous again.

All instants are seconds of one clock that goes on through a suspend (``Clock.boottime``). The *lag* of a mirror is the
time since the instant of the last recovery point that is complete at its target. It is largest in the moment before the
next one is complete: the time T between the two instants, and the time D that the second takes to arrive.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from engine.copy_state import CopyMode
from engine.errors import InvalidArgument

ROUNDS_REMEMBERED = 8
"""Rounds that forecasts come from: few, so that a change of load is learned soon; the worst of them counts."""

HEADROOM = 0.8
"""The share of the RPO that is planned with. The rest is for what was not to be foreseen."""

SHORTEST = 0.1
"""The share of the RPO between two instants at least. Rounds that take longer than the RPO would else follow each other
without a pause for ever, and over a source that is not written any more without any wait: nothing else could run."""

CALM = 0.9
"""An alarm ends only below this share of the RPO."""

PROGRESS_BELIEVED = 0.1
"""From this share of a round on its own speed says more than earlier rounds."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One round. ``interval_s``: between its instant and the one before; ``duration_s``: until it was complete."""

    interval_s: float
    duration_s: float


class Promise(enum.Enum):
    """How the RPO stands. Once it is broken it counts as that until the forecast is calm again."""

    KEPT = "kept"
    AT_RISK = "at risk"
    BROKEN = "broken"


class Cadence:
    """When recovery points begin.

    Args:
        rpo_s: the promise, above 0.
    """

    def __init__(self, rpo_s: float) -> None:
        assert rpo_s > 0
        self.rpo_s = rpo_s
        self.promise = Promise.KEPT
        self._rounds: deque[Observed] = deque(maxlen=ROUNDS_REMEMBERED)

    def observe(self, interval_s: float, duration_s: float) -> None:
        """A round is complete. Not for a first copy, which says nothing about the next ones."""
        self._rounds.append(Observed(max(interval_s, 1e-6), max(duration_s, 0.0)))

    def interval_s(self) -> float:
        """The longest T for which T + D is within the planned share of the RPO, by the worst round remembered.

        A round of the changes of a longer time takes longer in proportion, at most; one of a shorter time may take as
        long, because part of it does not depend on how much has changed.
        """
        room = self.rpo_s * HEADROOM
        longest = room / 2
        if self._rounds:
            longest = min(_longest(room, seen) for seen in self._rounds)
        return max(self.rpo_s * SHORTEST, longest)

    def duration_s(self, interval_s: float) -> float:
        """How long the round of the changes of that time will take."""
        return max((seen.duration_s * max(1.0, interval_s / seen.interval_s) for seen in self._rounds), default=0.0)

    def next_start(self, last: float | None) -> float:
        """When the next instant is due, given the ``last`` one that is complete. None: at once."""
        return float("-inf") if last is None else last + self.interval_s()

    def forecast(self, now: float, last: float, *, started: float | None = None, progress: float = 0.0) -> float:
        """The lag in the moment before the next recovery point is complete.

        Args:
            started: the instant of the round that is under way; None: none is.
            progress: how much of it has arrived, 0 to 1.
        """
        if started is None:
            begin = max(now, self.next_start(last))
            return begin + self.duration_s(begin - last) - last
        spent = max(0.0, now - started)
        left = max(0.0, self.duration_s(started - last) - spent)
        if progress >= PROGRESS_BELIEVED:
            left = spent * (1 - min(1.0, progress)) / progress
        return now + left - last

    def judge(self, lag_s: float, forecast_s: float) -> bool:
        """Bring ``promise`` up to date; whether it has changed, which is an event."""
        worst = max(lag_s, forecast_s)
        before = self.promise
        if lag_s > self.rpo_s:
            self.promise = Promise.BROKEN
        elif worst <= self.rpo_s * CALM:
            self.promise = Promise.KEPT
        elif worst > self.rpo_s and before is Promise.KEPT:
            self.promise = Promise.AT_RISK
        return self.promise is not before


def _longest(room: float, seen: Observed) -> float:
    """The longest interval whose round ends within ``room``, if it is like the one seen."""
    if room - seen.duration_s <= seen.interval_s:
        return room - seen.duration_s
    return room / (1 + seen.duration_s / seen.interval_s)


HOLD_DOWN_DOUBLINGS = 5
"""A target that flaps is kept asynchronous for at most 2**5 times the hold-down time."""

STEADY_FACTOR = 10
"""Synchronous for so many hold-down times, a mirror has earned the short one again."""


class ModeSwitch:
    """When an adaptive mirror may try to be synchronous.

    It starts out allowed to. After it had to leave, it stays asynchronous for ``hold_down_s``, twice as long each time
    it has to leave again soon after (a flapping target costs its hosts the latency budget once each time), and until a
    round was short enough (``backlog_bytes``): a target that cannot follow would only throw it out again.
    """

    def __init__(self, hold_down_s: float, backlog_bytes: int) -> None:
        self._hold_down_s = hold_down_s
        self._backlog_bytes = backlog_bytes
        self._doublings = 0
        self._not_before = float("-inf")
        self._followed = True
        self._since: float | None = None
        self.switches = 0

    def may_be_synchronous(self, now: float) -> bool:
        return self._followed and now >= self._not_before

    def returned(self, now: float) -> None:
        """It is synchronous."""
        self._since = now
        self.switches += 1

    def left(self, now: float) -> float:
        """It had to leave, or could not become synchronous. Returns how long it will stay asynchronous at least."""
        steady = self._since is not None and now - self._since >= STEADY_FACTOR * self._hold_down_s
        self._doublings = 0 if steady else self._doublings
        hold_s = float(self._hold_down_s * 2**self._doublings)
        self._doublings = min(self._doublings + 1, HOLD_DOWN_DOUBLINGS)
        if self._since is not None:
            self.switches += 1
        self._since = None
        self._followed = False
        self._not_before = now + hold_s
        return hold_s

    def shipped(self, changed_bytes: int) -> None:
        """An asynchronous round is complete; so much had changed."""
        self._followed = changed_bytes <= self._backlog_bytes


MODES = {"sync": CopyMode.SYNCHRONOUS, "async": CopyMode.ASYNCHRONOUS, "adaptive": CopyMode.ADAPTIVE}
"""As the command line says them."""


def mode_of(name: str) -> CopyMode:
    """Raises InvalidArgument."""
    if name not in MODES:
        raise InvalidArgument(f"{name!r} is no mode; say sync, async or adaptive")
    return MODES[name]
