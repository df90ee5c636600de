"""What a mirror shows of itself: how much is missing at the target, since when, and whether the promise holds.

Computed from the mirror's parts whenever somebody looks; nothing here decides anything, but that an asynchronous mirror
whose lag is over the RPO is called Synchronized no more.

Invariants:

* ``percent_synced`` is 100 only when synchronized, and never falls within one resync.
* ``is_exact`` says that the target has everything that was acknowledged; ``lag_s`` is 0 only then.
* The promise is looked at all the time, whatever the rounds are doing: one that hangs is late like any other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.copy_state import CopyEvent, CopyMode, CopyState
from engine.modes import Cadence, Promise

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.files import Clock
    from engine.mirror_parts import MirrorRounds
    from engine.mirror_standing import MirrorStanding

WATCH_SHARE = 0.05
WATCH_MIN_S, WATCH_MAX_S = 0.05, 10.0
"""How often the promise of an asynchronous mirror is looked at: in shares of the RPO, within these limits."""

_SEVERITY = {Promise.KEPT: "info", Promise.AT_RISK: "warning", Promise.BROKEN: "error"}


class MirrorFigures:
    """See the module.

    Args:
        cadence: None: synchronous, without an RPO.
        queued: bytes that wait in the stream.
    """

    def __init__(
        self,
        mode: CopyMode,
        rounds: MirrorRounds,
        standing: MirrorStanding,
        cadence: Cadence | None,
        clock: Clock,
        queued: Callable[[], int],
    ) -> None:
        self._mode = mode
        self._rounds = rounds
        self._standing = standing
        self._cadence = cadence
        self._clock = clock
        self._queued = queued
        self._percent_floor = 0
        self._incarnation: int | None = None
        self._left_at: float | None = None
        """The mirror was exact until then, and its target is not known to have lost anything of that since."""

    def begin(self) -> None:
        """A resync begins: what was reached before says nothing about it."""
        self._percent_floor = 0

    def reached(self, incarnation: int) -> None:
        """The target answers. Another opening of its store than before may follow a loss of power, after which its
        recovery points alone are complete."""
        if incarnation != self._incarnation:
            self._incarnation, self._left_at = incarnation, None

    def left(self) -> None:
        """The mirror is exact no more: until now its target has everything, though it has no recovery point of that."""
        self._left_at = self._clock.boottime()

    @property
    def rounds(self) -> int:
        return self._rounds.count

    @property
    def rounds_resumed(self) -> int:
        return self._rounds.resumed

    @property
    def written_bytes(self) -> int:
        """Written to the target in rounds."""
        return self._rounds.written_bytes

    @property
    def equal_bytes(self) -> int:
        """Found equal there in rounds, and so not written."""
        return self._rounds.equal_bytes

    @property
    def is_exact(self) -> bool:
        """Whether the target has everything that was acknowledged."""
        return self._standing.state is CopyState.SYNCHRONIZED and self._mode is not CopyMode.ASYNCHRONOUS

    @property
    def percent_synced(self) -> int:
        """See the invariants."""
        if self._standing.state is CopyState.SYNCHRONIZED:
            return 100
        left, size = self._rounds.left, self._rounds.size_bytes
        if left is not None and size:
            self._percent_floor = max(self._percent_floor, min(99, 100 * (size - min(size, left[0])) // size))
        return self._percent_floor

    @property
    def progress_bytes(self) -> tuple[int, int]:
        """Of all rounds since the last start: done, and known to be to do."""
        return self._rounds.progress

    @property
    def lag_bytes(self) -> int:
        """What is known to be missing at the target: the rest of the round and the queue."""
        if self.is_exact:
            return 0
        left = self._rounds.left
        return (left[0] if left is not None else 0) + self._queued()

    @property
    def lag_s(self) -> float | None:
        """Time since the instant that the target has, complete; 0 while it has everything, None when it has none."""
        return 0.0 if self.is_exact else self._since(self._complete_at)

    @property
    def point_lag_s(self) -> float | None:
        """The same, for a target of which it is not known whether it has lost power: only recovery points count."""
        return 0.0 if self.is_exact else self._since(self._rounds.instant)

    @property
    def _complete_at(self) -> float | None:
        instant = self._rounds.instant
        return instant if instant is None or self._left_at is None else max(instant, self._left_at)

    def _since(self, instant: float | None) -> float | None:
        return None if instant is None else max(0.0, self._clock.boottime() - instant)

    @property
    def rpo_s(self) -> float | None:
        """The promise. None: synchronous."""
        return None if self._cadence is None else self._cadence.rpo_s

    @property
    def promise(self) -> Promise | None:
        """How the RPO stands. None: there is none."""
        return None if self._cadence is None else self._cadence.promise

    @property
    def forecast_s(self) -> float | None:
        """What the lag will be at most before the next recovery point is complete. None: nothing to tell from."""
        instant = self._complete_at
        if self._cadence is None or self.is_exact or instant is None:
            return None
        left = self._rounds.left
        progress = 0.0 if left is None else 1 - left[0] / left[1]
        return self._cadence.forecast(self._clock.boottime(), instant, started=self._rounds.started, progress=progress)

    async def watch_promise(self, cadence: Cadence) -> None:
        """Compare lag and forecast with the RPO, until cancelled."""
        while True:
            await asyncio.sleep(min(WATCH_MAX_S, max(WATCH_MIN_S, WATCH_SHARE * cadence.rpo_s)))
            lag_s, forecast_s = self.lag_s, self.forecast_s or 0.0
            if lag_s is None:
                continue
            told = cadence.judge(lag_s, forecast_s)
            figures = f"lag {lag_s:.1f} s, forecast {forecast_s:.1f} s, RPO {cadence.rpo_s:g} s"
            text = f"the RPO is {cadence.promise.value}: {figures}"
            severity = _SEVERITY[cadence.promise]
            called_current = self._standing.state is CopyState.SYNCHRONIZED and self._mode is CopyMode.ASYNCHRONOUS
            if called_current and lag_s > cadence.rpo_s:
                self.begin()
                self._standing.turn(CopyEvent.RESYNC, text, severity)
            elif told:
                self._standing.say(severity, text)
