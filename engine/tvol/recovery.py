"""Loading: the state of the last checkpoint, then the journal's records on top of it.

Which records count (STORE section 2):

* the same boot_id as the last writer's: its page cache survived, so every valid record is replayed;
* another boot_id: only what a valid COMMIT covers, even if later records happen to be whole;
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
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_64_intdigest as checksum64

from engine.errors import StoreCorrupt
from engine.tvol import journal, layout
from engine.tvol.births import Births
from engine.tvol.checkpoint import reachable_pages
from engine.tvol.chunk_map import ABSENT_LEAF, ChunkMap, Leaf, leaf_count
from engine.tvol.claims import Claims
from engine.tvol.deadlist import unpack_buckets
from engine.tvol.layout import (
    BIRTH_METADATA,
    PAGE_SIZE,
    TOP_ENTRY,
    DigestsRecord,
    Feature,
    FileRecord,
    LayoutError,
    NodeFlag,
    NodeKind,
    NodeRecord,
    PageRef,
    RecordType,
    RootType,
    Superblock,
    WordsRecord,
)
from engine.tvol.layout_encryption import EncryptionRecord
from engine.tvol.superblock import heal_slots, read_superblock
from engine.tvol.tree import Family, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

    from engine.files import BlockFile

NO_BOOT = ""
"""In a superblock: no boot's page cache may be trusted."""

