"""The birth generation of every chunk: which snapshots can see it, and whether it is taken at all.

``births[chunk]``: 0 free, ``BIRTH_METADATA`` reserved, ``BIRTH_SHARED`` named by slots only, else the generation in
which it was mapped. This is the durable allocation map; which free chunks may be used at this moment is the
allocator's business.

``view`` is what writing in place goes by, and nothing else: the birth, or a negative number for a chunk that must not
be written whatever its birth, because a slot names it (``claims.py``) or it has a digest (``digests.py``). Until a
first chunk is frozen so it is the same memory as ``born``; then it is an array of its own, and the hot path compares
the same number as before.

A chunk that loses its last slot stays frozen until ``thaw``: the loss must be durable, and whoever reads it through
that slot must have ended. Meanwhile its number in ``view`` says which batch of losses will thaw it; when it is shared
again, it says ``FROZEN``. A digest freezes until the chunk is freed, and ends with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from engine.tvol.digests import Digests
from engine.tvol.layout import BIRTH_FREE, BIRTH_METADATA, BIRTH_SHARED, BIRTHS_PER_PAGE, MAX_GENERATION
from engine.tvol.table_pages import TablePages

if TYPE_CHECKING:
    import numpy.typing as npt

    Words = npt.NDArray[np.uint32]

Number = TypeVar("Number", np.uint32, np.int32)

_PAGE_SHIFT = 12
assert 1 << _PAGE_SHIFT == BIRTHS_PER_PAGE
assert MAX_GENERATION < 1 << 31

FROZEN = -1
"""In ``view``: slots name the chunk, or it has a digest."""
_LAST_TICKET = (1 << 31) - 1


class Births:
    """A growing uint32 array, stored in pages."""

    __slots__ = (
        "_guard",
        "_guarded",
        "_slots",
        "_store",
        "born",
        "count",
        "digests",
        "pages",
        "ticket",
        "view",
    )

    def __init__(self, stored: Words) -> None:
        self.count = len(stored)
        """Chunks covered; all beyond are free."""
        self._store = np.zeros(max(BIRTHS_PER_PAGE, self.count), np.uint32)
        self._store[: self.count] = stored
        self._guard = self._store.view(np.int32)
        self._guarded = False
        """Whether ``_guard`` is an array of its own."""
        self.digests = Digests()
        self._slots: Words | None = None
        """How many slots name each chunk; None as long as none ever did."""
        self.born = self._store.data
        """For scalars; replaced when the array grows, so never keep it. The same for ``view``."""
        self.view = self._guard.data
        self.pages = TablePages(self.page_bytes)
        self.ticket = 2
        """Number of the batch that chunks losing their last slot now belong to."""

    def extend_to(self, count: int) -> None:
        """Cover ``count`` chunks at least."""
        if count <= self.count:
            return
        if count > len(self._store):
            self._grow(max(count, 2 * len(self._store)))
        if self.count >> _PAGE_SHIFT != (count - 1) >> _PAGE_SHIFT or count >> _PAGE_SHIFT not in self.pages.dirty:
            self.pages.touch_all(range(self.count >> _PAGE_SHIFT, ((count - 1) >> _PAGE_SHIFT) + 1))
        self.count = count

    def _grow(self, size: int) -> None:
        self._store = _longer(self._store, size)
        self._guard = _longer(self._guard, size) if self._guarded else self._store.view(np.int32)
        if self._slots is not None:
            self._slots = _longer(self._slots, size)
        self.born, self.view = self._store.data, self._guard.data

    def cut(self, count: int) -> None:
        """Cover no more than ``count`` chunks; those beyond are free."""
        self.count = min(self.count, count)
        self.pages.cut(self.page_count())

    def set(self, chunk: int, birth: int) -> None:
        """A chunk that nothing named before."""
        if chunk >= self.count:
            self.extend_to(chunk + 1)
        self.pages.touch(chunk >> _PAGE_SHIFT)
        self.born[chunk] = birth
        if self._guarded:
            self.view[chunk] = birth if birth <= MAX_GENERATION else FROZEN

    def set_run(self, first: int, count: int, birth: int) -> None:
        """Adjacent chunks that nothing named before."""
        if first + count > self.count:
            self.extend_to(first + count)
        self.pages.touch_all(range(first >> _PAGE_SHIFT, ((first + count - 1) >> _PAGE_SHIFT) + 1))
        self._store[first : first + count] = birth
        if self._guarded:
            self._guard[first : first + count] = birth

    def of(self, chunks: Words) -> Words:
        return self._store[chunks]

    def free(self, chunks: Words) -> Words:
        """No map names these by their number any more. Returns those that no slot names either: they are free."""
        self._touch(chunks)
        freed = chunks
        if self._slots is not None:
            shared = self._slots[chunks] > 0
            self._store[chunks[shared]] = BIRTH_SHARED
            freed = chunks[~shared]
        self._let_go(freed)
        return freed

    def _let_go(self, freed: Words) -> None:
        """Nothing names these any more."""
        self._store[freed] = BIRTH_FREE
        if self._guarded:
            self._guard[freed] = 0
        self._drop_digests(freed)

    def _drop_digests(self, freed: Words) -> None:
        self.digests.drop(freed)

    def free_one(self, chunk: int) -> None:
        """The same for one chunk of a file without slots."""
        self.pages.touch(chunk >> _PAGE_SHIFT)
        if self._guarded:
            self._let_go(np.array([chunk], np.uint32))
        else:
            self.born[chunk] = BIRTH_FREE

    def with_birth(self, birth: int, first: int = 0) -> Words:
        """Chunks from ``first`` on that have exactly this birth, ascending."""
        found = np.flatnonzero(self._store[first : self.count] == birth) + first
        return found.astype(np.uint32)

    # --- slots --------------------------------------------------------------------------------------------------

    def may_be_named(self, chunks: Words) -> bool:
        """Whether all of these hold payload, so that a slot may name them."""
        if not len(chunks) or int(chunks.max()) >= self.count:
            return not len(chunks)
        births = self._store[chunks]
        return bool(((births != BIRTH_FREE) & (births != BIRTH_METADATA)).all())

    def add_slots(self, chunks: Words) -> None:
        """One more slot names each of these: from now on nobody writes them in place."""
        if self._slots is None:
            self._slots = np.zeros(len(self._store), np.uint32)
        np.add.at(self._slots, chunks, np.uint32(1))
        self._freeze(chunks)

    def _freeze(self, chunks: Words) -> None:
        self._guard_apart()
        self._guard[chunks] = FROZEN

    def _guard_apart(self) -> None:
        if not self._guarded:
            self._guarded = True
            self._guard = self._guard.copy()
            self.view = self._guard.data

    def remove_slots(self, chunks: Words) -> tuple[Words, Words]:
        """One slot less names each of these. Returns those that are free now, and those that a map alone names now,
        to be thawed with this ``ticket``."""
        assert self._slots is not None
        np.subtract.at(self._slots, chunks, np.uint32(1))
        last = np.unique(chunks[self._slots[chunks] == 0])
        unnamed = self._store[last] == BIRTH_SHARED
        freed, kept = last[unnamed], last[~unnamed]
        self._touch(freed)
        self._let_go(freed)
        self._guard[kept] = -self.ticket
        return freed, kept

    def next_ticket(self) -> int:
        """The current batch's number; the batch ends here."""
        ended = self.ticket
        self.ticket = ended + 1 if ended < _LAST_TICKET else 2
        return ended

    def thaw(self, ticket: int, chunks: Words) -> None:
        """The losses of this batch are durable and unseen: those of the chunks that were not shared or freed since,
        and have no digest, may be written in place again, as far as their birth allows."""
        ours = chunks[self._guard[chunks] == -ticket]
        ours = ours[~self.digests.frozen(ours)]
        self._guard[ours] = self._store[ours].view(np.int32)

    def claims_on(self, chunks: Words) -> Words:
        """How many claims there are on each of these: its own, and slots."""
        own = self._store[chunks] <= MAX_GENERATION
        return own.astype(np.uint32) if self._slots is None else own + self._slots[chunks]

    # --- digests ------------------------------------------------------------------------------------------------

    def hold(self, chunks: Words) -> Words:
        """From this step on nobody writes these in place. Returns those that hold payload, to be digested: ``digests``
        forgets one that is freed before ``digests.put``, or ``unhold`` ends it."""
        named: Words = chunks[chunks < self.count]
        births = self._store[named]
        named = named[(births != BIRTH_FREE) & (births != BIRTH_METADATA)]
        self._freeze_to_digest(named)
        self.digests.held.update(named.tolist())
        return named

    def _freeze_to_digest(self, chunks: Words) -> None:
        self._freeze(chunks)

    def mark(self, chunk: int, *, bad: bool) -> None:
        """What a MARK record says. A bad chunk is frozen also when the crash took its digest. Raises LayoutError."""
        self.digests.mark(chunk, bad=bad)
        if bad:
            self._freeze(np.array([chunk], np.uint32))

    def freeze_digested(self) -> None:
        """After loading: what has a digest, or is marked bad, is written by nobody."""
        digests = self.digests
        for chunks in (digests.digested(), np.fromiter(digests.bad, np.uint32, len(digests.bad))):
            if len(chunks):
                self._freeze(chunks)

    # --- pages --------------------------------------------------------------------------------------------------

    def _touch(self, chunks: Words) -> None:
        """These are about to change."""
        self.pages.touch_all(np.unique(chunks >> _PAGE_SHIFT).tolist())

    def page_count(self) -> int:
        return -(-self.count // BIRTHS_PER_PAGE)

    def page_bytes(self, page: int) -> bytes:
        """A stored page as it is now; short at the end of the array."""
        return self._store[page * BIRTHS_PER_PAGE : min((page + 1) * BIRTHS_PER_PAGE, self.count)].tobytes()


def _longer(array: npt.NDArray[Number], size: int) -> npt.NDArray[Number]:
    """With zeroes behind, which take no memory before they are used."""
    grown = np.zeros(size, array.dtype)
    grown[: len(array)] = array
    return grown
