"""Scrub: every chunk that a volume and its snapshots refer to is read; its digest is compared, or made.

A piece of work is a part of one map leaf, for all nodes that the volume stands on. A chunk has exactly one node that
it is *own* to (born above its floor), so going through the own entries of every node meets each chunk once; a chunk
that slots share may be met more often. The order makes the walk complete although the tree changes under it:

1. snapshots by rising generation: what a merged one had becomes own to its child, which is younger and comes later;
2. the head, of which everything born above the floor that it had at the end of step 1 is taken;
3. snapshots that were made meanwhile: what the head has overwritten since is in them.

Freezing: what a sealed snapshot shows, nobody writes. A part of the head is frozen by waiting for its place in the
order of writes (``NativeHead.still``) and then, in the same step, for the digest (``Births.hold``): later writes
redirect. So no snapshot has to be made, and only what is being digested is frozen.

A mismatch is first held against the medium: what was read may have been the host's memory. Only what the medium
confirms is marked.
"""

from __future__ import annotations

import asyncio
import enum
from array import array
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.errors import EngineError, MediumError, OutOfSpace
from engine.hash_tree import leaf_digests
from engine.stores.place import Place
from engine.tvol import layout
from engine.tvol.allocator import runs
from engine.tvol.chunk_map import LEAF_MASK, LEAF_SHIFT
from engine.tvol.digests import MAX_DIRTY_PAGES, digest_of
from engine.tvol.layout import FIRST_CHUNK_ENTRY, LEAF_ENTRIES, PARTIAL, LayoutError, NodeFlag, NodeKind, RecordType
from engine.units import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import numpy.typing as npt

    from engine.files import BlockFile
    from engine.tvol.chunk_map import Leaf
    from engine.tvol.core import Core
    from engine.tvol.head import NativeHead
    from engine.tvol.nodes import Node
    from engine.tvol.tree import Family

    Words = npt.NDArray[np.uint32]

BATCH_BYTES = 1 * MIB
"""What is read and digested at once."""
UNSEALED_POLL_S = 0.01


class Found(enum.Enum):
    """What a scrub reports besides its counts."""

    TRANSIENT = "transient"  # the digest was wrong in memory, and right on the medium
    BAD = "bad"  # wrong on the medium too: marked
    UNREADABLE = "unreadable"  # the host cannot read a chunk that has a digest: marked as well
    UNREADABLE_UNKNOWN = "unreadable, no digest"  # nor one that has none: nothing to mark, the host's error stays
    REPAIRED = "repaired"
    MAP_LOST = "map lost"  # a page of a map had rotted: what it maps cannot be read
    DIGESTS_LOST = "digests lost"  # a page of digests had rotted; they are made anew


@dataclass(frozen=True, slots=True)
class Finding:
    """``offset``: where the chunk is in the volume's addresses. ``node``: name of the snapshot or volume where it was
    met. ``expected`` and ``actual``: digests, hexadecimal."""

    found: Found
    node: str
    offset: int
    chunk: int
    expected: str = ""
    actual: str = ""
    text: str = ""


@dataclass(slots=True)
class ScrubCounts:
    """What a scrub has done so far, in chunks."""

    verified: int = 0
    made: int = 0
    bad: int = 0
    repaired: int = 0
    transient: int = 0
    skipped: int = 0
    """Marked bad before."""
    no_room: int = 0
    """Without a digest still: the disk is full."""


class _Held:
    """Held chunks as the lease that a mover takes: the batch's operation keeps them where they are."""

    def __init__(self, place: Place[BlockFile]) -> None:
        self.place = place
        self.read = place.read

    def release(self) -> None:
        """Whoever holds the chunks lets go of them."""


class RepairSource(Protocol):
    """Somebody who may have the bytes of a chunk elsewhere: a mirror."""

    def offers(self, volume_id: str, offset: int, length: int, /) -> AsyncIterator[bytes]:
        """What others take for ``length`` bytes of the volume from ``offset``; the digest decides whether it is so."""
        ...


def standing_on(family: Family, volume_id: str) -> set[Node]:
    """The nodes that a volume is made of, those that a clone has from its origin among them."""
    ours: set[Node] = set()
    for node in family.nodes.values():
        at: Node | None = node if node.volume_id == volume_id else None
        while at is not None and at not in ours:
            ours.add(at)
            at = at.parent
    return ours


