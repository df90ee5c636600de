"""What a node's map says, whatever of it is in memory: for tests that look at all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.tvol.chunk_map import LEAF_MASK, LEAF_SHIFT, Leaf
from engine.tvol.map_reader import MapSource

if TYPE_CHECKING:
    from engine.tvol.file import TvolFile
    from engine.tvol.nodes import Node


def resident_leaves(store: TvolFile, node: Node) -> list[Leaf]:
    """All leaves with their entries; what the store has in memory stays as it is."""
    source = MapSource(store._core.file)
    leaves = node.map.leaves if node.map.loaded else source.leaves(node.map.tops, node.map.count)
    return [leaf if leaf.resident else Leaf(source.entries(leaf), 0, leaf.birth, leaf.page) for leaf in leaves]


def lookup(store: TvolFile, node: Node, index: int) -> int:
    """One entry, as an int32."""
    return resident_leaves(store, node)[index >> LEAF_SHIFT].view[index & LEAF_MASK]
