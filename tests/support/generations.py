"""The load generator's ledger, read from outside: which write of each 4 KiB granule was issued and acknowledged.

``bench/loadgen.c`` maps the file shared, so it is current at every moment and outlives the generator.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ISSUED, ACKNOWLEDGED = 0, 1
WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Ledger:
    """One ledger file: an array of (issued, acknowledged) pairs of 32-bit generations, one per granule."""

    path: Path

    def read(self) -> np.ndarray:
        """A copy of it as it is now, shape (granules, 2); empty before the first run."""
        if not self.path.exists():
            return np.zeros((0, 2), dtype=np.uint32)
        return np.fromfile(self.path, dtype=np.uint32).reshape(-1, 2)

    def acknowledged(self) -> int:
        """Acknowledged writes of granules, of all runs."""
        return int(self.read()[:, ACKNOWLEDGED].sum(dtype=np.uint64))

    def between(self, before: np.ndarray, after: np.ndarray) -> None:
        """Make this the ledger of a snapshot taken at some moment between the two copies of its volume's ledger.

        It holds at least what was acknowledged when it was asked for, and at most what was issued once it was there.
        """
        window = after.copy()
        window[:, ACKNOWLEDGED] = before[:, ACKNOWLEDGED] if len(before) else 0
        window.tofile(self.path)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Poll another process's state. AssertionError naming ``what`` when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"after {timeout_s} s still not: {what}"
        time.sleep(0.002)