class Scrubber:
    """One scrub of one volume.

    Args:
        pace: awaited with the bytes of each batch before it is read: keeps the budget, ends the scrub by raising.
        report: told of each finding, in the loop.
        make_only: chunks that have a digest are left alone (the policy ``always``).
    """

    def __init__(
        self,
        core: Core,
        head: NativeHead,
        *,
        pace: Callable[[int], Awaitable[None]],
        report: Callable[[Finding], None],
        rebind: Callable[[], None],
        repair: RepairSource | None = None,
        make_only: bool = False,
    ) -> None:
        self.counts = ScrubCounts()
        self._core = core
        self._head = head
        self._pace = pace
        self._report = report
        self._rebind = rebind
        self._repair = repair
        self._make_only = make_only
        self._tree_version = 0
        self._stored = 0
        self._digests = core.family.births.digests
        self._batch_chunks = max(1, BATCH_BYTES // core.chunk_bytes)

    async def run(self, first: int, end: int) -> None:
        """Scrub chunk indexes ``first`` to ``end`` of the volume and of all its snapshots; what is new is durable then.

        Raises NotFound or InvalidState when the volume goes, StoreFailed, and what ``pace`` raises.
        """
        self._core.on_tree_change.append(self._tree_changed)
        try:
            for number in range(first >> LEAF_SHIFT, -(-end // LEAF_ENTRIES)):
                start = max(first, number << LEAF_SHIFT) & LEAF_MASK
                stop = min(end, (number + 1) << LEAF_SHIFT) - (number << LEAF_SHIFT)
                done = await self._snapshots(number, start, stop, 0)
                await self._live(number, start, stop, self._head.node.floor)
                await self._snapshots(number, start, stop, done)
        finally:
            self._core.on_tree_change.remove(self._tree_changed)
        if self.counts.made > self._stored:
            await self._core.checkpointer.run()  # digests are in no journal
            self._stored = self.counts.made

    def _tree_changed(self) -> None:
        self._tree_version += 1

    # --- the walk -----------------------------------------------------------------------------------------------

    def _standing_on(self, number: int, above: int) -> list[Node]:
        """The snapshots younger than ``above`` that the volume is made of, those with own entries in that leaf, by
        generation."""
        found = [
            node
            for node in standing_on(self._core.family, self._head.volume_id)
            if node.kind is NodeKind.SNAPSHOT
            and not node.flags & NodeFlag.RECLAIMING
            and node.generation > above
            and number < node.map.count
        ]
        return sorted(found, key=lambda node: node.generation)

    async def _snapshots(self, number: int, start: int, stop: int, above: int) -> int:
        """The own entries of all snapshots younger than ``above``; the youngest generation that was met."""
        nodes: deque[Node] = deque()
        version = -1
        while True:
            if version != self._tree_version:
                nodes, version = deque(self._standing_on(number, above)), self._tree_version
            if not nodes:
                return above
            node = nodes.popleft()
            await self._sealed(node)
            leaf = await self._own_leaf(node, number)
            for at in [] if leaf is None else self._strips(leaf.array[start:stop]):
                if leaf is None or self._gone(node):
                    break  # merged: its child has the rest now
                first, last = start + at, min(stop, start + at + self._batch_chunks)
                await self._entries(node, number, first, leaf.array[first:last], node.floor)
            above = node.generation

    def _gone(self, node: Node) -> bool:
        return self._core.family.nodes.get(node.id) is not node or bool(node.flags & NodeFlag.RECLAIMING)

    async def _own_leaf(self, node: Node, number: int, *, whole: bool = False) -> Leaf | None:
        """A leaf, unless it cannot be read, or is the parent's and not ``whole``."""
        try:
            leaf = await self._core.maps.leaf(node, number)
            return await self._core.maps.resident_leaf(node, number) if whole or leaf.birth > node.floor else None
        except MediumError as error:
            if not self._gone(node):  # else it was read while its snapshot went, and its pages were used again
                offset = (number << LEAF_SHIFT) * self._core.chunk_bytes
                self._report(Finding(Found.MAP_LOST, node.name, offset, 0, text=str(error)))
            return None

    async def _sealed(self, node: Node) -> None:
        """Writes admitted before a snapshot's instant may be in flight until it is sealed."""
        while node.flags & NodeFlag.UNSEALED and node.id in self._core.family.nodes:
            await asyncio.sleep(UNSEALED_POLL_S)
            self._core.check()

    async def _live(self, number: int, start: int, stop: int, floor: int) -> None:
        """What the head has that was born above ``floor``."""
        node, base = self._head.node, number << LEAF_SHIFT
        leaf = await self._own_leaf(node, number, whole=True)
        for at in [] if leaf is None else self._strips(leaf.array[start:stop]):
            first, last = start + at, min(stop, start + at + self._batch_chunks)
            if not await self._head.still(base + first, base + last - 1):
                return
            if number >= node.map.count:
                return  # made smaller
            if not self._core.maps.ready(node, base, base):
                await self._live(number, first, stop, floor)  # rolled back: its map is another one
                return
            await self._entries(node, number, first, node.map.leaves[number].array[first:last], floor)

    def _strips(self, entries: Words) -> list[int]:
        """Where the batches among these entries begin that have something to do."""
        wanted = entries >= FIRST_CHUNK_ENTRY
        if self._make_only:
            wanted[wanted] = ~self._digests.have(self._core.family.claims.chunks_of(entries[wanted]))
        batches: list[int] = np.unique(np.flatnonzero(wanted) // self._batch_chunks).tolist()
        return [batch * self._batch_chunks for batch in batches]

    async def _entries(self, node: Node, number: int, at: int, entries: Words, floor: int) -> None:
        """Some entries of a node; nobody is writing to what they name, in this step."""
        claims = self._core.family.claims
        places = np.flatnonzero(entries >= FIRST_CHUNK_ENTRY)
        named = claims.of_entries(entries[places])
        places = np.concatenate([places, places[entries[places] >= PARTIAL]])  # the bases come last
        own = claims.births_of(named) > floor
        places = places[own]
        if not len(places):
            return
        chunks = claims.chunks_of(named[own])
        if self._make_only:
            missing = ~self._digests.have(chunks)
            chunks, places = chunks[missing], places[missing]
        held = self._core.family.births.hold(chunks)
        index_of = dict(zip(chunks.tolist(), (places + ((number << LEAF_SHIFT) + at)).tolist(), strict=True))
        operation = self._core.begin_operation()  # what is freed meanwhile is not used for anything else
        try:
            await self._batch(node, {chunk: index_of[chunk] for chunk in held.tolist()})
        finally:
            self._digests.held.difference_update(index_of)
            self._core.end_operation(operation)

    # --- a batch ------------------------------------------------------------------------------------------------

    async def _batch(self, node: Node, index_of: dict[int, int]) -> None:
        if not index_of:
            return
        bad = self._digests.bad.intersection(index_of)
        self.counts.skipped += len(bad)
        core = self._core
        await self._pace(len(index_of) * core.chunk_bytes)
        core.check()
        chunks = [chunk for chunk in index_of if chunk not in bad]
        read = await self._read(chunks)
        room = await self._ready(node, read)
        for chunk, actual in read.items():
            if chunk not in self._digests.held:
                continue  # freed meanwhile
            expected = self._digests.get(chunk)
            if expected is not None and actual == expected:
                self.counts.verified += 1
            elif expected is not None:
                await self._suspect(node, index_of[chunk], chunk, expected)
                room = await self._ready(node, read)
            elif actual is None:
                self._tell(Found.UNREADABLE_UNKNOWN, node, index_of[chunk], chunk)
            elif room:
                self.counts.made += 1
                self._digests.put(chunk, actual)
            else:
                self.counts.no_room += 1
        for chunk in bad:
            await self._pages_of(node, [chunk])
            expected = self._digests.get(chunk) if chunk in self._digests.held else None
            if expected is not None:
                await self._heal(node, index_of[chunk], chunk, expected)

    async def _ready(self, node: Node, read: dict[int, bytes | None]) -> bool:
        """Have the digests of a batch in memory, and say whether there is room for new ones: both hold in the step in
        which it returns. What is waited for on the way may take either away again."""
        while True:
            room = all(map(self._digests.has, read)) or await self._room()
            if self._digests.at_hand(read):
                return room
            await self._pages_of(node, read)

    async def _room(self) -> bool:
        """Room for what a batch adds to the next checkpoint. False on a full disk: then nothing is digested."""
        try:
            if self._digests.dirty_pages >= MAX_DIRTY_PAGES:
                await self._core.checkpointer.run()
            await self._core.make_room(pages=self._batch_chunks + 8)
        except OutOfSpace:
            return False
        return True

    async def _pages_of(self, node: Node, chunks: list[int] | dict[int, bytes | None]) -> None:
        while True:
            try:
                await self._digests.prepare(self._core.file, self._core.env.workers, chunks)
            except LayoutError as error:
                self._report(Finding(Found.DIGESTS_LOST, node.name, 0, 0, text=str(error)))
            else:
                return

    async def _read(self, chunks: list[int]) -> dict[int, bytes | None]:
        """The digests of chunks as they are, None for one that cannot be read."""
        if not chunks:
            return {}
        size = self._core.chunk_bytes
        segments: list[tuple[int, int, int]] = []
        ordered: list[int] = []
        for first, count in runs(array("I", chunks), self._batch_chunks):
            segments.append((len(ordered) * size, count * size, first * size))
            ordered.extend(range(first, first + count))
        try:
            leaves = await self._core.env.mover.digest(len(ordered) * size, _Held(Place(self._core.file, segments)))
        except MediumError:
            if len(chunks) == 1:
                return {chunks[0]: None}
            found: dict[int, bytes | None] = {}
            for chunk in chunks:
                found.update(await self._read([chunk]))
            return found
        step = len(leaves) // len(ordered)
        return {chunk: digest_of(leaves[at * step : (at + 1) * step]) for at, chunk in enumerate(ordered)}

    async def _read_medium(self, chunk: int) -> bytes | None:
        """The same of one chunk, not from the host's memory."""
        core, size = self._core, self._core.chunk_bytes
        await core.flush()  # the host drops only what is on the medium
        await core.env.workers.run(lambda: core.file.drop_cache(chunk * size, size))
        return (await self._read([chunk]))[chunk]

    # --- what is wrong ------------------------------------------------------------------------------------------

    async def _suspect(self, node: Node, index: int, chunk: int, expected: bytes) -> None:
        """A digest differs: ask the medium, then mark the chunk."""
        actual = await self._read_medium(chunk)
        if chunk not in self._digests.held:
            return
        if actual == expected:
            self.counts.transient += 1
            self._tell(Found.TRANSIENT, node, index, chunk, expected, actual)
            return
        await self._mark(chunk, bad=True)
        if chunk in self._digests.bad:
            self.counts.bad += 1
            found = Found.UNREADABLE if actual is None else Found.BAD
            self._tell(found, node, index, chunk, expected, actual)
            await self._heal(node, index, chunk, expected)

    async def _mark(self, chunk: int, *, bad: bool) -> None:
        """Mark a chunk, or take the mark back, durably; its digest is durable with it."""
        core = self._core
        await core.make_room(reserved=True)
        if chunk not in self._digests.held or bad is (chunk in self._digests.bad):
            return
        if bad and len(self._digests.bad) >= layout.MAX_BAD_CHUNKS:
            raise MediumError(f"{core.path}: {layout.MAX_BAD_CHUNKS} chunks are bad; replace the medium")
        core.log(RecordType.MARK, layout.MARK.pack(chunk, int(bad)))
        self._rebind()
        await core.checkpointer.run()

    async def _heal(self, node: Node, index: int, chunk: int, expected: bytes) -> None:
        """Write a bad chunk's bytes anew, if somebody has them: in place, since they are what it held."""
        if self._repair is None:
            return
        core, size = self._core, self._core.chunk_bytes
        offset = index * size
        async for data in self._repair.offers(self._head.volume_id, offset, size):
            stored = await core.env.workers.run(lambda data=data: core.as_stored(data, chunk * size))  # type: ignore[misc]
            if digest_of(leaf_digests(memoryview(stored))) == expected:
                break
        else:
            return
        if chunk not in self._digests.held:
            return
        try:
            await core.env.workers.run(lambda: core.file.write((memoryview(stored),), chunk * size))
            actual = await self._read_medium(chunk)
        except EngineError:
            core.check()
            return
        if actual == expected:
            await self._mark(chunk, bad=False)
            self.counts.repaired += 1
            self._tell(Found.REPAIRED, node, index, chunk, expected, actual)

    def _tell(
        self, found: Found, node: Node, index: int, chunk: int, expected: bytes = b"", actual: bytes | None = None
    ) -> None:
        offset = index * self._core.chunk_bytes
        self._report(Finding(found, node.name, offset, chunk, expected.hex(), (actual or b"").hex()))
