"""Metadata pages: which are free, and how many must stay free for the next checkpoint.

Pages lie in metadata chunks, whose space is allocated at the host before the first use. A page is free when neither
superblock slot refers to it. After each checkpoint both slots hold the same state, so one number for each page says it:
how many places of that state refer to it. A leaf is referred to by top pages, a top page by nodes, everything else by
one place. The numbers are counted from the file when it is opened (nothing can leak for longer than that), and a
checkpoint changes them by what it wrote anew and what it no longer refers to (``PageChanges``), so that its cost does
not depend on how many snapshots there are. What it frees is free when both its slots are durable, not before.

The reserve: whatever becomes dirty is counted as a page that the next checkpoint will need, and no change is admitted
that would need more than there are free. So a checkpoint never meets a full disk, and neither do delete and discard,
for which ``MARGIN`` pages are kept that writes may not use up, and ``GIVING_MARGIN`` of them that nobody else may.
"""

from __future__ import annotations

import heapq
from array import array
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol.layout import PAGE_SIZE, REFS_PER_INDEX_PAGE, WORDS_PER_PAGE, LayoutError
from engine.tvol.nodes import node_pages

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from engine.tvol.layout import PageRef
    from engine.tvol.tree import Family

    Pages = npt.NDArray[np.int64]

MARGIN = 24
"""Pages that only deletes, discards and flips may use up."""
GIVING_MARGIN = 12
"""Of these, pages that only what gives space back may use up: flips, clones and their like leave them."""
WRITE_STEP = 8
"""More than one admitted change of the write path can dirty: two leaves, their tops, a deadlist page, the births of new
chunks, a group of nodes."""


class PageChanges:
    """References to pages that begin and end with one checkpoint."""

    def __init__(self) -> None:
        self._pages = array("q")
        self._by = array("q")

    def gain(self, pages: Iterable[int]) -> None:
        self._add(pages, 1)

    def lose(self, pages: Iterable[int]) -> None:
        self._add(pages, -1)

    def replace(self, before: Iterable[PageRef], after: Iterable[PageRef]) -> None:
        """What referred to the pages ``before`` refers to those ``after``."""
        self.lose(ref.page for ref in before)
        self.gain(ref.page for ref in after)

    def add(self, other: PageChanges) -> None:
        """These as well."""
        self._pages.extend(other._pages)
        self._by.extend(other._by)

    def _add(self, pages: Iterable[int], by: int) -> None:
        count = len(self._pages)
        self._pages.extend(pages)
        self._by.extend([by] * (len(self._pages) - count))

    def summed(self) -> tuple[Pages, Pages]:
        """Each page once, without page 0, which means none; by how much the number of its references changes."""
        pages, at = np.unique(np.frombuffer(self._pages, np.int64), return_inverse=True)
        by = np.bincount(at, np.frombuffer(self._by, np.int64), len(pages)).astype(np.int64)
        used = pages > 0
        return pages[used], by[used]


