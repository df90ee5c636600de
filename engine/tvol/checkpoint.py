"""The checkpoint: metadata pages, then the superblock, then the journal's space is free again.

It runs while reads and writes go on. ``_capture`` takes the state at one instant in the loop: leaves are frozen (the
maps copy them on the next change), tables are copied page by page as they are written or changed (``table_pages.py``),
and only nodes that were touched since the last checkpoint are looked at. Pages are shadow-written to places that
neither superblock slot refers to. The order, each step durable before the next:

    pages -> sync -> first superblock slot -> sync -> second slot -> sync -> old journal space and old pages are free

Which pages are old follows from what it wrote in place of what: ``PageChanges``. A top page that no node refers to any
more is read once again, for the leaves that it referred to. Maps of sealed snapshots are unloaded in the end.

The first sync also covers the data of every record up to the captured one, so a checkpoint commits what it contains.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_64_intdigest as checksum64

from engine.errors import MediumError, OutOfSpace
from engine.tvol import layout, superblock
from engine.tvol.chunk_map import ABSENT_LEAF, NO_PAGE, ChunkMap, Leaf, pack_top
from engine.tvol.deadlist import Deadlist, pack_buckets, word_pages
from engine.tvol.layout import (
    PAGE_SIZE,
    REFS_PER_INDEX_PAGE,
    TOP_ENTRIES,
    TOP_ENTRY,
    DigestsRecord,
    Feature,
    FileRecord,
    NodeKind,
    NodeRecord,
    PageRef,
    PartialsRecord,
    ReadOnlyFeature,
    RootType,
    Superblock,
    WordsRecord,
)
from engine.tvol.map_reader import MAY_CHANGE, MapSource
from engine.tvol.node_table import StoredNode
from engine.tvol.pages import PageChanges

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator, Sequence

    from engine.tvol.core import Core
    from engine.tvol.deadlist import Part
    from engine.tvol.layout_encryption import EncryptionRecord
    from engine.tvol.nodes import Node
    from engine.tvol.table_pages import TablePages
    from engine.tvol.tree import Family

_LOG = logging.getLogger(__name__)

_NODES_PER_TURN = 16
BATCH_PAGES = 64
"""Pages (1 MiB) that one worker call writes; between calls the loop serves others."""
_FREED_PER_TURN = 2048
TOUCHED_MAX = 64
"""More touched nodes than that, and a checkpoint is due: it looks at each of them in one turn of the loop, and a new
snapshot's list of leaves (32 KiB for each TiB) is in memory until then."""
TOP_DTYPE = np.dtype([("page", "<u4"), ("birth", "<u4"), ("checksum", "<u8")])
assert TOP_DTYPE.itemsize == TOP_ENTRY.size


@dataclass(slots=True)
class _NodeCapture:
    node: Node
    key: object
    """What the record says besides pages and deadlist counts."""
    record: NodeRecord
    map: ChunkMap
    tops: list[PageRef]
    parts: dict[int, list[Leaf]]
    """The leaves of each top that is to be written; the other tops stand."""
    dead: Deadlist
    buckets: list[tuple[int, array[int], int]] | None
    """None: the pages of the last checkpoint stand."""


@dataclass(slots=True)
class _Capture:
    """The state at the instant of the checkpoint."""

    seq: int
    position: int
    offset: int
    previous: int
    end_chunk: int
    file: FileRecord
    births_count: int
    births: list[int]
    slots_count: int
    slots: list[int]
    partials: dict[int, bytes]
    """Changed pages of the table of partial chunks; empty where no row is left."""
    features: Feature
    encryption: EncryptionRecord | None
    bits: dict[int, bytes]
    digests: dict[int, bytes]
    bad: tuple[int, ...]
    has_digests: bool
    reclaim: list[Part]
    nodes: list[_NodeCapture]
    gone: list[Node]
    notes: list[tuple[RootType, bytes]]
    clean: bool


