"""What map records do: entries are published, filled, shared, made partial, in one node and, late, in those below.

Rules kept here (STORE section 3, each with the simulation that fails without it):

* Kill: what was born above a node's floor is freed, the rest goes to its deadlist.
* A freed chunk's birth is 0 at once, but the chunk goes to ``freed``: the store decides when it may be used again.
* What entries, deadlists and the reclaim queue hold are *claims* (``claims.py``): chunks, or slots that share one. The
  entry of a partial chunk (``partials.py``) stands for two of them; which of them end with it depends on what follows.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol import layout
from engine.tvol.chunk_map import ABSENT_LEAF, LEAF_MASK, LEAF_SHIFT, Leaf
from engine.tvol.claims import expand_share, names_chunk
from engine.tvol.layout import EMPTY, FIRST_CHUNK_ENTRY, FULL_MASK, LEAF_ENTRIES, SLOT_BIT, LayoutError
from engine.tvol.nodes import Node, Nodes
from engine.tvol.partials import PARTIAL_SCALAR

if TYPE_CHECKING:
    import numpy.typing as npt

    Words = npt.NDArray[np.uint32]
    Places = npt.NDArray[np.intp]

RUN_CHUNKS = 32
"""A longer run of entries is cheaper to publish at once than one by one."""


class MapChanges(Nodes):
    """See the module."""

    def set_entry(self, node: Node, index: int, entry: int) -> None:
        """Publish one entry in a node: a head, or a snapshot whose old epoch still had this write in flight."""
        old = self._set(node, index, entry)
        if entry >= FIRST_CHUNK_ENTRY:
            self._bear(node, entry)
        for claim in self.claims.of_entry(old):
            self._kill(node, claim)

    def set_partial(self, node: Node, index: int, chunk: int, base: int, mask: int) -> None:
        """Publish pages of a partial chunk in a node: of a new one, or more of one that is the node's own.

        ``base``: a claim that the entry has had, which goes on; or EMPTY with the full mask, for a chunk of its own.
        Raises LayoutError where the entry had no such claim.
        """
        if base == EMPTY:
            self.set_entry(node, index, chunk)
            return
        entry, base_claim = chunk + PARTIAL_SCALAR, base if base < SLOT_BIT else base - (1 << 32)
        old = node.map.leaves[index >> LEAF_SHIFT].view[index & LEAF_MASK]
        if old == base_claim:  # the first pages: the only claim goes on
            self.claims.partials.begin(chunk, base, mask)
            self._set(node, index, entry)
            self._bear(node, chunk)
            return
        claims = self.claims.of_entry(old)
        if base_claim not in claims:
            raise LayoutError(f"PARTIAL of node {node.id}: index {index} does not name {base:#x}")
        if old == entry:
            full = self.claims.partials.widen(chunk, mask) == FULL_MASK
            if full and not node.children:  # else the head below sees this entry, too
                self.claims.partials.end(chunk)
                self._set(node, index, chunk)
                self._kill(node, base_claim)
            return
        self.claims.partials.begin(chunk, base, mask)
        self._set(node, index, entry)
        self._bear(node, chunk)
        for claim in claims:
            if claim != base_claim:
                self._kill(node, claim)

    def _set(self, node: Node, index: int, entry: int) -> int:
        """Change one entry, here and in the nodes below that have the same; the entry that was there."""
        number = index >> LEAF_SHIFT
        before = node.map.leaves[number]
        slot = index & LEAF_MASK
        old = before.view[slot]
        leaf = before if before.owner == node.map.token else self.own_leaf(node, number)
        leaf.view[slot] = entry
        node.mapped += (entry < 0 or entry >= FIRST_CHUNK_ENTRY) - (old < 0 or old >= FIRST_CHUNK_ENTRY)
        if node.children:
            self._set_below(node, number, before, slot, old, entry)
        return old

    def _bear(self, node: Node, chunk: int) -> None:
        """A new chunk is the node's own."""
        births = self.births
        if chunk >= births.count:
            births.extend_to(chunk + 1)
        if chunk >> LEAF_SHIFT not in births.pages.dirty:
            births.pages.touch(chunk >> LEAF_SHIFT)
        births.born[chunk] = births.view[chunk] = node.generation or self.generation
        node.own += 1

    def own_leaf(self, node: Node, number: int) -> Leaf:
        self.dirty_leaves += 1
        self.touch(node)
        return node.map.own(number, node.generation or self.generation)

    def _kill(self, node: Node, claim: int) -> None:
        """A claim, as an int32, ends in a node."""
        birth = self.claims.birth_of(claim)
        if birth > node.floor:
            node.own -= 1
            self.claims.free_one(claim)
        else:
            node.dead.add(birth, claim & 0xFFFF_FFFF)
            self.dirty_words += 1

    def kill_many(self, node: Node, entries: npt.NDArray[np.uint32]) -> None:
        """All claims of these entries end in a node."""
        if not len(entries):
            return
        claims = self.claims.of_entries(entries)
        births = self.claims.births_of(claims)
        above = births > node.floor
        free = claims[above]
        if len(free):
            node.own -= len(free)
            self.claims.free(free)
        kept, kept_births = claims[~above], births[~above]
        for birth in np.unique(kept_births).tolist():
            node.dead.extend(birth, array("I", kept[kept_births == birth].tobytes()))
        self.dirty_words += len(kept)

    def _set_below(self, node: Node, number: int, before: Leaf, slot: int, old: int, entry: int) -> None:
        """Carry a late write of an old epoch down to the head, as far as the entry was not redirected since.

        An unsealed snapshot has exactly one child. Where a child shared the old leaf it shares the new one.
        """
        after = node.map.leaves[number]
        gain = names_chunk(entry) - names_chunk(old)
        while node.children:
            node = node.children[0]
            if number >= node.map.count:
                return
            self.touch(node)
            leaf = node.map.leaves[number]
            if leaf is after:
                before = leaf  # shared, and so changed already
            elif leaf is before:
                node.map.put(number, after)
            elif leaf.view[slot] != old:
                return
            else:
                before = leaf
                after = leaf if leaf.owner == node.map.token else self.own_leaf(node, number)
                after.view[slot] = entry
            node.mapped += gain

    def fill(self, node: Node, first: int, count: int, value: int) -> None:
        """Make a run of entries EMPTY or ZERO."""
        end = first + count
        total = self.chunk_count(node.size_bytes)
        while first < end:
            number, start = first >> LEAF_SHIFT, first & LEAF_MASK
            stop = min(LEAF_ENTRIES, start + end - first)
            first += stop - start
            if node.map.leaves[number] is ABSENT_LEAF and value == EMPTY:
                continue
            drop = value == EMPTY and start == 0 and (stop == LEAF_ENTRIES or first >= total)
            self._put(node, number, slice(start, stop), value, drop=drop)

    def set_run(self, node: Node, first: int, count: int, entry: int) -> None:
        """``set_entry`` for a run of indexes and one of chunks."""
        self.births.set_run(entry, count, node.generation or self.generation)
        end = first + count
        while first < end:
            number, start = first >> LEAF_SHIFT, first & LEAF_MASK
            stop = min(LEAF_ENTRIES, start + end - first)
            chunks = np.arange(entry, entry + stop - start, dtype=np.uint32)
            self._put(node, number, slice(start, stop), chunks)
            first, entry = first + stop - start, entry + stop - start

    def _put(self, node: Node, number: int, places: slice | Places, values: Words | int, *, drop: bool = False) -> None:
        """Publish entries of one leaf: EMPTY or ZERO, or an array with slots. ``drop``: all of it is EMPTY then."""
        before = node.map.leaves[number]
        old = before.array[places].copy()
        if drop:
            self.touch(node)
            node.map.drop(number)
        else:
            leaf = before if before.owner == node.map.token else self.own_leaf(node, number)
            leaf.array[places] = values
        if not isinstance(values, int):
            slots = int(np.count_nonzero(values >= FIRST_CHUNK_ENTRY))
            node.mapped += slots
            node.own += slots
        if node.children:
            self._put_below(node, number, before, places, old, values)
        named = old[old >= FIRST_CHUNK_ENTRY]
        node.mapped -= len(named)
        self.kill_many(node, named)

    def _put_below(
        self, node: Node, number: int, before: Leaf, places: slice | Places, old: Words, values: Words | int
    ) -> None:
        """``_set_below`` for many entries of a leaf."""
        after = node.map.leaves[number]
        while node.children:
            node = node.children[0]
            if number >= node.map.count:
                return
            self.touch(node)
            leaf = node.map.leaves[number]
            same = np.ones(len(old), bool)
            if leaf is before and before is not after:
                node.map.put(number, after)
            elif leaf is after and after is not ABSENT_LEAF:
                before = leaf
            else:
                same = leaf.array[places] == old
                if not same.any():
                    return
                before = leaf
                after = leaf if leaf.owner == node.map.token else self.own_leaf(node, number)
                after.array[places] = np.where(same, values, after.array[places])
            node.mapped -= int(np.count_nonzero(old[same] >= FIRST_CHUNK_ENTRY))
            if not isinstance(values, int):
                node.mapped += int(np.count_nonzero(values[same] >= FIRST_CHUNK_ENTRY))

    def _apply_map(self, payload: bytes) -> None:
        node_id, items = layout.unpack_map(payload)
        node = self.node(node_id)
        limit = node.map.count * LEAF_ENTRIES
        for index, count, entry in items:
            if index + count > limit or entry + count > layout.MAX_CHUNKS:
                raise LayoutError(f"MAP of node {node_id}: {index}+{count} -> {entry} is out of range")
            self._need(node, index, index + count - 1)
            if entry >= FIRST_CHUNK_ENTRY and count > RUN_CHUNKS:
                self.set_run(node, index, count, entry)
            elif entry >= FIRST_CHUNK_ENTRY:
                for step in range(count):
                    self.set_entry(node, index + step, entry + step)
            elif count == 1:
                self.set_entry(node, index, entry)
            else:
                self.fill(node, index, count, entry)

    def _apply_partial(self, payload: bytes) -> None:
        node_id, items = layout.unpack_partial(payload)
        node = self.node(node_id)
        for index, chunk, base, mask in items:
            if index >= node.map.count * LEAF_ENTRIES:
                raise LayoutError(f"PARTIAL of node {node_id}: index {index} is out of range")
            self._need(node, index, index)
            self.set_partial(node, index, chunk, base, mask)

    def _apply_share(self, payload: bytes) -> None:
        if not self.claims.in_use:
            raise LayoutError("SHARE in a file whose superblock does not announce it")
        node_id, items = layout.unpack_share(payload)
        node = self.node(node_id)
        index, slots, entries = expand_share(items)
        if int(index[-1]) >= node.map.count * LEAF_ENTRIES:
            raise LayoutError(f"SHARE of node {node_id}: index {index[-1]} is out of range")
        self._need(node, int(index[0]), int(index[-1]))
        data = entries >= FIRST_CHUNK_ENTRY
        if data.any():
            entries[data] = self.claims.share(slots[data], entries[data], node.generation or self.generation)
        numbers = index >> LEAF_SHIFT
        for number in np.unique(numbers).tolist():
            here = numbers == number
            self._put(node, number, (index[here] & LEAF_MASK).astype(np.intp), entries[here])
