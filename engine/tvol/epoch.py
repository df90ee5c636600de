"""Which writes belong to which snapshot, and which of them must wait for each other.

Every write or discard that may wait is an ``Admission`` of a range of chunk indexes, in order of the calls. It runs
when all earlier overlapping ones have ended. So a chunk has at most one writer, and overlapping writes take effect in
order.

An admission belongs to the epoch in which it was made. A flip hands the epoch to the snapshot: what was admitted before
is published in the snapshot (and seen by the head as long as it did not redirect the chunk itself), later calls
redirect. The snapshot may be sealed when its epoch has no admission left.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.tvol.nodes import Node


class Epoch:
    """The writes admitted between two flips, and the node that they are published in.

    What the epochs ``before`` still write goes to chunks that later snapshots share: it belongs to those too.
    """

    __slots__ = ("_drained", "before", "node", "writers")

    def __init__(self, node: Node, before: Epoch | None = None) -> None:
        self.node = node
        self.before = before
        self.writers = 0
        self._drained: asyncio.Event | None = None

    def leave(self) -> None:
        self.writers -= 1
        if not self.writers and self._drained:
            self._drained.set()

    async def drained(self) -> None:
        """Wait until the last write admitted in this epoch or before it has ended."""
        if self.before:
            await self.before.drained()
            self.before = None
        while self.writers:
            self._drained = self._drained or asyncio.Event()
            self._drained.clear()
            await self._drained.wait()


class Admission:
    """A range of chunk indexes that one write or discard holds."""

    __slots__ = ("done", "epoch", "first", "last", "operation")

    def __init__(self, first: int, last: int, epoch: Epoch, operation: int) -> None:
        self.first = first
        self.last = last
        self.epoch = epoch
        self.operation = operation
        self.done = asyncio.Event()
