"""Who moves the bytes of copies: the seam, and the threads of this process behind it.

The loop alone knows maps. It leases the places of a strip, and a ``Mover`` reads, digests, writes, reads back and
compares there. ``ThreadMover`` does it in worker threads; ``engine.copy_process`` in a process of its own, which keeps
this one's interpreter free for the data path.

A mover's methods return, also when their caller is cancelled, only when nobody touches the leased places any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from engine.strips import Buffers, digest_strip, move_strip

if TYPE_CHECKING:
    from engine.files import Workers
    from engine.stores import Extent, ReadLease, WriteLease
    from engine.strips import Moved


class Mover(Protocol):
    """See the module."""

    async def digest(self, length: int, source: ReadLease, /) -> bytes:
        """The digests of the leaves of a leased extent of ``length`` bytes, which begins with a leaf.

        Raises MediumError.
        """
        ...

    async def move(self, strip: Extent, source: ReadLease, present: ReadLease | None, to: WriteLease, /) -> Moved:
        """Bring a strip from ``source`` to ``to`` and verify it there; publishing is the caller's.

        ``present``: what is at the target already, to be compared first and left where it is equal.
        Raises IntegrityError, OutOfSpace, MediumError.
        """
        ...

    async def close(self) -> None:
        """End what was started for it; nobody uses it any more."""
        ...


class ThreadMover:
    """By worker threads: one call for each strip."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._idle: list[Buffers] = []

    async def digest(self, length: int, source: ReadLease, /) -> bytes:
        buffers = self._take()
        try:
            return await self._workers.run(lambda: digest_strip(length, source, buffers))
        finally:
            self._idle.append(buffers)

    async def move(self, strip: Extent, source: ReadLease, present: ReadLease | None, to: WriteLease, /) -> Moved:
        buffers = self._take()
        try:
            return await self._workers.run(lambda: move_strip(strip, source, present, to, buffers))
        finally:
            self._idle.append(buffers)

    async def close(self) -> None:
        """The threads are the caller's."""

    def _take(self) -> Buffers:
        return self._idle.pop() if self._idle else Buffers()
