"""The nodes of a file: heads and snapshots, where they are in the tree, and what of them the next checkpoint writes.

Whoever changes a node has it in ``touched``, and what that adds to the next checkpoint is counted, so that the reserve
of pages (``pages.py``) always holds. What records do to nodes is in ``map_changes.py`` and ``tree.py``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from engine.tvol.adoption import tree_of
from engine.tvol.chunk_map import LEAF_SHIFT, ChunkMap
from engine.tvol.claims import Claims
from engine.tvol.deadlist import Deadlist, ReclaimQueue
from engine.tvol.layout import TOP_ENTRIES, WORDS_PER_PAGE, LayoutError, NodeFlag, NodeKind
from engine.tvol.node_table import NodeTable, StoredNode
from engine.tvol.notes import Notes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.tvol.births import Births
    from engine.tvol.chunk_map import Leaf
    from engine.tvol.layout_encryption import EncryptionRecord
    from engine.tvol.map_reader import MapSource


class Node:
    """A head or a snapshot."""

    __slots__ = (
        "children",
        "created_at",
        "dead",
        "flags",
        "floor",
        "generation",
        "guid",
        "id",
        "kind",
        "map",
        "mapped",
        "name",
        "own",
        "parent",
        "seen",
        "size_bytes",
        "stored",
        "volume_id",
    )

    def __init__(self, node_id: int, kind: NodeKind, chunk_map: ChunkMap, *, size_bytes: int, volume_id: str) -> None:
        self.id = node_id
        self.kind = kind
        self.map = chunk_map
        self.size_bytes = size_bytes
        self.volume_id = volume_id
        self.guid = ""
        self.name = ""
        self.created_at = 0.0
        self.flags = NodeFlag(0)
        self.generation = 0
        """Of a snapshot; 0 for a head."""
        self.floor = 0
        """The parent's generation."""
        self.parent: Node | None = None
        self.children: list[Node] = []
        self.dead = Deadlist()
        self.mapped = 0
        """Entries that name a chunk."""
        self.own = 0
        """Those of them born above the floor."""
        self.seen: dict[int, Leaf] = {}
        """Of a sealed snapshot, the leaves that its readers find in the cache (``MapReader.see``)."""
        self.stored: StoredNode | None = None
        """What the last checkpoint has of it."""

    def attach(self, parent: Node | None) -> None:
        """Make this a child of ``parent``."""
        self.parent = parent
        self.floor = parent.generation if parent else 0
        if parent:
            parent.children.append(self)

    def detach(self) -> None:
        if self.parent:
            self.parent.children.remove(self)
            self.parent = None

    @property
    def live(self) -> bool:
        return not self.flags & (NodeFlag.DELETED | NodeFlag.RECLAIMING)


def node_pages(node: Node) -> int:
    """Pages that a checkpoint writes for a node at most, besides its leaves and its record."""
    return 3 + node.map.count // TOP_ENTRIES + node.dead.words() // WORDS_PER_PAGE


