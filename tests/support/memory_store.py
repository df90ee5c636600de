"""A ``VolumeStore`` in memory: the plain model of the seam, with crashes, delays and faults.

Every chunk is an immutable object, and a write puts a new one in its place, so "the pointer differs" is ``is not``
and a snapshot is a copied dictionary. What is *volatile* is what the nodes hold; what is *durable* is a second set
of dictionaries that ``flush``, ``snapshot`` and the staging calls bring up to date.

* ``crash(rng)`` is ``kill -9``: acknowledged writes stay, unacknowledged ones are there or not.
* ``crash(rng, power_loss=True)``: of every chunk that differs from the durable one, each sector is old or new.

``pace`` is awaited inside every write, discard and flush once it is admitted: a test delays or fails it there.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidState,
    NotFound,
    NotSupported,
    OutOfRange,
    StoreFailed,
    WriteProtected,
)
from engine.stores import Extent, ExtentState, FamilySpace, Space, StoreCapabilities
from engine.units import KIB, SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from random import Random

CHUNK = 64 * KIB


class Chunk:
    """Immutable content of one chunk; its identity is the pointer that ``changed`` compares."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


ChunkMap = dict[int, Chunk]


@dataclass(eq=False)
class _Operation:
    start: int
    end: int
    done: asyncio.Future[None]
    nodes: list[MemoryNode] = field(default_factory=list)


@dataclass
class _Durable:
    """What a power loss leaves of a node."""

    chunks: ChunkMap
    size_bytes: int
    captured: int


