"""``twinvol check --repair``: what the rest of a volume file says is put back; everything else is refused.

Never in place: the file is copied (sparse, sharing blocks where the host can), the copy is mended and checked by
``check.py``, which knows nothing of the mending, and only a clean one takes the file's name. The original stays beside
it, as NAME.damaged.

Mended is what follows from maps, nodes and slots, all of which must verify:

* a superblock slot (the other one has the same state);
* births: a chunk that a map names, by itself or as the base of a partial chunk, was born in the generation of the
  oldest node that has it at that place, or before, but after that node's parent; so that node's generation does. What
  only a node that is being reclaimed names is its own;
* deadlists and counters: computed as ``check.py`` computes them;
* the reclaim queue: what is allocated, and claimed by no map, waits there;
* pages of digests, and their bits: those digests are gone, a scrub makes new ones.

Refused is what holds the only word on something: maps, nodes, slots, the rows of partial chunks, the root stream, both
superblock slots, a journal record that a later COMMIT vouches for.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from array import array
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_64_intdigest as checksum64

from engine.encryption import Encryption
from engine.errors import AlreadyExists, MediumError, StoreCorrupt
from engine.files import translate
from engine.tvol import layout
from engine.tvol.check import check_file
from engine.tvol.chunk_map import ABSENT_LEAF
from engine.tvol.claims import SLOT_MASK
from engine.tvol.deadlist import Deadlist, ReclaimQueue
from engine.tvol.file import TvolFile
from engine.tvol.file_copy import copy_file
from engine.tvol.layout import (
    BIRTH_FREE,
    BIRTH_METADATA,
    BIRTH_SHARED,
    FIRST_CHUNK_ENTRY,
    PAGE_SIZE,
    SLOT_BIT,
    LayoutError,
)
from engine.tvol.map_reader import MapSource

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from engine.files import BlockFile, StoreEnv
    from engine.tvol.check import CheckReport
    from engine.tvol.chunk_map import Leaf
    from engine.tvol.layout import Superblock
    from engine.tvol.layout_encryption import EncryptionRecord
    from engine.tvol.nodes import Node
    from engine.tvol.tree import Family

    Words = npt.NDArray[np.uint32]

_KEPT_LEAVES = 2048
"""32 MiB."""
_UNKNOWN_BIRTH = 1
"""Of the chunks of a lost page of births until they are derived."""


@dataclasses.dataclass(frozen=True, slots=True)
class Repaired:
    """A repair that has taken place. ``original``: where the damaged file is now."""

    before: CheckReport
    after: CheckReport
    original: Path
    mended: list[str]


async def repair_file(env: StoreEnv, path: Path) -> Repaired | None:
    """Repair a closed volume file; None: there is nothing to repair.

    Raises StoreCorrupt, saying what cannot be mended (the file is as it was), NotFound, InUse, OutOfSpace,
    AlreadyExists: a file that an earlier repair left is in the way.
    """
    before = await env.workers.run(lambda: check_file(path, env.files))
    if not before.findings:
        return None
    copy, original = path.with_name(path.name + ".repair"), path.with_name(path.name + ".damaged")
    for each in (copy, original):
        if each.exists():
            raise AlreadyExists("file", str(each))
    mender = _Mender()
    await env.workers.run(lambda: copy_file(path, copy))
    try:
        store = await TvolFile.open(env, copy, unlock=_without_key, mender=mender)
        await store.close()
        after = await env.workers.run(lambda: check_file(copy, env.files))
        if after.damaged:
            raise StoreCorrupt(str(path), "mending was not enough: " + "; ".join(map(str, after.findings[:3])))
    except BaseException as error:
        await env.workers.run(copy.unlink)
        if isinstance(error, StoreCorrupt):  # it speaks of the copy, which nobody knows
            raise StoreCorrupt(error.where.replace(str(copy), str(path)), error.reason) from error
        raise
    await env.workers.run(lambda: _swap(env, path, original, copy))
    return Repaired(before, after, original, mender.mended)


def _without_key(record: EncryptionRecord) -> Encryption:
    """No payload is read or written here."""
    return Encryption(record, bytes(64))


def _swap(env: StoreEnv, path: Path, original: Path, copy: Path) -> None:
    """The damaged file keeps a name at every moment, and so does the good one."""
    try:
        os.link(path, original)
        env.files.sync_directory(path.parent)
        copy.replace(path)
    except OSError as error:
        raise translate(error, f"putting the repaired {copy} in place of {path}") from error
    env.files.sync_directory(path.parent)


class _Maps:
    """The maps of all nodes, of which a bounded part is in memory: read where a node's differ from its parent's."""

    def __init__(self, family: Family, source: MapSource) -> None:
        self._family = family
        self._source = source
        self._kept: dict[int, Words] = {}
        """By page; the oldest goes first."""
        self._named: dict[int, int] = {0: 0}
        """How many entries of each leaf name a chunk, by page."""

    def differing(self, node: Node) -> Iterator[tuple[int, Words, Words]]:
        """Number and entries of the leaves that are not the parent's, and the parent's. Raises LayoutError, MediumError
        for one that is not what it should be."""
        mine, above = self._leaves(node), self._leaves(node.parent) if node.parent else []
        for number, (leaf, other) in enumerate(itertools.zip_longest(mine, above, fillvalue=ABSENT_LEAF)):
            if leaf.page != other.page:
                yield number, self._entries(leaf), self._entries(other)

    def mapped(self, node: Node) -> int:
        """Entries that name a chunk. All nodes were looked through before."""
        return sum(self._named[leaf.page] for leaf in self._leaves(node))

    def _leaves(self, node: Node) -> list[Leaf]:
        return self._source.leaves(node.map.tops, node.map.count)

    def _entries(self, leaf: Leaf) -> Words:
        if not leaf.page:
            return ABSENT_LEAF.array
        entries = self._kept.get(leaf.page)
        if entries is None:
            entries = self._source.entries(leaf)
            self._family.claims.check_entries(entries)
            self._named[leaf.page] = int(np.count_nonzero(entries >= FIRST_CHUNK_ENTRY))
            if len(self._kept) >= _KEPT_LEAVES:
                del self._kept[next(iter(self._kept))]
            self._kept[leaf.page] = entries
        return entries


class _Mender:
    """``engine.tvol.recovery.Mender``."""

    def __init__(self) -> None:
        self.mended: list[str] = []
        self._lost_births: list[int] = []
        self._named: npt.NDArray[np.bool_] = np.zeros(0, bool)
        """Chunks that maps name by their number."""
        self._named_slots: npt.NDArray[np.bool_] = np.zeros(0, bool)
        self._maps: _Maps

    def lost(self, what: str, number: int) -> bytes:
        self.mended.append(f"{what}, page {number}: derived anew")
        if what == "births":
            self._lost_births.append(number)
            return np.full(layout.BIRTHS_PER_PAGE, _UNKNOWN_BIRTH, "<u4").tobytes()
        return bytes(PAGE_SIZE)

    def mend(self, family: Family, file: BlockFile, superblock: Superblock, pages: Collection[int]) -> None:
        try:
            self._mend(family, file, superblock, pages)
        except MediumError as error:
            raise StoreCorrupt(str(file.path), str(error)) from error

    def _mend(self, family: Family, file: BlockFile, superblock: Superblock, pages: Collection[int]) -> None:
        self._maps = _Maps(family, MapSource(file))
        per_chunk = superblock.chunk_bytes // PAGE_SIZE
        reserved = range(layout.JOURNAL_FIRST_CHUNK + superblock.journal_chunks)
        self._births(family, {*reserved, *(page // per_chunk for page in pages)})
        self._queue(family)
        family.claims.check_partials(_queued(family))
        for node in family.nodes.values():
            if node not in family.reclaiming:
                self._node(family, node)
        self._digests(family, file)
        family.births.pages.touch_all(range(family.births.page_count()))
        family.births.digests.touch()
        family.births.freeze_digested()

    # --- births -------------------------------------------------------------------------------------------------

    def _births(self, family: Family, metadata: set[int]) -> None:
        births = family.births
        unknown = np.zeros(births.count, bool)
        for page in self._lost_births:
            unknown[page * layout.BIRTHS_PER_PAGE : (page + 1) * layout.BIRTHS_PER_PAGE] = True
        self._named = np.zeros(births.count, bool)
        self._named_slots = np.zeros(family.claims.count, bool)
        wrong = 0
        for node in sorted(family.nodes.values(), key=lambda node: _order(family, node)):
            born = family.generation if node in family.reclaiming else node.generation or family.generation
            for number, entries, _ in self._maps.differing(node):
                named = family.claims.of_entries(entries[entries >= FIRST_CHUNK_ENTRY])
                self._named_slots[named[named >= SLOT_BIT] & np.uint32(SLOT_MASK)] = True
                chunks = named[named < SLOT_BIT]
                if len(chunks) and int(chunks.max()) >= births.count:
                    raise LayoutError(f"map leaf {number} of node {node.id} names a chunk beyond the end")
                self._named[chunks] = True
                mine = chunks[unknown[chunks] | np.isin(births.of(chunks), (BIRTH_FREE, BIRTH_SHARED))]
                wrong += len(mine) - int(np.count_nonzero(unknown[mine]))
                for chunk in mine.tolist():
                    births.set(chunk, born)
                unknown[mine] = False
        shared = family.claims.named_chunks()
        for chunk in shared[unknown[shared]].tolist():
            births.set(chunk, BIRTH_SHARED)
        unknown[shared] = False
        unshared = np.setdiff1d(births.with_birth(BIRTH_SHARED), shared)
        unknown[unshared] = True
        if wrong or len(unshared):
            self.mended.append(f"births of {wrong + len(unshared)} chunks")
        queued = _queued(family)
        unknown[queued[queued < births.count]] = False  # whatever their births: they are about to be freed
        for chunk in np.flatnonzero(unknown).tolist():
            births.set(chunk, BIRTH_METADATA if chunk in metadata else BIRTH_FREE)
        freed = births.with_birth(BIRTH_FREE)
        births.digests.drop(freed)
        family.claims.partials.freed(freed)

    def _queue(self, family: Family) -> None:
        """The reclaim queue: what of it verified, in its order, then every other claim that no map has."""
        claims, births = family.claims, family.births
        unnamed = np.flatnonzero(~self._named).astype(np.uint32)
        lost = unnamed[~np.isin(births.of(unnamed), (BIRTH_FREE, BIRTH_SHARED, BIRTH_METADATA))]
        slots = claims.used_slots()
        lost = np.concatenate([lost, slots[~self._named_slots[slots]] | np.uint32(SLOT_BIT)])
        queued = _queued(family)
        kept = queued[np.isin(queued, lost)]
        kept = kept[np.sort(np.unique(kept, return_index=True)[1])]
        leaked = np.setdiff1d(lost, kept)
        if len(leaked):
            self.mended.append(f"{len(leaked)} claims that nothing refers to: free")
        family.reclaim = ReclaimQueue()
        family.reclaim.append(array("I", np.concatenate([kept, leaked]).tobytes()))

    # --- nodes --------------------------------------------------------------------------------------------------

    def _node(self, family: Family, node: Node) -> None:
        """Its deadlist and counters."""
        claims, dead, mapped, own = family.claims, Deadlist(), self._maps.mapped(node), 0
        for _, entries, before in self._maps.differing(node):
            here, there = claims.partials.by_place(entries), claims.partials.by_place(before)
            own += int(np.count_nonzero(claims.births_of(here[here >= FIRST_CHUNK_ENTRY]) > node.floor))
            killed = there[(there >= FIRST_CHUNK_ENTRY) & (there != here) & (there != here[::-1])]
            for birth, claim in zip(claims.births_of(killed).tolist(), killed.tolist(), strict=True):
                dead.add(birth, claim)
        if (mapped, own) != (node.mapped, node.own):
            self.mended.append(f"counters of node {node.id}")
        node.dead, node.mapped, node.own = dead, mapped, own
        family.touch(node)

    # --- digests ------------------------------------------------------------------------------------------------

    def _digests(self, family: Family, file: BlockFile) -> None:
        digests = family.births.digests
        for number, ref in enumerate(digests.refs):
            page, wanted = int(ref["page"]), int(ref["checksum"])
            if page and checksum64(_page(file, page)) != wanted:
                lost = digests.drop_page(number)
                self.mended.append(f"digest page {number}: {lost} chunks have no digest any more")


def _order(family: Family, node: Node) -> tuple[bool, int]:
    """Who has a chunk first in this order owns it: parents before children, at last what is being reclaimed."""
    depth, above = 0, node.parent
    while above is not None:
        above, depth = above.parent, depth + 1
    return node in family.reclaiming, depth


def _queued(family: Family) -> Words:
    """The claims in the reclaim queue, in order, without the zeroes of a lost page."""
    parts = [np.frombuffer(claims, np.uint32)[start:end] for claims, start, end in family.reclaim.parts()]
    queued = np.concatenate(parts) if parts else np.zeros(0, np.uint32)
    return queued[queued >= FIRST_CHUNK_ENTRY]


def _page(file: BlockFile, page: int) -> bytes:
    data = bytearray(PAGE_SIZE)
    file.read_into((memoryview(data),), page * PAGE_SIZE)
    return bytes(data)