class Nodes:
    """All nodes of a file, the births of its chunks, what is to be reclaimed, and what the next checkpoint writes."""

    def __init__(self, births: Births, chunk_bytes: int, claims: Claims | None = None) -> None:
        self.births = births
        self.claims = claims or Claims(births)
        self.notes = Notes()
        self.encryption: EncryptionRecord | None = None
        self.chunk_bytes = chunk_bytes
        self.generation = 1
        self.next_node = 1
        self.nodes: dict[int, Node] = {}
        self.reclaim = ReclaimQueue()
        """Claims of merged nodes that are still to be freed."""
        self.reclaiming: deque[Node] = deque()
        self.deleted: dict[int, Node] = {}
        """Nodes marked as deleted that are still in the tree."""
        self.heads: dict[int, Node] = {}
        self.unsealed: dict[int, Node] = {}
        """Snapshots whose epoch may have writes in flight."""
        self.touched: dict[int, Node] = {}
        """Nodes that may differ from what the last checkpoint has of them. Whoever changes a node puts it here: with
        ``node`` or ``touch``, or by the first change of a leaf since the checkpoint captured the node."""
        self.gone: list[Node] = []
        """Nodes that went since a checkpoint captured the state: it may have them, or be about to."""
        self.table = NodeTable()
        self.source: MapSource | None = None
        """While the journal is replayed: where maps are read from. The running store reads them before (``_need``)."""
        self.dirty_leaves = 0
        """Leaves made since the last checkpoint: each will need a page."""
        self.dirty_words = 0
        """Deadlist and reclaim entries added since."""
        self.structure_pages = 0
        """Upper bound of the pages that tree operations since then add to the next checkpoint."""
        self.largest_map = 0
        """Leaves of the largest map that there was."""

    def is_reclaiming(self) -> bool:
        """Whether the space of deleted nodes is on its way back."""
        mergeable = any(len(node.children) < 2 for node in self.deleted.values())
        return bool(self.reclaim or self.reclaiming or mergeable)

    def chunk_count(self, size_bytes: int) -> int:
        return -(-size_bytes // self.chunk_bytes)

    def add(self, node: Node, parent: Node | None) -> None:
        """Put a new node into the tree."""
        node.attach(parent)
        self.nodes[node.id] = node
        self.touch(node)
        if node.kind is NodeKind.HEAD:
            self.heads[node.id] = node
        self.next_node = max(self.next_node, node.id + 1)
        self.count_structure(node)

    def count_structure(self, *nodes: Node) -> None:
        for node in nodes:
            self.largest_map = max(self.largest_map, node.map.count)
            self.structure_pages += node_pages(node)

    def node(self, node_id: int) -> Node:
        """To be changed: the next checkpoint looks at it. Raises LayoutError."""
        try:
            found = self.nodes[node_id]
        except KeyError:
            raise LayoutError(f"no node {node_id}") from None
        self.touch(found)
        return found

    def touch(self, node: Node) -> None:
        """The next checkpoint looks at it."""
        if node.id not in self.touched:
            self.touched[node.id] = node
            self.structure_pages += self.table.largest_pages

    def _remove(self, node: Node) -> None:
        del self.nodes[node.id]
        self.heads.pop(node.id, None)
        self.touched.pop(node.id, None)
        self.unsealed.pop(node.id, None)
        self.gone.append(node)

    def changing(self) -> Iterator[Node]:
        """The nodes whose content may change without a tree operation that says so.

        Not what is deleted and waits: its merge says what it changes. Otherwise many deletions on a full disk would
        each claim pages, until there were none for a checkpoint.
        """
        yield from self.heads.values()
        yield from self.unsealed.values()
        yield from self.reclaiming

    def _need(self, node: Node, first: int, last: int) -> None:
        """In replay: have the leaves of these indexes in memory, for a change of ``node`` that is carried down."""
        if self.source is None:
            return
        below: Node | None = node
        while below is not None:
            if not below.map.loaded:
                below.map.load(self.source.leaves(below.map.tops, below.map.count))
            for leaf in below.map.leaves[first >> LEAF_SHIFT : (last >> LEAF_SHIFT) + 1]:
                if not leaf.resident:
                    entries = self.source.entries(leaf)
                    self.claims.check_entries(entries)
                    leaf.hold(entries)
            below = below.children[0] if below.children else None

    def _need_below(self, node: Node, number: int) -> None:
        """In replay: have a leaf of a node and of all below in memory."""
        if self.source is not None:
            for each in tree_of(node):
                if not each.map.loaded:
                    each.map.load(self.source.leaves(each.map.tops, each.map.count))
                if number < each.map.count and not (leaf := each.map.leaves[number]).resident:
                    entries = self.source.entries(leaf)
                    self.claims.check_entries(entries)
                    leaf.hold(entries)
