"""Who uses each page of a volume file: one structure, except pages of maps, which nodes share at the same place.

A few bytes for each page of the chunks of metadata, however many nodes refer to it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from engine.tvol.check_image import Findings

    Words = npt.NDArray[np.uint32]
    Places = npt.NDArray[np.int64]


class Use(enum.IntEnum):
    """What a page is used as. ``number``: which page of its stream, or whose."""

    ROOT_INDEX = 1
    ROOT = 2
    BIRTHS = 3
    RECLAIM = 4
    SLOTS = 5
    PARTIALS = 6
    DIGEST_BITS = 7
    DIGEST_INDEX = 8
    DIGESTS = 9
    NODES = 10
    DEADLIST = 11
    TOP = 12
    LEAF = 13

    def where(self, number: int) -> str:
        return _WHERE[self].format(number)


_WHERE = {
    Use.ROOT_INDEX: "root index page {}",
    Use.ROOT: "root stream page {}",
    Use.BIRTHS: "births, page {}",
    Use.RECLAIM: "reclaim queue, page {}",
    Use.SLOTS: "slots, page {}",
    Use.PARTIALS: "partial chunks, page {}",
    Use.DIGEST_BITS: "bits of digests, page {}",
    Use.DIGEST_INDEX: "index of digests, page {}",
    Use.DIGESTS: "digest page {}",
    Use.NODES: "nodes, page {}",
    Use.DEADLIST: "node {}, deadlist",
    Use.TOP: "node {}, map top",
    Use.LEAF: "node {}, map leaf",
}


class PageUses:
    """The pages in use. What is told before ``begin`` is looked at then."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._early: list[tuple[int, Use, int]] = []
        self._begun = False
        self._per_chunk = 1
        self._chunks: Places = np.zeros(0, np.int64)
        """Chunks of metadata, ascending; all else here has a place for each of their pages."""
        self._use = np.zeros(0, np.uint8)
        self._number = np.zeros(0, np.uint32)
        self._place = np.zeros(0, np.uint32)
        """Of a page of a map: which of the map's tops or leaves it is."""
        self._birth = np.zeros(0, np.uint32)
        self._named = np.zeros(0, np.uint16)
        """Of a leaf: how many entries name a chunk."""

    def begin(self, births: Words, reserved: int, pages_per_chunk: int) -> None:
        """The births are known, and so which chunks have pages; of the first ones, ``reserved``, none has."""
        self._per_chunk = pages_per_chunk
        self._chunks = np.flatnonzero(births == layout.BIRTH_METADATA)
        self._chunks = self._chunks[self._chunks >= reserved]
        count = len(self._chunks) * pages_per_chunk
        self._use, self._named = np.zeros(count, np.uint8), np.zeros(count, np.uint16)
        self._number, self._place, self._birth = (np.zeros(count, np.uint32) for _ in range(3))
        self._begun = True
        for page, use, number in self._early:
            self.claim(page, use, number)
        self._early.clear()

    def claim(self, page: int, use: Use, number: int) -> None:
        """A page that one structure uses."""
        if not self._begun:
            self._early.append((page, use, number))
            return
        at = int(self._at(np.array([page]))[0])
        if at < 0:
            self._findings.damage(use.where(number), f"page {page} is not in a chunk of metadata")
        elif self._use[at]:
            self._taken(page, at, use.where(number))
        else:
            self._use[at], self._number[at] = use, number

    def share(self, use: Use, node: int, pages: Words, places: Places, births: Words, where: str) -> None:
        """Pages of a node's map at these places, which other nodes may have there too."""
        at = self._at(pages)
        for page in pages[at < 0].tolist():
            self._findings.damage(where, f"page {page} is not in a chunk of metadata")
        pages, places, births, at = pages[at >= 0], places[at >= 0], births[at >= 0], at[at >= 0]
        new = at[self._use[at] == 0]
        self._use[new], self._number[new] = use, node
        known = self._use[at] == use
        for number in np.flatnonzero(~known).tolist():
            self._taken(int(pages[number]), int(at[number]), where)
        fresh = known & np.isin(at, new)
        self._place[at[fresh]], self._birth[at[fresh]] = places[fresh], births[fresh]
        for wrong, what in (
            (known & (self._place[at] != places), "is used at different places"),
            (known & (self._birth[at] != births), "has different births"),
        ):
            for page in pages[wrong].tolist():
                self._findings.damage(where, f"page {page} {what}")

    def _taken(self, page: int, at: int, where: str) -> None:
        other = Use(int(self._use[at])).where(int(self._number[at]))
        self._findings.damage(where, f"uses page {page}, which is also {other}")

    def _at(self, pages: npt.NDArray[np.generic]) -> Places:
        """Where these pages are in what has one place for each; -1 for one that is in no chunk of metadata."""
        wide = pages.astype(np.int64)
        chunks = wide // self._per_chunk
        found = np.searchsorted(self._chunks, chunks)
        if not len(self._chunks):
            return np.full(len(wide), -1)
        inside = self._chunks[np.minimum(found, len(self._chunks) - 1)] == chunks
        return np.where(inside, found * self._per_chunk + wide % self._per_chunk, -1)

    # What leaves have

    def set_named(self, page: int, count: int) -> None:
        """How many entries of a leaf name a chunk."""
        at = int(self._at(np.array([page]))[0])
        if at >= 0:
            self._named[at] = count

    def named(self, pages: Words) -> int:
        """The sum of that over leaves that were looked at."""
        at = self._at(pages)
        return int(self._named[at[at >= 0]].sum(dtype=np.int64))

    # All of them

    def count(self, use: Use | None = None) -> int:
        return int(np.count_nonzero(self._use if use is None else self._use == use))

    def items(self) -> Iterator[tuple[int, str]]:
        """Every page in use, and as what."""
        for at in np.flatnonzero(self._use).tolist():
            page = int(self._chunks[at // self._per_chunk]) * self._per_chunk + at % self._per_chunk
            yield page, Use(int(self._use[at])).where(int(self._number[at]))
