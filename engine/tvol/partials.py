"""Partial chunks: a chunk that has only some of its pages, while the rest is read from the chunk that it replaces.

A small write to a chunk that a snapshot shares need not copy all of it. It goes to a new chunk, in the same pages;
the map's entry then names the *partial chunk*: (chunk, mask of its pages, base). The table here has base and mask of
each, by the number of the chunk. Rules (STORE section 3, each with the simulation that fails without it):

* A map that names a partial chunk has two claims, on the chunk and on the base, and whatever goes through claims goes
  through both (``of_entries``). So the base is neither freed nor overwritten while anybody sees it from here.
* Depth is one: the base is a chunk or a slot, never a partial chunk. A write to a partial chunk that a snapshot
  shares goes to a new chunk with the pages of both; it has the same base, and ends the claim on the old chunk only.
* The mask grows while the chunk belongs to one head. A page is in it only after its data was written; a page that is
  not in it may be written at any time, since nobody reads it.
* When the mask is full the entry becomes the chunk's own number, and the claim on the base ends: not in a snapshot,
  whose head sees the same entry.
* A partial chunk and its base end apart: one that waits to be freed may have lost its base already.
* The row ends with the chunk. Nothing else names the chunk: no slot, and no map by its bare number, as long as there
  is a row.

A mask has 16 bits, from the lowest: pages of 4 KiB in chunks of 64 KiB, of 16 KiB in chunks of 256 KiB.

In memory 8 bytes for each chunk in a page of the table (2048 chunks) that has a partial chunk; the rest of the array
is never touched, and so takes only addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.tvol.layout import FIRST_CHUNK_ENTRY, FULL_MASK, PARTIAL, PARTIALS_PER_PAGE, TOP_ENTRIES, LayoutError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from engine.tvol.layout import PageRef

    Words = npt.NDArray[np.uint32]

PARTIAL_SCALAR = PARTIAL - (1 << 32)
"""As a scalar an entry is an int32: from here up to -1 it names a partial chunk, below it a slot."""
CHUNK_MASK = (1 << 30) - 1
_PAGE_SHIFT = PARTIALS_PER_PAGE.bit_length() - 1
assert 1 << _PAGE_SHIFT == PARTIALS_PER_PAGE


class Partials:
    """Base and mask of every partial chunk of a file."""

    def __init__(self) -> None:
        self._rows: Words = np.zeros(0, np.uint32)
        self.view = self._rows.data
        """For scalars: the base of chunk n at 2n, its mask at 2n + 1. Replaced when it grows, so never keep it."""
        self.count = 0
        """Rows in use: how many partial chunks there are."""
        self.present: set[int] = set()
        """Pages of the table that had a row since the last checkpoint."""
        self.dirty: set[int] = set()
        self.pages: dict[int, PageRef] = {}
        """Where the table's pages of the last checkpoint are."""

    # --- looking ------------------------------------------------------------------------------------------------

    def mask(self, chunk: int) -> int:
        """0 for a chunk that is not a partial one."""
        return self.view[2 * chunk + 1] if 2 * chunk < len(self.view) else 0

    def base(self, chunk: int) -> int:
        return self.view[2 * chunk]

    def of_entries(self, entries: Words) -> Words:
        """All claims of map entries, each of which names something: first one of each entry, then the bases."""
        if not self.count:
            return entries
        partial = entries >= PARTIAL
        if not partial.any():
            return entries
        claims = np.where(partial, entries & np.uint32(CHUNK_MASK), entries)
        return np.concatenate([claims, self._rows[2 * claims[partial].astype(np.intp)]])

    def by_place(self, entries: Words) -> Words:
        """The same in two rows: at each place the entry, or the partial chunk, and below it the base, or EMPTY."""
        partial = entries >= PARTIAL
        claims = np.zeros((2, len(entries)), np.uint32)
        claims[0] = np.where(partial, entries & np.uint32(CHUNK_MASK), entries)
        if partial.any():
            claims[1, partial] = self._rows[2 * claims[0, partial].astype(np.intp)]
        return claims

    def check_entries(self, entries: Words) -> None:
        """Raises LayoutError if entries of a leaf that was just read name a partial chunk that has no row."""
        chunks = (entries[entries >= PARTIAL] & np.uint32(CHUNK_MASK)).astype(np.intp)
        if len(chunks) and (2 * int(chunks.max()) >= len(self._rows) or not self._rows[2 * chunks + 1].all()):
            raise LayoutError("a map names a partial chunk that is none")

    # --- changing -----------------------------------------------------------------------------------------------

    def begin(self, chunk: int, base: int, mask: int) -> None:
        """A chunk becomes a partial one. Raises LayoutError if it is one."""
        if 2 * chunk >= len(self._rows):
            self._grow(chunk)
        if self.view[2 * chunk + 1]:
            raise LayoutError(f"chunk {chunk} is made a partial one twice")
        self.view[2 * chunk] = base
        self.view[2 * chunk + 1] = mask
        self.count += 1
        page = chunk >> _PAGE_SHIFT
        self.present.add(page)
        self.dirty.add(page)

    def widen(self, chunk: int, mask: int) -> int:
        """These pages are in the chunk now, too. Returns the whole mask."""
        self.view[2 * chunk + 1] |= mask
        self.dirty.add(chunk >> _PAGE_SHIFT)
        return self.view[2 * chunk + 1]

    def rebase(self, chunk: int, base: int) -> None:
        """A copy takes the place of what the chunk has as its base."""
        self.view[2 * chunk] = base
        self.dirty.add(chunk >> _PAGE_SHIFT)

    def end(self, chunk: int) -> int:
        """The chunk is no partial one any more. Returns what its base was."""
        base = self.view[2 * chunk]
        self.view[2 * chunk] = self.view[2 * chunk + 1] = 0
        self.count -= 1
        self.dirty.add(chunk >> _PAGE_SHIFT)
        return base

    def freed(self, chunks: Words) -> None:
        """These chunks are free: the rows of those that were partial end."""
        if not self.count:
            return
        known = chunks[chunks < len(self._rows) // 2].astype(np.intp)
        for chunk in known[self._rows[2 * known + 1] != 0].tolist():
            self.end(chunk)

    def _grow(self, chunk: int) -> None:
        """Only pages that have a row are touched."""
        size = 2 * max(PARTIALS_PER_PAGE, 1 << chunk.bit_length())
        rows = np.zeros(size, np.uint32)
        for page in self.present:
            part = slice(2 * page * PARTIALS_PER_PAGE, 2 * (page + 1) * PARTIALS_PER_PAGE)
            rows[part] = self._rows[part]
        self._rows, self.view = rows, rows.data

    # --- pages --------------------------------------------------------------------------------------------------

    def load(self, page: int, words: Words, ref: PageRef) -> None:
        """A stored page. Raises LayoutError for rows that cannot be."""
        bases, masks = words[0::2], words[1::2]
        used = masks != 0
        bad = used & ((masks > FULL_MASK) | (bases < FIRST_CHUNK_ENTRY) | (bases >= PARTIAL))
        if bad.any() or bases[~used].any() or not used.any():
            raise LayoutError(f"page {page} of the partial chunks")
        end = (page + 1) * PARTIALS_PER_PAGE
        if 2 * end > len(self._rows):
            self._grow(end - 1)
        self._rows[2 * page * PARTIALS_PER_PAGE : 2 * end] = words
        self.count += int(np.count_nonzero(used))
        self.present.add(page)
        self.pages[page] = ref

    def rows(self) -> Iterator[tuple[Words, Words]]:
        """(chunks, bases) of the partial chunks, page by page."""
        for page in sorted(self.present):
            part = self._rows[2 * page * PARTIALS_PER_PAGE : 2 * (page + 1) * PARTIALS_PER_PAGE]
            used = np.flatnonzero(part[1::2])
            if len(used):
                yield (used + page * PARTIALS_PER_PAGE).astype(np.uint32), part[0::2][used]

    @property
    def pages_needed(self) -> int:
        """Upper bound of what a checkpoint captured now writes of the table, with its part of the root stream."""
        return len(self.present) + len(self.present) // TOP_ENTRIES

    def capture(self) -> dict[int, bytes]:
        """The changed pages as they are now, for a checkpoint; empty where no row is left."""
        captured: dict[int, bytes] = {}
        for page in sorted(self.dirty):
            part = self._rows[2 * page * PARTIALS_PER_PAGE : 2 * (page + 1) * PARTIALS_PER_PAGE]
            captured[page] = part.tobytes() if part.any() else b""
            if not captured[page]:
                self.present.discard(page)
        self.dirty.clear()
        return captured
