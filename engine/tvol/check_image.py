"""A volume file as ``twinvol check`` sees it: every reference verified on the way, into plain arrays.

In memory is what there is once for each chunk, slot or node; maps (``check_maps``), deadlists and digests are read
when they are looked at, so that it stays bounded however many snapshots there are.

Nothing here trusts a number from the file: each is held against the file's size and the format's limits before it
is used. What does not verify becomes a finding and reads as absent, so that one fault does not hide the next.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol import layout
from engine.tvol.check_maps import Maps, PageReader, Top
from engine.tvol.check_pages import PageUses, Use
from engine.tvol.layout import LayoutError, PageRef, RootType
from engine.tvol.layout_encryption import EncryptionRecord
from engine.tvol.layout_notes import HoldRecord, NodeText

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from engine.files import BlockFile

    Words = npt.NDArray[np.uint32]

MAX_FINDINGS = 200
"""More of them say nothing new; the rest is only counted."""
MAX_NODES = 1 << 20


class Severity(enum.Enum):
    """How bad a finding is."""

    NOTE = "note"
    DAMAGE = "damage"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    severity: Severity
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.where}: {self.reason}"


@dataclass(slots=True)
class Findings:
    """Findings in the order of their discovery."""

    items: list[Finding] = field(default_factory=list)
    left_out: int = 0

    def damage(self, where: str, reason: str) -> None:
        self._add(Finding(Severity.DAMAGE, where, reason))

    def note(self, where: str, reason: str) -> None:
        self._add(Finding(Severity.NOTE, where, reason))

    def _add(self, finding: Finding) -> None:
        if len(self.items) < MAX_FINDINGS:
            self.items.append(finding)
        else:
            self.left_out += 1

    @property
    def damaged(self) -> bool:
        return any(item.severity is Severity.DAMAGE for item in self.items)


@dataclass(slots=True)
class Node:
    """A node of the family, and its map."""

    record: layout.NodeRecord
    tops: list[Top]

    @property
    def where(self) -> str:
        kind = "snapshot" if self.record.kind == layout.NodeKind.SNAPSHOT else "head"
        return f"node {self.record.node} ({kind} {self.record.name!r})"


@dataclass(slots=True)
class Image:
    """Everything that the superblock in force refers to."""

    superblock: layout.Superblock
    slot: int
    file_chunks: int
    file: layout.FileRecord
    births: Words
    nodes: dict[int, Node]
    reclaim: Words
    slots: npt.NDArray[np.uint32]
    """(chunk, birth) of each slot of the table of shared chunks."""
    partials: npt.NDArray[np.uint32]
    """(base, mask) of each chunk; mask 0 of one that is not partial."""
    maps: Maps
    uses: PageUses
    """Every page in use and who uses it; those of maps and deadlists once they were looked at."""
    digested: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """For each chunk whether it has a digest that can be read; the file's births may be more."""
    digest_pages: list[PageRef] = field(default_factory=list)
    bad: tuple[int, ...] = ()
    """Chunks marked bad."""
    holds: set[tuple[int, str]] = field(default_factory=set)
    """(node, owner)"""
    described: set[int] = field(default_factory=set)


_NO_WORDS: Words = np.zeros(0, dtype=np.uint32)
_NO_SLOTS: Words = np.zeros((0, 2), dtype=np.uint32)


