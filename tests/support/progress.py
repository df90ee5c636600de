"""How far a long run is: a line now and then, on stderr."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

EVERY_S = 10.0


@dataclass(slots=True)
class Progress:
    """Of ``total`` things called ``what``."""

    total: int
    what: str
    begun: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def at(self, done: int) -> None:
        """So many are done now."""
        now = time.monotonic()
        if now - self.told < EVERY_S or not done:
            return
        self.told = now
        passed = now - self.begun
        left = max(0.0, passed * (self.total - done) / done)
        print(
            f"{done} of {self.total} {self.what}, {passed:.0f} s; some {left:.0f} s left", file=sys.stderr, flush=True
        )
