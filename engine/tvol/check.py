"""``twinvol check``: is a volume file what it should be? Reads only; shares nothing with the writer but layout.py and
layout_notes.py.

The writer keeps deadlists, births and counters up to date by rules; this module recomputes each of them from the
maps and compares. Invariants, for a node N with parent P (a snapshot):

1. An entry of N whose chunk was born after P's generation is N's *own*: no other entry of the file names it.
2. Any other entry of N was inherited: P has the same entry at the same place.
3. N's deadlist is exactly what P's map names and N's map at the same place does not, bucketed by birth.
4. A chunk is allocated (has a birth) if and only if some map names it or the reclaim queue holds it.
5. A page is used by one structure only, except a leaf, which N may share with P at the same place.
6. A hold or description is of a snapshot that is not deleted.
7. All this holds of *claims*, which are chunks or slots of the table of shared chunks. A slot in use names a chunk
   that is allocated. A chunk is ``BIRTH_SHARED`` if and only if slots name it and nothing names it by its number.
8. An entry that names a partial chunk is two claims at that place: its chunk, and the base in the chunk's row. A row
   has a base that 1 to 7 hold of and a mask; maps name its chunk as a partial one only, and slots do not name it.
9. A chunk that has a digest, or is marked bad, is allocated.

The journal is then replayed into memory in the simplest way (``check_journal``), and 1, 2, 4, 6 to 8 are asked again:
a file that needs recovery is checked as it would be after it.

A superblock slot that does not verify beside a good one is a note, not damage: a crash leaves that legally.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import EngineError, InUse
from engine.files import RealFileSystem
from engine.tvol import layout
from engine.tvol.check_data import verify_data
from engine.tvol.check_image import Finding, Findings, Image, Loader, Node, Severity
from engine.tvol.check_journal import Replay, read_chain
from engine.tvol.layout import NodeFlag, NodeKind

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from engine.files import FileSystem

    Words = npt.NDArray[np.uint32]
    Mask = npt.NDArray[np.bool_]

__all__ = ["CheckReport", "Finding", "Severity", "check_file", "check_result"]

EXIT_CLEAN = 0
EXIT_IN_USE = 4
EXIT_DAMAGED = 9

_NO_PAYLOAD = (layout.BIRTH_FREE, layout.BIRTH_METADATA, layout.BIRTH_SHARED)
_EMPTY_LEAF: Words = np.zeros(layout.LEAF_ENTRIES, dtype=np.uint32)


@dataclass(slots=True)
class CheckReport:
    """What ``check_file`` found."""

    path: str
    findings: list[Finding] = field(default_factory=list)
    findings_left_out: int = 0
    replayable: bool = False
    """The journal holds records that the next opening for writing takes over."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was looked at: nodes, leaves, chunks, journal records, ..."""

    @property
    def damaged(self) -> bool:
        return any(item.severity is Severity.DAMAGE for item in self.findings)

    @property
    def exit_code(self) -> int:
        """0 also with notes and with a replayable journal; 9 on damage."""
        return EXIT_DAMAGED if self.damaged else EXIT_CLEAN


def check_file(path: Path, files: FileSystem | None = None, *, data: bool = False) -> CheckReport:
    """Verify every structure of a closed volume file; changes nothing. Blocks, for as long as reading it takes.

    ``data``: also read every chunk that has a digest, and compare.

    Raises NotFound, PermissionDenied, and InUse while somebody has it open for writing.
    """
    file = (files or RealFileSystem()).open(path, writable=False)
    try:
        findings = Findings()
        report = CheckReport(str(path))
        loader = Loader(file, findings)
        image = loader.load()
        if image is not None:
            _Checker(image, findings, report).structures()
            committed, soft = read_chain(file, image, findings)
            report.replayable = bool(committed or soft) or not image.superblock.clean
            report.counts.update(committed_records=len(committed), soft_records=len(soft))
            if not findings.damaged:
                replay = Replay(image, findings)
                for records, after in ((committed, "after the last commit, "), (soft, "after the whole journal, ")):
                    replay.run(records)
                    if records:
                        _Checker(image, findings, report, after=after).ownership()
            if data:
                report.counts.update(verified_chunks=verify_data(loader, image, findings))
        report.findings = findings.items
        report.findings_left_out = findings.left_out
        return report
    finally:
        file.close()