class Loader:
    """Reads an ``Image``; what it cannot read goes to ``findings``."""

    def __init__(self, file: BlockFile, findings: Findings) -> None:
        self._findings = findings
        self._reader = PageReader(file, findings)
        self._size = self._reader.size
        self.uses = PageUses(findings)

    def load(self) -> Image | None:
        """None: nothing below the superblocks or the root stream can be reached."""
        chosen = self._superblock()
        if chosen is None:
            return None
        slot, superblock = chosen
        stream = self._root_stream(superblock)
        if stream is None:
            return None
        image = Image(
            superblock, slot, -(-self._size // superblock.chunk_bytes), layout.FileRecord(0, 0, 0),
            _NO_WORDS, {}, _NO_WORDS, _NO_SLOTS, _NO_SLOTS, Maps(self._reader), self.uses,
        )  # fmt: skip
        if not self._records(image, stream):
            return None
        return image

    def bytes_at(self, offset: int, length: int, where: str) -> bytes | None:
        return self._reader.bytes_at(offset, length, where)

    # Superblocks and root stream

    def _superblock(self) -> tuple[int, layout.Superblock] | None:
        good: list[tuple[int, layout.Superblock]] = []
        bad: list[tuple[str, str]] = []
        for slot, offset in enumerate(layout.SUPERBLOCK_OFFSETS):
            where = f"superblock {slot}"
            data = self.bytes_at(offset, layout.SUPERBLOCK_SIZE, where)
            if data is None:
                continue
            try:
                superblock = layout.Superblock.parse(data)
                self._sane(superblock)
            except LayoutError as error:
                bad.append((where, str(error)))
            else:
                good.append((slot, superblock))
        for where, reason in bad:
            if good:
                self._findings.note(where, f"{reason}; the other slot is used, the next opening for writing repairs it")
            else:
                self._findings.damage(where, reason)
        if not good:
            return None
        if len(good) == 2 and good[0][1].family != good[1][1].family:
            self._findings.damage("superblocks", "the two slots belong to different families")
        return max(good, key=lambda item: item[1].sequence)

    def _sane(self, superblock: layout.Superblock) -> None:
        """Raises LayoutError for what no writer of this version writes."""
        unknown = superblock.incompatible & ~layout.KNOWN_FEATURES
        if unknown:
            raise LayoutError(f"incompatible features {unknown:#x} are not known to this program")
        if superblock.chunk_bytes not in (64 * 1024, 256 * 1024):
            raise LayoutError(f"chunks of {superblock.chunk_bytes} bytes")
        journal = superblock.journal_chunks * superblock.chunk_bytes
        if not layout.MIN_JOURNAL_BYTES <= journal <= layout.MAX_JOURNAL_BYTES:
            raise LayoutError(f"a journal of {journal} bytes")
        if superblock.journal_offset >= journal or superblock.journal_offset % layout.RECORD_UNIT:
            raise LayoutError(f"journal begins at byte {superblock.journal_offset} of {journal}")
        if superblock.end_chunk > layout.MAX_CHUNKS:
            raise LayoutError(f"durable end at chunk {superblock.end_chunk}")
        capacity = len(superblock.root_index) * layout.REFS_PER_INDEX_PAGE * layout.PAGE_SIZE
        if superblock.root_length > min(capacity, self._size):
            raise LayoutError(
                f"root stream of {superblock.root_length} bytes in {len(superblock.root_index)} index pages"
            )

    def _root_stream(self, superblock: layout.Superblock) -> bytes | None:
        pages = -(-superblock.root_length // layout.PAGE_SIZE)
        refs: list[PageRef] = []
        for number, ref in enumerate(superblock.root_index):
            data = self.page(ref, Use.ROOT_INDEX, number)
            if data is None:
                return None
            count = min(layout.REFS_PER_INDEX_PAGE, pages - len(refs))
            refs.extend(layout.unpack_refs(data, 0, count))
        parts = [self.page(ref, Use.ROOT, number) for number, ref in enumerate(refs)]
        if any(part is None for part in parts):
            return None
        return b"".join(part for part in parts if part is not None)[: superblock.root_length]

    def _records(self, image: Image, stream: bytes) -> bool:
        nodes: list[layout.NodeRecord] = []
        digests: layout.DigestsRecord | None = None
        partials = layout.PartialsRecord(())
        seen: set[int] = set()
        try:
            for kind, flags, payload in layout.iter_root_records(stream):
                if kind in seen and kind not in (RootType.NODE, RootType.NODES):
                    raise LayoutError(f"two records of type {kind}")
                seen.add(kind)
                if kind == RootType.FILE:
                    image.file = layout.FileRecord.parse(payload)
                elif kind == RootType.BIRTHS:
                    image.births = self._words(layout.WordsRecord.parse(payload), Use.BIRTHS)
                elif kind == RootType.RECLAIM:
                    image.reclaim = self._words(layout.WordsRecord.parse(payload), Use.RECLAIM)
                elif kind == RootType.SLOTS:
                    image.slots = self._slots(layout.WordsRecord.parse(payload))
                elif kind == RootType.DIGESTS:
                    digests = layout.DigestsRecord.parse(payload)
                elif kind == RootType.PARTIALS:
                    partials = layout.PartialsRecord.parse(payload)
                elif kind == RootType.NODE:
                    nodes.append(layout.NodeRecord.parse(payload))
                elif kind == RootType.ENCRYPTION:
                    EncryptionRecord.parse(payload)
                elif kind == RootType.NODES:
                    nodes.extend(self._group(layout.NodeGroupRecord.parse(payload)))
                elif kind == RootType.HOLDS:
                    image.holds = {(found.node, found.owner) for found in HoldRecord.parse_all(payload)}
                elif kind == RootType.DESCRIPTIONS:
                    image.described = {found.node for found in NodeText.parse_all(payload)}
                elif not flags & layout.ROOT_OPTIONAL:
                    raise LayoutError(f"a record of unknown type {kind}")
        except LayoutError as error:
            self._findings.damage("root stream", str(error))
            return False
        if (RootType.SLOTS in seen) != bool(image.superblock.incompatible & layout.Feature.SHARED_CHUNKS):
            self._findings.damage("root stream", "does not agree with the superblock on shared chunks")
            return False
        if (RootType.ENCRYPTION in seen) != bool(image.superblock.incompatible & layout.Feature.ENCRYPTION):
            self._findings.damage("root stream", "does not agree with the superblock on encryption")
            return False
        if (RootType.PARTIALS in seen) != bool(image.superblock.incompatible & layout.Feature.PARTIAL_CHUNKS):
            self._findings.damage("root stream", "does not agree with the superblock on partial chunks")
            return False
        for wanted in (RootType.FILE, RootType.BIRTHS):
            if wanted not in seen:
                self._findings.damage("root stream", f"has no {wanted.name} record")
                return False
        if (digests is None) is bool(image.superblock.read_only_compatible & layout.ReadOnlyFeature.DIGESTS):
            self._findings.damage("root stream", "does not agree with the superblock on digests")
            return False
        reserved = layout.JOURNAL_FIRST_CHUNK + image.superblock.journal_chunks
        self.uses.begin(image.births, reserved, image.superblock.chunk_bytes // layout.PAGE_SIZE)
        if digests is not None:
            self._digests(image, digests)
        image.partials = self._partials(partials, len(image.births))
        for record in nodes:
            if record.node in image.nodes:
                self._findings.damage("root stream", f"has node {record.node} twice")
                continue
            image.nodes[record.node] = Node(record, list(record.top_pages))
        return True

    def _group(self, group: layout.NodeGroupRecord) -> Iterator[layout.NodeRecord]:
        parts = [self.page(ref, Use.NODES, number) for number, ref in enumerate(group.pages)]
        if any(part is None for part in parts):
            raise LayoutError("a group of nodes cannot be read")
        stream = b"".join(part for part in parts if part is not None)[: group.length]
        for kind, _, payload in layout.iter_root_records(stream):
            if kind != RootType.NODE:
                raise LayoutError(f"a record of type {kind} among the nodes")
            yield layout.NodeRecord.parse(payload)

    # Pages

    def page(self, ref: PageRef, use: Use, number: int) -> bytes | None:
        """A page's bytes if they verify."""
        self.uses.claim(ref.page, use, number)
        return self._reader.page(ref, use.where(number))

    def _words(self, record: layout.WordsRecord, use: Use) -> Words:
        return self._stream_of_words(record.pages, record.count, use)

    def _slots(self, record: layout.WordsRecord) -> Words:
        if record.count % 2 or record.count > 2 * layout.MAX_SLOTS:
            raise LayoutError(f"the slots have {record.count} words")
        return self._words(record, Use.SLOTS).reshape(-1, 2)

    def _partials(self, record: layout.PartialsRecord, chunks: int) -> npt.NDArray[np.uint32]:
        table = np.zeros((chunks, 2), np.uint32)
        for number, ref in record.pages:
            where = Use.PARTIALS.where(number)
            data = self.page(ref, Use.PARTIALS, number)
            if data is None:
                continue
            rows = np.frombuffer(data, "<u4").reshape(-1, 2)
            first = number * layout.PARTIALS_PER_PAGE
            if rows[max(0, chunks - first) :].any():
                self._findings.damage(where, "has rows beyond the end of the file")
            if not rows.any():
                self._findings.damage(where, "has no row")
            table[first : first + len(rows)] = rows[: max(0, chunks - first)]
        return table

    def _stream_of_words(self, pages: Sequence[PageRef], count: int, use: Use, of: int | None = None) -> Words:
        """Missing pages read as zeroes, so that positions stay right. ``of``: the node whose they are."""
        words = np.zeros(len(pages) * layout.WORDS_PER_PAGE, dtype=np.uint32)
        for number, ref in enumerate(pages):
            data = self.page(ref, use, number if of is None else of)
            if data is not None:
                start = number * layout.WORDS_PER_PAGE
                words[start : start + layout.WORDS_PER_PAGE] = np.frombuffer(data, dtype="<u4")
        return words[:count]

    # Digests

    def _digests(self, image: Image, record: layout.DigestsRecord) -> None:
        """Which chunks have digests; those of a page that does not verify have none."""
        bits = self._stream_of_words(record.bits, len(record.bits) * layout.WORDS_PER_PAGE, Use.DIGEST_BITS)
        image.digested = np.unpackbits(bits.view(np.uint8), bitorder="little").astype(bool)
        image.bad = record.bad
        data = self._stream_of_words(record.index, len(record.index) * layout.WORDS_PER_PAGE, Use.DIGEST_INDEX)
        image.digest_pages = list(layout.unpack_refs(data.tobytes(), 0, record.ref_count))
        count = layout.DIGESTS_PER_PAGE
        for number, ref in enumerate(image.digest_pages):
            here = image.digested[number * count : (number + 1) * count]
            if ref.page == 0 and not here.any():
                continue
            if self.page(ref, Use.DIGESTS, number) is None:
                here[:] = False
                image.digest_pages[number] = PageRef(0, 0)
        image.digested[len(image.digest_pages) * count :] = False

    def digests_of(self, image: Image, number: int) -> bytes:
        """A page of digests that was verified before."""
        data = self.bytes_at(image.digest_pages[number].page * layout.PAGE_SIZE, layout.PAGE_SIZE, "digests")
        return data or bytes(layout.PAGE_SIZE)

    # Nodes

    def deadlist(self, node: Node) -> dict[int, Words]:
        """Birth -> entries."""
        record = node.record
        where = f"{node.where}, deadlist"
        words = self._stream_of_words(record.deadlist_pages, record.deadlist_words, Use.DEADLIST, record.node)
        found: dict[int, Words] = {}
        at = 2 * record.deadlist_buckets
        if at > len(words):
            self._findings.damage(where, f"{record.deadlist_buckets} buckets in {len(words)} words")
            return found
        for birth, count in words[:at].reshape(-1, 2).tolist():
            if at + count > len(words) or birth in found:
                self._findings.damage(where, f"bucket of birth {birth} with {count} entries does not fit")
                return found
            found[birth] = words[at : at + count]
            at += count
        if at != len(words):
            self._findings.damage(where, f"{len(words) - at} words belong to no bucket")
        return found
