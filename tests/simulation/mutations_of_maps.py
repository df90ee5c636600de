"""The rules of paged maps, of pages and of what a checkpoint writes (``chunk_map``, ``map_reader``, ``table_pages``,
``pages``, ``checkpoint``), each taken away."""

from __future__ import annotations

import numpy as np

from engine.tvol import checkpoint, map_reader
from engine.tvol.checkpoint import Checkpointer, _PageWriter
from engine.tvol.layout import PAGE_SIZE, NodeFlag
from engine.tvol.map_reader import MapSource
from engine.tvol.pages import PageChanges
from engine.tvol.table_pages import TablePages
from engine.tvol.tree import Family
from tests.simulation.mutation import Mutation


def _tables_in_place(original):
    async def write_table(writer, pages, captured, count, words):
        before = list(pages.refs)
        await original(writer, pages, captured, count, words)
        batch = dict(writer._batch)
        for number in captured:
            if number < min(len(before), len(pages.refs)) and before[number].page and pages.refs[number].page in batch:
                new = pages.refs[number]
                writer._batch = [item for item in writer._batch if item[0] != new.page]
                writer._batch.append((before[number].page, batch[new.page]))
                pages.refs[number] = type(new)(before[number].page, new.checksum)
                writer.changes.replace([new], [before[number]])

    return write_table


def _pages_are_freed_before_the_superblock(original):
    """What the new state does not refer to is written over while the old one still rules."""

    async def write_root(self, writer, root):
        freed = self._core.pages.unused(writer.changes).tolist()
        self._core.pages.free(freed)
        return await original(self, writer, root)

    return write_root


def _freed_once(original):
    async def free_pages(self, writer):
        self._core.pages.change(writer.changes)

    return free_pages


def _captured_pages_change(original):
    def touch(self, page):
        self.dirty.add(page)

    return touch


def _only_heads_are_touched(original):
    def touch(self, node):
        if node.id in self.heads or node.stored is None:
            original(self, node)

    return touch


def _leaves_of_new_tops_are_not_counted(original):
    async def add_top(self, leaves):
        changes, self.changes = self.changes, PageChanges()
        try:
            return await original(self, leaves)
        finally:
            self.changes = changes

    return add_top


def _unverified(original):
    def page(self, ref, what):
        data = bytearray(PAGE_SIZE)
        self._file.read_into((memoryview(data),), ref.page * PAGE_SIZE)
        return data

    return page


def _unloaded_before_it_is_written(original):
    """Maps are let go with what was changed since the checkpoint captured them."""

    def unload(captured):
        for capture in captured:
            if not capture.node.flags & NodeFlag.RECLAIMING:
                capture.map.dirty.clear()
                capture.map.leaves.clear()
                capture.map.loaded = False

    return unload


def _the_node_alone(original):
    return lambda node: iter((node,))


def _leaves_of_lost_tops_stay(original):
    async def lose_leaves(self, writer):
        writer.changes.add(writer.tops)

    return lose_leaves


def _zeroes_for_a_leaf(original):
    """A leaf that was not read is taken for an empty one."""

    async def make_resident(self, node, numbers):
        for number in numbers:
            if not node.map.leaves[number].resident:
                node.map.leaves[number].hold(np.zeros(4096, np.uint32))

    return make_resident


MAPS: dict[str, Mutation] = {
    "pages-are-shadow-written": Mutation(
        "a page that a superblock refers to is not written",
        ((checkpoint, "_write_table", _tables_in_place),),
    ),
    "pages-outlive-their-superblock": Mutation(
        "a page is used again only when neither superblock slot refers to it",
        (
            (Checkpointer, "_write_root", _pages_are_freed_before_the_superblock),
            (Checkpointer, "_free_pages", _freed_once),
        ),
    ),
    "leaves-are-counted": Mutation(
        "a leaf is referred to by every top page that names it",
        ((_PageWriter, "add_top", _leaves_of_new_tops_are_not_counted),),
    ),
    "lost-tops-lose-their-leaves": Mutation(
        "the leaves of a top page that nobody refers to any more are given up with it",
        ((Checkpointer, "_lose_leaves", _leaves_of_lost_tops_stay),),
    ),
    "captured-tables-do-not-change": Mutation(
        "a page of a table that a checkpoint captured is copied before it changes",
        ((TablePages, "touch", _captured_pages_change),),
    ),
    "changed-nodes-are-captured": Mutation(
        "a checkpoint looks at every node that was changed",
        ((Family, "touch", _only_heads_are_touched),),
    ),
    "unloaded-when-written": Mutation(
        "a map is unloaded only when a checkpoint has all of it, and nothing more can change it",
        ((checkpoint, "_unload", _unloaded_before_it_is_written),),
    ),
    "late-writes-have-their-chain": Mutation(
        "a late write has the leaves of all maps in memory that it is carried down to",
        ((map_reader, "_chain", _the_node_alone),),
    ),
    "leaves-are-read": Mutation(
        "a leaf that is not in memory is read before it is looked at",
        ((map_reader.MapReader, "make_resident", _zeroes_for_a_leaf),),
    ),
    "leaves-are-verified": Mutation(
        "a page of a map is verified when it is read",
        ((MapSource, "page", _unverified),),
    ),
}
