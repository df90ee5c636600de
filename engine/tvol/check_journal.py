"""The journal as ``twinvol check`` replays it: into plain arrays, with the simplest meaning of every record.

Deadlists and the order of reclaiming follow from maps and generations, so they are not kept here: once a record has
removed something, a chunk that no map names any more is free. After a merge that is found by looking through all maps,
and so not before somebody asks. What remains to be verified is what a record itself
claims: nodes that exist, places within a map, chunks that nothing else names.

The chain ends at the first bytes that are not the expected record, as it does for a recovery. ``committed`` are the
records that a power loss leaves in force, ``soft`` those that only an opening on the same boot takes over. Where the
chain ends, but a later COMMIT of the same incarnation covers what should stand there, it was damaged (what else such a
one covers is committed). On the same boot it was, too, where any later COMMIT follows, and where the record that should
stand there lies in one sector, which no kill tears.

Of the two copies of each COMMIT one is enough: rot, or a power loss before the flush had ended, has taken the other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import EngineError
from engine.tvol import layout
from engine.tvol.check_image import Node
from engine.tvol.layout import LayoutError, NodeFlag, NodeKind, RecordType
from engine.tvol.layout_notes import HoldRecord, NodeText

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.files import BlockFile
    from engine.tvol.check_image import Findings, Image
    from engine.tvol.check_maps import Top, Words

_PIECE = 1 << 16
MAX_GROWTH_CHUNKS = 1 << 20
"""How far behind the end of the file a record may place a chunk whose data a crash has taken."""


def read_chain(
    file: BlockFile, image: Image, findings: Findings, boot_id: str
) -> tuple[list[layout.Record], list[layout.Record]]:
    """The valid records from the superblock's position on: (committed, soft). ``boot_id``: of the host now."""
    superblock = image.superblock
    size = superblock.journal_chunks * superblock.chunk_bytes
    ring = memoryview(bytearray(size))
    try:
        file.read_into([ring], layout.JOURNAL_FIRST_CHUNK * superblock.chunk_bytes)
    except EngineError as error:
        findings.damage("journal", f"cannot be read: {error}")
        return [], []
    same_boot = superblock.boot_id == boot_id
    records: list[layout.Record] = []
    covered = consumed = 0
    offset, seq, previous = superblock.journal_offset, superblock.journal_seq, superblock.journal_previous
    while True:
        record = layout.parse_record(ring, offset, seq, superblock.incarnation, previous)
        if record is None:
            record = _lost_copy(ring, offset, seq, superblock.incarnation, records, previous)
            if record is None:
                break
            findings.note("journal", f"record {seq}, a COMMIT, does not verify; its copy does")
        consumed += record.length
        if record.length == 0 or consumed > size:
            findings.damage("journal", f"record {seq} runs over the begin of its own chain")
            break
        records.append(record)
        offset, seq, previous = (offset + record.length) % size, seq + 1, record.checksum
        if record.type == RecordType.COMMIT:
            covered = max(covered, _covers(record))
    witness = _later_commit(ring, seq, superblock.incarnation)
    if witness is not None and (same_boot or witness[1] >= seq):
        findings.damage("journal", f"record {seq} does not verify, but record {witness[0]} says that it was there")
    elif same_boot and layout.is_rotten(ring, offset, seq, superblock.incarnation, previous):
        if _wants_copy(records):
            findings.note("journal", f"record {seq}, a COMMIT, does not verify; its copy does")
        else:
            findings.damage("journal", f"record {seq} does not verify, though no kill can tear it")
    if witness is not None:
        covered = max(covered, witness[1])
    committed = sum(record.seq <= covered for record in records)
    return records[:committed], records[committed:]


