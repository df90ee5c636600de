"""The family tree: what every journal record does to it.

This is the state that the journal describes. Replay at open and the running store change it through the same methods:
``set_entry`` and ``fill`` for map changes (``map_changes.py``), ``apply`` for all other records. Nothing here does I/O,
reads a clock or depends on anything but the records in order.

Rules kept here (STORE section 3, each with the simulation that fails without it):

* ``generation`` grows with every snapshot, clone, rollback and staging commit. A snapshot's generation is the value
  at its flip; chunks are born with the value at their publication, or with their snapshot's when an old epoch's write
  is published after the flip.
* A node's ``floor`` is its parent's generation: what was born above it belongs to the node alone.
* A deleted node keeps its place, and so its child's floor, until MERGE; a MERGE is logged only when the DELETE is
  durable. No child: its own chunks are reclaimed leaf by leaf. One child: the deadlists merge. More: it waits.
* What a clone inherits is replaced in all of its nodes at once (ADOPT, ``adoption.py``); a node that inherits nothing
  may leave its parent (SEPARATE, ``flatten.py``).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol import layout
from engine.tvol.adoption import adopt
from engine.tvol.chunk_map import LEAF_SHIFT, ChunkMap, leaf_count
from engine.tvol.deadlist import Deadlist
from engine.tvol.layout import (
    BIRTH_METADATA,
    EMPTY,
    LEAF_ENTRIES,
    LayoutError,
    NodeFlag,
    NodeKind,
    RecordType,
)
from engine.tvol.map_changes import MapChanges
from engine.tvol.nodes import Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.tvol.births import Births
    from engine.tvol.claims import Claims

RECLAIM_STEP_CHUNKS = 2048
"""What one RECLAIM step takes from the queue at most."""


class Family(MapChanges):
    """The nodes of a file, and all that records do to them."""

    def __init__(self, births: Births, chunk_bytes: int, claims: Claims | None = None) -> None:
        super().__init__(births, chunk_bytes, claims)
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
