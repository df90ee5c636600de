"""The checkpoint: metadata pages, then the superblock, then the journal's space is free again.

It runs while reads and writes go on. ``_capture`` takes the state at one instant in the loop: leaves are frozen (the
maps copy them on the next change), everything small is copied. Pages are shadow-written to places that neither
superblock slot refers to. The order, each step durable before the next:

    pages -> sync -> first superblock slot -> sync -> second slot -> sync -> old journal space and old pages are free

The first sync also covers the data of every record up to the captured one, so a checkpoint commits what it contains.
"""

from __future__ import annotations

import asyncio
import dataclasses
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest as checksum64

from engine.errors import OutOfSpace
from engine.tvol import layout, superblock
from engine.tvol.chunk_map import ABSENT_LEAF, ChunkMap, Leaf
from engine.tvol.deadlist import Deadlist, pack_buckets
from engine.tvol.layout import (
    PAGE_SIZE,
    REFS_PER_INDEX_PAGE,
    TOP_ENTRIES,
    TOP_ENTRY,
    DigestsRecord,
    Feature,
    FileRecord,
    NodeRecord,
    PageRef,
    ReadOnlyFeature,
    RootType,
    Superblock,
    WordsRecord,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.tvol.core import Core
    from engine.tvol.layout_encryption import EncryptionRecord
    from engine.tvol.tree import Family, Node

_NODES_PER_TURN = 64
_BATCH_PAGES = 64
"""Pages (1 MiB) that one worker call writes; between calls the loop serves others."""


@dataclass(slots=True)
class _NodeCapture:
    node: Node
    key: object
    """What the record says besides pages and deadlist counts."""
    record: NodeRecord | None
    """None: the record of the last checkpoint stands (2,000 unchanged snapshots must not hold up the loop)."""
    map: ChunkMap
    leaves: list[Leaf] | None
    """The leaves if the map is dirty, else None: its pages of the last checkpoint stand."""
    dead: Deadlist
    buckets: list[tuple[int, array[int], int]] | None


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
    births: dict[int, bytes]
    slots_count: int
    slots: dict[int, bytes]
    features: Feature
    encryption: EncryptionRecord | None
    bits: dict[int, bytes]
    digests: dict[int, bytes]
    bad: tuple[int, ...]
    has_digests: bool
    reclaim: list[array[int]]
    nodes: list[_NodeCapture]
    notes: list[tuple[RootType, bytes]]
    free: list[int]
    clean: bool
    reachable: set[int] = field(default_factory=set)


class Checkpointer:
    """Writes checkpoints of one store, one at a time."""

    def __init__(self, core: Core, *, family_id: bytes, sequence: int, boot_id: str, journal_chunks: int) -> None:
        self._core = core
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
                except asyncio.CancelledError:
                    request.cancel()
                    raise
                except Exception as error:
                    request.set_exception(self._core.fail(error))
                    request.exception()
                else:
                    request.set_result(None)
        finally:
            self._task = None

    async def idle(self) -> None:
        """Wait for the running checkpoint to end, whatever its outcome."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _make(self) -> None:
        core = self._core
        core.check()
        core.end_pass()
        capture = self._capture()
        writer = _PageWriter(core, capture.free)
        root = await self._write_state(writer, capture)
        new = self._superblock(capture, root, await self._write_root(writer, root, capture.reachable))
        await writer.flush()
        workers = core.env.workers
        await workers.run(self._sync_pages_before_superblock)
        core.check()
        await workers.run(lambda: superblock.write_slot(core.file, 0, new))
        await workers.run(self._sync_first_superblock)
        await workers.run(lambda: superblock.write_slot(core.file, 1, new))
        await workers.run(self._sync_second_superblock)
        core.check()
        self._sequence = new.sequence
        core.family.births.digests.written()
        core.journal.head = capture.position
        core.pages.finish(capture.reachable, len(root) // PAGE_SIZE + 1)
        core.became_durable(capture.seq)

    def _sync_pages_before_superblock(self) -> None:
        """Pages, and the data of all captured records, are durable before a superblock refers to them."""
        self._core.file.sync_data()

    def _sync_first_superblock(self) -> None:
        """The first slot is durable before the second, still the old one, is overwritten."""
        self._core.file.sync_data()

    def _sync_second_superblock(self) -> None:
        """The second slot is durable before anything that only the old state refers to is reused."""
        self._core.file.sync_data()

    # --- capture ------------------------------------------------------------------------------------------------

    def _capture(self) -> _Capture:
        """The state now. Nothing in here waits; what is left mutable is not changed any more by anybody."""
        core, family = self._core, self._core.family
        free = core.pages.begin_checkpoint()
        reclaiming = set(family.reclaiming)
        nodes = [node for node in family.nodes.values() if node not in reclaiming]
        journal, births, claims = core.journal, family.births, family.claims
        bits, digests = births.digests.capture()
        capture = _Capture(
            seq=journal.last_seq,
            position=journal.position,
            offset=journal.offset,
            previous=journal.previous,
            end_chunk=core.allocator.end,
            file=FileRecord(family.generation, family.next_node, len(family.nodes)),
            births_count=births.count,
            births={page: births.page_bytes(page) for page in sorted(births.dirty)},
            slots_count=claims.count,
            slots={page: claims.page_bytes(page) for page in sorted(claims.dirty)},
            features=_features(family),
            encryption=family.encryption,
            bits=bits,
            digests=digests,
            bad=tuple(sorted(births.digests.bad)),
            has_digests=births.digests.in_use or bool(births.digests.bad),
            reclaim=list(family.reclaim),
            nodes=[_capture_node(node) for node in [*nodes, *family.reclaiming]],
            notes=family.notes.records(),
            free=free,
            clean=self._clean,
        )
        births.dirty.clear()
        claims.dirty.clear()
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

    async def _write_state(self, writer: _PageWriter, capture: _Capture) -> bytes:
        """Write everything but the root stream, which is returned."""
        births, claims = self._core.family.births, self._core.family.claims
        births.pages = await self._write_changed(writer, births.pages, capture.births, capture.births_count, 1)
        claims.pages = await self._write_changed(writer, claims.pages, capture.slots, capture.slots_count, 2)
        words: array[int] = array("I")
        for chunks in capture.reclaim:
            words += chunks
        reclaim = WordsRecord(len(words), await writer.add_stream(words.tobytes()))
        records: list[tuple[RootType, bytes]] = [
            (RootType.FILE, capture.file.serialize()),
            (RootType.BIRTHS, WordsRecord(capture.births_count, tuple(births.pages)).serialize()),
            (RootType.RECLAIM, reclaim.serialize()),
        ]
        if capture.features & Feature.SHARED_CHUNKS:
            slots = WordsRecord(2 * capture.slots_count, tuple(claims.pages))
            records.append((RootType.SLOTS, slots.serialize()))
        if capture.encryption is not None:
            records.append((RootType.ENCRYPTION, capture.encryption.serialize()))
        records += capture.notes
        if capture.has_digests:
            records.append((RootType.DIGESTS, (await self._write_digests(writer, capture)).serialize()))
        _reach(capture.reachable, births.pages, claims.pages, reclaim.pages)
        for number, node in enumerate(capture.nodes):
            records.append((RootType.NODE, await self._write_node(writer, node)))
            _reach(capture.reachable, node.map.pages, node.dead.pages)
            capture.reachable.update(node.map.leaf_pages)
            if not number % _NODES_PER_TURN:
                await asyncio.sleep(0)
        return b"".join(layout.pack_root_record(kind, payload) for kind, payload in records)

    async def _write_digests(self, writer: _PageWriter, capture: _Capture) -> DigestsRecord:
        digests = self._core.family.births.digests
        last = max(capture.bits, default=-1) + 1
        pages = digests.bits_pages + [PageRef(0, 0)] * (last - len(digests.bits_pages))
        for page, data in capture.bits.items():
            pages[page] = await writer.add(data)
        digests.bits_pages = pages
        for page, data in capture.digests.items():
            ref = await writer.add(data)
            digests.refs[page] = (ref.page, ref.checksum)
        if capture.digests or digests.dirty_refs:
            digests.dirty_refs = False
            digests.indexed = digests.refs.copy()  # more may be added while they are written
            digests.index = await writer.add_stream(digests.indexed.tobytes())
        _reach(capture.reachable, pages, digests.index)
        capture.reachable.update(digests.indexed["page"].tolist())
        return DigestsRecord(len(digests.indexed), tuple(pages), digests.index, capture.bad)

    async def _write_changed(
        self, writer: _PageWriter, pages: list[PageRef], changed: dict[int, bytes], count: int, words: int
    ) -> list[PageRef]:
        """Write the changed pages of a table of ``count`` rows of so many words; where all of its pages are."""
        wanted = -(-count * words // layout.WORDS_PER_PAGE)
        found = pages[:wanted] + [PageRef(0, 0)] * (wanted - len(pages))
        for page, data in changed.items():
            found[page] = await writer.add(data)
        return found

    async def _write_node(self, writer: _PageWriter, node: _NodeCapture) -> bytes:
        """Write a node's changed pages; its record."""
        if node.leaves is not None:
            for leaf in node.leaves:
                if not leaf.page and leaf is not ABSENT_LEAF:
                    ref = await writer.add(leaf.array.tobytes())
                    leaf.page, leaf.checksum = ref.page, ref.checksum
            tops = []
            for at in range(0, len(node.leaves), TOP_ENTRIES):
                part = node.leaves[at : at + TOP_ENTRIES]
                tops.append(
                    await writer.add(b"".join(TOP_ENTRY.pack(leaf.page, leaf.birth, leaf.checksum) for leaf in part))
                )
            node.map.pages = tuple(tops)
            node.map.leaf_pages = tuple(leaf.page for leaf in node.leaves if leaf.page)
        if node.buckets is not None:
            node.dead.pages = await writer.add_stream(pack_buckets(node.buckets).tobytes())
        if node.record is None:
            assert node.node.stored is not None
            return node.node.stored[1]
        record = dataclasses.replace(node.record, top_pages=node.map.pages, deadlist_pages=node.dead.pages)
        node.node.stored = (node.key, record.serialize())
        return node.node.stored[1]

    async def _write_root(self, writer: _PageWriter, root: bytes, reachable: set[int]) -> tuple[PageRef, ...]:
        """Write the root stream; the references to its index pages."""
        refs = await writer.add_stream(root)
        index = [
            await writer.add(layout.pack_refs(refs[at : at + REFS_PER_INDEX_PAGE]))
            for at in range(0, len(refs), REFS_PER_INDEX_PAGE)
        ]
        assert len(index) <= layout.MAX_ROOT_INDEX_PAGES
        _reach(reachable, refs, index)
        return tuple(index)


def _reach(reachable: set[int], *groups: Sequence[PageRef]) -> None:
    for refs in groups:
        reachable.update(ref.page for ref in refs)


def _features(family: Family) -> Feature:
    shares = Feature.SHARED_CHUNKS if family.claims.in_use else Feature(0)
    return shares | (Feature.ENCRYPTION if family.encryption is not None else Feature(0))


def _capture_node(node: Node) -> _NodeCapture:
    leaves = buckets = None
    clean = not node.map.dirty and not node.dead.dirty
    parent = node.parent.id if node.parent else 0
    key = (parent, node.generation, node.kind, node.flags, node.size_bytes, node.mapped, node.own, node.guid, node.name)
    if clean and node.stored and node.stored[0] == key:
        return _NodeCapture(node, key, None, node.map, None, node.dead, None)
    if node.map.dirty:
        leaves = list(node.map.leaves)
        node.map.dirty = False
    if node.dead.dirty:
        buckets = node.dead.capture()
        node.dead.dirty = False
    node.map.freeze()
    record = NodeRecord(
        node=node.id,
        parent=parent,
        generation=node.generation,
        kind=node.kind,
        flags=node.flags,
        size_bytes=node.size_bytes,
        created_at=node.created_at,
        mapped=node.mapped,
        own=node.own,
        leaf_count=len(node.map.leaves),
        deadlist_words=node.dead.words(),
        deadlist_buckets=len(node.dead.buckets),
        volume_id=node.volume_id,
        guid=node.guid,
        name=node.name,
        top_pages=(),
        deadlist_pages=(),
    )
    return _NodeCapture(node, key, record, node.map, leaves, node.dead, buckets)


class _PageWriter:
    """Gives pages their places and checksums, and writes them in batches."""

    def __init__(self, core: Core, free: list[int]) -> None:
        self._core = core
        self._free = free
        self._batch: list[tuple[int, bytes]] = []

    async def add(self, data: bytes) -> PageRef:
        """Write one page (zero-padded); where it will be once ``flush`` returned."""
        data = data.ljust(PAGE_SIZE, b"\0")
        page = self._free.pop()
        self._batch.append((page, data))
        if len(self._batch) == _BATCH_PAGES:
            await self.flush()
        return PageRef(page, checksum64(data))

    async def add_stream(self, data: bytes) -> tuple[PageRef, ...]:
        return tuple([await self.add(data[at : at + PAGE_SIZE]) for at in range(0, len(data), PAGE_SIZE)])

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


def reachable_pages(
    family: Family, index: Sequence[PageRef], root: Sequence[PageRef], reclaim: WordsRecord
) -> set[int]:
    """All pages that a state just loaded refers to."""
    reachable: set[int] = set()
    digests = family.births.digests
    _reach(reachable, index, root, reclaim.pages, family.births.pages, family.claims.pages)
    _reach(reachable, digests.bits_pages, digests.index)
    reachable.update(digests.refs["page"].tolist())
    for node in family.nodes.values():
        _reach(reachable, node.map.pages, node.dead.pages)
        reachable.update(node.map.leaf_pages)
    return reachable
