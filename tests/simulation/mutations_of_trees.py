"""The rules of trees (``tree.py``, ``deadlist.py``), of opening after a kill (``superblock.py``) and of writes that are
durable when they return (``head.py``), each taken away."""

from __future__ import annotations

from engine.stores import ExtentState
from engine.tvol import file, superblock
from engine.tvol.deadlist import Deadlist
from engine.tvol.head import NativeHead
from engine.tvol.store import NativeStore
from engine.tvol.tree import Family
from tests.simulation.mutation import Mutation, left_out, nothing


def _without_fua(original):
    return lambda self, offset, data, /, *, fua=False: original(self, offset, data)


def _cached(original):
    async def write(self, offset, data, /, *, fua=False):
        cache, self._write_cache = self._write_cache, True
        try:
            await original(self, offset, data, fua=fua)
        finally:
            self._write_cache = cache

    return write


def _all_of_it(original):
    return lambda self, generation: original(self, 0)


def _none_of_it(original):
    return lambda self, generation: []


def _what_is_inherited_too(original):
    def reclaim_leaf(self, node):
        node.generation = 0
        original(self, node)

    return reclaim_leaf


def _always_the_same(original):
    return lambda self: self.generation


def _without_discards(original):
    async def changed(self, older, newer, offset=0, /):
        async for extent in original(self, older, newer, offset):
            if extent.state is ExtentState.DATA:
                yield extent

    return changed


TREES: dict[str, Mutation] = {
    "generations-grow": Mutation("each flip ends a generation", ((Family, "_next_generation", _always_the_same),)),
    "merge-spares-what-older-ones-see": Mutation(
        "a merge frees what was born after the parent of the merged node, nothing else",
        ((Deadlist, "take_above", _all_of_it),),
    ),
    "merge-frees-what-nobody-sees": Mutation(
        "a merge frees what only the merged node saw", ((Deadlist, "take_above", _none_of_it),)
    ),
    "merge-keeps-the-deadlist": Mutation(
        "what the merged node's deadlist has goes to its child's", left_out(Deadlist, "absorb")
    ),
    "reclaim-spares-what-is-inherited": Mutation(
        "of a node without children what was born after its parent is freed, nothing else",
        ((Family, "_reclaim_leaf", _what_is_inherited_too),),
    ),
    "changed-by-pointers": Mutation(
        "discards count as changes between two snapshots", ((NativeStore, "changed", _without_discards),)
    ),
    "fua-is-flushed": Mutation("a write with FUA is durable when it returns", ((NativeHead, "write", _without_fua),)),
    "write-through-is-flushed": Mutation(
        "without a write cache each write is durable when it returns", ((NativeHead, "write", _cached),)
    ),
    "slots-are-healed": Mutation(
        "what an opening has read is in both superblock slots before anything is reused",
        ((file, "heal_slots", nothing),),
    ),
    "what-was-read-is-synced": Mutation(
        "a superblock that a killed process left in the page cache is durable before it is built upon",
        ((superblock, "_sync_what_was_read", nothing), (superblock, "_sync_healed_slot", nothing)),
    ),
}
