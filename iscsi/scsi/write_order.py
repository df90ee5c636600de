"""Atomicity of read-modify-write commands (COMPARE AND WRITE, ORWRITE, WRITE AND VERIFY) against other writes.

Every command of the plain path that changes the medium holds its LBA range here while it runs, one range around all
that it changes (``settled`` relies on that): *shared* for a plain write, *exclusive* for one that reads first. A range
waits for the ranges which overlap it, came earlier, and of which at least one of the two is exclusive; so plain writes
never wait for each other (the device orders those itself), and the queue is fair: nobody waits for a later comer, hence
no deadlock.

The fast path writes in one step of the loop and so is never caught half way by an exclusive range, but it must
not start one in the middle: ``on_exclusive`` tells the logical unit to switch its writes off before the first
exclusive holder reads, and on again after the last. Reads never wait.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass(eq=False, slots=True)
class _Range:
    start: int
    end: int
    exclusive: bool
    done: asyncio.Event

    def conflicts(self, other: _Range) -> bool:
        return (self.exclusive or other.exclusive) and self.start < other.end and other.start < self.end


class WriteOrder:
    """The ranges being written on one logical unit, oldest first."""

    __slots__ = ("_on_exclusive", "_ranges", "_recheck", "exclusive_count")

    def __init__(self, on_exclusive: Callable[[], None], recheck: Callable[[], None]) -> None:
        """``on_exclusive`` is called when ``exclusive_count`` leaves or reaches 0. ``recheck`` is called when a range's
        turn has come and raises what ends its command if the unit may no longer be written."""
        self._ranges: list[_Range] = []
        self._recheck = recheck
        self._on_exclusive = on_exclusive
        self.exclusive_count = 0

    @asynccontextmanager
    async def hold(self, lba: int, blocks: int, *, exclusive: bool = False) -> AsyncIterator[None]:
        """Hold a range while the body runs. A cancelled waiter leaves nothing behind."""
        mine = _Range(lba, lba + blocks, exclusive, asyncio.Event())
        earlier = [other for other in self._ranges if mine.conflicts(other)]
        self._ranges.append(mine)
        self._count(exclusive, 1)
        try:
            for other in earlier:
                await other.done.wait()
            self._recheck()
            yield
        finally:
            self._ranges.remove(mine)
            mine.done.set()
            self._count(exclusive, -1)

    async def settled(self) -> None:
        """Return when every range that is held or waited for now has been let go."""
        for each in list(self._ranges):
            await each.done.wait()

    def _count(self, exclusive: bool, step: int) -> None:
        if exclusive:
            before = self.exclusive_count
            self.exclusive_count += step
            if not before or not self.exclusive_count:
                self._on_exclusive()
