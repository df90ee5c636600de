"""The family tree: nodes, their maps and what every journal record does to them.

This is the state that the journal describes. Replay at open and the running store change it through the same methods:
``set_entry`` and ``fill`` for map changes, ``apply`` for all other records. Nothing here does I/O, reads a clock or
depends on anything but the records in order.

Rules kept here (STORE section 3, each with the simulation that fails without it):

* ``generation`` grows with every snapshot, clone, rollback and staging commit. A snapshot's generation is the value
  at its flip; chunks are born with the value at their publication, or with their snapshot's when an old epoch's write
  is published after the flip.
* A node's ``floor`` is its parent's generation: what was born above it belongs to the node alone. Kill: free above
  the floor, else to the deadlist.
* A deleted node keeps its place, and so its child's floor, until MERGE; a MERGE is logged only when the DELETE is
  durable. No child: its own chunks are reclaimed leaf by leaf. One child: the deadlists merge. More: it waits.
* A freed chunk's birth is 0 at once, but the chunk goes to ``freed``: the store decides when it may be used again.
* What a clone inherits is replaced in all of its nodes at once (ADOPT, ``adoption.py``); a node that inherits nothing
  may leave its parent (SEPARATE, ``flatten.py``).
* What entries, deadlists and the reclaim queue hold are *claims* (``claims.py``): chunks, or slots that share one. The
  entry of a partial chunk (``partials.py``) stands for two of them; which of them end with it depends on what follows.
"""

from __future__ import annotations

import functools
from array import array
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol import layout
from engine.tvol.adoption import adopt, tree_of
from engine.tvol.chunk_map import ABSENT_LEAF, LEAF_MASK, LEAF_SHIFT, ChunkMap, Leaf, leaf_count
from engine.tvol.claims import Claims, expand_share, names_chunk
from engine.tvol.deadlist import Deadlist, ReclaimQueue
from engine.tvol.layout import (
    BIRTH_METADATA,
    EMPTY,
    FIRST_CHUNK_ENTRY,
    FULL_MASK,
    LEAF_ENTRIES,
    SLOT_BIT,
    TOP_ENTRIES,
    WORDS_PER_PAGE,
    LayoutError,
    NodeFlag,
    NodeKind,
    RecordType,
)
from engine.tvol.node_table import NodeTable, StoredNode
from engine.tvol.notes import Notes
from engine.tvol.partials import PARTIAL_SCALAR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from engine.tvol.births import Births
    from engine.tvol.layout_encryption import EncryptionRecord
    from engine.tvol.map_reader import MapSource

    Words = npt.NDArray[np.uint32]
    Places = npt.NDArray[np.intp]

RUN_CHUNKS = 32
"""A longer run of entries is cheaper to publish at once than one by one."""
RECLAIM_STEP_CHUNKS = 4096
"""What one RECLAIM step frees at most; also the entries of a leaf."""


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


