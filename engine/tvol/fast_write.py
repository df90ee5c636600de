"""The writes of a head that never wait: ``try_write`` does the write in the loop, or declines having done nothing.

Three ways, the first that will do; each next one costs a few microseconds more:

* within one chunk of the head's own: flat in ``try_write``, no object per call;
* one place in the file, and nothing copied (``Planner.place``): adjacent chunks of the head's own, a new chunk, whole
  pages of a partial one. So goes the first write to a chunk after a snapshot;
* a plan, if it copies little.

In place only if the chunk was born above the node's floor, that is, no snapshot can see it, and no slot names it
(``Births.view`` says both, see ``claims.py``). ``try_write`` declines a chunk that an admission covers (``epoch.py``):
a chunk has at most one writer. What it published is journaled by ``end_pass``, once for all writes of a pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.tvol.chunk_map import LEAF_MASK, LEAF_SHIFT, NOT_THERE
from engine.tvol.device import REFUSED_BITS, SECTOR_MASK, NativeDevice
from engine.tvol.layout import LEAF_ENTRIES
from engine.tvol.plan import Planner
from engine.units import KIB

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from engine.tvol.core import Core
    from engine.tvol.epoch import Admission
    from engine.tvol.nodes import Node
    from engine.tvol.plan import Place

NEVER = 1 << 32
"""As a floor: no chunk is born above it, so the fast tier writes nothing in place."""
FAST_WRITE_BYTES = 256 * KIB
"""Longest write that the fast tier takes."""
FAST_COPY_BYTES = 64 * KIB
"""The most that the fast tier copies for one write because a snapshot shares it (21 us from the page cache)."""
SLOW_WRITE_S = 0.002
"""An in-loop write that took longer held up the loop (STORE section 6)."""
SLOW_PAUSE_S = 1.0
"""After a slow write the next ones are watched for so long: a thread that loses its processor inside the call looks
the same, and says nothing about the file. One that is slow in a pass that has not lost it sends the head's writes to
workers, for as long. (Measured beside busy processes: judged by slow writes alone, 4 KiB writes cost 67 us of CPU, not
9.) Being watched costs a pass 1 us."""


class FastWriter(NativeDevice):
    """The part of a head that writes at once."""

    def __init__(self, core: Core, node: Node) -> None:
        super().__init__(core, node)
        self._admissions: list[Admission] = []
        self._gate: asyncio.Event | None = None
        """While it is there, all new writes wait."""
        self._write_cache = True
        self._slow_until = 0.0
        """Until then writes are watched, or paused; 0: neither."""
        self._paused = False
        self._preempted = 0
        """While writes are watched: how often the thread had lost its processor when the last pass ended, or at the
        last slow write."""
        self._births = core.family.births
        self._planner = Planner(core)
        self._write_now = core.data.write
        self._monotonic = core.env.clock.monotonic
        self._preemptions = core.env.clock.preemptions
        self._is_shut = False
        """Everything is declined."""
        self._floor = 0
        """The node's floor while the first of the ways is open, else NEVER."""
        self.refresh()

    def refresh(self) -> None:
        """Recompute what the fast tier goes by; called after every change of the tree, and on failure."""
        self._size = 0 if self._closed else self._node.size_bytes
        self._is_shut = bool(self._closed or self._gate or self._core.failed or not self._write_cache or self._paused)
        self._floor = NEVER if self._is_shut else self._node.floor

    # --- the fast tier ------------------------------------------------------------------------------------------

    def try_write(self, offset: int, data: memoryview, /) -> bool:
        """Write ``data`` now, or return False having done nothing. ``end_pass`` must follow before the answer."""
        # 0.4 us over the system call in place (0.05 the map, 0.05 the birth, 0.1 the clock); an idle end_pass 0.05 us.
        length = len(data)
        within = offset & self._mask
        if self._admissions or offset + length > self._size or (offset | length) & REFUSED_BITS:
            return self._try_write_new(offset, data)
        shift = self._shift
        index = offset >> shift
        try:
            entry = self._leaves[index >> 12].view[index & 4095]
        except NOT_THERE:
            return False
        if (
            entry < 2
            or self._births.view[entry] <= self._floor
            or (within + length > self._chunk_bytes and not self._is_own_run(index, entry, within + length))
        ):
            return self._try_write_new(offset, data)
        started = self._monotonic()
        try:
            self._write_now((data,), (entry << shift) + within)
        except EngineError:
            return False  # the coroutine meets it again and raises it
        if self._monotonic() - started > SLOW_WRITE_S:
            self._was_slow()
        return True

    def _is_own_run(self, index: int, entry: int, length: int) -> bool:
        """Whether the chunks of so many bytes from that one on are the head's own, and adjacent in the file too. False
        also where it takes longer to find out: they are in two leaves of the map."""
        # 1.0 us instead of the 2.4 that a place costs (``_try_write_new``), for 256 KiB.
        first, count = index & LEAF_MASK, -(-length >> self._shift)
        if length > FAST_WRITE_BYTES or first + count > LEAF_ENTRIES:
            return False
        entries = self._leaves[index >> LEAF_SHIFT].view[first : first + count]
        births = self._births.view[entry : entry + count]
        return entries.tolist() == list(range(entry, entry + count)) and min(births.tolist()) > self._floor

    def try_write_each(self, offsets: Sequence[int], data: memoryview, step: int, length: int, /) -> int:
        """See ``engine.stores.BurstTarget``."""
        # One call, one look at the clock for each, and what does not change is looked at once.
        shift, mask, leaves, births = self._shift, self._mask, self._leaves, self._births.view
        write_now, monotonic = self._write_now, self._monotonic
        last_within, last = self._chunk_bytes - length, self._size - length
        floor = NEVER if self._admissions else self._floor
        done = start = 0
        started = monotonic()
        try:
            for offset in offsets:
                within, index = offset & mask, offset >> shift
                part = data[start : start + length]
                entry = leaves[index >> 12].view[index & 4095]
                if (
                    entry < 2
                    or births[entry] <= floor
                    or within > last_within
                    or offset > last
                    or (offset | length) & REFUSED_BITS
                ):
                    if not self._try_write_new(offset, part):
                        break
                    births, started = self._births.view, monotonic()
                else:
                    write_now((part,), (entry << shift) + within)
                    now = monotonic()
                    if now - started > SLOW_WRITE_S:
                        self._was_slow()
                        done += 1
                        break
                    started = now
                start += step
                done += 1
        except (EngineError, *NOT_THERE):
            pass  # the one that it was is left to ``try_write``
        return done

    def _try_write_new(self, offset: int, data: memoryview) -> bool:
        """Writes that span chunks or need new ones, as far as that is cheap."""
        length = len(data)
        if self._floor == NEVER and not self._resume():
            return False
        if offset < 0 or (offset | length) & SECTOR_MASK or offset + length > self._size or length > FAST_WRITE_BYTES:
            return False
        if not length:
            return True
        if self._admissions and self._overlapping(offset >> self._shift, (offset + length - 1) >> self._shift):
            return False
        if not self._core.ready_for_change():
            return False
        started = self._monotonic()
        try:
            place = self._planner.place(self._node, offset, length)
            done = self._write_at(place, data) if place else self._carry_out_now(offset, data)
        except (EngineError, *NOT_THERE):
            return False  # the coroutine meets it again and raises it
        if done and self._monotonic() - started > SLOW_WRITE_S:
            self._was_slow()
        return done

    def _write_at(self, place: Place, data: memoryview) -> bool:
        position, change, is_new = place
        core = self._core
        try:
            self._write_now((data,), position)
        except EngineError:
            if is_new:
                core.allocator.give_back((change[1],))
            return False
        index, chunk, base, mask = change
        if base:
            core.publish_partial(self._node, index, chunk, base, mask)
        elif mask:
            core.publish(self._node, index, chunk)
        return True

    def _carry_out_now(self, offset: int, data: memoryview) -> bool:
        core = self._core
        plan = self._planner.plan(self._node, offset, data)
        try:
            done = plan.copied_bytes <= FAST_COPY_BYTES and plan.carry_out_now(core)
        except EngineError:
            done = False
        if not done:
            core.allocator.give_back(plan.taken)
        elif plan.published:
            core.publish_planned(self._node, plan.published, together=False)
        return done

    def _overlapping(self, first: int, last: int) -> list[Admission]:
        return [other for other in self._admissions if other.first <= last and other.last >= first]

    def _was_slow(self) -> None:
        """A write was: watch those that follow, or if it was watched itself and nothing else explains it, pause."""
        preempted = self._preemptions()
        now = self._monotonic()
        self._paused = now < self._slow_until and preempted == self._preempted
        if self._paused or now >= self._slow_until:
            self._slow_until = now + SLOW_PAUSE_S
        self._preempted = preempted
        self.refresh()

    def _resume(self) -> bool:
        """End a watch or pause that is over; whether anything may be written."""
        if self._slow_until and self._monotonic() >= self._slow_until:
            self._slow_until, self._paused = 0.0, False
            self.refresh()
        return not self._is_shut

    def end_pass(self) -> None:
        """Journal what ``try_write`` changed since the last call. Raises StoreFailed: nothing may be answered."""
        if self._slow_until and self._resume():
            self._preempted = self._preemptions()
        self._core.end_pass()