def check_result(path: Path, *, data: bool = False) -> tuple[int, CheckReport | None, str]:
    """For a command line: (exit code, the report if there is one, one line that says how it ended)."""
    try:
        report = check_file(path, data=data)
    except InUse as error:
        return EXIT_IN_USE, None, str(error)
    except EngineError as error:
        return 1, None, str(error)
    if report.damaged:
        return report.exit_code, report, f"{path}: damaged, {len(report.findings)} findings"
    state = "clean, with a journal to replay" if report.replayable else "clean"
    return report.exit_code, report, f"{path}: {state}"


class _Checker:
    """The invariants over an image that has been read."""

    def __init__(self, image: Image, findings: Findings, report: CheckReport, *, after: str = "") -> None:
        self._image = image
        self._findings = findings
        self._report = report
        self._after = after
        self._births_of_all = np.concatenate([image.births, image.slots[:, 1]])
        """Of every claim: the chunks, then the slots."""
        self._owned = np.zeros(len(self._births_of_all), dtype=np.uint8)
        self._plain = np.zeros(len(image.births), dtype=np.bool_)
        """Chunks that maps name by their number."""
        self._partial = np.zeros(len(image.births), dtype=np.bool_)
        """Chunks that maps name as partial ones."""

    def structures(self) -> None:
        """Everything that a checkpoint left."""
        self._extent()
        self._tree()
        self._pages()
        self._digests()
        self._counts(self.ownership(deadlists=True))

    def _damage(self, where: str, reason: str) -> None:
        self._findings.damage(self._after + where, reason)

    def _extent(self) -> None:
        image = self._image
        superblock = image.superblock
        allocated = np.flatnonzero(image.births)
        used = int(allocated[-1]) + 1 if len(allocated) else 0
        if used > superblock.end_chunk:
            self._damage("births", f"chunk {used - 1} lies beyond the durable end {superblock.end_chunk}")
        if len(allocated) and image.file_chunks < used:
            self._damage("file", f"ends at chunk {image.file_chunks}, but chunk {used - 1} is allocated")
        reserved = layout.JOURNAL_FIRST_CHUNK + superblock.journal_chunks
        if (image.births[:reserved] != layout.BIRTH_METADATA).any():
            self._damage("births", "superblock or journal chunks are not marked as metadata")
        newest = image.births[image.births < layout.BIRTH_SHARED]
        if len(newest) and int(newest.max()) > image.file.generation:
            self._damage("births", f"a chunk was born in generation {int(newest.max())} of {image.file.generation}")

    # The family tree

    def _tree(self) -> None:
        image = self._image
        if len(image.nodes) != image.file.node_count:
            self._damage("root stream", f"has {len(image.nodes)} nodes instead of {image.file.node_count}")
        generations: dict[int, int] = {}
        for node in image.nodes.values():
            record = node.record
            if record.node == 0 or record.node >= image.file.next_node:
                self._damage(node.where, f"its id is not below the next one, {image.file.next_node}")
            if record.kind not in (NodeKind.HEAD, NodeKind.SNAPSHOT):
                self._damage(node.where, f"unknown kind {record.kind}")
            reclaiming = bool(record.flags & NodeFlag.RECLAIMING)
            if record.kind == NodeKind.SNAPSHOT and not reclaiming:
                if record.generation >= image.file.generation:
                    self._damage(node.where, f"generation {record.generation} of {image.file.generation}")
                if record.generation in generations:
                    self._damage(node.where, f"has the generation of node {generations[record.generation]}")
                generations[record.generation] = record.node
            self._parent(node)
            span = layout.LEAF_ENTRIES * image.superblock.chunk_bytes
            if not reclaiming and record.leaf_count * span < record.size_bytes:
                self._damage(node.where, f"{record.leaf_count} map leaves do not cover {record.size_bytes} bytes")

    def _parent(self, node: Node) -> None:
        record = node.record
        if record.parent == 0 or record.flags & NodeFlag.RECLAIMING:
            return
        parent = self._image.nodes.get(record.parent)
        if parent is None:
            self._damage(node.where, f"its parent, node {record.parent}, does not exist")
        elif parent.record.kind != NodeKind.SNAPSHOT or parent.record.flags & NodeFlag.RECLAIMING:
            self._damage(node.where, f"its parent, {parent.where}, is not a snapshot")
        elif record.kind == NodeKind.SNAPSHOT and parent.record.generation >= record.generation:
            self._damage(node.where, f"is not younger than its parent, {parent.where}")

    def _parent_of(self, node: Node) -> tuple[Node | None, int]:
        """The parent and its generation; of a node being reclaimed only the generation counts."""
        record = node.record
        if record.flags & NodeFlag.RECLAIMING:
            return None, record.generation
        parent = self._image.nodes.get(record.parent)
        return (None, 0) if parent is None else (parent, parent.record.generation)

    def _notes(self) -> None:
        image = self._image
        for number in {number for number, _ in image.holds} | image.described:
            node = image.nodes.get(number)
            if node is None or node.record.kind != NodeKind.SNAPSHOT or node.record.flags & NodeFlag.DELETED:
                self._damage("notes", f"a hold or description is of node {number}, which is no snapshot that exists")

    # Maps, births and deadlists

    def ownership(self, *, deadlists: bool = False) -> dict[int, tuple[int, int]]:
        """Invariants 1 to 4, 6 to 8; (mapped, own) of each node."""
        image = self._image
        self._notes()
        self._owned[:] = self._plain[:] = self._partial[:] = 0
        counts = {node.record.node: self._node(node, deadlists=deadlists) for node in image.nodes.values()}
        held = self._valid(image.reclaim, "reclaim queue")
        self._own(held[held >= layout.FIRST_CHUNK_ENTRY], "reclaim queue")
        self._partial[held[held < layout.SLOT_BIT]] = True
        self._lost()
        self._rows()
        return counts

    def _rows(self) -> None:
        """Of the table of partial chunks (invariant 8)."""
        bases, masks = self._image.partials.T
        used = masks != 0
        if bases[~used].any() or (masks > layout.FULL_MASK).any():
            self._damage(
                "partial chunks", f"chunk {_where((bases > 0) & ~used | (masks > layout.FULL_MASK))} has no mask"
            )
        for wrong, what in (
            (used & ~self._partial, "is not named as a partial chunk"),
            (used & self._plain, "is named by its bare number"),
            (used & ((bases < layout.FIRST_CHUNK_ENTRY) | (bases >= layout.PARTIAL)), "has a base that is none"),
            (used & np.isin(self._image.births, _NO_PAYLOAD), "holds no payload of its own"),
            (used & np.isin(np.arange(len(masks)), self._image.slots[:, 0]), "is named by a slot"),
        ):
            if wrong.any():
                self._damage("partial chunks", f"chunk {_where(wrong)} {what}")

    def _lost(self) -> None:
        """Claims that nobody has, and chunks that nobody claims (invariants 4 and 7)."""
        births, slots = self._image.births, self._image.slots
        owned, slots_owned = np.split(self._owned > 0, [len(births)])
        used = slots[slots[:, 1] != layout.BIRTH_FREE, 0]
        if (used >= len(births)).any():
            self._damage("slots", f"name chunk {int(used.max())}, which does not exist")
            used = used[used < len(births)]
        if np.isin(births[used], (layout.BIRTH_FREE, layout.BIRTH_METADATA)).any():
            self._damage("slots", "name a chunk that is free or holds metadata")
        lost = np.flatnonzero((slots[:, 1] != layout.BIRTH_FREE) & ~slots_owned)
        if len(lost):
            self._damage("slots", f"{len(lost)} are in use, but nothing refers to them, first {lost[0]}")
        claims_of_slots = np.bincount(used, minlength=len(births))
        shared = births == layout.BIRTH_SHARED
        if (shared & owned).any():
            chunk = int(np.flatnonzero(shared & owned)[0])
            self._damage("births", f"chunk {chunk} is said to be named by slots only, but is not")
        allocated = (births != layout.BIRTH_FREE) & (births != layout.BIRTH_METADATA)
        lost = np.flatnonzero(allocated & np.where(shared, claims_of_slots == 0, ~owned))
        if len(lost):
            self._damage("births", f"{len(lost)} chunks are allocated, but nothing refers to them, first {lost[0]}")

    def _node(self, node: Node, *, deadlists: bool) -> tuple[int, int]:
        parent, generation = self._parent_of(node)
        reclaiming = bool(node.record.flags & NodeFlag.RECLAIMING)
        newest = node.record.generation if node.record.kind == NodeKind.SNAPSHOT else self._image.file.generation
        if reclaiming:
            newest = self._image.file.generation
        mapped = own = 0
        dead: list[Words] = []
        indexes = set(node.leaves) | set(parent.leaves if parent else ())
        for index in sorted(indexes):
            leaf = node.leaves.get(index)
            inherited = parent.leaves.get(index) if parent else None
            if leaf is not None and inherited is not None and leaf.entries is inherited.entries:
                mapped += int((leaf.entries >= layout.FIRST_CHUNK_ENTRY).sum())
                continue
            where = f"{node.where}, map leaf {index}"
            entries = self._claims(leaf.entries if leaf is not None else _EMPTY_LEAF, where)
            before = self._claims(inherited.entries if inherited is not None else _EMPTY_LEAF, "")
            names = entries >= layout.FIRST_CHUNK_ENTRY
            births = self._births_of(entries)
            mine = names & (births > generation)
            self._births(where, births[names], newest)
            if not reclaiming:
                foreign = names & ~mine & (entries != before) & (entries != before[::-1])
                if foreign.any():
                    self._damage(where, f"{_first(entries, foreign)} is shared, but not the parent's at this place")
            self._own(entries[mine], where)
            mapped += int(names[0].sum())
            own += int(mine.sum())
            died = (before >= layout.FIRST_CHUNK_ENTRY) & (before != entries) & (before != entries[::-1])
            dead.append(before[died])
        if deadlists and not reclaiming:
            self._deadlist(node, np.concatenate(dead) if dead else _EMPTY_LEAF[:0])
        return mapped, own

    def _claims(self, entries: Words, where: str) -> Words:
        """Two rows: the claims of a leaf's entries; the second has the bases of partial chunks, and is else EMPTY."""
        partial = entries >= layout.PARTIAL
        chunks = entries - np.uint32(layout.PARTIAL)
        rows = self._image.partials
        bad = partial & (chunks >= len(rows))
        bad[partial & ~bad] = rows[chunks[partial & ~bad], 1] == 0
        if bad.any() and where:
            self._damage(where, f"entry {int(np.argmax(bad))} names a partial chunk that is none")
        partial &= ~bad
        found = np.zeros((2, len(entries)), np.uint32)
        found[0] = np.where(partial, chunks, np.where(bad, np.uint32(layout.EMPTY), entries))
        found[1, partial] = rows[chunks[partial], 0]
        found[0], found[1] = self._valid(found[0], where), self._valid(found[1], where)
        self._partial[chunks[partial]] = True
        plain = found[0][~partial]
        self._plain[plain[plain < layout.SLOT_BIT]] = True
        return found

    def _valid(self, entries: Words, where: str) -> Words:
        """The entries with those that cannot be followed taken as EMPTY."""
        slots = entries >= layout.SLOT_BIT
        bad = np.where(slots, entries - layout.SLOT_BIT >= len(self._image.slots), entries >= len(self._image.births))
        bad &= entries >= layout.FIRST_CHUNK_ENTRY
        if not bad.any():
            return entries
        if where:
            self._damage(where, f"{_first(entries, bad)} does not exist")
        return np.where(bad, np.uint32(layout.EMPTY), entries)

    def _places(self, claims: Words) -> npt.NDArray[np.int64]:
        """Where valid claims are in what has both kinds."""
        wide = claims.astype(np.int64)
        return np.where(claims >= layout.SLOT_BIT, wide - layout.SLOT_BIT + len(self._image.births), wide)

    def _births_of(self, claims: Words) -> Words:
        return self._births_of_all[self._places(claims)]

    def _births(self, where: str, births: Words, newest: int) -> None:
        if (births == layout.BIRTH_FREE).any():
            self._damage(where, "names a chunk that is free")
        if (births == layout.BIRTH_METADATA).any():
            self._damage(where, "names a chunk of metadata")
        if (births == layout.BIRTH_SHARED).any():
            self._damage(where, "names a chunk by its number that only slots name")
        payload = births[births < layout.BIRTH_SHARED]
        if len(payload) and int(payload.max()) > newest:
            self._damage(where, f"names a chunk born in generation {int(payload.max())}, after generation {newest}")

    def _own(self, chunks: Words, where: str) -> None:
        """Each of these is named here and nowhere else."""
        unique, times = np.unique(chunks, return_counts=True)
        if (times > 1).any():
            self._damage(where, f"names {_claim(int(unique[times > 1][0]))} twice")
        places = self._places(unique)
        taken = self._owned[places] > 0
        if taken.any():
            claim = _claim(int(unique[taken][0]))
            self._damage(where, f"{claim} belongs to another node or to the reclaim queue too")
        self._owned[places] = 1

    def _deadlist(self, node: Node, expected: Words) -> None:
        where = f"{node.where}, deadlist"
        listed = np.concatenate(list(node.dead.values())) if node.dead else _EMPTY_LEAF[:0]
        listed = self._valid(listed, where)
        for birth, chunks in node.dead.items():
            known = self._valid(chunks, "")
            if (self._births_of(known) != birth).any():
                self._damage(where, f"the bucket of birth {birth} holds chunks of another birth")
        missing = np.setdiff1d(expected, listed)
        if len(missing):
            self._damage(where, f"misses {len(missing)} chunks, first {int(missing[0])}")
        surplus = np.setdiff1d(listed, expected)
        if len(surplus):
            self._damage(where, f"has {len(surplus)} chunks that did not die in it, first {int(surplus[0])}")
        if len(listed) != len(np.unique(listed)):
            self._damage(where, "has a chunk twice")

    def _counts(self, counted: dict[int, tuple[int, int]]) -> None:
        image = self._image
        for number, (mapped, own) in counted.items():
            node = image.nodes[number]
            if node.record.flags & NodeFlag.RECLAIMING:
                continue
            if (node.record.mapped, node.record.own) != (mapped, own):
                told = f"{node.record.mapped} mapped and {node.record.own} own"
                self._damage(node.where, f"says {told} chunks; its map has {mapped} and {own}")
        chunks = int(((image.births != layout.BIRTH_FREE) & (image.births != layout.BIRTH_METADATA)).sum())
        self._report.counts.update(
            nodes=len(image.nodes),
            leaves=sum(len(node.leaves) for node in image.nodes.values()),
            pages=len(image.pages),
            chunks=chunks,
            reclaim_queue=len(image.reclaim),
            slots=int(np.count_nonzero(image.slots[:, 1])),
            partial_chunks=int(np.count_nonzero(image.partials[:, 1])),
        )

    # Digests

    def _digests(self) -> None:
        """Invariant 9."""
        image = self._image
        marked = np.union1d(np.flatnonzero(image.digested), np.array(image.bad, np.int64))
        known = marked[marked < len(image.births)]
        births = image.births[known]
        wrong = len(marked) - len(known) + int(np.isin(births, (layout.BIRTH_FREE, layout.BIRTH_METADATA)).sum())
        if wrong:
            self._damage("digests", f"{wrong} chunks have a digest or a mark, but hold no payload")
        if image.bad:
            self._findings.note("data", f"{len(image.bad)} chunks are marked bad, first {image.bad[0]}")
        self._report.counts.update(digests=int(np.count_nonzero(image.digested)), bad_chunks=len(image.bad))

    # Pages

    def _pages(self) -> None:
        """Invariant 5: every page lies in a chunk of metadata; a leaf in two maps is a child's and its parent's."""
        image = self._image
        per_chunk = image.superblock.chunk_bytes // layout.PAGE_SIZE
        reserved = layout.JOURNAL_FIRST_CHUNK + image.superblock.journal_chunks
        for page, where in image.pages.items():
            chunk = page // per_chunk
            if chunk < reserved or chunk >= len(image.births) or image.births[chunk] != layout.BIRTH_METADATA:
                self._damage(where, f"page {page} is not in a chunk of metadata")
        users: dict[int, list[tuple[Node, int]]] = {}
        for node in image.nodes.values():
            for index, leaf in node.leaves.items():
                users.setdefault(leaf.page, []).append((node, index))
        for page, using in users.items():
            if len(using) == 1:
                continue
            if len({index for _, index in using}) > 1:
                self._damage(using[0][0].where, f"map leaf page {page} is used at different places")
            if len({node.leaves[index].birth for node, index in using}) > 1:
                self._damage(using[0][0].where, f"map leaf page {page} has different births")


def _first(entries: Words, mask: Mask) -> str:
    at = int(np.argmax(mask))
    return f"entry {at % layout.LEAF_ENTRIES} ({_claim(int(entries.flat[at]))})"


def _where(mask: Mask) -> int:
    return int(np.argmax(mask))


def _claim(claim: int) -> str:
    return f"slot {claim - layout.SLOT_BIT}" if claim >= layout.SLOT_BIT else f"chunk {claim}"
