"""Extents of nodes handed to one worker call: what the copy loop uses instead of a hop for each read and write.

A lease holds the same places that a single read or write would hold: the read's operation (freed chunks stay until it
ends), the write's admission (overlapping writes wait). In the worker only plain positions of the file are used; the
maps are read when the lease is made and changed by ``publish``, both in the loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.stores.place import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.tvol.core import Core
    from engine.tvol.nodes import Node

PUBLISH_TURN = 16
"""Runs of adjacent chunks published in one turn of the loop. Usually a strip of the copy loop is one run, and so one
record of the journal: to append it may wait for a bulk write to the same file."""
SHORT_RUN = 8
"""Up to so many chunks are published one by one, more as a run (12 us)."""


class NativeReadLease:
    """``engine.stores.ReadLease`` over the segments of an extent. Raises MediumError: a chunk of it is marked bad."""

    def __init__(self, core: Core, segments: list[tuple[int, int, int]]) -> None:
        core.payload.require_good(segments)
        self._core = core
        self.place = Place(core.data, segments)
        self.read = self.place.read
        self._operation = core.begin_operation()

    def release(self) -> None:
        self._core.end_operation(self._operation)


class NativeWriteLease:
    """``engine.stores.WriteLease`` over whole chunks.

    Args:
        node: that the admission publishes in; asked when publishing, since a flip may have come between.
        chunks: for each chunk of the extent its place in the file, and whether it is new there.
        leave: ends the admission.
        write_through: what is published is durable when ``publish`` returns (the head has no write cache).
    """

    def __init__(
        self,
        core: Core,
        node: Callable[[], Node],
        first: int,
        chunks: list[tuple[int, bool]],
        leave: Callable[[], None],
        *,
        write_through: bool,
    ) -> None:
        self.unit_bytes = core.chunk_bytes
        self.place = Place(core.data, segments_of([chunk for chunk, _ in chunks], core.chunk_bytes))
        self.read = self.place.read
        self.write = self.place.write
        self._core = core
        self._node = node
        self._first = first
        self._chunks = chunks
        self._leave = leave
        self._write_through = write_through
        self._unpublished = {chunk for chunk, new in chunks if new}

    async def publish(self, written: Sequence[tuple[int, int]], /) -> None:
        core = self._core
        for step, (number, chunk, count) in enumerate(self._new_runs(written)):
            if step % PUBLISH_TURN == PUBLISH_TURN - 1:
                core.end_pass()
                await asyncio.sleep(0)
            if not core.ready_for_change():
                core.end_pass()
                await core.make_room()
            core.check()
            node, index = self._node(), self._first + number
            if count > SHORT_RUN:
                core.publish_run(node, index, count, chunk)
            else:
                for at in range(count):
                    core.publish(node, index + at, chunk + at)
            self._unpublished.difference_update(range(chunk, chunk + count))
        core.end_pass()
        if self._write_through:
            await core.flush()

    def _new_runs(self, written: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """What is to be published: number in the extent, chunk and count of each run of adjacent new chunks."""
        found: list[tuple[int, int, int]] = []
        for at, length in written:
            for number in range(at // self.unit_bytes, (at + length) // self.unit_bytes):
                chunk, new = self._chunks[number]
                if not new:
                    continue
                if found:
                    first, begin, count = found[-1]
                    if (first + count, begin + count) == (number, chunk):
                        found[-1] = first, begin, count + 1
                        continue
                found.append((number, chunk, 1))
        return found

    def release(self) -> None:
        self._core.allocator.give_back(sorted(self._unpublished))
        self._leave()


def segments_of(chunks: Sequence[int], unit: int) -> list[tuple[int, int, int]]:
    """(start within the extent, bytes, position in the file), adjacent chunks merged."""
    runs: list[tuple[int, int, int]] = []
    for number, chunk in enumerate(chunks):
        position = chunk * unit
        if runs and runs[-1][2] + runs[-1][1] == position:
            runs[-1] = (runs[-1][0], runs[-1][1] + unit, runs[-1][2])
        else:
            runs.append((number * unit, unit, position))
    return runs