class Family:
    """All nodes of a file, the births of its chunks, and what is to be reclaimed."""

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
        self.largest_map = 0
        """Leaves of the largest map that there was."""
        """Upper bound of the pages that tree operations since then add to the next checkpoint."""
        self._apply: dict[int, Callable[[bytes], None]] = {
            RecordType.MAP: self._apply_map,
            RecordType.SNAPSHOT_BEGIN: self._apply_snapshot_begin,
            RecordType.SNAPSHOT_SEAL: self._apply_snapshot_seal,
            RecordType.CLONE: self._apply_clone,
            RecordType.ROLLBACK: self._apply_rollback,
            RecordType.DELETE: self._apply_delete,
            RecordType.MERGE: self._apply_merge,
            RecordType.RECLAIM: self._apply_reclaim,
            RecordType.RESIZE: self._apply_resize,
            RecordType.RENAME: self._apply_rename,
            RecordType.STAGING_BEGIN: self._apply_staging_begin,
            RecordType.STAGING_COMMIT: self._apply_staging_commit,
            RecordType.METADATA: self._apply_metadata,
            RecordType.SHARE: self._apply_share,
            RecordType.PARTIAL: self._apply_partial,
            RecordType.HOLD: functools.partial(self._apply_note, RecordType.HOLD),
            RecordType.RELEASE: functools.partial(self._apply_note, RecordType.RELEASE),
            RecordType.DESCRIBE: functools.partial(self._apply_note, RecordType.DESCRIBE),
            RecordType.GROUP_PREPARE: self._apply_group_prepare,
            RecordType.MARK: self._apply_mark,
            RecordType.SEPARATE: self._apply_separate,
            RecordType.ADOPT: self._apply_adopt,
        }

    def apply(self, kind: int, payload: bytes) -> None:
        """Do what a record says. Raises LayoutError when it cannot be meant for this state."""
        handler = self._apply.get(kind)
        if handler is None:
            raise LayoutError(f"journal record of unknown type {kind}")
        handler(payload)

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

    # --- map changes --------------------------------------------------------------------------------------------

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

    # --- tree operations ----------------------------------------------------------------------------------------

    def _next_generation(self) -> int:
        """The current generation, which ends here."""
        if self.generation >= layout.MAX_GENERATION:
            raise LayoutError("the file has used up its generations")
        self.generation += 1
        return self.generation - 1

    def _apply_snapshot_begin(self, payload: bytes) -> None:
        head_id, node_id, flags, created_at = layout.unpack_fields(layout.SNAPSHOT_BEGIN, payload)
        (guid, name), _ = layout.unpack_text(payload, layout.SNAPSHOT_BEGIN.size, 2)
        head = self.node(head_id)
        frozen = Node(node_id, NodeKind.SNAPSHOT, head.map.copy(), size_bytes=head.size_bytes, volume_id=head.volume_id)
        frozen.guid, frozen.name, frozen.created_at = guid, name, created_at
        frozen.flags = NodeFlag(flags) | NodeFlag.UNSEALED
        self.unsealed[node_id] = frozen
        frozen.generation = self._next_generation()
        frozen.dead, head.dead = head.dead, Deadlist()
        frozen.mapped, frozen.own, head.own = head.mapped, head.own, 0
        parent = head.parent
        head.detach()
        self.add(frozen, parent)
        head.attach(frozen)

    def _apply_snapshot_seal(self, payload: bytes) -> None:
        (node_id,) = layout.unpack_fields(layout.NODE_ID, payload)
        self.node(node_id).flags &= ~(NodeFlag.UNSEALED | NodeFlag.PREPARED)
        self.unsealed.pop(node_id, None)

    def _apply_group_prepare(self, payload: bytes) -> None:
        if len(payload) % layout.NODE_ID.size:
            raise LayoutError(f"GROUP_PREPARE of {len(payload)} bytes")
        for (node_id,) in layout.NODE_ID.iter_unpack(payload):
            node = self._snapshot(node_id)
            if not node.flags & NodeFlag.UNSEALED:
                raise LayoutError(f"GROUP_PREPARE of node {node_id}, which is no unsealed snapshot")
            node.flags = node.flags & ~NodeFlag.UNSEALED | NodeFlag.PREPARED

    def _apply_clone(self, payload: bytes) -> None:
        source_id, node_id, created_at = layout.unpack_fields(layout.CLONE, payload)
        (volume_id, name), _ = layout.unpack_text(payload, layout.CLONE.size, 2)
        source = self._snapshot(source_id)
        head = Node(node_id, NodeKind.HEAD, source.map.copy(), size_bytes=source.size_bytes, volume_id=volume_id)
        head.name, head.created_at, head.mapped = name, created_at, source.mapped
        self._next_generation()
        self.add(head, source)

    def _snapshot(self, node_id: int) -> Node:
        node = self.node(node_id)
        if node.kind != NodeKind.SNAPSHOT:
            raise LayoutError(f"node {node_id} is not a snapshot")
        return node

    def _become(self, head: Node, snapshot: Node) -> None:
        """Give a head without content of its own the content of a snapshot, as its child."""
        self._next_generation()
        head.map.become(snapshot.map)
        head.dead, head.own, head.mapped = Deadlist(), 0, snapshot.mapped
        head.size_bytes = snapshot.size_bytes
        head.detach()
        head.attach(snapshot)
        self.count_structure(head)

    def _apply_rollback(self, payload: bytes) -> None:
        head_id, target_id = layout.unpack_fields(layout.ROLLBACK, payload)
        head = self.node(head_id)
        if head.own or head.dead.buckets:
            raise LayoutError(f"ROLLBACK of node {head_id}, which has content of its own")
        self._become(head, self._snapshot(target_id))

    def _apply_delete(self, payload: bytes) -> None:
        for at in range(0, len(payload), layout.NODE_ID.size):
            (node_id,) = layout.NODE_ID.unpack_from(payload, at)
            self.mark_deleted(self.node(node_id))

    def mark_deleted(self, node: Node) -> None:
        """From now on nobody sees the node; it keeps its place until it is merged."""
        node.flags = (node.flags | NodeFlag.DELETED) & ~(NodeFlag.UNSEALED | NodeFlag.PREPARED)
        self.unsealed.pop(node.id, None)
        self.deleted[node.id] = node
        self.touch(node)
        self.notes.forget(node.id)

    def _apply_merge(self, payload: bytes) -> None:
        (node_id,) = layout.unpack_fields(layout.NODE_ID, payload)
        node = self.node(node_id)
        if not node.flags & NodeFlag.DELETED or len(node.children) > 1:
            raise LayoutError(f"MERGE of node {node_id}, which is not a deleted one with at most one child")
        self.merge(node)

    def merge(self, node: Node) -> None:
        """Take a deleted node with at most one child out of the tree."""
        del self.deleted[node.id]
        parent = node.parent
        node.detach()
        if not node.children:
            node.flags = NodeFlag.RECLAIMING
            node.generation = node.floor
            node.dead = Deadlist()  # what it names belongs to older snapshots
            self.reclaiming.append(node)
            self.count_structure(node)
            return
        child = node.children.pop()
        self.touch(child)
        child.parent = None
        freed = child.dead.take_above(node.floor)
        child.dead.absorb(node.dead)
        child.own += node.own - sum(map(len, freed))
        for bucket in freed:
            self.reclaim.append(bucket)
        self.dirty_words += sum(map(len, freed)) + child.dead.words()
        self.structure_pages += 2  # the deadlist's and the queue's last pages, which are not full
        self._remove(node)
        child.attach(parent)

    def _apply_reclaim(self, payload: bytes) -> None:
        (steps,) = layout.unpack_fields(layout.RECLAIM, payload)
        for _ in range(steps):
            if self.reclaim:
                self._reclaim_list()
            elif self.reclaiming:
                self._reclaim_leaf(self.reclaiming[0])
            else:
                raise LayoutError("RECLAIM with nothing to reclaim")

    def _reclaim_list(self) -> None:
        self.claims.free(np.frombuffer(self.reclaim.take(RECLAIM_STEP_CHUNKS), np.uint32))

    def own_leaf_from_end(self, node: Node, count: int) -> int:
        """Number of the last leaf below ``count`` of a RECLAIMING node, loaded, that is the node's own; -1 for none.
        What is shared with the parent has an older birth."""
        leaves = node.map.leaves
        return next((at for at in range(count - 1, -1, -1) if leaves[at].birth > node.generation), -1)

    def _reclaim_leaf(self, node: Node) -> None:
        """Free what the last leaf that is the node's own names."""
        self.touch(node)
        self._need(node, 0, -1)
        number = self.own_leaf_from_end(node, node.map.count)
        if number >= 0:
            self._need(node, number << LEAF_SHIFT, number << LEAF_SHIFT)
            claims = self.claims.of_entries(node.map.leaves[number].chunks())
            own = claims[self.claims.births_of(claims) > node.generation]
            node.own -= len(own)
            self.claims.free(own)
        node.map.resize(max(number, 0))
        if not node.map.count:
            self.reclaiming.popleft()
            self._remove(node)

    def _apply_resize(self, payload: bytes) -> None:
        node_id, size_bytes = layout.unpack_fields(layout.RESIZE, payload)
        head = self.node(node_id)
        old, new = self.chunk_count(head.size_bytes), self.chunk_count(size_bytes)
        self._need(head, new, old - 1)
        if new < old:
            self.fill(head, new, old - new, EMPTY)
        head.map.resize(leaf_count(new))
        head.size_bytes = size_bytes
        self.count_structure(head)

    def _apply_rename(self, payload: bytes) -> None:
        (node_id,) = layout.unpack_fields(layout.NODE_ID, payload)
        (name,), _ = layout.unpack_text(payload, layout.NODE_ID.size, 1)
        self.node(node_id).name = name

    def _apply_note(self, kind: RecordType, payload: bytes) -> None:
        (node_id,) = layout.unpack_fields(layout.NODE_ID, payload)
        self._snapshot(node_id)
        self.notes.apply(kind, payload)
        self.structure_pages += 1

    def _apply_staging_begin(self, payload: bytes) -> None:
        head_id, base_id, node_id, created_at = layout.unpack_fields(layout.STAGING_BEGIN, payload)
        head = self.node(head_id)
        base = self._snapshot(base_id) if base_id else None
        size_bytes = base.size_bytes if base else head.size_bytes
        content = base.map.copy() if base else ChunkMap.empty(self.chunk_count(size_bytes))
        staging = Node(node_id, NodeKind.HEAD, content, size_bytes=size_bytes, volume_id=head.volume_id)
        staging.name, staging.created_at, staging.flags = head.name, created_at, NodeFlag.STAGING
        staging.mapped = base.mapped if base else 0
        self._next_generation()
        self.add(staging, base)

    def _apply_staging_commit(self, payload: bytes) -> None:
        """The staging node becomes a hidden snapshot, the head its child; a deleted node takes the head's old place."""
        staging_id, head_id, old_id, created_at = layout.unpack_fields(layout.STAGING_COMMIT, payload)
        (guid, name), _ = layout.unpack_text(payload, layout.STAGING_COMMIT.size, 2)
        staging, head = self.node(staging_id), self.node(head_id)
        old = Node(old_id, NodeKind.HEAD, head.map.copy(), size_bytes=head.size_bytes, volume_id=head.volume_id)
        old.name, old.created_at = head.name, head.created_at
        old.dead, old.mapped, old.own = head.dead, head.mapped, head.own
        self.add(old, head.parent)
        self.mark_deleted(old)
        staging.kind = NodeKind.SNAPSHOT
        del self.heads[staging.id]
        staging.flags = staging.flags & ~NodeFlag.STAGING | NodeFlag.HIDDEN
        staging.guid, staging.name, staging.created_at = guid, name, created_at
        staging.generation = self._next_generation()
        self._become(head, staging)

    def _apply_mark(self, payload: bytes) -> None:
        for at in range(0, len(payload), layout.MARK.size):
            chunk, bad = layout.MARK.unpack_from(payload, at)
            if not self.births.may_be_named(np.array([chunk], np.uint32)):
                raise LayoutError(f"MARK of chunk {chunk}, which holds no payload")
            self.births.mark(chunk, bad=bool(bad))

    def _apply_separate(self, payload: bytes) -> None:
        """A node that inherits nothing leaves its parent. What its deadlist names, the parent's side alone holds."""
        (node_id,) = layout.unpack_fields(layout.NODE_ID, payload)
        node = self.node(node_id)
        if node.parent is None:
            raise LayoutError(f"SEPARATE of node {node_id}, which has no parent")
        node.detach()
        node.attach(None)
        node.dead = Deadlist()
        self.count_structure(node)

    def _apply_adopt(self, payload: bytes) -> None:
        node_id, items = layout.unpack_map(payload)
        node = self.node(node_id)
        limit = node.map.count * LEAF_ENTRIES
        for index, count, entry in items:
            if not count or index + count > limit or entry == EMPTY or entry + count > layout.MAX_CHUNKS:
                raise LayoutError(f"ADOPT of node {node_id}: {index}+{count} -> {entry} is out of range")
            for number in range(index >> LEAF_SHIFT, (index + count - 1 >> LEAF_SHIFT) + 1):
                self._need_below(node, number)
        if not items:
            raise LayoutError(f"ADOPT of node {node_id} without items")
        adopt(self, node, items)

    def _apply_metadata(self, payload: bytes) -> None:
        first, count = layout.unpack_fields(layout.METADATA, payload)
        if first + count > layout.MAX_CHUNKS:
            raise LayoutError(f"METADATA chunks {first}+{count} are out of range")
        for chunk in range(first, first + count):
            self.births.set(chunk, BIRTH_METADATA)