def _lost_copy(
    ring: memoryview, offset: int, seq: int, incarnation: int, before: list[layout.Record], previous: int
) -> layout.Record | None:
    """One of the two copies of a COMMIT, made from the other, if what follows was written behind it."""
    end = (offset // layout.COMMIT_ALIGNMENT + 1) * layout.COMMIT_ALIGNMENT
    behind = end % len(ring)
    at = behind + layout.RECORD_HEADER.size
    candidates = [bytes(ring[at : at + layout.COMMIT.size])]
    if before and before[-1].type == RecordType.COMMIT:
        candidates.append(before[-1].payload)
    for payload in candidates:
        _, checksum = layout.pack_record(RecordType.COMMIT, seq, incarnation, previous, payload, end - offset)
        if layout.parse_record(ring, behind, seq + 1, incarnation, checksum) is not None:
            return layout.Record(RecordType.COMMIT, seq, checksum, end - offset, payload)
    return None


def _wants_copy(records: list[layout.Record]) -> bool:
    """Whether the last record is the first copy of a COMMIT. No two COMMITs cover the same."""
    if not records or records[-1].type != RecordType.COMMIT:
        return False
    return all((each.type, each.payload) != (records[-1].type, records[-1].payload) for each in records[-2:-1])


def _later_commit(ring: memoryview, end_seq: int, incarnation: int) -> tuple[int, int] | None:
    """Of the valid COMMITs behind ``end_seq``, at which the chain ended, the one that covers most: (number, covers)."""
    words = np.frombuffer(ring, dtype="<u4").reshape(-1, layout.RECORD_UNIT // 4)
    found: list[tuple[int, int]] = []
    for unit in np.flatnonzero(words[:, 2] == layout.RECORD_MAGIC).tolist():
        offset = unit * layout.RECORD_UNIT
        header: tuple[int, ...] = layout.RECORD_HEADER.unpack_from(ring, offset)
        _, _, kind, _, _, _, seq, made_in, _, previous = header
        if kind == RecordType.COMMIT and made_in == incarnation and seq > end_seq:
            record = layout.parse_record(ring, offset, seq, incarnation, previous)
            if record is not None:
                found.append((seq, _covers(record)))
    return max(found, key=lambda commit: commit[1], default=None)


def _covers(record: layout.Record) -> int:
    """Up to which record a COMMIT says that all is durable; 0 if it says nonsense (found when it is replayed)."""
    if len(record.payload) < layout.COMMIT.size:
        return 0
    (covers,) = layout.unpack_fields(layout.COMMIT, record.payload)
    return covers if covers < record.seq else 0


class Replay:
    """Applies records to an image, in place."""

    def __init__(self, image: Image, findings: Findings) -> None:
        self._image = image
        self._findings = findings
        self._maps = image.maps
        self._merged = False
        """Since it was last looked what no map names any more."""
        self._slots_on = np.zeros(0, np.uint32)
        """How many slots name each chunk; empty while there are none."""
        self._apply: dict[int, Callable[[layout.Record], None]] = {
            RecordType.PAD: lambda record: None,
            RecordType.COMMIT: self._commit,
            RecordType.MAP: self._map,
            RecordType.SNAPSHOT_BEGIN: self._snapshot_begin,
            RecordType.SNAPSHOT_SEAL: self._snapshot_seal,
            RecordType.CLONE: self._clone,
            RecordType.ROLLBACK: self._rollback,
            RecordType.DELETE: self._delete,
            RecordType.MERGE: self._merge,
            RecordType.RECLAIM: lambda record: None,
            RecordType.RESIZE: self._resize,
            RecordType.RENAME: self._rename,
            RecordType.STAGING_BEGIN: self._staging_begin,
            RecordType.STAGING_COMMIT: self._staging_commit,
            RecordType.METADATA: self._metadata,
            RecordType.FAILED: lambda record: None,
            RecordType.PARTIAL: self._partials,
            RecordType.SHARE: self._share_chunks,
            RecordType.MARK: self._mark,
            RecordType.HOLD: self._hold,
            RecordType.RELEASE: self._release,
            RecordType.DESCRIBE: self._describe,
            RecordType.GROUP_PREPARE: self._group_prepare,
            RecordType.SEPARATE: self._separate,
            RecordType.ADOPT: self._adopt,
        }
        self._free_unnamed()

    def run(self, records: list[layout.Record]) -> None:
        """Apply them; the first that cannot be meant ends it with a finding."""
        for record in records:
            apply = self._apply.get(record.type)
            try:
                if apply is None:
                    raise LayoutError(f"unknown type {record.type}")
                apply(record)
            except LayoutError as error:
                self._findings.damage(f"journal record {record.seq}", str(error))
                return
        self._settle()

    def _settle(self) -> bool:
        """Free what merges have left without a name. Returns whether there were any."""
        merged, self._merged = self._merged, False
        if merged:
            self._free_unnamed()
        return merged

    def _free_unnamed(self) -> None:
        """What is waiting to be reclaimed counts as free, and so does what no map names."""
        image = self._image
        for number in [n for n, node in image.nodes.items() if node.record.flags & NodeFlag.RECLAIMING]:
            del image.nodes[number]
        image.reclaim = image.reclaim[:0]
        named = np.zeros(len(image.births), bool)
        slots_named = np.zeros(len(image.slots), bool)
        for node in image.nodes.values():
            parent = image.nodes.get(node.record.parent)
            for _, entries in self._maps.leaves(node.tops, parent.tops if parent else ()):
                claims = self._claims(entries)
                named[claims[claims < len(named)]] = True
                slots = claims[claims >= layout.SLOT_BIT] - layout.SLOT_BIT
                slots_named[slots[slots < len(slots_named)]] = True
        image.slots[~slots_named] = 0
        chunks = image.slots[slots_named, 0]
        shared = np.zeros(len(image.births), bool)
        shared[chunks[chunks < len(shared)]] = True
        if len(image.slots):
            self._slots_on = np.zeros(len(shared), np.uint32)
            np.add.at(self._slots_on, chunks[chunks < len(shared)], 1)
        unnamed = np.flatnonzero(~named & (image.births != layout.BIRTH_METADATA) & (image.births != layout.BIRTH_FREE))
        image.births[unnamed] = np.where(shared[unnamed], layout.BIRTH_SHARED, layout.BIRTH_FREE)
        image.partials[unnamed[~shared[unnamed]]] = 0

    def _node(self, number: int) -> Node:
        try:
            return self._image.nodes[number]
        except KeyError:
            raise LayoutError(f"no node {number}") from None

    def _change(self, changed: Node, /, **fields: object) -> None:
        changed.record = replace(changed.record, **fields)  # type: ignore[arg-type]

    def _children(self, node: Node) -> list[Node]:
        return [other for other in self._image.nodes.values() if other.record.parent == node.record.node]

    def _floor(self, node: Node) -> int:
        parent = self._image.nodes.get(node.record.parent)
        return parent.record.generation if parent else 0

    def _share(self, source: Node) -> list[Top]:
        """A copy of a map; neither owns a leaf afterwards."""
        return self._maps.share(source.tops)

    def _grow_generation(self) -> int:
        file = self._image.file
        self._image.file = replace(file, generation=file.generation + 1)
        return file.generation

    # Maps

    def _claims(self, entries: Words) -> Words:
        """All claims of a leaf's entries, EMPTY and ZERO among them."""
        partial = entries >= layout.PARTIAL
        chunks = entries[partial] - np.uint32(layout.PARTIAL)
        known = chunks[chunks < len(self._image.partials)]
        return np.concatenate([entries[~partial], known, self._image.partials[known, 0]])

    def _commit(self, record: layout.Record) -> None:
        (covers,) = layout.unpack_fields(layout.COMMIT, record.payload)
        if covers >= record.seq:
            raise LayoutError(f"COMMIT covers record {covers}, which comes later")

    def _map(self, record: layout.Record) -> None:
        number, items = layout.unpack_map(record.payload)
        node = self._node(number)
        chunks = -(-node.record.size_bytes // self._image.superblock.chunk_bytes)
        for first, count, entry in items:
            if first + count > chunks:
                raise LayoutError(f"maps {first}+{count} of the {chunks} chunks of {node.where}")
            if entry >= layout.FIRST_CHUNK_ENTRY:
                self._place(node, entry, count)
            for step in range(count):
                value = entry + step if entry >= layout.FIRST_CHUNK_ENTRY else entry
                self._set(node, first + step, value)

    def _place(self, node: Node, entry: int, count: int) -> None:
        image = self._image
        end = entry + count
        if end > min(layout.MAX_CHUNKS, image.file_chunks + MAX_GROWTH_CHUNKS):
            raise LayoutError(f"places chunk {end - 1} in a file of {image.file_chunks}")
        self._grow(end)
        while len(taken := np.flatnonzero(image.births[entry:end] != layout.BIRTH_FREE)):
            if not self._settle():
                raise LayoutError(f"places chunk {entry + int(taken[0])} in {node.where}, but it is in use")
        image.births[entry:end] = node.record.generation or image.file.generation
        image.digested[entry:end] = False  # it was free: its digest ended then

    def _grow(self, end: int) -> None:
        """Cover chunks up to this one, and some more: those are free."""
        image = self._image
        if end > len(image.births):
            size = max(end, len(image.births) + len(image.births) // 8)
            image.births, image.partials = _longer(image.births, size), _longer(image.partials, size)

    def _set(self, node: Node, index: int, value: int, keep: int = layout.EMPTY) -> None:
        """Change an entry; what it named ends, except the claim to keep."""
        old = self._maps.entry(node.tops, index)
        self._maps.change(node.tops, index, value)
        for child in self._chain_below(node):  # a write of an old epoch, published late
            if child.record.size_bytes <= index * self._image.superblock.chunk_bytes:
                break
            if self._maps.entry(child.tops, index) != old:
                break
            self._maps.change(child.tops, index, value)
        for claim in self._claims(np.array([old], np.uint32)).tolist():
            if claim != keep:
                self._end(claim, self._floor(node))

    def _end(self, claim: int, floor: int) -> None:
        if claim >= layout.SLOT_BIT:
            self._end_slot(claim - layout.SLOT_BIT, floor)
        elif claim >= layout.FIRST_CHUNK_ENTRY and self._image.births[claim] > floor:
            shared = claim < len(self._slots_on) and self._slots_on[claim]
            self._image.births[claim] = layout.BIRTH_SHARED if shared else layout.BIRTH_FREE
            self._image.partials[claim] = 0

    def _partials(self, record: layout.Record) -> None:
        number, items = layout.unpack_partial(record.payload)
        node = self._node(number)
        size = -(-node.record.size_bytes // self._image.superblock.chunk_bytes)
        for index, chunk, base, mask in items:
            if index >= size:
                raise LayoutError(f"maps {index} of the {size} chunks of {node.where}")
            old = self._maps.entry(node.tops, index)
            if base != layout.EMPTY and base not in self._claims(np.array([old], np.uint32)):
                raise LayoutError(f"keeps {base:#x} at {index} of {node.where}, which does not name it")
            if old == layout.PARTIAL + chunk:
                self._widen(node, index, chunk, base, mask)
                continue
            self._place(node, chunk, 1)
            if base == layout.EMPTY:
                self._set(node, index, chunk)
            else:
                self._set(node, index, layout.PARTIAL + chunk, base)
                self._image.partials[chunk] = (base, mask)

    def _widen(self, node: Node, index: int, chunk: int, base: int, mask: int) -> None:
        """More pages of a partial chunk; a head's that has them all is an ordinary one."""
        row = self._image.partials[chunk]
        row[1] |= mask
        if row[1] == layout.FULL_MASK and node.record.kind == NodeKind.HEAD:
            self._set(node, index, chunk, chunk)
            row[:] = 0

    def _end_slot(self, slot: int, floor: int) -> None:
        image = self._image
        chunk, birth = image.slots[slot].tolist()
        if birth > floor:
            image.slots[slot] = 0
            self._slots_on[chunk] -= 1
            if image.births[chunk] == layout.BIRTH_SHARED and not self._slots_on[chunk]:
                image.births[chunk] = layout.BIRTH_FREE

    def _share_chunks(self, record: layout.Record) -> None:
        if not self._image.superblock.incompatible & layout.Feature.SHARED_CHUNKS:
            raise LayoutError("SHARE in a file whose superblock does not announce it")
        number, items = layout.unpack_share(record.payload)
        node = self._node(number)
        size = -(-node.record.size_bytes // self._image.superblock.chunk_bytes)
        self._settle()
        self._room_for_slots(items)
        for first, count, slot, chunk in items:
            if first + count > size:
                raise LayoutError(f"maps {first}+{count} of the {size} chunks of {node.where}")
            for step in range(count):
                if chunk < layout.FIRST_CHUNK_ENTRY:
                    self._set(node, first + step, chunk)
                else:
                    self._make_slot(slot + step, chunk + step, node)
                    self._set(node, first + step, layout.SLOT_BIT + slot + step)

    def _room_for_slots(self, items: list[tuple[int, int, int, int]]) -> None:
        image = self._image
        end = max(slot + count for _, count, slot, _ in items)
        if end > len(image.slots) + sum(count for _, count, _, _ in items):
            raise LayoutError(f"makes slot {end - 1} of {len(image.slots)}")
        image.slots = np.concatenate([image.slots, np.zeros((max(0, end - len(image.slots)), 2), np.uint32)])
        if len(image.births) > len(self._slots_on):
            self._slots_on = _longer(self._slots_on, len(image.births))

    def _make_slot(self, slot: int, chunk: int, node: Node) -> None:
        image = self._image
        if image.slots[slot, 1] != layout.BIRTH_FREE:
            raise LayoutError(f"makes slot {slot}, but it is in use")
        if chunk >= len(image.births) or image.births[chunk] in (layout.BIRTH_FREE, layout.BIRTH_METADATA):
            raise LayoutError(f"makes slot {slot} of chunk {chunk}, which holds no payload")
        if image.partials[chunk, 1]:
            raise LayoutError(f"makes slot {slot} of chunk {chunk}, which is a partial one")
        image.slots[slot] = (chunk, node.record.generation or image.file.generation)
        self._slots_on[chunk] += 1

    def _chain_below(self, node: Node) -> list[Node]:
        chain = []
        while node.record.kind == NodeKind.SNAPSHOT:
            children = self._children(node)
            if len(children) != 1:
                break
            node = children[0]
            chain.append(node)
        return chain

    def _resize(self, record: layout.Record) -> None:
        number, size = layout.unpack_fields(layout.RESIZE, record.payload)
        node = self._node(number)
        chunk_bytes = self._image.superblock.chunk_bytes
        old, new = -(-node.record.size_bytes // chunk_bytes), -(-size // chunk_bytes)
        leaves = self._maps.leaves(list(node.tops), first=new // layout.LEAF_ENTRIES) if new < old else ()
        for leaf, entries in leaves:
            for index in (np.flatnonzero(entries) + leaf * layout.LEAF_ENTRIES).tolist():
                if new <= index < old:
                    self._set(node, index, layout.EMPTY)
        self._change(node, size_bytes=size)

    def _mark(self, record: layout.Record) -> None:
        image = self._image
        bad = set(image.bad)
        for chunk, is_bad in layout.MARK.iter_unpack(record.payload):
            if chunk >= len(image.births) or image.births[chunk] in (layout.BIRTH_FREE, layout.BIRTH_METADATA):
                raise LayoutError(f"marks chunk {chunk}, which holds no payload")
            (bad.add if is_bad else bad.discard)(chunk)
        image.bad = tuple(sorted(bad))

    def _metadata(self, record: layout.Record) -> None:
        first, count = layout.unpack_fields(layout.METADATA, record.payload)
        image = self._image
        if first + count > min(layout.MAX_CHUNKS, image.file_chunks + MAX_GROWTH_CHUNKS):
            raise LayoutError(f"reserves chunks {first}+{count} in a file of {image.file_chunks}")
        self._grow(first + count)
        while (image.births[first : first + count] != layout.BIRTH_FREE).any():
            if not self._settle():
                raise LayoutError(f"reserves chunks {first}+{count} for metadata, but one is in use")
        image.births[first : first + count] = layout.BIRTH_METADATA

    # The tree

    def _new(self, number: int, template: Node, tops: list[Top], **fields: object) -> None:
        if number in self._image.nodes or number == 0:
            raise LayoutError(f"makes node {number}, which exists")
        node = Node(template.record, tops)
        self._change(node, node=number, flags=0, generation=0, guid="", **fields)
        self._image.nodes[number] = node

    def _snapshot_of(self, number: int) -> Node:
        node = self._node(number)
        if node.record.kind != NodeKind.SNAPSHOT:
            raise LayoutError(f"node {number} is not a snapshot")
        return node

    def _head_of(self, number: int) -> Node:
        node = self._node(number)
        if node.record.kind != NodeKind.HEAD:
            raise LayoutError(f"node {number} is not a head")
        return node

    def _snapshot_begin(self, record: layout.Record) -> None:
        head_id, number, flags, _ = layout.unpack_fields(layout.SNAPSHOT_BEGIN, record.payload)
        (_, name), _ = layout.unpack_text(record.payload, layout.SNAPSHOT_BEGIN.size, 2)
        head = self._head_of(head_id)
        self._new(number, head, self._share(head), kind=NodeKind.SNAPSHOT, name=name)
        self._change(self._node(number), generation=self._grow_generation(), flags=flags | NodeFlag.UNSEALED)
        self._change(head, parent=number)

    def _snapshot_seal(self, record: layout.Record) -> None:
        (number,) = layout.unpack_fields(layout.NODE_ID, record.payload)
        node = self._snapshot_of(number)
        self._change(node, flags=node.record.flags & ~(NodeFlag.UNSEALED | NodeFlag.PREPARED))

    def _group_prepare(self, record: layout.Record) -> None:
        if len(record.payload) % layout.NODE_ID.size:
            raise LayoutError(f"prepares nodes in {len(record.payload)} bytes")
        for (number,) in layout.NODE_ID.iter_unpack(record.payload):
            node = self._snapshot_of(number)
            if not node.record.flags & NodeFlag.UNSEALED:
                raise LayoutError(f"prepares {node.where}, which is not an unsealed snapshot")
            self._change(node, flags=node.record.flags & ~NodeFlag.UNSEALED | NodeFlag.PREPARED)

    def _clone(self, record: layout.Record) -> None:
        source_id, number, _ = layout.unpack_fields(layout.CLONE, record.payload)
        (volume_id, name), _ = layout.unpack_text(record.payload, layout.CLONE.size, 2)
        source = self._snapshot_of(source_id)
        self._new(
            number, source, self._share(source), kind=NodeKind.HEAD, parent=source_id, volume_id=volume_id, name=name
        )
        self._grow_generation()

    def _become(self, head: Node, target: Node) -> None:
        """A head that has nothing of its own shows a snapshot from now on."""
        self._grow_generation()
        head.tops = self._share(target)
        self._change(head, parent=target.record.node, size_bytes=target.record.size_bytes)

    def _rollback(self, record: layout.Record) -> None:
        head_id, target_id = layout.unpack_fields(layout.ROLLBACK, record.payload)
        head = self._head_of(head_id)
        floor = self._floor(head)
        for _, entries in self._maps.leaves(head.tops):
            claims = self._claims(entries[entries >= layout.FIRST_CHUNK_ENTRY])
            slots = claims >= layout.SLOT_BIT
            births = (self._image.births[claims[~slots]], self._image.slots[claims[slots] - layout.SLOT_BIT, 1])
            if (np.concatenate(births) > floor).any():
                raise LayoutError(f"rolls back {head.where}, which has chunks of its own")
        self._become(head, self._snapshot_of(target_id))

    def _delete(self, record: layout.Record) -> None:
        for (number,) in layout.NODE_ID.iter_unpack(record.payload):
            node = self._node(number)
            self._change(node, flags=(node.record.flags | NodeFlag.DELETED) & ~NodeFlag.PREPARED)
            self._image.holds = {held for held in self._image.holds if held[0] != number}
            self._image.described.discard(number)

    def _hold(self, record: layout.Record) -> None:
        for found in HoldRecord.parse_all(record.payload):
            self._image.holds.add((self._snapshot_of(found.node).record.node, found.owner))

    def _release(self, record: layout.Record) -> None:
        for found in NodeText.parse_all(record.payload):
            if (found.node, found.text) not in self._image.holds:
                raise LayoutError(f"releases a hold that {self._node(found.node).where} does not have")
            self._image.holds.discard((found.node, found.text))

    def _describe(self, record: layout.Record) -> None:
        for found in NodeText.parse_all(record.payload):
            self._image.described.discard(self._snapshot_of(found.node).record.node)
            if found.text:
                self._image.described.add(found.node)

    def _merge(self, record: layout.Record) -> None:
        (number,) = layout.unpack_fields(layout.NODE_ID, record.payload)
        node = self._node(number)
        children = self._children(node)
        if not node.record.flags & NodeFlag.DELETED or len(children) > 1:
            raise LayoutError(f"merges {node.where}, which is not deleted or has {len(children)} children")
        for child in children:
            self._change(child, parent=node.record.parent)
        del self._image.nodes[number]
        self._merged = True

    def _separate(self, record: layout.Record) -> None:
        (number,) = layout.unpack_fields(layout.NODE_ID, record.payload)
        node = self._node(number)
        floor = self._floor(node)
        for _, entries in self._maps.leaves(node.tops):
            claims = self._claims(entries[entries >= layout.FIRST_CHUNK_ENTRY])
            slots = claims >= layout.SLOT_BIT
            births = (self._image.births[claims[~slots]], self._image.slots[claims[slots] - layout.SLOT_BIT, 1])
            if (np.concatenate(births) <= floor).any():
                raise LayoutError(f"separates {node.where}, which inherits chunks")
        self._change(node, parent=0)

    def _adopt(self, record: layout.Record) -> None:
        """What a node inherits at some places becomes something else in it and in all below that inherit it."""
        number, items = layout.unpack_map(record.payload)
        top = self._node(number)
        floor, size = self._floor(top), -(-top.record.size_bytes // self._image.superblock.chunk_bytes)
        tree = [top]
        for node in tree:  # which grows meanwhile
            tree += self._children(node)
        for first, count, entry in items:
            if first + count > size:
                raise LayoutError(f"maps {first}+{count} of the {size} chunks of {top.where}")
            if entry >= layout.FIRST_CHUNK_ENTRY:
                self._place(top, entry, count)
            for step in range(count):
                value = entry + step if entry >= layout.FIRST_CHUNK_ENTRY else entry
                if not [node for node in tree if self._adopt_at(node, first + step, value, floor)]:
                    raise LayoutError(f"replaces what {top.where} inherits at {first + step}, where it does not")

    def _adopt_at(self, node: Node, index: int, value: int, floor: int) -> bool:
        """Whether a node inherited something at an index, or did until now."""
        image, old = self._image, self._maps.entry(node.tops, index)
        chunk = old - layout.PARTIAL
        if old >= layout.PARTIAL and chunk < len(image.births) and image.births[chunk] > floor:
            base = int(image.partials[chunk, 0])
            if base != value and self._birth(base) > floor:
                return False
            image.partials[chunk, 0] = value
            return True
        if old < layout.FIRST_CHUNK_ENTRY or (old < layout.PARTIAL and self._birth(old) > floor):
            return False
        self._maps.change(node.tops, index, value)
        return True

    def _birth(self, claim: int) -> int:
        """Of a chunk or a slot."""
        slot = claim - layout.SLOT_BIT
        birth = self._image.slots[slot, 1] if slot >= 0 else self._image.births[claim]
        return int(birth)

    def _rename(self, record: layout.Record) -> None:
        (number,) = layout.unpack_fields(layout.NODE_ID, record.payload)
        (name,), _ = layout.unpack_text(record.payload, layout.NODE_ID.size, 1)
        self._change(self._node(number), name=name)

    def _staging_begin(self, record: layout.Record) -> None:
        head_id, base_id, number, _ = layout.unpack_fields(layout.STAGING_BEGIN, record.payload)
        head = self._head_of(head_id)
        base = self._snapshot_of(base_id) if base_id else None
        size = base.record.size_bytes if base else head.record.size_bytes
        self._new(number, head, self._share(base) if base else [], parent=base_id, size_bytes=size)
        self._change(self._node(number), flags=NodeFlag.STAGING)
        self._grow_generation()

    def _staging_commit(self, record: layout.Record) -> None:
        staging_id, head_id, old_id, _ = layout.unpack_fields(layout.STAGING_COMMIT, record.payload)
        (_, name), _ = layout.unpack_text(record.payload, layout.STAGING_COMMIT.size, 2)
        staging, head = self._head_of(staging_id), self._head_of(head_id)
        self._new(old_id, head, self._share(head))
        self._change(self._node(old_id), flags=NodeFlag.DELETED)
        generation = self._grow_generation()
        self._change(staging, kind=NodeKind.SNAPSHOT, flags=NodeFlag.HIDDEN, name=name, generation=generation)
        self._become(head, staging)


def _longer(array: Words, size: int) -> Words:
    """With zeroes behind. What is zero already takes no memory in the copy either."""
    longer = np.zeros((size, *array.shape[1:]), array.dtype)
    for first in range(0, len(array), _PIECE):
        part = array[first : first + _PIECE]
        if part.any():
            longer[first : first + len(part)] = part
    return longer
