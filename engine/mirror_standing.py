"""Where a mirror stands: its state by the one table (``engine.copy_state``), told and waited for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.copy_state import CopyEvent, CopyMode, CopyState, ProgressStatus, Standing, after, label

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.files import Clock

FAIL_BACK = "twinvol replica failback"
TRIES_AGAIN = "nothing: it is tried again by itself; mend the target, or the way to it"


class MirrorStanding:
    """See the module.

    Args:
        wanted: of the mirror's record, with the ``reason`` that is there.
        tell: takes events (severity, text).
    """

    def __init__(
        self, name: str, mode: CopyMode, clock: Clock, wanted: str, reason: str, tell: Callable[[str, str], None]
    ) -> None:
        self.what = f"replica {name}"
        self._name = name
        self._mode = mode
        self._clock = clock
        self._tell = tell
        self._changed = asyncio.Event()
        self.differs = False
        """The two sides were compared and differ: such a mirror rests until the administrator has seen it."""
        self.present = self._first(wanted, reason)

    @property
    def state(self) -> CopyState:
        return self.present.state

    @property
    def progress(self) -> ProgressStatus:
        return self.present.progress

    def text(self) -> str:
        return label(self.present.state) + (f" ({self.present.reason})" if self.present.reason else "")

    def turn(self, event: CopyEvent, reason: str, severity: str = "info") -> None:
        """Go through the table; say it to the administrator and to whoever waits. Raises InvalidState."""
        state, progress = after(self.present.state, event, self.what)
        if state is CopyState.SYNCHRONIZED:
            self.present = Standing(state, progress, self._clock.time())
        elif state is CopyState.UNSYNCHRONIZED:
            waits = "the copy to catch up with the writes"
            self.present = Standing(state, progress, self._clock.time(), reason or "copying", waits, "wait")
        else:
            self.present = self._resting(state, progress, reason)
        self.say(severity, self.text())
        self._changed.set()
        self._changed = asyncio.Event()

    def say(self, severity: str, text: str) -> None:
        """An event of the mirror that is no new state."""
        self._tell(severity, f"{self.what}: {text}")

    async def turned(self, or_ended: asyncio.Task[None]) -> None:
        """Wait for the next turn, or for the end of that task."""
        turned = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait([turned, or_ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            turned.cancel()

    def _first(self, wanted: str, reason: str) -> Standing:
        match wanted:
            case "fractured":
                return self._resting(CopyState.FRACTURED, ProgressStatus.REQUIRES_RESYNC, reason)
            case "failed over":
                return self._resting(CopyState.FAILEDOVER, ProgressStatus.COMPLETED, reason)
            case "suspended":
                return self._resting(CopyState.SUSPENDED, ProgressStatus.DORMANT, reason)
            case "aborted":
                return self._resting(CopyState.ABORTED, ProgressStatus.REQUIRES_RESYNC, reason)
            case "restored":
                return self._resting(CopyState.RESTORED, ProgressStatus.COMPLETED, reason)
        now = self._clock.time()
        return Standing(CopyState.INITIALIZED, ProgressStatus.INITIALIZING, now, "not started yet", "its start")

    def _resting(self, state: CopyState, progress: ProgressStatus, reason: str) -> Standing:
        now = self._clock.time()
        if state is CopyState.BROKEN and self._mode is not CopyMode.SYNCHRONOUS and not self.differs:
            return Standing(state, progress, now, reason, "the target to answer again", TRIES_AGAIN)
        if state is CopyState.FAILEDOVER:
            return Standing(state, progress, now, reason, "the other side to come back", f"{FAIL_BACK} {self._name}")
        if progress is ProgressStatus.RESTORING:
            return Standing(state, progress, now, reason, "the copy to the source", "wait")
        verb = "resume" if state is CopyState.SUSPENDED else "resync"
        return Standing(state, progress, now, reason, "the administrator", f"twinvol replica {verb} {self._name}")