class Checkpointer:
    """Writes checkpoints of one store, one at a time."""

    def __init__(
        self,
        core: Core,
        *,
        family_id: bytes,
        sequence: int,
        boot_id: str,
        journal_chunks: int,
        rewritten: tuple[PageRef, ...],
    ) -> None:
        """``rewritten``: pages of the state in force that each checkpoint writes anew (root stream, reclaim queue)."""
        self._core = core
        self._rewritten = rewritten
        self._source = MapSource(core.file)
        self._family_id = family_id
        self._sequence = sequence
        self._boot_id = boot_id
        self._journal_chunks = journal_chunks
        self._next: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._clean = False

    def start(self) -> None:
        """Have a checkpoint made soon, unless one is running: that one frees the journal already."""
        if self._task is None and not self._core.failed:
            self._request()

    def _request(self) -> asyncio.Future[None]:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._run_requested(), name=f"checkpoint {self._core.path.name}")
        return self._next

    async def run(self, *, clean: bool = False) -> None:
        """Make a checkpoint whose capture is not older than this call. Raises StoreFailed, OutOfSpace.

        ``clean``: mark the file as closed; nothing may change afterwards.
        """
        self._clean = self._clean or clean
        await asyncio.shield(self._request())

    async def _run_requested(self) -> None:
        try:
            while self._next is not None:
                request, self._next = self._next, None
                if self._core.pages.headroom() < 0:  # nothing was written: the store goes on
                    request.set_exception(OutOfSpace(f"{self._core.path}: no pages for a checkpoint; free host space"))
                    request.exception()
                    continue
                try:
                    await self._make()
                except Exception as error:
                    request.set_exception(self._core.fail(error))
                    request.exception()
                except BaseException:  # cancelled, or the program ends: nobody may wait for ever
                    request.cancel()
                    raise
                else:
                    request.set_result(None)
        finally:
            self._task = None

    def rename_family(self, family_id: bytes) -> None:
        """The next checkpoints call the file so."""
        self._family_id = family_id

    async def idle(self) -> None:
        """Wait for the running checkpoint to end, whatever its outcome."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _make(self) -> None:
        core = self._core
        core.check()
        core.end_pass()
        capture = self._capture()
        writer = _PageWriter(core)
        root, rewritten = await self._write_state(writer, capture)
        root_refs, index = await self._write_root(writer, root)
        new = self._superblock(capture, root, index)
        await writer.flush()
        rewritten += (*root_refs, *index)
        writer.changes.replace(self._rewritten, rewritten)
        await self._lose_leaves(writer)
        workers = core.env.workers
        await workers.run(self._sync_pages_before_superblock)
        core.check()
        await workers.run(lambda: superblock.write_slot(core.file, 0, new))
        await workers.run(self._sync_first_superblock)
        await workers.run(lambda: superblock.write_slot(core.file, 1, new))
        await workers.run(self._sync_second_superblock)
        core.check()
        self._sequence, self._rewritten = new.sequence, rewritten
        core.family.births.digests.written()
        core.journal.head = capture.position
        await self._free_pages(writer)
        core.pages.end_checkpoint(len(root) // PAGE_SIZE + 1)
        _unload(capture.nodes)
        core.became_durable(capture.seq)

    async def _lose_leaves(self, writer: _PageWriter) -> None:
        """The top pages that no node refers to any more do not refer to their leaves either."""
        writer.changes.add(writer.tops)
        unused = self._core.pages.unused(writer.tops).tolist()
        for at in range(0, len(unused), BATCH_PAGES):
            refs = [PageRef(page, writer.lost_tops[page]) for page in unused[at : at + BATCH_PAGES]]
            writer.changes.lose(await self._core.env.workers.run(functools.partial(self._leaf_pages, refs)))

    def _leaf_pages(self, tops: list[PageRef]) -> list[int]:
        found: list[int] = []
        for ref in tops:
            try:
                found += leaf_pages(self._source.top(ref))
            except MediumError as error:
                _LOG.warning("%s; the pages of its leaves are free again after the next opening only", error)
        return found

    async def _free_pages(self, writer: _PageWriter) -> None:
        freed = self._core.pages.change(writer.changes).tolist()
        for at in range(0, len(freed), _FREED_PER_TURN):
            self._core.pages.free(freed[at : at + _FREED_PER_TURN])
            await asyncio.sleep(0)

    def _sync_pages_before_superblock(self) -> None:
        """Pages, and the data of all captured records, are durable before a superblock refers to them."""
        self._core.sync()

    def _sync_first_superblock(self) -> None:
        """The first slot is durable before the second, still the old one, is overwritten."""
        self._core.sync()

    def _sync_second_superblock(self) -> None:
        """The second slot is durable before anything that only the old state refers to is reused."""
        self._core.sync()

    # --- capture ------------------------------------------------------------------------------------------------

    def _capture(self) -> _Capture:
        """The state now. Nothing in here waits; what is left mutable is not changed any more by anybody."""
        core, family = self._core, self._core.family
        core.pages.begin_checkpoint()
        touched, family.touched = list(family.touched.values()), {}
        gone, family.gone = family.gone, []
        tip, births, claims = core.journal.tip(), family.births, family.claims
        bits, digests = births.digests.capture()
        capture = _Capture(
            seq=tip.last_seq,
            position=tip.position,
            offset=tip.offset,
            previous=tip.previous,
            end_chunk=core.allocator.end,
            file=FileRecord(family.generation, family.next_node, len(family.nodes)),
            births_count=births.count,
            births=births.pages.capture(),
            slots_count=claims.count,
            slots=claims.pages.capture(),
            partials=claims.partials.capture(),
            features=_features(family),
            encryption=family.encryption,
            bits=bits,
            digests=digests,
            bad=tuple(sorted(births.digests.bad)),
            has_digests=births.digests.in_use or bool(births.digests.bad),
            reclaim=family.reclaim.parts(),
            nodes=[found for found in map(_capture_node, touched) if found is not None],
            gone=gone,
            notes=family.notes.records(),
            clean=self._clean,
        )
        family.dirty_leaves = family.dirty_words = family.structure_pages = 0
        core.pages.rebase()
        return capture

    def _superblock(self, capture: _Capture, root: bytes, index: tuple[PageRef, ...]) -> Superblock:
        return Superblock(
            family=self._family_id,
            sequence=self._sequence + 1,
            incarnation=self._core.journal.incarnation,
            clean=capture.clean,
            boot_id=self._boot_id,
            chunk_bytes=self._core.chunk_bytes,
            journal_chunks=self._journal_chunks,
            journal_offset=capture.offset,
            journal_seq=capture.seq + 1,
            journal_previous=capture.previous,
            end_chunk=capture.end_chunk,
            root_length=len(root),
            root_index=index,
            incompatible=capture.features,
            read_only_compatible=ReadOnlyFeature.DIGESTS if capture.has_digests else 0,
        )

    # --- writing ------------------------------------------------------------------------------------------------

    async def _write_state(self, writer: _PageWriter, capture: _Capture) -> tuple[bytes, tuple[PageRef, ...]]:
        """Write everything but the root stream; that, and the pages written that the next checkpoint writes anew."""
        family = self._core.family
        births, claims = family.births.pages, family.claims.pages
        await _write_table(writer, births, capture.births, capture.births_count, 1)
        await _write_table(writer, claims, capture.slots, capture.slots_count, 2)
        queued = sum(end - start for _, start, end in capture.reclaim)
        reclaim = WordsRecord(queued, await writer.add_all(word_pages(capture.reclaim)))
        partials = await self._write_partials(writer, family.claims.partials.pages, capture.partials)
        records: list[tuple[RootType, bytes]] = [
            (RootType.FILE, capture.file.serialize()),
            (RootType.BIRTHS, WordsRecord(capture.births_count, tuple(births.refs)).serialize()),
            (RootType.RECLAIM, reclaim.serialize()),
            (RootType.PARTIALS, partials.serialize()),
        ]
        if capture.features & Feature.SHARED_CHUNKS:
            slots = WordsRecord(2 * capture.slots_count, tuple(claims.refs))
            records.append((RootType.SLOTS, slots.serialize()))
        if capture.encryption is not None:
            records.append((RootType.ENCRYPTION, capture.encryption.serialize()))
        records += capture.notes
        if capture.has_digests:
            records.append((RootType.DIGESTS, (await self._write_digests(writer, capture)).serialize()))
        for node in capture.gone:
            if node.stored is not None:
                _forget_node(writer, node)
                family.table.remove(node.id)
        for number, found in enumerate(capture.nodes):
            family.table.put(found.node.id, await self._write_node(writer, found))
            if not number % _NODES_PER_TURN:
                await asyncio.sleep(0)
        for group, stream, before in family.table.take_changed():
            refs = await writer.add_stream(stream)
            writer.changes.replace(before, refs)
            family.table.stored(group, len(stream), refs)
        records += family.table.root_records()
        root = b"".join(layout.pack_root_record(kind, payload) for kind, payload in records)
        return root, reclaim.pages

    async def _write_digests(self, writer: _PageWriter, capture: _Capture) -> DigestsRecord:
        digests = self._core.family.births.digests
        last = max(capture.bits, default=-1) + 1
        pages = digests.bits_pages + [PageRef(0, 0)] * (last - len(digests.bits_pages))
        for page, data in capture.bits.items():
            ref = await writer.add(data)
            writer.changes.replace([pages[page]], [ref])
            pages[page] = ref
        digests.bits_pages = pages
        for page, data in capture.digests.items():
            ref = await writer.add(data)
            digests.refs[page] = (ref.page, ref.checksum)
        if capture.digests or digests.dirty_refs:
            digests.dirty_refs = False
            before, digests.indexed = digests.indexed, digests.refs.copy()  # more may be added while they are written
            writer.changes.lose(before["page"].tolist())
            writer.changes.gain(digests.indexed["page"].tolist())
            index = await writer.add_stream(digests.indexed.tobytes())
            writer.changes.replace(digests.index, index)
            digests.index = index
        return DigestsRecord(len(digests.indexed), tuple(pages), digests.index, capture.bad)

    async def _write_partials(
        self, writer: _PageWriter, pages: dict[int, PageRef], changed: dict[int, bytes]
    ) -> PartialsRecord:
        """Write the changed pages of the table of partial chunks; where all of its pages are."""
        for number, data in changed.items():
            before = pages.pop(number, NO_PAGE)
            if data:
                pages[number] = await writer.add(data)
            writer.changes.replace([before], [pages.get(number, NO_PAGE)])
        return PartialsRecord(tuple(sorted(pages.items())))

    async def _write_node(self, writer: _PageWriter, capture: _NodeCapture) -> bytes:
        """Write a node's changed pages; its record."""
        node, chunk_map = capture.node, capture.map
        for number, leaves in capture.parts.items():
            for leaf in leaves:
                if not leaf.page and leaf is not ABSENT_LEAF:
                    ref = await writer.add(leaf.array.tobytes())
                    leaf.page, leaf.checksum = ref.page, ref.checksum
            capture.tops[number] = await writer.add_top(leaves)
        for number in chunk_map.writing & capture.parts.keys():  # not those of a map that became another meanwhile
            if number < len(chunk_map.tops):
                chunk_map.tops[number] = capture.tops[number]
        chunk_map.writing = frozenset()
        if capture.buckets is not None:
            capture.dead.pages = await writer.add_all(pack_buckets(capture.buckets))
        tops, dead = tuple(capture.tops), capture.dead.pages
        _forget_node(writer, node)
        writer.refer_to_tops(tops)
        writer.changes.gain(ref.page for ref in dead)
        record = dataclasses.replace(capture.record, top_pages=tops, deadlist_pages=dead).serialize()
        node.stored = StoredNode(capture.key, tops, dead)
        return record

    async def _write_root(self, writer: _PageWriter, root: bytes) -> tuple[tuple[PageRef, ...], tuple[PageRef, ...]]:
        """Write the root stream; its pages and the index pages."""
        refs = await writer.add_stream(root)
        index = [
            await writer.add(layout.pack_refs(refs[at : at + REFS_PER_INDEX_PAGE]))
            for at in range(0, len(refs), REFS_PER_INDEX_PAGE)
        ]
        assert len(index) <= layout.MAX_ROOT_INDEX_PAGES
        return refs, tuple(index)


