"""Metadata pages: which are free, and how many must stay free for the next checkpoint.

Pages lie in metadata chunks, whose space is allocated at the host before the first use. A page is free when neither
superblock slot refers to it. That is not counted up and down but computed: after each checkpoint both slots hold the
same state, and every page of the metadata chunks which that state does not reach is free. Nothing can leak.

The reserve: whatever becomes dirty is counted as a page that the next checkpoint will need, and no change is admitted
that would need more than there are free. So a checkpoint never meets a full disk, and neither do delete and discard,
for which ``MARGIN`` pages are kept that writes may not use up, and ``GIVING_MARGIN`` of them that nobody else may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.tvol.layout import PAGE_SIZE, REFS_PER_INDEX_PAGE, TOP_ENTRIES, WORDS_PER_PAGE, NodeKind

if TYPE_CHECKING:
    from engine.tvol.tree import Family

MARGIN = 24
"""Pages that only deletes, discards and flips may use up."""
GIVING_MARGIN = 12
"""Of these, pages that only what gives space back may use up: flips, clones and their like leave them."""
WRITE_STEP = 8
"""More than one admitted change of the write path can dirty: two leaves, a deadlist page, the births of new chunks."""


class PagePool:
    """Free pages and the estimate of what the next checkpoint needs."""

    def __init__(self, family: Family, chunks: list[int], reachable: set[int], root_pages: int) -> None:
        self._per_chunk = family.chunk_bytes // PAGE_SIZE
        self._family = family
        self._chunks = chunks
        self._free: list[int] = []
        """Descending, so that pages are taken in ascending order."""
        self._base = 0
        self._root_pages = 0
        """Of the last checkpoint; tree operations count what they add to it."""
        self._running = 0
        """Of the free pages, the most that the running checkpoint uses."""
        self.finish(reachable, root_pages)

    def add_chunks(self, first: int, count: int) -> None:
        """New metadata chunks, allocated at the host and logged."""
        self._chunks.extend(range(first, first + count))
        pages = range(first * self._per_chunk, (first + count) * self._per_chunk)
        self._free = sorted([*self._free, *pages], reverse=True)

    def begin_checkpoint(self) -> list[int]:
        """The free pages, descending, for the checkpoint that is captured now; it uses ``needed`` of them at most.

        Metadata chunks that are added from now on are not for it: its births do not have them.
        """
        self._running = self.needed()
        return self._free.copy()

    def finish(self, reachable: set[int], root_pages: int) -> None:
        """Both superblock slots hold the state that reaches ``reachable``: every other page is free."""
        per_chunk = self._per_chunk
        pages = (page for chunk in self._chunks for page in range(chunk * per_chunk, (chunk + 1) * per_chunk))
        self._free = sorted((page for page in pages if page not in reachable), reverse=True)
        self._running = 0
        self._root_pages = root_pages
        self.rebase()

    def rebase(self) -> None:
        """Recompute the part of the estimate that does not follow changes one by one.

        A sealed snapshot costs nothing but its part of the root stream: what tree operations change of it is counted
        by them.
        """
        pages = 8 + self._root_pages + self._root_pages // REFS_PER_INDEX_PAGE
        for node in self._family.nodes.values():
            if node.kind is NodeKind.HEAD or node.flags:
                pages += 2 + len(node.map.leaves) // TOP_ENTRIES + node.dead.words() // WORDS_PER_PAGE
        queued = sum(map(len, self._family.reclaim))
        self._base = pages + -(-queued // WORDS_PER_PAGE)

    def needed(self) -> int:
        """Upper bound of the pages that a checkpoint captured now would write."""
        family = self._family
        return (
            self._base
            + family.births.page_count()
            + family.births.page_count() // 512
            + family.claims.page_count()
            + family.claims.page_count() // 512
            + family.births.digests.pages_needed
            + family.dirty_leaves
            + family.structure_pages
            + family.dirty_words // WORDS_PER_PAGE
        )

    def headroom(self) -> int:
        """Free pages beyond what the next checkpoint needs."""
        return len(self._free) - self._running - self.needed()

    @property
    def chunk_count(self) -> int:
        """Metadata chunks."""
        return len(self._chunks)
