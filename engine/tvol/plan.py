"""Where a write goes: planned in the loop from maps, births and masks, carried out there or in a worker.

A piece of a write is planned chunk by chunk (STORE section 2 and 3):

* in place, where the chunk is the head's own and no slot names it;
* a whole chunk: into a new one, with no base;
* the head's own partial chunk: into its pages. Where pages are new in it, the mask grows when they are written;
* a part of a chunk that a snapshot or a slot shares: into a new partial chunk over it. A part of a partial chunk that
  is shared itself: into a new one that takes over the old one's pages, over the same base;
* where a page is written in part, the rest of it comes from wherever it is read from;
* a new chunk that is not known to be blank becomes no partial chunk, since what was freed there would stay in the pages
  that it has not: it is filled at once.

When ``FILL_PAGES`` or fewer pages of a partial chunk would be missing, they are copied too, and the chunk needs no base
any more (``docs/decisions/0013-partial-chunks.md``). Not those of a base that is marked bad: what is overwritten page
by page need not be read; the pages that are not there yet are zeroed where it matters what is in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.tvol.chunk_map import LEAF_MASK, LEAF_SHIFT, NOT_THERE
from engine.tvol.claims import names_chunk
from engine.tvol.device import ZEROES
from engine.tvol.layout import EMPTY, FIRST_CHUNK_ENTRY, FULL_MASK, PAGES_OF_CHUNK
from engine.tvol.partials import CHUNK_MASK, PARTIAL_SCALAR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.files import BlockFile
    from engine.tvol.core import Core
    from engine.tvol.nodes import Node

    Place = tuple[int, tuple[int, int, int, int], bool]
    """Byte position in the file; what to publish when it is written, as in ``Plan.published``, or ``NO_CHANGE``;
    whether the chunk in it is a new one."""

FILL_PAGES = 4
"""A write that leaves so many pages or fewer to the base copies them."""
NO_CHANGE = (0, 0, EMPTY, 0)
"""The map stays as it is."""


class Plan:
    """Where one piece of a write goes: plain extents and buffers, to be carried out in the loop or in a worker."""

    __slots__ = ("copied_bytes", "copies", "overlays", "published", "taken", "writes")

    def __init__(self) -> None:
        self.writes: list[tuple[int, list[memoryview]]] = []
        """(byte position in the file, adjacent buffers)."""
        self.copies: list[tuple[int, memoryview]] = []
        """(position to read from, buffer to fill), before anything is written."""
        self.overlays: list[tuple[memoryview, memoryview]] = []
        """(part of such a buffer, new data for it)."""
        self.copied_bytes = 0
        self.published: list[tuple[int, int, int, int]] = []
        """(index, chunk, base, mask) as ``Core.publish_planned`` takes them."""
        self.taken: list[int] = []
        """New chunks."""

    def write(self, position: int, buffers: list[memoryview]) -> None:
        if self.writes:
            last, gathered = self.writes[-1]
            if last + sum(map(len, gathered)) == position:
                gathered.extend(buffers)
                return
        self.writes.append((position, buffers))

    def copy(self, position: int, length: int) -> memoryview:
        """A buffer that will hold what is there."""
        buffer = memoryview(bytearray(length))
        self.copies.append((position, buffer))
        self.copied_bytes += length
        return buffer

    def carry_out(self, core: Core) -> None:
        """Read what is copied, then write everything. In a worker."""
        for position, buffer in self.copies:
            core.payload.read_into((buffer,), position)
        self._overlay_and_write(core.data)

    def carry_out_now(self, core: Core) -> bool:
        """The same from the page cache; False when a page to copy is not there (nothing was written then)."""
        for position, buffer in self.copies:
            if not core.payload.read_now(buffer, position):
                return False
        self._overlay_and_write(core.data)
        return True

    def _overlay_and_write(self, file: BlockFile) -> None:
        for place, data in self.overlays:
            place[:] = data
        for position, buffers in self.writes:
            file.write(buffers, position)


class Planner:
    """Plans the writes of one file."""

    def __init__(self, core: Core) -> None:
        self._allocator = core.allocator
        self._births = core.family.births
        self._claims = core.family.claims
        self._partials = core.family.claims.partials
        self._shift = core.chunk_shift
        self._mask = core.chunk_bytes - 1
        self._page_bytes = core.chunk_bytes // PAGES_OF_CHUNK
        self._page_shift = self._page_bytes.bit_length() - 1

    def place(self, node: Node, offset: int, length: int) -> Place | None:
        """Where a piece goes that needs one place in the file and no copy; None: ``plan`` it, nothing was taken.

        The rules are those of ``plan``; this is the short way for most writes after a snapshot. Raises as ``plan``.
        """
        index, within = offset >> self._shift, offset & self._mask
        entry = node.map.leaves[index >> LEAF_SHIFT].view[index & LEAF_MASK]
        end = within + length
        if end > self._mask + 1:
            return self._place_adjacent(node, index, within, length)
        if entry >= FIRST_CHUNK_ENTRY and self._births.view[entry] > node.floor:
            return (entry << self._shift) + within, NO_CHANGE, False
        base, mask = EMPTY, FULL_MASK
        if length > self._mask:
            chunk = self._allocator.take(whole=True)[0]
            return chunk << self._shift, (index, chunk, base, mask), True
        if PARTIAL_SCALAR <= entry < 0:
            return self._place_in_partial(node, index, entry & CHUNK_MASK, within, end)
        if names_chunk(entry):
            base, mask = entry & 0xFFFF_FFFF, self._pages(within, length)
            if (within | end) & (self._page_bytes - 1) or PAGES_OF_CHUNK - mask.bit_count() <= FILL_PAGES:
                return None
        elif not self._allocator.holes_read_zero:
            return None
        chunk = self._allocator.take_blank()
        return ((chunk << self._shift) + within, (index, chunk, base, mask), True) if chunk else None

    def _place_adjacent(self, node: Node, index: int, within: int, length: int) -> Place | None:
        """In chunks of the node's own that lie in the file as they do in the volume."""
        leaves, births, floor = node.map.leaves, self._births.view, node.floor
        first = chunk = leaves[index >> LEAF_SHIFT].view[index & LEAF_MASK]
        for at in range(index, index + ((within + length - 1) >> self._shift) + 1):
            entry = leaves[at >> LEAF_SHIFT].view[at & LEAF_MASK]
            if entry != chunk or entry < FIRST_CHUNK_ENTRY or births[entry] <= floor:
                return None
            chunk += 1
        return (first << self._shift) + within, NO_CHANGE, False

    def _place_in_partial(self, node: Node, index: int, chunk: int, within: int, end: int) -> Place | None:
        if self._births.view[chunk] <= node.floor:
            return None
        mask, touched = self._partials.mask(chunk), self._pages(within, end - within)
        position, after = (chunk << self._shift) + within, mask | touched
        if after == mask:
            return position, NO_CHANGE, False
        if (within | end) & (self._page_bytes - 1) or PAGES_OF_CHUNK - after.bit_count() <= FILL_PAGES:
            return None
        return position, (index, chunk, self._partials.base(chunk), after), False

    def plan(self, node: Node, offset: int, data: memoryview, *, redirect: bool = False) -> Plan:
        """Find or take the chunks of a piece. ``redirect``: nothing that is read now is overwritten.

        Raises OutOfSpace, or ``NOT_THERE`` for a leaf that is not resident, having taken none.
        """
        plan = Plan()
        try:
            at, length, chunk_bytes = 0, len(data), self._mask + 1
            while at < length:
                within = (offset + at) & self._mask
                step = min(chunk_bytes - within, length - at)
                self._plan_chunk(plan, node, (offset + at) >> self._shift, within, data[at : at + step], redirect)
                at += step
        except (EngineError, *NOT_THERE):
            self._allocator.give_back(plan.taken)
            raise
        return plan

    def _plan_chunk(self, plan: Plan, node: Node, index: int, within: int, data: memoryview, redirect: bool) -> None:
        entry = node.map.leaves[index >> LEAF_SHIFT].view[index & LEAF_MASK]
        mine = entry >= FIRST_CHUNK_ENTRY and self._births.view[entry] > node.floor
        if mine and not redirect:
            plan.write((entry << self._shift) + within, [data])
        elif len(data) == self._mask + 1 or not names_chunk(entry):
            self._plan_new(plan, index, within, data)
        elif PARTIAL_SCALAR <= entry < 0:
            self._plan_partial(plan, node, index, entry & CHUNK_MASK, within, data, redirect)
        else:
            source = (entry if entry >= 0 else self._claims.chunk_of(entry)) << self._shift
            self._plan_over(plan, index, within, data, entry, (source, 0, source), fill=mine)

    def _plan_new(self, plan: Plan, index: int, within: int, data: memoryview) -> None:
        """A chunk of which nothing is kept: the rest of it reads zero."""
        whole = len(data) == self._mask + 1
        chunk, blank = self._allocator.take(whole=whole)
        plan.taken.append(chunk)
        plan.published.append((index, chunk, EMPTY, FULL_MASK))
        position = chunk << self._shift
        if whole or (blank and self._allocator.holes_read_zero):
            plan.write(position + within, [data])
        else:
            zeroes = memoryview(ZEROES)
            plan.write(position, [zeroes[:within], data, zeroes[: self._mask + 1 - within - len(data)]])

    def _plan_partial(
        self, plan: Plan, node: Node, index: int, chunk: int, within: int, data: memoryview, redirect: bool
    ) -> None:
        mask, base = self._partials.mask(chunk), self._partials.base(chunk)
        touched = self._pages(within, len(data))
        position, base_position = chunk << self._shift, self._claims.base_of(chunk) << self._shift
        if self._births.view[chunk] <= node.floor or (redirect and touched & mask):
            self._plan_over(plan, index, within, data, base, (position, mask, base_position))
            return
        pieces = [self._whole_pages(plan, within, data, (position, mask, base_position), mask)]
        if touched & ~mask:
            rest = FULL_MASK & ~(mask | touched)
            if rest.bit_count() <= FILL_PAGES and not self._is_bad(base_position):
                pieces += self._copy_pages(plan, base_position, rest)
                touched |= rest
            plan.published.append((index, chunk, base, mask | touched))
        self._write_pieces(plan, chunk, pieces)

    def _plan_over(
        self,
        plan: Plan,
        index: int,
        within: int,
        data: memoryview,
        base: int,
        source: tuple[int, int, int],
        *,
        fill: bool = False,
    ) -> None:
        """A new chunk in place of one that stays as it is.

        Args: ``base``: the claim that the pages which are not copied stay with. ``source``: where the content is now:
        the position of the pages in a mask, the mask, the position of the other pages. ``fill``: copy all of them.
        """
        position, kept, base_position = source
        chunk, blank = self._allocator.take(whole=False)
        plan.taken.append(chunk)
        touched = self._pages(within, len(data))
        rest = FULL_MASK & ~(kept | touched)
        pieces = [self._whole_pages(plan, within, data, source, 0)]
        if kept:
            pieces += self._copy_pages(plan, position, kept & ~touched)
        if rest and self._is_bad(base_position):
            if not blank:
                pieces += self._zero_pages(rest)
        elif fill or not blank or rest.bit_count() <= FILL_PAGES:
            pieces += self._copy_pages(plan, base_position, rest)
            rest = 0
        self._write_pieces(plan, chunk, pieces)
        base = base if rest else EMPTY
        plan.published.append((index, chunk, base & 0xFFFF_FFFF, FULL_MASK & ~rest))

    def _is_bad(self, position: int) -> bool:
        """Whether the chunk there is marked bad."""
        return position >> self._shift in self._births.digests.bad

    def _pages(self, within: int, length: int) -> int:
        """The mask of the pages that a part of a chunk touches."""
        return (2 << (within + length - 1 >> self._page_shift)) - (1 << (within >> self._page_shift))

    def _whole_pages(
        self, plan: Plan, within: int, data: memoryview, source: tuple[int, int, int], there: int
    ) -> tuple[int, list[memoryview]]:
        """What to write so that no page is left half written: where it begins in the chunk, and buffers.

        ``there``: pages that the chunk has; of them only the data is written.
        """
        page, end = self._page_bytes, within + len(data)
        start, stop = within - within % page, end + -end % page
        if start < within and there >> start // page & 1:
            start = within
        if stop > end and there >> end // page & 1:
            stop = end
        if start == within and stop == end:
            return within, [data]
        if start < within and stop > end and stop - start == page:
            buffer = self._copy_page(plan, start, source)
            plan.overlays.append((buffer[within - start : end - start], data))
            return start, [buffer]
        buffers = [data]
        if start < within:
            buffer = self._copy_page(plan, start, source)
            first = min(page - (within - start), len(data))
            plan.overlays.append((buffer[within - start : within - start + first], data[:first]))
            buffers = [buffer, data[first:]]
        if stop > end:
            buffer = self._copy_page(plan, stop - page, source)
            last = end - (stop - page)
            tail = buffers.pop()
            plan.overlays.append((buffer[:last], tail[len(tail) - last :]))
            buffers += [tail[: len(tail) - last], buffer]
        return start, [buffer for buffer in buffers if len(buffer)]

    def _copy_page(self, plan: Plan, start: int, source: tuple[int, int, int]) -> memoryview:
        position, mask, base_position = source
        has = mask >> start // self._page_bytes & 1
        return plan.copy((position if has else base_position) + start, self._page_bytes)

    def _write_pieces(self, plan: Plan, chunk: int, pieces: list[tuple[int, list[memoryview]]]) -> None:
        if len(pieces) > 1:
            pieces.sort(key=_start)  # so that adjacent ones are written at once
        for start, buffers in pieces:
            plan.write((chunk << self._shift) + start, buffers)

    def _copy_pages(self, plan: Plan, position: int, mask: int) -> list[tuple[int, list[memoryview]]]:
        """Pages of a chunk, run by run: (where in the chunk, the buffer that will hold them)."""
        return [(start, [plan.copy(position + start, length)]) for start, length in self._runs(mask)]

    def _zero_pages(self, mask: int) -> list[tuple[int, list[memoryview]]]:
        """The same with zeroes."""
        return [(start, [memoryview(ZEROES)[:length]]) for start, length in self._runs(mask)]

    def _runs(self, mask: int) -> Iterator[tuple[int, int]]:
        """(where in the chunk, bytes) of each run of pages."""
        first = 0
        while mask >> first:
            if not mask >> first & 1:
                first += 1
                continue
            count = (~(mask >> first) & (mask >> first) + 1).bit_length() - 1
            yield first * self._page_bytes, count * self._page_bytes
            first += count


def _start(piece: tuple[int, list[memoryview]]) -> int:
    return piece[0]