class PagePool:
    """Free pages and the estimate of what the next checkpoint needs."""

    def __init__(self, family: Family, chunks: list[int], references: PageChanges, root_pages: int) -> None:
        self._per_chunk = family.chunk_bytes // PAGE_SIZE
        self._family = family
        self._places = _Places(chunks, self._per_chunk)
        self._references = np.zeros(len(chunks) * self._per_chunk, np.int64)
        self._free: list[int] = []
        """A heap, so that pages are taken in ascending order."""
        self._parked: list[int] | None = None
        """While a checkpoint runs, the pages of chunks that its births do not have; else None."""
        self._base = 0
        self._root_pages = root_pages
        """Of the last checkpoint; tree operations count what they add to it."""
        self._running = 0
        """Of the free pages, the most that the running checkpoint still uses."""
        self._admitted = 0
        """Further changes of the write path that the last look at the reserve has found pages for."""
        self.is_low = False
        """Whether the reserve should grow, as ``headroom`` was when it was last looked at."""
        self.change(references)
        self._free = self._places.pages()[self._references == 0].tolist()
        self._free.sort()
        self.rebase()

    def add_chunks(self, first: int, count: int) -> None:
        """New metadata chunks, allocated at the host and logged."""
        chunks = range(first, first + count)
        self._places.add(chunks)
        self._references = np.concatenate([self._references, np.zeros(count * self._per_chunk, np.int64)])
        pages = range(first * self._per_chunk, (first + count) * self._per_chunk)
        if self._parked is not None:
            self._parked.extend(pages)
        else:
            for page in pages:
                heapq.heappush(self._free, page)

    # --- the running checkpoint ---------------------------------------------------------------------------------

    def begin_checkpoint(self) -> None:
        """Its state is captured now; it uses ``needed`` of the free pages at most."""
        self._running = self.needed()
        self._parked = []
        self._admitted = 0

    def take(self) -> int:
        """A free page for the running checkpoint."""
        self._running = max(0, self._running - 1)
        return heapq.heappop(self._free)

    def change(self, changes: PageChanges) -> Pages:
        """Count references that began and ended. Returns the pages that nothing refers to any more."""
        pages, by = changes.summed()
        places = self._places.of(pages)
        before = self._references[places]
        after = before + by
        assert (after >= 0).all(), "a page is referred to less than never"
        self._references[places] = after
        freed: Pages = pages[(after == 0) & (before > 0)]
        return freed

    def unused(self, changes: PageChanges) -> Pages:
        """The pages that ``change`` would return."""
        pages, by = changes.summed()
        before = self._references[self._places.of(pages)]
        found: Pages = pages[(before + by == 0) & (before > 0)]
        return found

    def counted(self) -> dict[int, int]:
        """How often each page is referred to, of those that are; for tests."""
        used = self._references > 0
        return dict(zip(self._places.pages()[used].tolist(), self._references[used].tolist(), strict=True))

    def free(self, pages: Iterable[int]) -> None:
        """Nothing durable refers to these any more."""
        for page in pages:
            heapq.heappush(self._free, page)

    def end_checkpoint(self, root_pages: int) -> None:
        """Both superblock slots hold its state."""
        assert self._parked is not None
        parked, self._parked = self._parked, None
        self.free(parked)
        self._running = 0
        self._root_pages = root_pages
        self.rebase()

    # --- the reserve --------------------------------------------------------------------------------------------

    def rebase(self) -> None:
        """Recompute the part of the estimate that does not follow changes one by one.

        A sealed snapshot that is not touched costs nothing: what tree operations change of it is counted by them.
        """
        pages = 8 + self._root_pages + self._root_pages // REFS_PER_INDEX_PAGE
        for node in self._family.changing():
            pages += node_pages(node)
        self._base = pages + -(-len(self._family.reclaim) // WORDS_PER_PAGE)

    def needed(self) -> int:
        """Upper bound of the pages that a checkpoint captured now would write."""
        family = self._family
        table_pages = family.births.page_count() + family.claims.page_count()
        return (
            self._base
            + table_pages
            + table_pages // 512
            + family.births.digests.pages_needed
            + family.claims.partials.pages_needed
            + family.dirty_leaves
            + family.structure_pages
            + family.dirty_words // WORDS_PER_PAGE
        )

    def headroom(self) -> int:
        """Free pages beyond what the next checkpoint needs."""
        found = len(self._free) + len(self._parked or ()) - self._running - self.needed()
        self.is_low = found < 2 * MARGIN
        self._admitted = 0  # whoever asks is about to use some of them
        return found

    def admit_write(self) -> bool:
        """Whether one more change of the write path finds its pages, and leaves the margin."""
        if self._admitted:
            self._admitted -= 1
            return True
        spare = self.headroom() - MARGIN - WRITE_STEP
        self._admitted = max(0, spare // WRITE_STEP)
        return spare > 0

    @property
    def chunk_count(self) -> int:
        """Metadata chunks."""
        return len(self._places)


class _Places:
    """Where in an array that has a row for each page of the metadata chunks, in order of their coming, a page is."""

    def __init__(self, chunks: Iterable[int], per_chunk: int) -> None:
        self._per_chunk = per_chunk
        self._chunks = np.fromiter(chunks, np.int64)
        self._sort()

    def _sort(self) -> None:
        self._order = np.argsort(self._chunks)
        self._sorted = self._chunks[self._order]

    def __len__(self) -> int:
        return len(self._chunks)

    def add(self, chunks: Iterable[int]) -> None:
        self._chunks = np.concatenate([self._chunks, np.fromiter(chunks, np.int64)])
        self._sort()

    def of(self, pages: Pages) -> Pages:
        if not len(pages):
            return pages
        chunks = pages // self._per_chunk
        at = np.searchsorted(self._sorted, chunks)
        if not len(self) or (self._sorted[np.minimum(at, len(self) - 1)] != chunks).any():
            raise LayoutError("a page is referred to that is in no metadata chunk")
        found: Pages = self._order[at] * self._per_chunk + pages % self._per_chunk
        return found

    def pages(self) -> Pages:
        """All pages, in the array's order."""
        found: Pages = (self._chunks[:, np.newaxis] * self._per_chunk + np.arange(self._per_chunk)).ravel()
        return found