async def _write_table(writer: _PageWriter, pages: TablePages, captured: list[int], count: int, words: int) -> None:
    """Write the captured pages of a table of ``count`` rows of so many words, and note where all of its pages are."""
    wanted = -(-count * words // layout.WORDS_PER_PAGE)
    refs = pages.refs
    writer.changes.lose(ref.page for ref in refs[wanted:])
    del refs[wanted:]
    refs.extend([NO_PAGE] * (wanted - len(refs)))
    for page in captured:
        ref = await writer.add(pages.take(page))
        if page < wanted:
            writer.changes.replace([refs[page]], [ref])
            refs[page] = ref


def _features(family: Family) -> Feature:
    shares = Feature.SHARED_CHUNKS if family.claims.in_use else Feature(0)
    return Feature.PARTIAL_CHUNKS | shares | (Feature.ENCRYPTION if family.encryption is not None else Feature(0))


def _forget_node(writer: _PageWriter, node: Node) -> None:
    """The node's record of the last checkpoint is none any more."""
    if node.stored is not None:
        writer.no_longer_refer_to_tops(node.stored.tops)
        writer.changes.lose(ref.page for ref in node.stored.dead)


def _unload(captured: list[_NodeCapture]) -> None:
    """The maps of snapshots that cannot change any more are in the file now, and need not be in memory."""
    for capture in captured:
        node, chunk_map = capture.node, capture.map
        if node.kind is NodeKind.SNAPSHOT and not node.flags & MAY_CHANGE and chunk_map.loaded and not chunk_map.dirty:
            chunk_map.unload()


def leaf_pages(top: bytes | bytearray) -> list[int]:
    """The pages that a top page refers to."""
    pages = np.frombuffer(top, TOP_DTYPE)["page"]
    found: list[int] = pages[pages > 0].tolist()
    return found


def node_key(node: Node) -> object:
    """What a node's record says besides pages and deadlist counts."""
    parent = node.parent.id if node.parent else 0
    counts = (node.size_bytes, node.map.count, node.mapped, node.own)
    return parent, node.generation, node.kind, node.flags, counts, node.volume_id, node.guid, node.name, node.created_at


def _capture_node(node: Node) -> _NodeCapture | None:
    """None: the record of the last checkpoint stands."""
    key = node_key(node)
    chunk_map = node.map
    if not chunk_map.dirty and not node.dead.dirty and node.stored is not None and node.stored.key == key:
        return None
    leaves = chunk_map.leaves
    parts = {number: leaves[number * TOP_ENTRIES : (number + 1) * TOP_ENTRIES] for number in sorted(chunk_map.dirty)}
    chunk_map.writing, chunk_map.dirty = frozenset(chunk_map.dirty), set()
    chunk_map.freeze()
    buckets = None
    if node.dead.dirty:
        buckets = node.dead.capture()
        node.dead.dirty = False
    record = NodeRecord(
        node=node.id,
        parent=node.parent.id if node.parent else 0,
        generation=node.generation,
        kind=node.kind,
        flags=node.flags,
        size_bytes=node.size_bytes,
        created_at=node.created_at,
        mapped=node.mapped,
        own=node.own,
        leaf_count=chunk_map.count,
        deadlist_words=node.dead.words(),
        deadlist_buckets=len(node.dead.buckets),
        volume_id=node.volume_id,
        guid=node.guid,
        name=node.name,
        top_pages=(),
        deadlist_pages=(),
    )
    return _NodeCapture(node, key, record, chunk_map, chunk_map.tops.copy(), parts, node.dead, buckets)


class _PageWriter:
    """Gives pages their places and checksums, writes them in batches, and keeps account of references."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._batch: list[tuple[int, bytes]] = []
        self._written_tops: dict[bytes, PageRef] = {}
        self.changes = PageChanges()
        self.tops = PageChanges()
        """Of the changes, the references of nodes to top pages."""
        self.lost_tops: dict[int, int] = {}
        """Page and checksum of the tops among them that were referred to before."""

    async def add(self, data: bytes) -> PageRef:
        """Write one page (zero-padded); where it will be once ``flush`` returned."""
        data = data.ljust(PAGE_SIZE, b"\0")
        page = self._core.pages.take()
        self._batch.append((page, data))
        if len(self._batch) == BATCH_PAGES:
            await self.flush()
        return PageRef(page, checksum64(data))

    async def add_stream(self, data: bytes) -> tuple[PageRef, ...]:
        return await self.add_all(data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE))

    async def add_all(self, pages: Iterable[bytes] | Iterator[bytes]) -> tuple[PageRef, ...]:
        return tuple([await self.add(data) for data in pages])

    async def add_top(self, leaves: list[Leaf]) -> PageRef:
        """A top page, unless this checkpoint has written the same one for another node already."""
        data = pack_top(leaves)
        ref = self._written_tops.get(data)
        if ref is None:
            ref = self._written_tops[data] = await self.add(data)
            self.changes.gain(leaf.page for leaf in leaves)
            while len(self._written_tops) > TOUCHED_MAX:
                del self._written_tops[next(iter(self._written_tops))]
        return ref

    def refer_to_tops(self, tops: Sequence[PageRef]) -> None:
        self.tops.gain(ref.page for ref in tops)

    def no_longer_refer_to_tops(self, tops: Sequence[PageRef]) -> None:
        self.tops.lose(ref.page for ref in tops)
        self.lost_tops.update((ref.page, ref.checksum) for ref in tops)

    async def flush(self) -> None:
        """Hand the gathered pages to a worker and wait for it."""
        batch, self._batch = self._batch, []
        if batch:
            await self._core.env.workers.run(lambda: self._write(batch))

    def _write(self, batch: list[tuple[int, bytes]]) -> None:
        """Adjacent pages in one call."""
        start, buffers = batch[0][0], [memoryview(batch[0][1])]
        for page, data in batch[1:]:
            if page != start + len(buffers):
                self._core.file.write(buffers, start * PAGE_SIZE)
                start, buffers = page, []
            buffers.append(memoryview(data))
        self._core.file.write(buffers, start * PAGE_SIZE)
