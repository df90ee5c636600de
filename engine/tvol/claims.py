"""Who holds a chunk: claims, of which a chunk may have several (``docs/decisions/0009-shared-chunks-as-slots.md``).

A *claim* is what a map entry, a deadlist and the reclaim queue name: a uint32 that is either a chunk's own number, or
``SLOT_BIT`` and the number of a *slot*. A slot is a row of one table of the file: (chunk, birth). It is born, killed,
put into deadlists and freed by exactly the rules of chunks; but what it stands for is one more reference to a chunk
that somebody else holds already.

* A chunk is free when its own claim and all its slots have ended.
* A chunk that a slot names is written in place by nobody (``Births.view``); a slot's holder never writes in place.
* How many slots name a chunk is counted from the table at open, not stored: it cannot disagree with it.

As a scalar, an entry is an int32: negative when it names a slot or a partial chunk, so that the hot path's comparison
with ``FIRST_CHUNK_ENTRY`` turns it aside together with EMPTY and ZERO. The entry of a partial chunk stands for two
claims (``partials.py``), and is itself none: ``of_entries`` comes between a map and whatever goes through claims.

In memory 8 bytes for each slot that there ever was, and once a file has one, 8 bytes more for each chunk of the file.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol.layout import (
    BIRTH_FREE,
    FIRST_CHUNK_ENTRY,
    MAX_SLOTS,
    PARTIAL,
    SLOT_BIT,
    WORDS_PER_PAGE,
    LayoutError,
)
from engine.tvol.partials import PARTIAL_SCALAR, Partials
from engine.tvol.table_pages import TablePages

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.tvol.births import Births

    Words = npt.NDArray[np.uint32]

SLOT_MASK = SLOT_BIT - 1
_SLOTS_PER_PAGE = WORDS_PER_PAGE // 2
_NO_SLOTS = np.zeros((0, 2), np.uint32)


def names_chunk(entry: int) -> bool:
    """Whether an entry, as an int32, names a chunk: by itself, through a slot, or a partial one."""
    return entry >= FIRST_CHUNK_ENTRY or entry < 0


class Claims:
    """The slots of a file, and the end of claims of both kinds."""

    def __init__(self, births: Births, slots: Words = _NO_SLOTS, partials: Partials | None = None) -> None:
        self.births = births
        self.partials = partials or Partials()
        self.in_use = False
        """Whether the file has the feature: the superblock says so from its next writing on."""
        self.count = len(slots)
        """Slots that there ever were; those with birth 0 are free."""
        self.used = int(np.count_nonzero(slots[:, 1]))
        """Slots in use."""
        self._table = slots.copy()
        self._view = self._table.data
        self._free: array[int] | None = None
        """Free slots, descending; found when first needed."""
        self.pages = TablePages(self.page_bytes)
        self.freed: array[int] = array("I")
        """Chunks freed since the store last looked."""
        self.thawing: array[int] = array("I")
        """Chunks that lost their last slot, but not their own claim, since then."""
        named = self._table[self._table[:, 1] != BIRTH_FREE, 0]
        if len(named):
            if not births.may_be_named(named):
                raise LayoutError("a slot names a chunk that holds no payload")
            births.add_slots(named)

    # --- looking ------------------------------------------------------------------------------------------------

    def chunk_of(self, entry: int) -> int:
        """The chunk that a slot's entry (an int32 below 0) stands for."""
        return self._view[entry & SLOT_MASK, 0]

    def base_of(self, chunk: int) -> int:
        """The chunk that the base of a partial chunk stands for."""
        base = self.partials.base(chunk)
        return base if base < SLOT_BIT else self.chunk_of(base)

    def chunks_of(self, entries: Words) -> Words:
        """The same entries with the chunk in place of each slot: what can be compared between maps. A partial chunk
        differs from everything but itself."""
        if not self.count:
            return entries
        slots = (entries >= SLOT_BIT) & (entries < PARTIAL)
        if not slots.any():
            return entries
        found = entries.copy()
        found[slots] = self._table[entries[slots] & SLOT_MASK, 0]
        return found

    def named_chunks(self) -> Words:
        """The chunks that slots in use name, each once, ascending."""
        table = self._table[: self.count]
        return np.unique(table[table[:, 1] != BIRTH_FREE, 0])

    def used_slots(self) -> Words:
        """The slots in use, ascending."""
        return np.flatnonzero(self._table[: self.count, 1]).astype(np.uint32)

    def of_entries(self, entries: Words) -> Words:
        """The claims of map entries that name something: of a partial chunk two, of any other entry itself."""
        return self.partials.of_entries(entries)

    def of_entry(self, entry: int) -> tuple[int, ...]:
        """The same for one entry, all as int32."""
        if PARTIAL_SCALAR <= entry < 0:
            chunk = entry - PARTIAL_SCALAR
            base = self.partials.base(chunk)
            return chunk, base if base < SLOT_BIT else base - (1 << 32)
        return (entry,) if names_chunk(entry) else ()

    def birth_of(self, claim: int) -> int:
        """The birth of a chunk or, for an int32 below 0, of a slot."""
        return self.births.born[claim] if claim >= 0 else self._view[claim & SLOT_MASK, 1]

    def births_of(self, claims: Words) -> Words:
        if not self.count:
            return self.births.of(claims)
        slots = claims >= SLOT_BIT
        found = np.empty(len(claims), np.uint32)
        found[slots] = self._table[claims[slots] & SLOT_MASK, 1]
        found[~slots] = self.births.of(claims[~slots])
        return found

    def check_entries(self, entries: Words) -> None:
        """Raises LayoutError if entries of a leaf that was just read name a slot or partial chunk that there is not."""
        self.partials.check_entries(entries)
        slots = entries[(entries >= SLOT_BIT) & (entries < PARTIAL)] & SLOT_MASK
        if len(slots) and (int(slots.max()) >= self.count or not self._table[slots, 1].all()):
            raise LayoutError("a map names a slot that is not in use")

    def check_partials(self, ended: Words) -> None:
        """Raises LayoutError unless every partial chunk, and what its base names, holds payload. ``ended``: claims that
        wait to be freed. The base of such a partial chunk may be gone before it: they are two claims that end apart."""
        for chunks, bases in self.partials.rows():
            bases = bases[~np.isin(chunks, ended)]
            slots = bases[bases >= SLOT_BIT]
            self.check_entries(slots)
            if not self.births.may_be_named(chunks) or not self.births.may_be_named(bases[bases < SLOT_BIT]):
                raise LayoutError("a partial chunk or its base holds no payload")

    # --- new slots ----------------------------------------------------------------------------------------------

    def next_slots(self, count: int) -> Words:
        """The numbers that the next slots will have, ``count`` or as many as there may be; ``share`` takes them, from
        the first on."""
        if self._free is None:
            free = np.flatnonzero(self._table[: self.count, 1] == BIRTH_FREE)[::-1]
            self._free = array("I", free.astype(np.uint32).tobytes())
        known = self._free[-count:][::-1] if count else array("I")
        more = min(count - len(known), MAX_SLOTS - self.count)
        return np.concatenate(
            [np.frombuffer(known, np.uint32), np.arange(self.count, self.count + more, dtype=np.uint32)]
        )

    def share(self, slots: Words, chunks: Words, birth: int) -> Words:
        """Make these slots, each of which names one of the chunks. Returns them as entries.

        Raises LayoutError for slots in use or behind the next, and for chunks that hold no payload.
        """
        known = int(np.count_nonzero(slots < self.count))
        if int(slots.max()) >= self.count + len(slots) - known:
            raise LayoutError(f"slot {int(slots.max())} is made where there are {self.count}")
        if self._table[slots[slots < self.count], 1].any():
            raise LayoutError("a slot is made that is in use")
        if not self.births.may_be_named(chunks):
            raise LayoutError("a chunk is shared that holds no payload")
        if self._free is not None:
            del self._free[len(self._free) - known :]
        self._touch(slots)
        self._extend_to(self.count + len(slots) - known)
        self._table[slots, 0] = chunks
        self._table[slots, 1] = birth
        self.used += len(slots)
        self.births.add_slots(chunks)
        return slots | np.uint32(SLOT_BIT)

    def _extend_to(self, count: int) -> None:
        if count <= self.count:
            return
        if count > len(self._table):
            grown = np.zeros((max(count, 2 * len(self._table), _SLOTS_PER_PAGE), 2), np.uint32)
            grown[: self.count] = self._table[: self.count]
            self._table, self._view = grown, grown.data
        self.count = count

    # --- the end of claims --------------------------------------------------------------------------------------

    def free(self, claims: Words) -> None:
        """These claims have ended; what nobody claims any more goes to ``freed``."""
        if not self.count:
            self.partials.freed(claims)
            self.freed.frombytes(self.births.free(claims).tobytes())
            return
        is_slot = claims >= SLOT_BIT
        self.partials.freed(claims[~is_slot])
        freed = self.births.free(claims[~is_slot])
        self.freed.frombytes(freed.tobytes())
        slots = claims[is_slot] & np.uint32(SLOT_MASK)
        if not len(slots):
            return
        freed, kept = self.births.remove_slots(self._table[slots, 0])
        self._touch(slots)
        self._table[slots] = 0
        self.used -= len(slots)
        if self._free is not None:
            self._free.extend(np.sort(slots)[::-1].tolist())
        self.freed.frombytes(freed.tobytes())
        self.thawing.frombytes(kept.tobytes())

    def free_one(self, entry: int) -> None:
        """The same for one claim, as an int32."""
        if self.count:
            self.free(np.array([entry & 0xFFFF_FFFF], np.uint32))
        else:
            if self.partials.mask(entry):
                self.partials.end(entry)
            self.births.free_one(entry)
            self.freed.append(entry)

    def forget_freed(self) -> None:
        """After replay: nobody is using what it freed, and the opening checkpoint makes it durable."""
        del self.freed[:]
        thawing, self.thawing = self.thawing, array("I")
        self.births.thaw(self.births.next_ticket(), np.frombuffer(thawing, np.uint32))

    # --- pages --------------------------------------------------------------------------------------------------

    def _touch(self, slots: Words) -> None:
        """These are about to change."""
        self.pages.touch_all(np.unique(slots // _SLOTS_PER_PAGE).tolist())

    def page_count(self) -> int:
        return -(-self.count // _SLOTS_PER_PAGE)

    def page_bytes(self, page: int) -> bytes:
        """A stored page as it is now; short at the end of the table."""
        return self._table[page * _SLOTS_PER_PAGE : min((page + 1) * _SLOTS_PER_PAGE, self.count)].tobytes()


def expand_share(items: list[tuple[int, int, int, int]]) -> tuple[Words, Words, Words]:
    """(index, slot, chunk) of every index that the items of a SHARE are about; of holes slot 0 and the entry."""
    table = np.array(items, np.uint32)
    lengths = table[:, 1].astype(np.int64)
    within = (np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)).astype(np.uint32)
    index, slot, chunk = (np.repeat(table[:, column], lengths) for column in (0, 2, 3))
    data = chunk >= FIRST_CHUNK_ENTRY
    return index + within, np.where(data, slot + within, slot), np.where(data, chunk + within, chunk)
