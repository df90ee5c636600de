"""Loading: the state of the last checkpoint, then the journal's records on top of it.

Which records count (STORE section 2):

* the same boot_id as the last writer's: its page cache survived, so every valid record is replayed;
* another boot_id: only what a valid COMMIT covers, even if later records happen to be whole; also one that the chain
  does not reach, since a record between it and what it covers is missing. Of a COMMIT one copy is enough (``journal``);
* the same boot_id, and a FAILED record among them: a sync has failed, and the page cache may show what the medium does
  not have. First the superblocks are made to say that no boot is to be trusted, then the cache is dropped; what is
  on the medium then counts as after a power loss.

Then what cannot be finished is dropped: a snapshot without its seal is marked deleted. All of it is computed in memory;
``TvolFile.open`` makes it durable with a checkpoint under the next incarnation. These functions block and run in a
worker before anybody else knows the file.
"""

from __future__ import annotations

import dataclasses
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from xxhash import xxh3_64_intdigest as checksum64

from engine.errors import StoreCorrupt
from engine.tvol import journal, layout
from engine.tvol.births import Births
from engine.tvol.checkpoint import leaf_pages, node_key
from engine.tvol.chunk_map import ChunkMap, leaf_count
from engine.tvol.claims import Claims
from engine.tvol.deadlist import unpack_buckets
from engine.tvol.layout import (
    BIRTH_METADATA,
    PAGE_SIZE,
    PARTIALS_PER_PAGE,
    DigestsRecord,
    Feature,
    FileRecord,
    LayoutError,
    NodeFlag,
    NodeGroupRecord,
    NodeKind,
    NodeRecord,
    PageRef,
    PartialsRecord,
    RecordType,
    RootType,
    Superblock,
    WordsRecord,
)
from engine.tvol.layout_encryption import EncryptionRecord
from engine.tvol.map_reader import MapSource
from engine.tvol.node_table import StoredNode
from engine.tvol.nodes import Node
from engine.tvol.pages import PageChanges
from engine.tvol.partials import Partials
from engine.tvol.superblock import heal_slots, read_superblock
from engine.tvol.tree import Family

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from engine.files import BlockFile

_RUN_PAGES = 64

NO_BOOT = ""
"""In a superblock: no boot's page cache may be trusted."""

_KNOWN_ROOT_TYPES = frozenset(
    {
        RootType.FILE,
        RootType.BIRTHS,
        RootType.NODE,
        RootType.NODES,
        RootType.RECLAIM,
        RootType.SLOTS,
        RootType.PARTIALS,
        RootType.HOLDS,
        RootType.DESCRIPTIONS,
        RootType.DIGESTS,
        RootType.ENCRYPTION,
    }
)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A file's state after replay."""

    superblock: Superblock
    family: Family
    references: PageChanges
    """To the pages of the checkpoint that was loaded."""
    rewritten: tuple[PageRef, ...]
    """Those of them that every checkpoint writes anew."""
    journal_offset: int
    """Ring offset behind the last record that counts."""
    next_seq: int
    previous: int
    replayed: int
    """Records applied."""
    dropped: int
    """Valid records that do not count, since no COMMIT covers them."""


class Mender(Protocol):
    """Somebody who derives what can be derived (``engine.tvol.repair``)."""

    def lost(self, what: str, number: int) -> bytes:
        """A page that does not verify: what to take instead."""
        ...

    def mend(self, family: Family, file: BlockFile, superblock: Superblock, pages: Collection[int]) -> None:
        """Everything is loaded, and nothing replayed yet. ``pages``: those in use.

        Raises LayoutError, StoreCorrupt: this is not to be mended.
        """
        ...