class MemoryNode:
    """A snapshot (``Frozen``) or a writable volume or staging area (``Head``)."""

    def __init__(
        self, store: MemoryStore, volume_id: str, name: str, size_bytes: int, kind: str, guid: str, created_at: float
    ) -> None:
        self._store = store
        self.volume_id = volume_id
        self.name = name
        self.kind = kind
        self.guid = guid
        self.created_at = created_at
        self.size_bytes = size_bytes
        self.chunks: ChunkMap = {}
        self._operations: list[_Operation] = []
        self.hidden = False

    @property
    def store(self) -> MemoryStore:
        return self._store

    @property
    def read_only(self) -> bool:
        return self.kind == "snapshot"

    def _check(self, offset: int, length: int, *, write: bool) -> None:
        if self._store.closed or self.kind == "dropped":
            raise StoreFailed(f"{self.name} is closed")
        if write and self.kind == "snapshot":
            raise WriteProtected(f"{self.name} is a snapshot")
        if offset % SECTOR_SIZE or length % SECTOR_SIZE or offset < 0 or offset + length > self.size_bytes:
            raise OutOfRange(offset, length, self.size_bytes)

    def try_read(self, offset: int, view: memoryview) -> bool:
        return False

    def try_write(self, offset: int, data: memoryview) -> bool:
        return False

    def end_pass(self) -> None:
        return

    async def read(self, offset: int, view: memoryview) -> None:
        self._check(offset, len(view), write=False)
        for operation in [o for o in self._operations if o.start < offset + len(view) and o.end > offset]:
            await asyncio.wait([operation.done])
        view[:] = self.content(offset, len(view))

    def content(self, offset: int, length: int) -> bytes:
        """The bytes as they are now."""
        pieces = []
        while length:
            index, within = divmod(offset, CHUNK)
            part = min(CHUNK - within, length)
            chunk = self.chunks.get(index)
            pieces.append(bytes(part) if chunk is None else chunk.data[within : within + part])
            offset += part
            length -= part
        return b"".join(pieces)

    async def write(self, offset: int, data: memoryview, *, fua: bool = False) -> None:
        payload = bytes(data)
        await self.change(offset, len(payload), lambda node, memo: node.put(offset, payload, memo))
        if fua:
            await self.flush()

    async def write_zeroes(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self.write(offset, memoryview(bytes(length)), fua=fua)

    async def discard(self, offset: int, length: int) -> None:
        def clear(node: MemoryNode, memo: dict[Chunk | None, Chunk]) -> None:
            whole_first, whole_end = -(-offset // CHUNK), (offset + length) // CHUNK
            for index in [i for i in node.chunks if whole_first <= i < whole_end]:
                del node.chunks[index]
            if whole_first > whole_end:
                node.put(offset, bytes(length), memo)
                return
            node.put(offset, bytes(whole_first * CHUNK - offset), memo)
            node.put(whole_end * CHUNK, bytes(offset + length - whole_end * CHUNK), memo)

        await self.change(offset, length, clear)

    def put(self, offset: int, payload: bytes, memo: dict[Chunk | None, Chunk]) -> None:
        position = 0
        while position < len(payload):
            index, within = divmod(offset + position, CHUNK)
            part = min(CHUNK - within, len(payload) - position)
            old = self.chunks.get(index)
            new = memo.get(old) if old is not None else None
            if new is None:
                base = bytes(CHUNK) if old is None else old.data
                new = Chunk(base[:within] + payload[position : position + part] + base[within + part :])
                if old is not None:
                    memo[old] = new
            self.chunks[index] = new
            position += part

    async def change(
        self, offset: int, length: int, change: Callable[[MemoryNode, dict[Chunk | None, Chunk]], None]
    ) -> None:
        self._check(offset, length, write=True)
        operation = _Operation(offset, offset + length, asyncio.get_running_loop().create_future(), [self])
        earlier = [o.done for o in self._operations if o.start < operation.end and o.end > operation.start]
        self._operations.append(operation)
        try:
            if earlier:
                await asyncio.wait(earlier)
            await self._store.pace("write", self, offset, length)
            self._check(offset, length, write=True)
            memo: dict[Chunk | None, Chunk] = {}
            for node in operation.nodes:
                change(node, memo)
        finally:
            self._operations.remove(operation)
            operation.done.set_result(None)

    async def flush(self) -> None:
        self._check(0, 0, write=False)
        captured = self._store.capture(self)
        await self._store.pace("flush", self, 0, 0)
        self._check(0, 0, write=False)
        self._store.harden(self, captured)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        self._check(offset, length, write=False)
        found: list[Extent] = []
        while length:
            index, within = divmod(offset, CHUNK)
            part = min(CHUNK - within, length)
            state = ExtentState.DATA if index in self.chunks else ExtentState.HOLE
            if found and found[-1].state is state:
                found[-1] = Extent(found[-1].offset, found[-1].length + part, state)
            else:
                found.append(Extent(offset, part, state))
            offset += part
            length -= part
        return found

    async def resize(self, size_bytes: int) -> None:
        if size_bytes < self.size_bytes:
            await self.discard(size_bytes, self.size_bytes - size_bytes)
            for index in [i for i in self.chunks if i * CHUNK >= size_bytes]:
                del self.chunks[index]
        self.size_bytes = size_bytes
        self._store.harden(self, self._store.capture(self))

    def freeze(self, name: str, guid: str | None) -> MemoryNode:
        """A snapshot of this instant; writes in flight still belong to it."""
        frozen = MemoryNode(
            self._store,
            self.volume_id,
            name,
            self.size_bytes,
            "snapshot",
            guid or str(uuid.UUID(int=self._store.next_id())),
            self._store.tick(),
        )
        frozen.chunks = dict(self.chunks)
        for operation in self._operations:
            operation.nodes.append(frozen)
        return frozen

    async def settle(self) -> None:
        pending = [o.done for o in self._operations]
        if pending:
            await asyncio.wait(pending)


async def _at_once(operation: str, node: MemoryNode, offset: int, length: int) -> None:
    return


@dataclass(eq=False)
class MemoryFlip:
    """A snapshot whose instant has passed."""

    snapshot: MemoryNode
    head: MemoryNode


class MemoryStore:
    """One family of volumes and snapshots."""

    def __init__(self, *, incarnation: int = 1, share_unit: int = 0) -> None:
        """``share_unit``: ``CHUNK`` for a store that can share them. ``share_room``: how many bytes one call shares."""
        self.share_room: int | None = None
        self.now: Callable[[], float] | None = None
        """The clock that snapshots are dated by; None: a counter."""
        self.incarnation = incarnation
        self.nodes: list[MemoryNode] = []
        self.durable: dict[MemoryNode, _Durable] = {}
        self.closed = False
        self.pace: Callable[[str, MemoryNode, int, int], Awaitable[None]] = _at_once
        self.capabilities = StoreCapabilities(
            fast_path=False,
            instant_epoch=True,
            instant_rollback=True,
            digests=False,
            recovery_points=True,
            share_unit=share_unit,
        )
        self.notes = None
        """Nobody asks for them."""
        self._ids = 0
        self._captures = 0

    def tick(self) -> float:
        self._ids += 1
        return float(self._ids) if self.now is None else self.now()

    def next_id(self) -> int:
        self._ids += 1
        return (id(self) << 32) + self._ids

    def create_volume(self, name: str, size_bytes: int) -> MemoryNode:
        head = MemoryNode(self, f"volume-{name}", name, size_bytes, "head", "", self.tick())
        return self._add(head)

    def _add(self, node: MemoryNode) -> MemoryNode:
        self.nodes.append(node)
        self.harden(node, self.capture(node))
        return node

    def capture(self, node: MemoryNode) -> _Durable:
        """What a flush that begins now will make durable."""
        self._captures += 1
        return _Durable(dict(node.chunks), node.size_bytes, self._captures)

    def harden(self, node: MemoryNode, captured: _Durable) -> None:
        """That flush has ended; a later one may have ended before it."""
        present = self.durable.get(node)
        if present is None or present.captured < captured.captured:
            self.durable[node] = captured

    def _drop(self, node: MemoryNode) -> None:
        if node not in self.nodes:
            raise NotFound(node.kind, node.name)
        self.nodes.remove(node)
        self.durable.pop(node, None)
        node.kind = "dropped"

    def volumes(self) -> Sequence[MemoryNode]:
        return [n for n in self.nodes if n.kind == "head"]

    def snapshots(self, volume_id: str | None = None) -> Sequence[MemoryNode]:
        return [n for n in self.nodes if n.kind == "snapshot" and volume_id in (None, n.volume_id)]

    def snapshot_with(self, volume_id: str, guid: str) -> MemoryNode | None:
        return next((node for node in self.snapshots(volume_id) if node.guid == guid), None)

    def snapshot_named(self, volume_id: str, name: str) -> MemoryNode:
        for node in self.snapshots(volume_id):
            if node.name == name:
                return node
        raise NotFound("snapshot", name)

    async def snapshot(
        self, head: MemoryNode, name: str, *, guid: str | None = None, hidden: bool = False
    ) -> MemoryNode:
        if guid is not None and any(s.guid == guid for s in self.snapshots()):
            raise AlreadyExists("recovery point", guid)
        frozen = head.freeze(name, guid)
        frozen.hidden = hidden
        await head.settle()
        await self.pace("snapshot", head, 0, 0)
        if self.closed:
            raise StoreFailed("the store is closed")
        for node in self.volumes():
            self.harden(node, self.capture(node))
        return self._add(frozen)

    # Group operations (``engine.stores.GroupStore``): a promise that nobody accepts is gone with the process.

    def ready_to_flip(self, members: int) -> bool:
        return True

    async def prepare_flips(self, members: int) -> None:
        return

    def flip(self, head: MemoryNode, name: str, *, guid: str | None = None, hidden: bool = False) -> MemoryFlip:
        if guid is not None and self.snapshot_with(head.volume_id, guid) is not None:
            raise AlreadyExists("recovery point", guid)
        frozen = head.freeze(name, guid)
        frozen.hidden = hidden
        return MemoryFlip(frozen, head)

    async def prepare(self, flips: Sequence[MemoryFlip]) -> None:
        for flip in flips:
            await flip.head.settle()
            await self.pace("snapshot", flip.head, 0, 0)
        if self.closed:
            raise StoreFailed("the store is closed")
        for node in self.volumes():
            self.harden(node, self.capture(node))

    def prepared(self) -> Sequence[MemoryNode]:
        return ()

    async def accept(self, snapshots: Sequence[MemoryNode]) -> None:
        if self.closed:
            raise StoreFailed("the store is closed")
        for snapshot in snapshots:
            self._add(snapshot)

    async def drop(self, snapshots: Sequence[MemoryNode]) -> None:
        return

    async def replace_content(self, head: MemoryNode, to: MemoryNode, kept: MemoryNode) -> None:
        raise AssertionError("not in this store")

    async def prepare_flip(self) -> None:
        await self.pace("prepare", self.nodes[0], 0, 0)

    async def clone(self, source: MemoryNode, name: str) -> MemoryNode:
        head = MemoryNode(self, f"volume-{name}", name, source.size_bytes, "head", "", self.tick())
        head.chunks = dict(source.chunks)
        return self._add(head)

    async def rollback(self, head: MemoryNode, to: MemoryNode) -> MemoryNode:
        before = head.freeze(f"before-rollback-{self.next_id()}", None)
        fresh = MemoryNode(self, head.volume_id, head.name, to.size_bytes, "head", "", self.tick())
        fresh.chunks = dict(to.chunks)
        self._drop(head)
        self._add(before)
        return self._add(fresh)

    async def share(
        self, source: MemoryNode, source_offset: int, target: MemoryNode, offset: int, length: int, /
    ) -> int:
        if not self.capabilities.share_unit:
            raise NotSupported("this store cannot share chunks")
        if source not in self.nodes or (source_offset | offset | length) % CHUNK:
            raise InvalidArgument("not of this store, or not whole chunks")
        room = length if self.share_room is None else min(length, self.share_room)
        shift = (offset - source_offset) // CHUNK

        def refer(node: MemoryNode, _memo: dict[Chunk | None, Chunk]) -> None:
            for index in range(offset // CHUNK, (offset + room) // CHUNK):
                chunk = source.chunks.get(index - shift)
                if chunk is None:
                    node.chunks.pop(index, None)
                else:
                    node.chunks[index] = chunk

        await target.change(offset, room, refer)
        return room

    async def delete_snapshot(self, snapshot: MemoryNode) -> None:
        self._drop(snapshot)

    async def delete_volume(self, head: MemoryNode) -> None:
        self._drop(head)

    async def changed(self, older: MemoryNode | None, newer: MemoryNode, offset: int = 0) -> AsyncIterator[Extent]:
        for extent in self._changed(older, newer):
            begin = max(offset, extent.offset)
            if begin < extent.end:
                yield Extent(begin, extent.end - begin)

    def _changed(self, older: MemoryNode | None, newer: MemoryNode) -> list[Extent]:
        before = {} if older is None else older.chunks
        found: list[Extent] = []
        for index in sorted(set(before) | set(newer.chunks)):
            if before.get(index) is newer.chunks.get(index) or index * CHUNK >= newer.size_bytes:
                continue
            length = min(CHUNK, newer.size_bytes - index * CHUNK)
            if found and found[-1].end == index * CHUNK:
                found[-1] = Extent(found[-1].offset, found[-1].length + length)
            else:
                found.append(Extent(index * CHUNK, length))
        return found

    async def space(self, node: MemoryNode) -> Space:
        others = {chunk for n in self.nodes if n is not node for chunk in n.chunks.values()}
        mapped = set(node.chunks.values())
        return Space(len(mapped) * CHUNK, len(mapped - others) * CHUNK)

    async def spaces(self, head: MemoryNode, snapshots: Sequence[MemoryNode]) -> list[Space]:
        return [await self.space(node) for node in (head, *snapshots)]

    async def freed_by(self, nodes: Sequence[MemoryNode]) -> int:
        stay = {chunk for n in self.nodes if n not in nodes for chunk in n.chunks.values()}
        return len({chunk for n in nodes for chunk in n.chunks.values()} - stay) * CHUNK

    async def family_space(self) -> FamilySpace:
        used = {chunk for n in self.nodes for chunk in n.chunks.values()}
        return FamilySpace(len(used) * CHUNK, 0, 0, 0, 0)

    async def begin_staging(self, head: MemoryNode, base: MemoryNode | None) -> MemoryNode:
        if self.staging(head.volume_id) is not None:
            raise InvalidState("staging", "open", "closed")
        staging = MemoryNode(self, head.volume_id, "staging", (base or head).size_bytes, "staging", "", self.tick())
        staging.chunks = {} if base is None else dict(base.chunks)
        return self._add(staging)

    def staging(self, volume_id: str) -> MemoryNode | None:
        return next((n for n in self.nodes if n.kind == "staging" and n.volume_id == volume_id), None)

    async def commit_staging(self, staging: MemoryNode, name: str, *, guid: str) -> tuple[MemoryNode, MemoryNode]:
        await staging.settle()
        await self.pace("commit", staging, 0, 0)
        if self.closed:
            raise StoreFailed("the store is closed")
        point = staging.freeze(name, guid)
        point.hidden = True
        old = next(n for n in self.volumes() if n.volume_id == staging.volume_id)
        fresh = MemoryNode(self, old.volume_id, old.name, staging.size_bytes, "head", "", self.tick())
        fresh.chunks = dict(staging.chunks)
        self._drop(old)
        self._drop(staging)
        self._add(point)
        return self._add(fresh), point

    async def abort_staging(self, staging: MemoryNode) -> None:
        self._drop(staging)

    async def close(self) -> None:
        self.closed = True

    def crash(self, rng: Random, *, power_loss: bool = False) -> MemoryStore:
        """The store as the next process finds it; this one answers ``StoreFailed`` from now on."""
        self.closed = True
        fresh = MemoryStore(incarnation=self.incarnation + 1)
        fresh._ids = self._ids + 1000
        for node in self.nodes:
            kept = MemoryNode(fresh, node.volume_id, node.name, node.size_bytes, node.kind, node.guid, node.created_at)
            kept.hidden = node.hidden
            kept.chunks = dict(node.chunks)
            durable = self.durable[node]
            if power_loss and node.kind != "snapshot":
                kept.size_bytes = durable.size_bytes
                kept.chunks = _after_power_loss(rng, durable.chunks, node.chunks)
            fresh._add(kept)
        return fresh


def _after_power_loss(rng: Random, durable: ChunkMap, volatile: ChunkMap) -> ChunkMap:
    left: ChunkMap = {}
    for index in set(durable) | set(volatile):
        old, new = durable.get(index), volatile.get(index)
        chosen = rng.choice((old, new))
        if old is not new and rng.random() < 0.3:
            before = bytes(CHUNK) if old is None else old.data
            after = bytes(CHUNK) if new is None else new.data
            sectors = [
                (before if rng.random() < 0.5 else after)[at : at + SECTOR_SIZE] for at in range(0, CHUNK, SECTOR_SIZE)
            ]
            chosen = Chunk(b"".join(sectors))
        if chosen is not None:
            left[index] = chosen
    return left
