"""Rot, played on purpose: a flipped bit in a chosen chunk, and what scrub, readers, crashes and repair make of it.

As in ``directed``: each raises Violation when the store breaks its promise.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from engine.errors import MediumError, StoreCorrupt
from engine.tvol import layout
from engine.tvol.file import TvolFile
from engine.tvol.scrub import Found
from tests.simulation.directed import CHUNK, CHUNKS, PATH, _create, _process
from tests.support.sim_files import SimFileSystem
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from engine.files import StoreEnv
    from engine.tvol.head import NativeHead
    from engine.tvol.scrub import Finding
    from tests.simulation.directed import HeldWorkers

BAD = 2


async def _scrub(store: TvolFile, repair=None) -> list[Finding]:
    findings: list[Finding] = []

    async def pace(length: int) -> None:
        await asyncio.sleep(0)

    head = store.volumes()[0]
    end = -(-store.scrub_bytes(head) // CHUNK)
    await store.scrubber(head, pace=pace, report=findings.append, repair=repair).run(0, end)
    return findings


def _data(index: int) -> bytes:
    return bytes([index + 1]) * CHUNK


async def _digested(env: StoreEnv) -> tuple[TvolFile, NativeHead]:
    store = await _create(env)
    head = store.volumes()[0]
    for index in range(4):
        await head.write(index * CHUNK, memoryview(_data(index)))
    await store.snapshot(head, "s")
    if await _scrub(store):
        raise Violation("a scrub found something where nothing is wrong")
    return store, head


def _rot(files: SimFileSystem, head: NativeHead, *, cache_only: bool = False) -> None:
    files.flip(PATH, head.node.map.lookup(BAD) * CHUNK + 4711, 16, cache_only=cache_only)


async def _require_refused(store: TvolFile) -> None:
    for device in (store.volumes()[0], store.snapshots()[0]):
        buffer = bytearray(512)
        if device.try_read(BAD * CHUNK, memoryview(buffer)):
            raise Violation("the fast path reads a bad chunk")
        try:
            await device.read(BAD * CHUNK, memoryview(buffer))
        except MediumError:
            continue
        raise Violation("a bad chunk is read without an error")


def a_bad_chunk_through_kill_and_power_loss() -> None:
    """Found once, it is refused from then on: by the devices that exist, after a kill, after a power loss."""
    files = SimFileSystem(random.Random(1))

    async def find(env: StoreEnv, workers: HeldWorkers) -> None:
        store, head = await _digested(env)
        await head.flush()
        _rot(files, head)
        if [finding.found for finding in await _scrub(store)] != [Found.BAD]:
            raise Violation("a flipped bit was not found")
        await _require_refused(store)
        try:
            await head.write(BAD * CHUNK, memoryview(bytes(512)))
        except MediumError:
            return
        raise Violation("the rest of a bad chunk was copied")

    async def look(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.open(env, PATH)
        await _require_refused(store)
        if (store.bad_chunks, await _scrub(store)) != (1, []):
            raise Violation("a marked chunk is found again, or is not known any more")
        await store.close()

    _process(files, find)
    files.restart_process()
    _process(files, look)
    files.lose_power("nothing")
    _process(files, look)


def bad_memory_of_the_host() -> None:
    """Wrong in the page cache and right on the medium: nothing is marked, and the right bytes are read."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, head = await _digested(env)
        await head.flush()
        _rot(files, head, cache_only=True)
        if [finding.found for finding in await _scrub(store)] != [Found.TRANSIENT] or store.bad_chunks:
            raise Violation("what only the host's memory had was taken for rot")
        buffer = bytearray(CHUNK)
        await head.read(BAD * CHUNK, memoryview(buffer))
        if buffer != _data(BAD):
            raise Violation("the wrong bytes are still read")
        await store.close()

    _process(files, main)


class _Offers:
    """A copy that has other bytes, then the right ones."""

    def __init__(self) -> None:
        self.left = [_data(BAD + 1), _data(BAD)]

    async def offers(self, volume_id, offset, length, /):
        yield self.left.pop(0)


