"""The rules of partial chunks (``engine/tvol/partials.py``, ``plan.py``, ``map_changes.py``), each taken away."""

from __future__ import annotations

import numpy as np

from engine.tvol import flatten
from engine.tvol.allocator import Allocator
from engine.tvol.claims import Claims
from engine.tvol.core import Core
from engine.tvol.layout import FULL_MASK, PARTIAL
from engine.tvol.partials import CHUNK_MASK, Partials
from engine.tvol.plan import Planner
from engine.tvol.tree import Family
from tests.simulation.mutation import Mutation, nothing


def _base_ends_with_the_first_page(original):
    def set_partial(self, node, index, chunk, base, mask):
        new = node.map.lookup(index) + (1 << 32) != PARTIAL + chunk
        original(self, node, index, chunk, base, mask)
        if base and new:
            self._kill(node, base if base < PARTIAL >> 1 else base - (1 << 32))

    return set_partial


def _base_stays_when_full(original):
    def set_partial(self, node, index, chunk, base, mask):
        kill, self._kill = self._kill, lambda node, claim: None
        try:
            full = self.claims.partials.mask(chunk) | mask == FULL_MASK
            if not (base and full):
                self._kill = kill
            original(self, node, index, chunk, base, mask)
        finally:
            self._kill = kill

    return set_partial


def _old_partial_stays(original):
    def of_entry(self, entry):
        return original(self, entry)[-1:] if -(1 << 30) <= entry < 0 else original(self, entry)

    return of_entry


def _shared_partials_in_place(original):
    def plan_partial(self, plan, node, index, chunk, within, data, redirect):
        born = self._births.view[chunk]
        self._births.view[chunk] = FULL_MASK << 8
        try:
            original(self, plan, node, index, chunk, within, data, redirect)
        finally:
            self._births.view[chunk] = born

    return plan_partial


def _chunks(entries):
    return np.where(entries >= PARTIAL, entries & np.uint32(CHUNK_MASK), entries)


def _walks_see_the_chunk_only(original):
    return lambda self, entries: _chunks(entries)


def _inherits_by_the_chunk_only(original):
    return lambda family, entries, generation: original(family, _chunks(entries), generation)


def _only_the_pages_at_hand(original):
    def copy_pages(self, plan, position, mask):
        return []

    return copy_pages


def _pages_are_half_written(original):
    return lambda self, plan, within, data, source, there: (within, [data])


def _masks_are_not_journaled(original):
    def publish_partial(self, node, index, chunk, base, mask):
        known = self.family.claims.partials.mask(chunk)
        if known and known | mask != FULL_MASK:
            self.family.set_partial(node, index, chunk, base, mask)
        else:
            original(self, node, index, chunk, base, mask)

    return publish_partial


def _masks_miss_the_checkpoint(original):
    def widen(self, chunk, mask):
        dirty = set(self.dirty)
        found = original(self, chunk, mask)
        self.dirty = dirty
        return found

    return widen


def _partials_are_not_journaled(original):
    return lambda self, node, index, chunk, base, mask: self.family.set_partial(node, index, chunk, base, mask)


def _short_way_ignores_snapshots(original):
    def place(self, node, offset, length):
        floor, node.floor = node.floor, 0
        try:
            return original(self, node, offset, length)
        finally:
            node.floor = floor

    return place


def _short_way_for_parts_of_pages(original):
    def place(self, node, offset, length):
        start = offset - offset % self._page_bytes
        end = offset + length + -(offset + length) % self._page_bytes
        if start >> self._shift != (end - 1) >> self._shift:
            return original(self, node, offset, length)
        found = original(self, node, start, end - start)
        return found and (found[0] + offset - start, *found[1:])

    return place


def _bases_outlive_queued_partials(original):
    return lambda self, ended: original(self, ended[:0])


def _any_chunk_is_blank(original):
    return lambda self: self.take(whole=True)[0]


PARTIALS = {
    "short-way-in-place-rule": Mutation(
        "what is written at once in one place is the head's own, as in a plan",
        ((Planner, "place", _short_way_ignores_snapshots),),
    ),
    "short-way-whole-pages": Mutation(
        "a page that is written at once and new in a partial chunk is written whole",
        ((Planner, "place", _short_way_for_parts_of_pages),),
    ),
    "short-way-zero": Mutation(
        "a chunk that is written in part at once is blank", ((Allocator, "take_blank", _any_chunk_is_blank),)
    ),
    "base-is-kept": Mutation(
        "the claim on the base of a partial chunk goes on", ((Family, "set_partial", _base_ends_with_the_first_page),)
    ),
    "base-ends-when-full": Mutation(
        "the claim on the base ends when the mask is full", ((Family, "set_partial", _base_stays_when_full),)
    ),
    "queued-partials-stand-alone": Mutation(
        "a partial chunk that waits to be freed may have lost its base",
        ((Claims, "check_partials", _bases_outlive_queued_partials),),
    ),
    "old-partial-ends": Mutation(
        "a partial chunk that is replaced by one over the same base ends", ((Claims, "of_entry", _old_partial_stays),)
    ),
    "shared-partials-redirect": Mutation(
        "a partial chunk that a snapshot shares is not written",
        ((Planner, "_plan_partial", _shared_partials_in_place),),
    ),
    "walks-visit-both": Mutation(
        "whatever goes through claims goes through partial chunks and their bases",
        (
            (Partials, "of_entries", _walks_see_the_chunk_only),
            (flatten, "inherits", _inherits_by_the_chunk_only),
        ),
    ),
    "masked-pages-go-along": Mutation(
        "the pages of a shared partial chunk are copied to the one that replaces it",
        ((Planner, "_copy_pages", _only_the_pages_at_hand),),
    ),
    "whole-pages": Mutation(
        "a page is in a mask only when all of it was written", ((Planner, "_whole_pages", _pages_are_half_written),)
    ),
    "masks-are-journaled": Mutation(
        "more pages in a mask are journaled before the write is acknowledged",
        ((Core, "publish_partial", _masks_are_not_journaled),),
    ),
    "partials-are-journaled": Mutation(
        "a partial chunk is journaled before the write is acknowledged",
        ((Core, "publish_partial", _partials_are_not_journaled),),
    ),
    "masks-in-the-checkpoint": Mutation(
        "a checkpoint has the masks of its instant", ((Partials, "widen", _masks_miss_the_checkpoint),)
    ),
    "rows-end-with-their-chunk": Mutation(
        "the row of a partial chunk ends when the chunk is free",
        ((Partials, "freed", nothing),),
    ),
}
