"""The lease by which a mirror's target may say that it has everything, while nobody can ask the source (pure).

REPLICATION section 3. What a target that cannot reach its source may claim for itself has an end that the source
knows: until then the source acknowledges nothing that the target does not have.

* The target asks at its own time t0. The answer counts until t0 + L, by its own clock, and lives in its RAM only.
* The source counts from *sending* the answer: the target asked before that, so its lease ends earlier, whatever
  delayed the answer. It waits L(1 + r) / (1 - r): both clocks may be wrong by the rate r.
* The clocks go on through a suspend (CLOCK_BOOTTIME). A hypervisor that stops both for a while is a stated limit.
* To end it the source (1) grants no more, (2) has the target's acknowledgement of DEMOTE, or waits; the target drops
  what it has asked for, too, so that an answer on its way is worth nothing. Then it records the demotion, and only
  then acknowledges alone (``engine.mirror_run``).
* A source that starts and was synchronized by its record may have granted up to its last moment: a full wait.

Nothing here reads a clock or waits. All instants are seconds of one side's own clock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

RATE_ERROR = 0.01
"""r: how wrong the rate of either side's clock may be."""

ASKED_MAX = 8
"""Questions of a target that may be unanswered; older ones are forgotten."""

ASKS_PER_LEASE = 3
"""A target asks so often in the time of one lease that two lost answers do not end it."""


def wait_s(length_s: float) -> float:
    """How long the source waits for the end of a lease that it granted a moment ago."""
    return length_s * (1 + RATE_ERROR) / (1 - RATE_ERROR)


def length_s(budget_s: float) -> float:
    """L for a latency budget: half of it, by the slowest clock."""
    return budget_s / 2 * (1 - RATE_ERROR) / (1 + RATE_ERROR)


class SourceLease:
    """What the source has granted.

    Args:
        length_s: L; 0 where the target never claims anything by itself.
        is_late: whether a host waits longer than it should: then nothing is granted, so that the wait is over sooner.
    """

    def __init__(self, length_s: float, is_late: Callable[[], bool] = lambda: False) -> None:
        self.length_s = length_s
        self._is_late = is_late
        self._granting = False
        self._over_at = float("-inf")

    def begin(self) -> None:
        """The source is synchronous, and that is recorded."""
        self._granting = True

    def grant(self, now: float) -> bool:
        """Whether a target that asks gets the lease; called in the step in which the answer is sent."""
        if not self._granting or self._is_late():
            return False
        self._over_at = now + wait_s(self.length_s)
        return True

    def stop(self) -> None:
        """Grant no more."""
        self._granting = False

    def assume(self, now: float) -> None:
        """Nobody knows what was granted until a moment ago."""
        self._over_at = now + wait_s(self.length_s)

    def released(self) -> None:
        """The target has acknowledged DEMOTE, after ``stop``."""
        assert not self._granting
        self._over_at = float("-inf")

    @property
    def over_at(self) -> float:
        """From this instant on no target holds it."""
        return self._over_at


class TargetLease:
    """What a target may claim. ``length_s``: L, as agreed with the source."""

    def __init__(self, length_s: float) -> None:
        self.length_s = length_s
        self._number = 0
        self._asked: deque[tuple[int, float]] = deque(maxlen=ASKED_MAX)
        self._until = float("-inf")

    def ask(self, now: float) -> int:
        """The target asks now; the number that the answer has to carry."""
        self._number += 1
        self._asked.append((self._number, now))
        return self._number

    def granted(self, number: int) -> None:
        """An answer arrived. One to a question that is forgotten is worth nothing."""
        for asked, at in self._asked:
            if asked == number:
                self._until = max(self._until, at + self.length_s)

    def demoted(self) -> None:
        """The source sent DEMOTE, or begins anew: the target claims nothing from this step on, and then says so."""
        self._asked.clear()
        self._until = float("-inf")

    @property
    def until(self) -> float:
        """The instant, by the target's clock, until which it may."""
        return self._until

    def held(self, now: float) -> bool:
        """Whether the target may say that it has everything."""
        return now < self._until
