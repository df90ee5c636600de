"""The host as a life's adversary: calls that fail, and a wall clock that is wrong.

Some lives have a host whose calls fail: in each process a few times a call of a chosen kind, the nth from now, with an
I/O error or for want of space, also where a sound host would not. Of a write that fails a part may have arrived. The
calls after it succeed, so whoever tries again is lied to, as Linux does after a failed sync.

The wall clock of some lives starts up to three years in the past, and steps to and fro by up to a century.

Promised meanwhile, besides all that holds in any life: what fails is told; a hold until an instant is not void before
so much time has passed.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from tests.support.sim_files import Fault, eio, enospc
from tests.support.sim_loop import SimClock

if TYPE_CHECKING:
    from tests.support.sim_files import SimFileSystem
    from tests.support.sim_loop import SimLoop

FAILING_CHANCE = 0.15
WRONG_CLOCK_CHANCE = 0.2
FAILURES_MAX = 3
YEAR_S = 365 * 86400.0
IO_ERRORS = ("read", "write", "write", "sync", "punch", "allocate", "truncate")
NO_SPACE = ("write", "write", "write", "allocate", "allocate", "punch", "truncate")
RARE = ("allocate", "punch", "truncate", "sync")
"""What happens a few times in a process only."""


class Host:
    """Of one life. ``calm``: nothing fails in this one."""

    def __init__(self, seed: int, files: SimFileSystem, *, calm: bool) -> None:
        self.rng = random.Random(seed ^ 0x40057)
        self.failing = not calm and self.rng.random() < FAILING_CHANCE
        self.wrong_clock = self.rng.random() < WRONG_CLOCK_CHANCE
        self.steps_back = 0
        self.files = files

    def begin(self, loop: SimLoop, *, created: bool) -> SimClock:
        """A process begins; its clock."""
        if created and self.failing:
            for _ in range(self.rng.randint(1, FAILURES_MAX)):
                error = self.rng.choice((eio, enospc))
                call = self.rng.choice(IO_ERRORS if error is eio else NO_SPACE)
                latest = 8 if call in RARE else self.rng.choice((20, 100, 1000))
                self.files.faults.append(Fault(call, error, nth=self.rng.randint(1, latest)))
        return SimClock(loop, -self.rng.random() * 3 * YEAR_S if self.wrong_clock else 0.0)

    async def run(self, clock: SimClock) -> None:
        """Set the clock now and then, while others work."""
        if not self.wrong_clock:
            return
        for _ in range(self.rng.randint(1, 3)):
            for _ in range(self.rng.randint(1, self.rng.choice((10, 100, 1000)))):
                if self.files.dead:
                    return
                await asyncio.sleep(0)
            skew = self.rng.uniform(-100, 100) * YEAR_S
            self.steps_back += skew < clock.skew
            clock.skew = skew