def recover(file: BlockFile, boot_id: str, *, writable: bool, mender: Mender | None = None) -> Recovered:
    """Load and replay. Raises StoreCorrupt (naming the place), NotSupported, MediumError."""
    superblock = read_superblock(file, writable=writable)
    trusted = superblock.boot_id == boot_id
    if trusted and any(record.type == RecordType.FAILED for record, _ in journal.scan(*_ring(file, superblock))):
        trusted = False
        superblock = dataclasses.replace(superblock, boot_id=NO_BOOT)
        if writable:
            heal_slots(file, superblock)
    if writable and superblock.boot_id == NO_BOOT:  # also where an earlier opening got no further than this
        _drop_cache(file)
        superblock = read_superblock(file, writable=writable)
    try:
        loader = _Loader(file, superblock, mender)
        loader.load()
        if mender is not None:
            mender.mend(loader.family, file, superblock, loader.references.summed()[0].tolist())
        return _replay(file, superblock, loader, trusted=trusted)
    except LayoutError as error:
        raise StoreCorrupt(str(file.path), str(error)) from error


def _ring(file: BlockFile, superblock: Superblock) -> tuple[memoryview, int, int, int, int]:
    """The journal's bytes, and where its chain begins: what ``journal.scan`` takes."""
    ring = memoryview(bytearray(superblock.journal_chunks * superblock.chunk_bytes))
    file.read_into((ring,), layout.JOURNAL_FIRST_CHUNK * superblock.chunk_bytes)
    start = superblock.journal_offset, superblock.journal_seq, superblock.incarnation, superblock.journal_previous
    return ring, *start


def _drop_cache(file: BlockFile) -> None:
    """Read from the medium from now on."""
    file.sync_data()
    file.drop_cache()