_KNOWN_ROOT_TYPES = frozenset(
    {
        RootType.FILE,
        RootType.BIRTHS,
        RootType.NODE,
        RootType.RECLAIM,
        RootType.SLOTS,
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
    reachable: set[int]
    """Pages of the checkpoint that was loaded."""
    journal_offset: int
    """Ring offset behind the last record that counts."""
    next_seq: int
    previous: int
    replayed: int
    """Records applied."""
    dropped: int
    """Valid records that do not count, since no COMMIT covers them."""


def recover(file: BlockFile, boot_id: str, *, writable: bool) -> Recovered:
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
        family, reachable = _Loader(file, superblock).load()
        return _replay(file, superblock, family, reachable, trusted=trusted)
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

    def __init__(self, file: BlockFile, superblock: Superblock) -> None:
        self._file = file
        self._superblock = superblock
        self._shares = bool(superblock.incompatible & Feature.SHARED_CHUNKS)
        self._leaves: dict[int, Leaf] = {0: ABSENT_LEAF}
        self._check_entries: Callable[[npt.NDArray[np.uint32]], None]
        self._metadata_limit = superblock.end_chunk * superblock.chunk_bytes // PAGE_SIZE

    def page(self, ref: PageRef, what: str) -> bytes:
        if not 0 < ref.page < self._metadata_limit:
            raise StoreCorrupt(f"{what} of {self._file.path}", f"page {ref.page} is outside the file")
        data = bytearray(PAGE_SIZE)
        self._file.read_into((memoryview(data),), ref.page * PAGE_SIZE)
        if checksum64(data) != ref.checksum:
            raise StoreCorrupt(f"{what} of {self._file.path}", f"page {ref.page} has a wrong checksum")
        return bytes(data)

    def stream(self, refs: Iterable[PageRef], length: int, what: str) -> bytes:
        data = b"".join(self.page(ref, what) for ref in refs)
        if len(data) < length:
            raise StoreCorrupt(f"{what} of {self._file.path}", f"{len(data)} bytes where {length} are expected")
        return data[:length]

    def load(self) -> tuple[Family, set[int]]:
        superblock = self._superblock
        root_refs = self._root_refs()
        records: dict[int, list[bytes]] = {}
        for kind, flags, payload in layout.iter_root_records(self.stream(root_refs, superblock.root_length, "root")):
            if kind in _KNOWN_ROOT_TYPES:
                records.setdefault(kind, []).append(payload)
            elif not flags & layout.ROOT_OPTIONAL:
                raise LayoutError(f"root record of unknown type {kind}")
        wanted = {RootType.FILE: 1, RootType.BIRTHS: 1, RootType.RECLAIM: 1, RootType.SLOTS: int(self._shares)}
        if any(len(records.get(kind, ())) != count for kind, count in wanted.items()):
            raise LayoutError("the root stream lacks one of its records, or has it twice")
        scalars = FileRecord.parse(records[RootType.FILE][0])
        if scalars.generation > layout.MAX_GENERATION:
            raise LayoutError(f"generation {scalars.generation}")
        births_record = WordsRecord.parse(records[RootType.BIRTHS][0])
        births = Births(np.frombuffer(self.stream(births_record.pages, 4 * births_record.count, "births"), np.uint32))
        births.pages = list(births_record.pages)
        for payload in records.get(RootType.DIGESTS, []):
            self._digests(births, DigestsRecord.parse(payload))
        family = Family(births, superblock.chunk_bytes, self._claims(births, records.get(RootType.SLOTS)))
        encryption = [EncryptionRecord.parse(payload) for payload in records.get(RootType.ENCRYPTION, ())]
        if len(encryption) != bool(superblock.incompatible & Feature.ENCRYPTION):
            raise LayoutError("the root stream does not agree with the superblock on encryption")
        family.encryption = next(iter(encryption), None)
        self._check_entries = family.claims.check_entries
        family.generation, family.next_node = scalars.generation, scalars.next_node
        reclaim = WordsRecord.parse(records[RootType.RECLAIM][0])
        queued = array("I", self.stream(reclaim.pages, 4 * reclaim.count, "reclaim queue"))
        if queued:
            family.reclaim.append(queued)
        self._load_nodes(family, [NodeRecord.parse(payload) for payload in records.get(RootType.NODE, [])])
        if len(family.nodes) != scalars.node_count:
            raise LayoutError(f"{len(family.nodes)} nodes where {scalars.node_count} are expected")
        family.notes.load(records.get(RootType.HOLDS, []), records.get(RootType.DESCRIPTIONS, []))
        if not family.notes.named <= family.nodes.keys():
            raise LayoutError("a hold or description is of a node that does not exist")
        return family, reachable_pages(family, superblock.root_index, root_refs, reclaim)

    def _digests(self, births: Births, record: DigestsRecord) -> None:
        """Which chunks have digests and where these are; the digests themselves are read when they are needed."""
        bits = self.stream(record.bits, len(record.bits) * PAGE_SIZE, "bits of digests")
        refs = self.stream(record.index, record.ref_count * layout.PAGE_REF.size, "index of digests")
        digests = births.digests
        digests.load(bits, record.bits, refs, record.index)
        digests.bad.update(record.bad)
        marked = np.concatenate([digests.digested(), np.array(record.bad, np.uint32)])
        if not births.may_be_named(marked):
            raise LayoutError("a chunk has a digest or is marked bad, but holds no payload")
        pages = digests.refs["page"]
        if len(pages) and int(pages.max()) >= self._metadata_limit:
            raise LayoutError("a page of digests is outside the file")
        births.freeze_digested()

    def _claims(self, births: Births, payloads: list[bytes] | None) -> Claims:
        if not payloads:
            return Claims(births)
        record = WordsRecord.parse(payloads[0])
        if record.count % 2 or record.count > 2 * layout.MAX_SLOTS:
            raise LayoutError(f"the slots have {record.count} words")
        words = np.frombuffer(self.stream(record.pages, 4 * record.count, "slots"), np.uint32)
        claims = Claims(births, words.reshape(-1, 2))
        claims.pages = list(record.pages)
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
            family.largest_map = max(family.largest_map, len(node.map.leaves))
            if node.flags & NodeFlag.DELETED:
                family.deleted[node.id] = node
            if node.flags & NodeFlag.RECLAIMING:
                family.reclaiming.append(node)
            elif record.parent:
                parent = family.node(record.parent)
                if parent.kind != NodeKind.SNAPSHOT or record.parent == record.node:
                    raise LayoutError(f"node {record.node} has no snapshot as its parent")
                node.attach(parent)

    def _node(self, record: NodeRecord, family: Family) -> Node:
        what = f"node {record.node}"
        if record.kind not in (NodeKind.HEAD, NodeKind.SNAPSHOT):
            raise LayoutError(f"{what} is of unknown kind {record.kind}")
        leaves: list[Leaf] = []
        for ref in record.top_pages:
            leaves.extend(self._leaf(*entry) for entry in TOP_ENTRY.iter_unpack(self.page(ref, f"map of {what}")))
        del leaves[record.leaf_count :]
        reclaiming = record.flags & NodeFlag.RECLAIMING
        if not reclaiming and record.leaf_count != leaf_count(family.chunk_count(record.size_bytes)):
            raise LayoutError(f"{what} has {record.leaf_count} leaves for {record.size_bytes} bytes")
        chunk_map = ChunkMap(leaves)
        chunk_map.dirty = False
        chunk_map.pages = record.top_pages
        chunk_map.leaf_pages = tuple(leaf.page for leaf in leaves if leaf.page)
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
        words = array("I", self.stream(record.deadlist_pages, 4 * record.deadlist_words, f"deadlist of {what}"))
        try:
            node.dead = unpack_buckets(words, record.deadlist_buckets)
        except ValueError as error:
            raise LayoutError(f"deadlist of {what}: {error}") from error
        node.dead.pages = record.deadlist_pages
        return node

    def _leaf(self, page: int, birth: int, checksum: int) -> Leaf:
        """The leaf on a page; one object for all maps that refer to it."""
        leaf = self._leaves.get(page)
        if leaf is None:
            data = bytearray(self.page(PageRef(page, checksum), "map leaf"))
            leaf = self._leaves[page] = Leaf(np.frombuffer(data, np.uint32), 0, birth, page, checksum)
            self._check_entries(leaf.array)
        return leaf


def _replay(
    file: BlockFile, superblock: Superblock, family: Family, reachable: set[int], *, trusted: bool
) -> Recovered:
    ring, *start = _ring(file, superblock)
    records = list(journal.scan(ring, *start))
    end_seq = superblock.journal_seq + len(records)
    witness = journal.later_commit(ring, end_seq, superblock.incarnation)
    if witness is not None:
        raise StoreCorrupt(
            f"journal of {file.path}",
            f"record {end_seq} does not verify, but record {witness} says that it was durable",
        )
    covered = records[-1][0].seq if records and trusted else _last_covered(records)
    offset, previous, replayed = superblock.journal_offset, superblock.journal_previous, 0
    for record, behind in records:
        if record.seq > covered:
            break
        if record.type not in (RecordType.PAD, RecordType.COMMIT):
            family.apply(record.type, record.payload)
            replayed += 1
        offset, previous = behind, record.checksum
    _drop_unsealed(family)
    return Recovered(
        superblock=superblock,
        family=family,
        reachable=reachable,
        journal_offset=offset,
        next_seq=max(covered + 1, superblock.journal_seq),
        previous=previous,
        replayed=replayed,
        dropped=sum(record.seq > covered for record, _ in records),
    )


def _last_covered(records: list[tuple[layout.Record, int]]) -> int:
    """What the last COMMIT covers; 0 without one."""
    for record, _ in reversed(records):
        if record.type == RecordType.COMMIT:
            return int(layout.unpack_fields(layout.COMMIT, record.payload)[0])
    return 0


def _drop_unsealed(family: Family) -> None:
    """A snapshot whose seal is missing never became one: nobody was told of it."""
    for node in family.nodes.values():
        if node.flags & NodeFlag.UNSEALED:
            family.mark_deleted(node)


def metadata_chunks(family: Family, journal_chunks: int) -> list[int]:
    """The chunks that are divided into pages."""
    found = family.births.with_birth(BIRTH_METADATA, layout.JOURNAL_FIRST_CHUNK + journal_chunks)
    return [int(chunk) for chunk in found]
