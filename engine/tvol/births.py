"""The birth generation of every chunk: which snapshots can see it, and whether it is taken at all.

``births[chunk]``: 0 free, ``BIRTH_METADATA`` reserved, else the generation in which it was mapped. This is the durable
allocation map; which free chunks may be used at this moment is the allocator's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.tvol.layout import BIRTH_FREE, BIRTHS_PER_PAGE, PageRef

if TYPE_CHECKING:
    import numpy.typing as npt

_PAGE_SHIFT = 12
assert 1 << _PAGE_SHIFT == BIRTHS_PER_PAGE


class Births:
    """A growing uint32 array with a set of changed pages."""

    __slots__ = ("_store", "count", "dirty", "pages", "view")

    def __init__(self, stored: npt.NDArray[np.uint32]) -> None:
        self.count = len(stored)
        """Chunks covered; all beyond are free."""
        self._store = np.zeros(max(BIRTHS_PER_PAGE, self.count), np.uint32)
        self._store[: self.count] = stored
        self.view = self._store.data
        """For scalars; replaced when the array grows, so never keep it."""
        self.dirty: set[int] = set()
        self.pages: list[PageRef] = []
        """Where the pages of the last checkpoint are."""

    def extend_to(self, count: int) -> None:
        """Cover ``count`` chunks at least."""
        if count <= self.count:
            return
        if count > len(self._store):
            grown = np.zeros(max(count, 2 * len(self._store)), np.uint32)
            grown[: self.count] = self._store[: self.count]
            self._store = grown
            self.view = grown.data
        self.dirty.update(range(self.count >> _PAGE_SHIFT, ((count - 1) >> _PAGE_SHIFT) + 1))
        self.count = count

    def cut(self, count: int) -> None:
        """Cover no more than ``count`` chunks; those beyond are free."""
        self.count = min(self.count, count)
        self.dirty = {page for page in self.dirty if page < self.page_count()}

    def set(self, chunk: int, birth: int) -> None:
        if chunk >= self.count:
            self.extend_to(chunk + 1)
        self.view[chunk] = birth
        self.dirty.add(chunk >> _PAGE_SHIFT)

    def of(self, chunks: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        return self._store[chunks]

    def free(self, chunks: npt.NDArray[np.uint32]) -> None:
        self._store[chunks] = BIRTH_FREE
        self.dirty.update(np.unique(chunks >> _PAGE_SHIFT).tolist())

    def with_birth(self, birth: int, first: int = 0) -> npt.NDArray[np.uint32]:
        """Chunks from ``first`` on that have exactly this birth, ascending."""
        found = np.flatnonzero(self._store[first : self.count] == birth) + first
        return found.astype(np.uint32)

    def page_count(self) -> int:
        return -(-self.count // BIRTHS_PER_PAGE)

    def page_bytes(self, page: int) -> bytes:
        """A stored page as it is now; short at the end of the array."""
        return self._store[page * BIRTHS_PER_PAGE : min((page + 1) * BIRTHS_PER_PAGE, self.count)].tobytes()
