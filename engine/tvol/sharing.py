"""Sharing a range: what ``NativeStore.share`` does between its checks and its answer. The rules are in ``claims.py``.

A share takes the place of a write to the same range, though no data is written: earlier overlapping writes have ended,
later ones wait. It goes on in batches of at most one leaf of each map and one record of 4 KiB; each is planned and done
in one step of the loop, and between two of them the loop serves others.

No slot names a partial chunk, or its pages would have two owners: the content of one is written to a chunk of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol import layout
from engine.tvol.bulk import NativeReadLease
from engine.tvol.chunk_map import LEAF_MASK, LEAF_SHIFT
from engine.tvol.layout import FIRST_CHUNK_ENTRY, LEAF_ENTRIES, MAX_SHARE_ITEMS, PARTIAL, RecordType

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.tvol.chunk_map import ChunkMap, Leaf
    from engine.tvol.claims import Claims
    from engine.tvol.core import Core
    from engine.tvol.epoch import Epoch
    from engine.tvol.head import NativeHead
    from engine.tvol.nodes import Node


async def share(
    core: Core, source: Callable[[], Node], source_offset: int, head: NativeHead, offset: int, length: int
) -> int:
    """Whole chunks of a frozen node, as chunks of a head. Returns the bytes shared.

    ``source`` is asked for the node in the step in which a batch reads its map: it raises when a snapshot was deleted
    meanwhile, which then holds its chunks no longer.
    """
    shift = core.chunk_shift
    source_first, first, end = source_offset >> shift, offset >> shift, (offset + length) >> shift
    at = first
    async with head.holding(offset, length) as epoch:
        await core.begin_sharing()
        while at < end:
            source_at = source_first + at - first
            version = source().map.version
            wanted = await core.maps.resident_leaf(source(), source_at >> LEAF_SHIFT)
            await head.ready(epoch, at << shift, 1)
            await core.make_room_to_share()
            if source().map.version != version:
                continue
            node = epoch.node  # the snapshot, if there was a flip since
            items, settled = _items(core.family.claims, wanted, source_at, node.map, at, end - at)
            if items:
                core.log(RecordType.SHARE, layout.pack_share(node.id, items))
            at += settled
            if not settled:
                if wanted.array[source_at & LEAF_MASK] < PARTIAL:
                    break
                leaves = {source_at >> LEAF_SHIFT: wanted}
                await _copy_chunk(core, head.segments(leaves, source_at << shift, core.chunk_bytes), epoch, at)
                at += 1
            await asyncio.sleep(0)
    return (at - first) << shift


def _items(
    claims: Claims, source: Leaf, source_first: int, target: ChunkMap, first: int, limit: int
) -> tuple[bytes, int]:
    """The items of a SHARE record that gives ``target`` from index ``first`` on what the leaf ``source`` has from its
    index on, and how many indexes they settle: up to ``limit``, within one leaf of each map and one record.

    Indexes that name the same chunk already are left alone. 0 at a partial chunk, or when there may be no more slots.
    """
    at, source_at = first & LEAF_MASK, source_first & LEAF_MASK
    count = min(limit, LEAF_ENTRIES - at, LEAF_ENTRIES - source_at)
    wanted = claims.chunks_of(source.array[source_at : source_at + count])
    present = claims.chunks_of(target.leaves[first >> LEAF_SHIFT].array[at : at + count])
    partial = np.flatnonzero((wanted != present) & (wanted >= PARTIAL))
    if len(partial):
        count = int(partial[0])
        wanted, present = wanted[:count], present[:count]
    places = np.flatnonzero(wanted != present)
    chunks = wanted[places]
    data = chunks >= FIRST_CHUNK_ENTRY
    slots = np.zeros(len(places), np.uint32)
    numbers = claims.next_slots(int(np.count_nonzero(data)))
    settled = np.flatnonzero(data)
    if len(numbers) < len(settled):  # the table is full
        stop = int(settled[len(numbers)])
        count = int(places[stop])
        places, chunks, data, slots = places[:stop], chunks[:stop], data[:stop], slots[:stop]
    slots[data] = numbers
    # A run goes on at the next index, with the next chunk and slot, or with the same hole.
    on = (np.diff(places) == 1) & (
        (data[1:] & data[:-1] & (np.diff(chunks) == 1) & (np.diff(slots) == 1))
        | (~data[1:] & (chunks[1:] == chunks[:-1]))
    )
    starts = np.concatenate([[0], np.flatnonzero(~on) + 1]) if len(places) else places
    if len(starts) > MAX_SHARE_ITEMS:
        stop = int(starts[MAX_SHARE_ITEMS])
        count = int(places[stop])
        starts, places = starts[:MAX_SHARE_ITEMS], places[:stop]
    lengths = np.diff(np.append(starts, len(places)))
    items = np.stack([first + places[starts], lengths, slots[starts], chunks[starts]], axis=1).astype("<u4")
    return items.tobytes(), count


async def _copy_chunk(core: Core, segments: list[tuple[int, int, int]], epoch: Epoch, index: int) -> None:
    """A chunk of the source, as its map has it in this step, read and written to a chunk of its own, then published."""
    lease = NativeReadLease(core, segments)
    taken: list[int] = []
    try:
        chunk = core.allocator.take(whole=True)[0]
        taken.append(chunk)
        await core.env.workers.run(lambda: _copy(core, lease, chunk))
        await core.make_room()
        core.check()
    except BaseException:
        core.allocator.give_back(taken)
        raise
    finally:
        lease.release()
    core.publish(epoch.node, index, chunk)
    core.end_pass()


def _copy(core: Core, lease: NativeReadLease, chunk: int) -> None:
    buffer = memoryview(bytearray(core.chunk_bytes))
    lease.read(0, buffer)
    core.data.write((buffer,), chunk << core.chunk_shift)
