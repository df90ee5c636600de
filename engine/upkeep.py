"""What a daemon does by the clock: scheduled snapshots, the end of what expires. One task, one duty after the other."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)

TICK_S = 2.0
"""How late something may be that is due by the clock."""


class Upkeep:
    """``duties`` look at the clock themselves, and do what is due."""

    def __init__(self, duties: Sequence[Callable[[], Awaitable[None]]]) -> None:
        self._duties = duties
        self._said: dict[int, str] = {}
        """By duty: what it last failed with, which is said once."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(TICK_S)

    async def tick(self) -> None:
        """Each duty once. What fails has its next chance with the next tick."""
        for number, duty in enumerate(self._duties):
            try:
                await duty()
                self._said.pop(number, None)
            except EngineError as error:
                if self._said.get(number) != str(error):
                    self._said[number] = str(error)
                    log.warning("upkeep: %s", error)
            except Exception:  # one duty's mistake must not end the others
                log.exception("upkeep failed by a mistake in twinvol")
