"""Pauses of targets: commands are held, and nobody sees an error, for a bounded time.

Invariant: each pause has a guard that ends it, so that an administrator's script that dies leaves no host waiting. A
pause ends with the daemon, too: nothing of it is kept.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.access_state import MAX_PAUSE_S
from engine.errors import EngineError, InvalidArgument, InvalidState, TimedOut

if TYPE_CHECKING:
    from engine.exports import Exports
    from engine.pool import Pool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pause:
    """``until``: when it ends by itself, in seconds since the epoch."""

    until: float
    guard: asyncio.TimerHandle


class Pauses:
    """Of the targets of a pool, by name. The caller has checked that a target exists."""

    def __init__(self, pool: Pool, exports: Exports) -> None:
        self._pool = pool
        self._exports = exports
        self._pauses: dict[str, _Pause] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def until(self, target: str) -> float | None:
        """When its pause ends by itself, in seconds since the epoch; None: it is not paused."""
        pause = self._pauses.get(target)
        return None if pause is None else pause.until

    async def begin(self, target: str, timeout_s: float) -> None:
        """Hold all commands of a target, at most for ``timeout_s``; again, to begin that time anew.

        Returns when nothing of its initiators touches its volumes.

        Raises:
            InvalidArgument: no such time can be.
            TimedOut: the pause ended before that, by its timeout or by somebody else's ``resume``.
        """
        if not 0 < timeout_s <= MAX_PAUSE_S:
            raise InvalidArgument(f"a pause lasts more than 0 and at most {MAX_PAUSE_S:.0f} s")
        self.forget(target)
        guard = asyncio.get_running_loop().call_later(timeout_s, self._timed_out, target)
        self._pauses[target] = _Pause(self._pool.env.clock.time() + timeout_s, guard)
        await self._exports.pause_target(target)
        if target not in self._pauses:
            raise TimedOut(
                f"target {target} is not paused: before its running commands had ended came the end of {timeout_s:g} s,"
                " or its resumption"
            )

    def resume(self, target: str) -> None:
        """Serve again, what was held first. Raises InvalidState: it is not paused, or no longer."""
        if not self.forget(target):
            raise InvalidState(f"target {target}", "serving, not paused or no longer", "paused")
        self._exports.resume_target(target)

    def forget(self, target: str) -> bool:
        """There is no pause any more, or no target; whether there was a pause."""
        pause = self._pauses.pop(target, None)
        if pause is None:
            return False
        pause.guard.cancel()
        return True

    def _timed_out(self, target: str) -> None:
        del self._pauses[target]
        self._exports.resume_target(target)
        log.warning("target %s: its pause ended by its timeout", target)
        task = asyncio.get_running_loop().create_task(self._tell(target), name="the end of a pause")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, target: str) -> None:
        now = self._pool.env.clock.time()
        try:
            await self._pool.catalog.add_event(now, "warning", f"target {target}", "the pause ended by its timeout")
        except EngineError as error:
            log.error("event not recorded: %s", error)