def a_repair_from_a_copy_that_differs() -> None:
    """Only bytes with the chunk's digest repair it; then everybody reads it again, also after a power loss."""
    files = SimFileSystem(random.Random(1))
    offers = _Offers()

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, head = await _digested(env)
        await head.flush()
        _rot(files, head)
        await _scrub(store, offers)
        if not store.bad_chunks:
            raise Violation("other bytes have repaired a chunk")
        if [finding.found for finding in await _scrub(store, offers)] != [Found.REPAIRED]:
            raise Violation("the right bytes have not repaired a chunk")

    async def look(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.open(env, PATH)
        for device in (store.volumes()[0], store.snapshots()[0]):
            buffer = bytearray(CHUNK)
            await device.read(BAD * CHUNK, memoryview(buffer))
            if buffer != _data(BAD):
                raise Violation("a repaired chunk has other bytes")
        await store.close()

    _process(files, main)
    files.lose_power("nothing")
    _process(files, look)


def a_chunk_freed_while_it_is_digested() -> None:
    """It gets no digest: the next owner of the chunk may have written it in place by the time it would be compared."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(_data(0)))
        await head.flush()
        scrubbing: asyncio.Future[list[Finding]]
        workers.meant = lambda call: True
        scrubbing = asyncio.ensure_future(_scrub(store))
        for _ in range(20):
            await asyncio.sleep(0)
        await head.discard(0, CHUNK)
        await head.flush()
        workers.let_go()
        await scrubbing
        if store.digested_chunks:
            raise Violation("a chunk that nobody has any more has a digest")
        await store.close()

    _process(files, main)


def a_snapshot_digested_over_a_slow_write() -> None:
    """A write admitted before the flip is still changing a chunk that the new snapshot shows already."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(_data(0)))
        await head.flush()
        workers.meant = lambda call: True
        writer = asyncio.ensure_future(head.write(0, memoryview(b"b" * 512)))
        await asyncio.sleep(0)
        snapshot = asyncio.ensure_future(store.snapshot(head, "s"))
        await asyncio.sleep(0)
        first = asyncio.ensure_future(_scrub(store))
        for _ in range(300):
            await asyncio.sleep(0)
        workers.let_go()
        await asyncio.gather(writer, snapshot)
        if await first or await _scrub(store):
            raise Violation("a chunk was digested while somebody wrote to it")
        await store.close()

    _process(files, main)


def a_digested_chunk_loses_its_last_slot() -> None:
    """The slot froze it too; when that ends, the digest still does."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(_data(0)))
        snapshot = await store.snapshot(head, "s")
        await store.share(snapshot, 0, head, 5 * CHUNK, CHUNK)
        await store.delete_snapshot(snapshot)
        await store.settled()
        await _scrub(store)
        await head.discard(5 * CHUNK, CHUNK)
        await head.flush()
        await head.write(0, memoryview(b"b" * 512))
        if await _scrub(store):
            raise Violation("a chunk with a digest was written in place")
        await store.close()

    _process(files, main)


def a_snapshot_that_is_larger_than_its_volume_rots() -> None:
    """Behind the volume's end a scrub finds it too."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write((CHUNKS - 1) * CHUNK, memoryview(_data(1)))
        chunk = head.node.map.lookup(CHUNKS - 1)
        await store.snapshot(head, "large")
        await head.resize(CHUNK)
        await _scrub(store)
        await store._core.checkpointer.run()
        files.flip(PATH, chunk * CHUNK)
        if not await _scrub(store):
            raise Violation("a scrub ended before a snapshot's end")

    files = SimFileSystem(random.Random(1))
    _process(files, main)


def an_acknowledged_write_rots_before_a_restart() -> None:
    """The record of a write that nobody has flushed, on the same boot: refused, since a kill leaves it whole."""
    files = SimFileSystem(random.Random(1))
    records: list[tuple[int, int]] = []

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head, ring = store.volumes()[0], store._core.journal
        await head.write(0, memoryview(b"a" * CHUNK), fua=True)
        start = layout.JOURNAL_FIRST_CHUNK * CHUNK + ring.tip().offset
        await head.write(CHUNK, memoryview(b"b" * CHUNK))
        records.append((start, layout.JOURNAL_FIRST_CHUNK * CHUNK + ring.tip().offset))

    async def look(env: StoreEnv, workers: HeldWorkers) -> None:
        try:
            await TvolFile.open(env, PATH)
        except StoreCorrupt:
            return
        raise Violation("an acknowledged write is gone without a word")

    _process(files, main)
    files.restart_process()
    begin, end = records[0]
    for byte in (*range(begin, begin + layout.RECORD_HEADER.size), end - 1):
        files.flip(PATH, byte)
        _process(files, look)
        files.restart_process()
        files.flip(PATH, byte)