class _Loader:
    """Reads the pages that a superblock reaches."""

    def __init__(self, file: BlockFile, superblock: Superblock, mender: Mender | None = None) -> None:
        self._file = file
        self._mender = mender
        self._superblock = superblock
        self._features = superblock.incompatible
        self._metadata_limit = superblock.end_chunk * superblock.chunk_bytes // PAGE_SIZE
        self._tops: dict[int, int] = {}
        """Checksum of each top page that was seen."""
        self.family: Family
        self.references = PageChanges()
        self.rewritten: tuple[PageRef, ...] = ()

    def page(self, ref: PageRef, what: str) -> bytes:
        return self.stream([ref], PAGE_SIZE, what)

    def stream(self, refs: Iterable[PageRef], length: int, what: str) -> bytes:
        """The bytes of pages one behind the other. Adjacent ones are read at once."""
        parts = [part for run in _adjacent(refs) for part in self._run(run, what)]
        data = b"".join(parts)
        if len(data) < length:
            raise StoreCorrupt(f"{what} of {self._file.path}", f"{len(data)} bytes where {length} are expected")
        return data[:length]

    def _run(self, run: list[PageRef], what: str) -> Iterator[memoryview]:
        first = run[0].page
        if not 0 < first <= self._metadata_limit - len(run):
            raise StoreCorrupt(f"{what} of {self._file.path}", f"page {first} is outside the file")
        data = memoryview(bytearray(len(run) * PAGE_SIZE))
        self._file.read_into((data,), first * PAGE_SIZE)
        for number, ref in enumerate(run):
            part = data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
            if checksum64(part) != ref.checksum:
                raise StoreCorrupt(f"{what} of {self._file.path}", f"page {ref.page} has a wrong checksum")
            yield part

    def derivable(self, refs: Iterable[PageRef], length: int, what: str) -> bytes:
        """As ``stream``, of what the rest of the file says too."""
        if self._mender is None:
            return self.stream(refs, length, what)
        found = b""
        for number, ref in enumerate(refs):
            try:
                found += self.page(ref, what)
            except StoreCorrupt:
                found += self._mender.lost(what, number)
        return found[:length]

    def load(self) -> None:
        """Make ``family``, ``references`` and ``rewritten``. Maps are not loaded, only their tops are verified."""
        superblock = self._superblock
        root_refs = self._root_refs()
        records: dict[int, list[bytes]] = {}
        for kind, flags, payload in layout.iter_root_records(self.stream(root_refs, superblock.root_length, "root")):
            if kind in _KNOWN_ROOT_TYPES:
                records.setdefault(kind, []).append(payload)
            elif not flags & layout.ROOT_OPTIONAL:
                raise LayoutError(f"root record of unknown type {kind}")
        wanted = {
            RootType.FILE: 1,
            RootType.BIRTHS: 1,
            RootType.RECLAIM: 1,
            RootType.SLOTS: int(bool(self._features & Feature.SHARED_CHUNKS)),
            RootType.PARTIALS: int(bool(self._features & Feature.PARTIAL_CHUNKS)),
        }
        if any(len(records.get(kind, ())) != count for kind, count in wanted.items()):
            raise LayoutError("the root stream lacks one of its records, or has it twice")
        scalars = FileRecord.parse(records[RootType.FILE][0])
        if scalars.generation > layout.MAX_GENERATION:
            raise LayoutError(f"generation {scalars.generation}")
        births_record = WordsRecord.parse(records[RootType.BIRTHS][0])
        words = self.derivable(births_record.pages, 4 * births_record.count, "births")
        births = Births(np.frombuffer(words, np.uint32))
        births.pages.refs = list(births_record.pages)
        for payload in records.get(RootType.DIGESTS, []):
            self._digests(births, DigestsRecord.parse(payload))
        partials = self._partials(births, records.get(RootType.PARTIALS))
        claims = self._claims(births, records.get(RootType.SLOTS), partials)
        self.family = family = Family(births, superblock.chunk_bytes, claims)
        encryption = [EncryptionRecord.parse(payload) for payload in records.get(RootType.ENCRYPTION, ())]
        if len(encryption) != bool(superblock.incompatible & Feature.ENCRYPTION):
            raise LayoutError("the root stream does not agree with the superblock on encryption")
        family.encryption = next(iter(encryption), None)
        family.generation, family.next_node = scalars.generation, scalars.next_node
        reclaim = WordsRecord.parse(records[RootType.RECLAIM][0])
        queued = array("I", self.derivable(reclaim.pages, 4 * reclaim.count, "reclaim queue"))
        if queued:
            family.reclaim.append(queued)
        if self._mender is None:
            family.claims.check_partials(np.frombuffer(queued, np.uint32))
        self._load_nodes(family, list(self._node_records(records)))
        if len(family.nodes) != scalars.node_count:
            raise LayoutError(f"{len(family.nodes)} nodes where {scalars.node_count} are expected")
        family.notes.load(records.get(RootType.HOLDS, []), records.get(RootType.DESCRIPTIONS, []))
        if not family.notes.named <= family.nodes.keys():
            raise LayoutError("a hold or description is of a node that does not exist")
        self.rewritten = (*superblock.root_index, *root_refs, *reclaim.pages)
        for refs in (self.rewritten, births.pages.refs, family.claims.pages.refs):
            self.references.gain(ref.page for ref in refs)

    def _node_records(self, records: dict[int, list[bytes]]) -> Iterator[NodeRecord]:
        """All nodes, those of groups (as this version writes them) and single ones."""
        table = self.family.table
        for payload in records.get(RootType.NODES, []):
            group = NodeGroupRecord.parse(payload)
            self.references.gain(ref.page for ref in group.pages)
            found: list[tuple[int, bytes]] = []
            for kind, _, node in layout.iter_root_records(self.stream(group.pages, group.length, "nodes")):
                if kind != RootType.NODE:
                    raise LayoutError(f"a record of type {kind} among the nodes")
                record = NodeRecord.parse(node)
                found.append((record.node, node))
                yield record
            table.load(group.length, group.pages, iter(found))
        for payload in records.get(RootType.NODE, []):
            record = NodeRecord.parse(payload)
            table.put(record.node, payload)
            yield record

    def _digests(self, births: Births, record: DigestsRecord) -> None:
        """Which chunks have digests and where these are; the digests themselves are read when they are needed."""
        bits = self.derivable(record.bits, len(record.bits) * PAGE_SIZE, "bits of digests")
        refs = self.stream(record.index, record.ref_count * layout.PAGE_REF.size, "index of digests")
        digests = births.digests
        digests.load(bits, record.bits, refs, record.index)
        for stored in (record.bits, record.index):
            self.references.gain(ref.page for ref in stored)
        self.references.gain(digests.refs["page"].tolist())
        digests.bad.update(record.bad)
        marked = np.concatenate([digests.digested(), np.array(record.bad, np.uint32)])
        if not births.may_be_named(marked):
            raise LayoutError("a chunk has a digest or is marked bad, but holds no payload")
        pages = digests.refs["page"]
        if len(pages) and int(pages.max()) >= self._metadata_limit:
            raise LayoutError("a page of digests is outside the file")
        births.freeze_digested()

    def _partials(self, births: Births, payloads: list[bytes] | None) -> Partials:
        partials = Partials()
        for number, ref in PartialsRecord.parse(payloads[0]).pages if payloads else ():
            if number * PARTIALS_PER_PAGE >= births.count:
                raise LayoutError(f"page {number} of the partial chunks is beyond the end of the file")
            partials.load(number, np.frombuffer(self.page(ref, "partial chunks"), np.uint32), ref)
            self.references.gain([ref.page])
        return partials

    def _claims(self, births: Births, payloads: list[bytes] | None, partials: Partials) -> Claims:
        if not payloads:
            return Claims(births, partials=partials)
        record = WordsRecord.parse(payloads[0])
        if record.count % 2 or record.count > 2 * layout.MAX_SLOTS:
            raise LayoutError(f"the slots have {record.count} words")
        words = np.frombuffer(self.stream(record.pages, 4 * record.count, "slots"), np.uint32)
        claims = Claims(births, words.reshape(-1, 2), partials)
        claims.pages.refs = list(record.pages)
        claims.in_use = True
        return claims

    def _root_refs(self) -> list[PageRef]:
        count = -(-self._superblock.root_length // PAGE_SIZE)
        data = b"".join(
            self.page(ref, "root index")[: layout.REFS_PER_INDEX_PAGE * layout.PAGE_REF.size]
            for ref in self._superblock.root_index
        )
        return list(layout.unpack_refs(data, 0, count))

    def _load_nodes(self, family: Family, records: list[NodeRecord]) -> None:
        for record in records:
            if record.node in family.nodes or record.node >= family.next_node:
                raise LayoutError(f"node id {record.node} is used twice or out of range")
            family.nodes[record.node] = self._node(record, family)
        for record in records:
            node = family.nodes[record.node]
            family.largest_map = max(family.largest_map, node.map.count)
            if node.flags & NodeFlag.DELETED:
                family.deleted[node.id] = node
            if node.flags & NodeFlag.RECLAIMING:
                family.reclaiming.append(node)
            elif record.parent:
                parent = family.node(record.parent)
                if parent.kind != NodeKind.SNAPSHOT or record.parent == record.node:
                    raise LayoutError(f"node {record.node} has no snapshot as its parent")
                node.attach(parent)
            if node.kind is NodeKind.HEAD:
                family.heads[node.id] = node
            if node.flags & NodeFlag.UNSEALED:
                family.unsealed[node.id] = node
            node.stored = StoredNode(node_key(node), record.top_pages, record.deadlist_pages)

    def _node(self, record: NodeRecord, family: Family) -> Node:
        what = f"node {record.node}"
        if record.kind not in (NodeKind.HEAD, NodeKind.SNAPSHOT):
            raise LayoutError(f"{what} is of unknown kind {record.kind}")
        reclaiming = record.flags & NodeFlag.RECLAIMING
        if not reclaiming and record.leaf_count != leaf_count(family.chunk_count(record.size_bytes)):
            raise LayoutError(f"{what} has {record.leaf_count} leaves for {record.size_bytes} bytes")
        for ref in record.top_pages:
            self._count_leaves(ref, what)
        for refs in (record.top_pages, record.deadlist_pages):
            self.references.gain(ref.page for ref in refs)
        chunk_map = ChunkMap.stored(record.top_pages, record.leaf_count)
        node = Node(
            record.node,
            NodeKind(record.kind),
            chunk_map,
            size_bytes=record.size_bytes,
            volume_id=record.volume_id,
        )
        node.guid, node.name, node.created_at = record.guid, record.name, record.created_at
        node.flags, node.generation = NodeFlag(record.flags), record.generation
        node.mapped, node.own = record.mapped, record.own
        if self._mender is not None:
            return node  # it makes all deadlists anew
        words = array("I", self.stream(record.deadlist_pages, 4 * record.deadlist_words, f"deadlist of {what}"))
        try:
            node.dead = unpack_buckets(words, record.deadlist_buckets)
        except ValueError as error:
            raise LayoutError(f"deadlist of {what}: {error}") from error
        node.dead.pages = record.deadlist_pages
        return node

    def _count_leaves(self, ref: PageRef, what: str) -> None:
        """The references of a top page, which several nodes may refer to."""
        known = self._tops.get(ref.page)
        if known is None:
            self.references.gain(leaf_pages(self.page(ref, f"map of {what}")))
            self._tops[ref.page] = ref.checksum
        elif known != ref.checksum:
            raise StoreCorrupt(f"map of {what} of {self._file.path}", f"page {ref.page} has a wrong checksum")


def _adjacent(refs: Iterable[PageRef]) -> Iterator[list[PageRef]]:
    """The pages in runs of adjacent ones, a MiB each at most."""
    run: list[PageRef] = []
    for ref in refs:
        if run and (ref.page != run[-1].page + 1 or len(run) == _RUN_PAGES):
            yield run
            run = []
        run.append(ref)
    if run:
        yield run


def _replay(file: BlockFile, superblock: Superblock, loader: _Loader, *, trusted: bool) -> Recovered:
    family = loader.family
    family.source = MapSource(file)
    ring, *start = _ring(file, superblock)
    records = list(journal.scan(ring, *start))
    end_seq = superblock.journal_seq + len(records)
    witness = journal.later_commit(ring, end_seq, superblock.incarnation)
    if witness is not None and (trusted or witness[1] >= end_seq):
        raise StoreCorrupt(
            f"journal of {file.path}",
            f"record {end_seq} does not verify, but record {witness[0]} says that it was there",
        )
    end, last = (records[-1][1], records[-1][0].checksum) if records else (start[0], superblock.journal_previous)
    if _was_longer(ring, end, end_seq, superblock.incarnation, last, trusted=trusted):
        raise StoreCorrupt(f"journal of {file.path}", f"record {end_seq} does not verify, though no kill can tear it")
    if trusted:
        covered = end_seq - 1 if records else 0
    else:
        covered = max(_last_covered(records), 0 if witness is None else witness[1])
    offset, previous, replayed = superblock.journal_offset, superblock.journal_previous, 0
    for record, behind in records:
        if record.seq > covered:
            break
        if record.type not in (RecordType.PAD, RecordType.COMMIT):
            family.apply(record.type, record.payload)
            replayed += 1
        offset, previous = behind, record.checksum
    _drop_unsealed(family)
    family.source = None
    return Recovered(
        superblock=superblock,
        family=family,
        references=loader.references,
        rewritten=loader.rewritten,
        journal_offset=offset,
        next_seq=max(covered + 1, superblock.journal_seq),
        previous=previous,
        replayed=replayed,
        dropped=sum(record.seq > covered for record, _ in records),
    )


def _was_longer(ring: memoryview, end: int, end_seq: int, incarnation: int, previous: int, *, trusted: bool) -> bool:
    """Whether a record that has rotted is where the journal ends. A power loss may leave any part of what no COMMIT
    covers there, also of a COMMIT; none of that was promised."""
    return trusted and layout.is_rotten(ring, end, end_seq, incarnation, previous)


def _last_covered(records: list[tuple[layout.Record, int]]) -> int:
    """What the last COMMIT covers; 0 without one."""
    for record, _ in reversed(records):
        if record.type == RecordType.COMMIT:
            return int(layout.unpack_fields(layout.COMMIT, record.payload)[0])
    return 0


def _drop_unsealed(family: Family) -> None:
    """A snapshot whose seal is missing never became one: nobody was told of it."""
    for node in list(family.unsealed.values()):
        if node.flags & NodeFlag.UNSEALED:
            family.mark_deleted(node)


def metadata_chunks(family: Family, journal_chunks: int) -> list[int]:
    """The chunks that are divided into pages."""
    found = family.births.with_birth(BIRTH_METADATA, layout.JOURNAL_FIRST_CHUNK + journal_chunks)
    return [int(chunk) for chunk in found]
