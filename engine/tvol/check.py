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

Nodes are compared with their parents, parents first, and only where their tops and leaves differ: what a node has in
common with its parent was looked at there. So time and memory follow from what there is, not from how many see it.

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
from engine.tvol.check_maps import EMPTY_LEAF, NO_TOP, same_top
from engine.tvol.check_pages import Use
from engine.tvol.layout import NodeFlag, NodeKind, PageRef

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from engine.files import FileSystem
    from engine.tvol.check_maps import Rows, Words

    Mask = npt.NDArray[np.bool_]
    Places = npt.NDArray[np.int64]

__all__ = ["CheckReport", "Finding", "Severity", "check_file", "check_result"]

EXIT_CLEAN = 0
EXIT_IN_USE = 4
EXIT_DAMAGED = 9

_NO_PAYLOAD = (layout.BIRTH_FREE, layout.BIRTH_METADATA, layout.BIRTH_SHARED)
_NO_WORDS = EMPTY_LEAF[:0]
_PIECE = 1 << 20
"""Chunks or claims that are worked on at once."""


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
    files = files or RealFileSystem()
    file = files.open(path, writable=False)
    try:
        findings = Findings()
        report = CheckReport(str(path))
        loader = Loader(file, findings)
        image = loader.load()
        if image is not None:
            _Checker(image, findings, report).structures(loader)
            committed, soft = read_chain(file, image, findings, files.boot_id())
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
        self._owned = np.zeros(len(image.births) + len(image.slots), dtype=np.bool_)
        """Of every claim: the chunks, then the slots."""
        self._plain = np.zeros(len(image.births), dtype=np.bool_)
        """Chunks that maps name by their number."""
        self._partial = np.zeros(len(image.births), dtype=np.bool_)
        """Chunks that maps name as partial ones."""
        self._loader: Loader | None = None
        """While the structures of the file itself are looked at, and not what the journal makes of them."""
        self._named: dict[PageRef, int] = {}
        """Entries of the leaves of a top page that name a chunk."""

    def structures(self, loader: Loader) -> None:
        """Everything that a checkpoint left."""
        self._extent()
        self._tree()
        self._digests()
        self._loader = loader
        self._counts(self.ownership())

    def _damage(self, where: str, reason: str) -> None:
        self._findings.damage(self._after + where, reason)

    def _extent(self) -> None:
        image = self._image
        superblock = image.superblock
        used = newest = 0
        for first, births in _pieces(image.births):
            allocated = np.flatnonzero(births)
            used = first + int(allocated[-1]) + 1 if len(allocated) else used
            newest = max(newest, int(births[births < layout.BIRTH_SHARED].max(initial=0)))
        if used > superblock.end_chunk:
            self._damage("births", f"chunk {used - 1} lies beyond the durable end {superblock.end_chunk}")
        if image.file_chunks < used:
            self._damage("file", f"ends at chunk {image.file_chunks}, but chunk {used - 1} is allocated")
        reserved = layout.JOURNAL_FIRST_CHUNK + superblock.journal_chunks
        if (image.births[:reserved] != layout.BIRTH_METADATA).any():
            self._damage("births", "superblock or journal chunks are not marked as metadata")
        if newest > image.file.generation:
            self._damage("births", f"a chunk was born in generation {newest} of {image.file.generation}")

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

    def ownership(self) -> dict[int, tuple[int, int]]:
        """Invariants 1 to 4, 6 to 8, and of the file itself 5; (mapped, own) of each node."""
        image = self._image
        self._notes()
        counts = {node.record.node: self._node(node) for node in sorted(image.nodes.values(), key=_parents_first)}
        held = self._valid(image.reclaim, "reclaim queue")
        self._own(held[held >= layout.FIRST_CHUNK_ENTRY], "reclaim queue")
        self._partial[held[held < layout.SLOT_BIT]] = True
        self._lost()
        self._rows()
        return counts

    def _rows(self) -> None:
        """Of the table of partial chunks (invariant 8)."""
        shared = np.unique(self._image.slots[:, 0])
        for first, table in _pieces(self._image.partials):
            bases, masks = table.T
            wrong = np.flatnonzero((bases > 0) & (masks == 0) | (masks > layout.FULL_MASK))
            if len(wrong):
                self._damage("partial chunks", f"chunk {first + int(wrong[0])} has no mask")
            at = np.flatnonzero(masks)
            chunks, bases = first + at, bases[at]
            for bad, what in (
                (~self._partial[chunks], "is not named as a partial chunk"),
                (self._plain[chunks], "is named by its bare number"),
                ((bases < layout.FIRST_CHUNK_ENTRY) | (bases >= layout.PARTIAL), "has a base that is none"),
                (np.isin(self._image.births[chunks], _NO_PAYLOAD), "holds no payload of its own"),
                (np.isin(chunks, shared), "is named by a slot"),
            ):
                if bad.any():
                    self._damage("partial chunks", f"chunk {int(chunks[bad][0])} {what}")

    def _lost(self) -> None:
        """Claims that nobody has, and chunks that nobody claims (invariants 4 and 7)."""
        births, slots = self._image.births, self._image.slots
        owned, slots_owned = self._owned[: len(births)], self._owned[len(births) :]
        used = slots[slots[:, 1] != layout.BIRTH_FREE, 0]
        if (used >= len(births)).any():
            self._damage("slots", f"name chunk {int(used.max())}, which does not exist")
            used = used[used < len(births)]
        if np.isin(births[used], (layout.BIRTH_FREE, layout.BIRTH_METADATA)).any():
            self._damage("slots", "name a chunk that is free or holds metadata")
        lost = np.flatnonzero((slots[:, 1] != layout.BIRTH_FREE) & ~slots_owned)
        if len(lost):
            self._damage("slots", f"{len(lost)} are in use, but nothing refers to them, first {lost[0]}")
        named = np.zeros(len(births), np.bool_)
        named[used] = True
        count, first_lost = 0, 0
        for first, here in _pieces(births):
            part = slice(first, first + len(here))
            shared = here == layout.BIRTH_SHARED
            wrong = np.flatnonzero(shared & owned[part])
            if len(wrong):
                self._damage("births", f"chunk {first + int(wrong[0])} is said to be named by slots only, but is not")
            allocated = (here != layout.BIRTH_FREE) & (here != layout.BIRTH_METADATA)
            lost = np.flatnonzero(allocated & np.where(shared, ~named[part], ~owned[part]))
            first_lost = first + int(lost[0]) if len(lost) and not count else first_lost
            count += len(lost)
        if count:
            self._damage("births", f"{count} chunks are allocated, but nothing refers to them, first {first_lost}")

    def _node(self, node: Node) -> tuple[int, int]:
        parent, _ = self._parent_of(node)
        above = parent.tops if parent else []
        mapped = own = 0
        dead: list[Words] = []
        for number in range(max(len(node.tops), len(above))):
            common = number < len(above) and number < len(node.tops) and same_top(node.tops[number], above[number])
            named, mine = (self._named_in(node, number), 0) if common else self._top(node, parent, number, dead)
            mapped, own = mapped + named, own + mine
        if self._loader:
            self._top_ends(node)
            listed = self._loader.deadlist(node)
            if not node.record.flags & NodeFlag.RECLAIMING:
                self._deadlist(node, listed, np.concatenate(dead) if dead else _NO_WORDS)
        return mapped, own

    def _named_in(self, node: Node, number: int) -> int:
        """What was counted in a top that an older node has, too."""
        top = node.tops[number]
        return self._named.get(top, 0) if isinstance(top, PageRef) else 0

    def _top(self, node: Node, parent: Node | None, number: int, dead: list[Words]) -> tuple[int, int]:
        """Leaves that differ from the parent's: (entries of the whole top that name a chunk, those that are own)."""
        image, where = self._image, f"{node.where}, map top {number}"
        rows = image.maps.top(node.tops, number, where)
        above = image.maps.top(parent.tops, number, f"{parent.where}, map top {number}") if parent else NO_TOP
        differ = rows != above
        self._use(node, number, rows, differ)
        common = rows["page"][~differ]
        mapped, own = image.uses.named(common[common > 0]) if self._loader else 0, 0
        for at in np.flatnonzero(differ).tolist():
            index = number * layout.TOP_ENTRIES + at
            entries = image.maps.entries(rows[at], f"{node.where}, map leaf {index}")
            before = image.maps.entries(above[at], f"{node.where}, map leaf {index} of its parent")
            named, mine = self._leaf(node, index, entries, before, dead)
            mapped, own = mapped + named, own + mine
            if self._loader:
                image.uses.set_named(int(rows["page"][at]), named)
        top = node.tops[number] if number < len(node.tops) else None
        if isinstance(top, PageRef):
            self._named[top] = mapped
        return mapped, own

    def _use(self, node: Node, number: int, rows: Rows, differ: Mask) -> None:
        """Invariant 5 of a top and those of its leaves that are not the parent's."""
        top = node.tops[number] if number < len(node.tops) else None
        if not self._loader or not isinstance(top, PageRef):
            return
        uses, one = self._image.uses, np.ones(1, np.uint32)
        where = f"{node.where}, map top {number}"
        uses.share(Use.TOP, node.record.node, one * np.uint32(top.page), np.array([number]), one, where)
        at = np.flatnonzero(differ & (rows["page"] != 0))
        places = number * layout.TOP_ENTRIES + at
        where = f"{node.where}, a map leaf of top {number}"
        uses.share(Use.LEAF, node.record.node, rows["page"][at], places, rows["birth"][at], where)

    def _top_ends(self, node: Node) -> None:
        """Beyond the last leaf a top has nothing."""
        number, used = divmod(node.record.leaf_count, layout.TOP_ENTRIES)
        where = f"{node.where}, map top {number}"
        if used and (self._image.maps.top(node.tops, number, where)[used:] != NO_TOP[used:]).any():
            self._damage(where, "has entries beyond the end of the map")

    def _leaf(self, node: Node, index: int, mine: Words, inherited: Words, dead: list[Words]) -> tuple[int, int]:
        """Invariants 1 and 2 of a leaf, and what of the parent's died in it: (entries that name a chunk, own ones)."""
        _, generation = self._parent_of(node)
        reclaiming = bool(node.record.flags & NodeFlag.RECLAIMING)
        newest = node.record.generation if node.record.kind == NodeKind.SNAPSHOT else self._image.file.generation
        if reclaiming:
            newest = self._image.file.generation
        where = f"{node.where}, map leaf {index}"
        named = int(np.count_nonzero(mine >= layout.FIRST_CHUNK_ENTRY))
        at = np.flatnonzero(mine != inherited)  # what they have in common was looked at in the parent
        entries, before = self._claims(mine[at], where, at), self._claims(inherited[at], "", at)
        names = entries >= layout.FIRST_CHUNK_ENTRY
        births = self._births_of(entries)
        own = names & (births > generation)
        self._births(where, births[names], newest)
        if not reclaiming:
            foreign = names & ~own & (entries != before) & (entries != before[::-1])
            if foreign.any():
                self._damage(where, f"{_first(entries, foreign, at)} is shared, but not the parent's at this place")
        self._own(entries[own], where)
        if self._loader and not reclaiming:
            died = (before >= layout.FIRST_CHUNK_ENTRY) & (before != entries) & (before != entries[::-1])
            dead.append(before[died])
        return named, int(own.sum())

    def _claims(self, entries: Words, where: str, at: Places) -> Words:
        """Two rows: the claims of a leaf's entries, which are ``at`` these places in it; the second has the bases of
        partial chunks, and is else EMPTY."""
        partial = entries >= layout.PARTIAL
        chunks = entries - np.uint32(layout.PARTIAL)
        rows = self._image.partials
        bad = partial & (chunks >= len(rows))
        bad[partial & ~bad] = rows[chunks[partial & ~bad], 1] == 0
        if bad.any() and where:
            self._damage(where, f"entry {at[np.argmax(bad)]} names a partial chunk that is none")
        partial &= ~bad
        found = np.zeros((2, len(entries)), np.uint32)
        found[0] = np.where(partial, chunks, np.where(bad, np.uint32(layout.EMPTY), entries))
        found[1, partial] = rows[chunks[partial], 0]
        found[0], found[1] = self._valid(found[0], where, at), self._valid(found[1], where, at)
        self._partial[chunks[partial]] = True
        plain = found[0][~partial]
        self._plain[plain[plain < layout.SLOT_BIT]] = True
        return found

    def _valid(self, entries: Words, where: str, at: Places | None = None) -> Words:
        """The entries with those that cannot be followed taken as EMPTY."""
        slots = entries >= layout.SLOT_BIT
        bad = np.where(slots, entries - layout.SLOT_BIT >= len(self._image.slots), entries >= len(self._image.births))
        bad &= entries >= layout.FIRST_CHUNK_ENTRY
        if not bad.any():
            return entries
        if where:
            self._damage(where, f"{_first(entries, bad, at)} does not exist")
        return np.where(bad, np.uint32(layout.EMPTY), entries)

    def _places(self, claims: Words) -> npt.NDArray[np.int64]:
        """Where valid claims are in what has both kinds."""
        wide = claims.astype(np.int64)
        return np.where(claims >= layout.SLOT_BIT, wide - layout.SLOT_BIT + len(self._image.births), wide)

    def _births_of(self, claims: Words) -> Words:
        """Of valid claims."""
        image = self._image
        slots = claims >= layout.SLOT_BIT
        found = image.births[np.where(slots, np.uint32(layout.EMPTY), claims)]
        found[slots] = image.slots[claims[slots] - layout.SLOT_BIT, 1]
        return found

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
        taken = self._owned[places]
        if taken.any():
            claim = _claim(int(unique[taken][0]))
            self._damage(where, f"{claim} belongs to another node or to the reclaim queue too")
        self._owned[places] = True

    def _deadlist(self, node: Node, dead: dict[int, Words], expected: Words) -> None:
        where = f"{node.where}, deadlist"
        listed = self._valid(np.concatenate(list(dead.values())) if dead else _NO_WORDS, where)
        for birth, chunks in dead.items():
            if any((self._births_of(self._valid(part, "")) != birth).any() for _, part in _pieces(chunks)):
                self._damage(where, f"the bucket of birth {birth} holds chunks of another birth")
        listed, expected = np.sort(listed), np.sort(expected)
        if np.array_equal(listed, expected) and (listed[1:] != listed[:-1]).all():
            return
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
        free = np.count_nonzero(image.births == layout.BIRTH_FREE)
        self._report.counts.update(
            nodes=len(image.nodes),
            leaves=image.uses.count(Use.LEAF),
            pages=image.uses.count(),
            chunks=int(len(image.births) - free - np.count_nonzero(image.births == layout.BIRTH_METADATA)),
            reclaim_queue=len(image.reclaim),
            slots=int(np.count_nonzero(image.slots[:, 1])),
            partial_chunks=int(np.count_nonzero(image.partials[:, 1])),
        )

    # Digests

    def _digests(self) -> None:
        """Invariant 9."""
        image = self._image
        marked = np.zeros(max(len(image.births), len(image.digested), max(image.bad, default=0) + 1), np.bool_)
        marked[: len(image.digested)] = image.digested
        marked[list(image.bad)] = True
        here, births = marked[: len(image.births)], image.births
        wrong = int(np.count_nonzero(marked[len(births) :]))
        wrong += int(np.count_nonzero(here & (births == layout.BIRTH_FREE)))
        wrong += int(np.count_nonzero(here & (births == layout.BIRTH_METADATA)))
        if wrong:
            self._damage("digests", f"{wrong} chunks have a digest or a mark, but hold no payload")
        if image.bad:
            self._findings.note("data", f"{len(image.bad)} chunks are marked bad, first {image.bad[0]}")
        self._report.counts.update(digests=int(np.count_nonzero(image.digested)), bad_chunks=len(image.bad))


def _parents_first(node: Node) -> tuple[bool, float]:
    """Snapshots are younger than their parents; then come heads, and what is being reclaimed."""
    record = node.record
    last = record.kind != NodeKind.SNAPSHOT or bool(record.flags & NodeFlag.RECLAIMING)
    return last, record.generation


def _pieces(words: Words) -> Iterator[tuple[int, Words]]:
    """(first, part) of what is too long to be worked on at once."""
    for first in range(0, len(words), _PIECE):
        yield first, words[first : first + _PIECE]


def _first(entries: Words, mask: Mask, at: Places | None) -> str:
    """The first one of a mask: where it is in its leaf, if it is in one, and what it names."""
    first = int(np.argmax(mask))
    claim = _claim(int(entries.flat[first]))
    return claim if at is None else f"entry {at[first % len(at)]} ({claim})"


def _claim(claim: int) -> str:
    return f"slot {claim - layout.SLOT_BIT}" if claim >= layout.SLOT_BIT else f"chunk {claim}"
