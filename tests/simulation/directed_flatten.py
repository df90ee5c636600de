"""Clones flattened under their users, and other copies by leases, played on purpose."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from engine.copy_job import CopyOptions, copy_extents
from engine.errors import StoreFailed
from engine.movers import ThreadMover
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.layout import LayoutError
from engine.units import KIB
from tests.simulation.directed import CHUNK, CHUNKS, PATH, HeldWorkers, _create, _process
from tests.support.sim_files import SimFileSystem
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.files import StoreEnv
    from engine.tvol.device import NativeSnapshot
    from engine.tvol.flatten import Inherited
    from engine.tvol.head import NativeHead


class _Interrupted(ThreadMover):
    """Lets something happen when a strip was copied and is not published yet."""

    def __init__(self, workers, between: Callable[[], Awaitable[None]]) -> None:
        super().__init__(workers)
        self._between = between

    async def move(self, strip, source, present, to):
        moved = await super().move(strip, source, present, to)
        await self._between()
        return moved


async def _nothing() -> None:
    return


async def _family(env: StoreEnv) -> tuple[TvolFile, NativeHead]:
    """A volume full of "a", and a clone of it."""
    store = await _create(env)
    head = store.volumes()[0]
    for index in range(CHUNKS):
        await head.write(index * CHUNK, memoryview(b"a" * CHUNK))
    clone = await store.clone(await store.snapshot(head, "origin"), "clone")
    return store, clone


async def _flatten(
    env: StoreEnv, store: TvolFile, clone: NativeHead, between: Callable[[], Awaitable[None]] = _nothing
) -> None:
    """One pass."""
    shared = await store.inherited(clone)
    assert shared is not None
    await _copy(env, shared, between)


async def _copy(env: StoreEnv, shared: Inherited, between: Callable[[], Awaitable[None]]) -> None:
    mover = _Interrupted(env.workers, between)
    try:
        await copy_extents(shared, shared, options=CopyOptions(blank_target=True), mover=mover)
    except StoreFailed as error:
        raise Violation(f"a copy made the store fail: {error}") from error


async def _expect(head: NativeHead | NativeSnapshot, expected: bytes) -> None:
    found = bytearray(CHUNKS * CHUNK)
    await head.read(0, memoryview(found))
    if found != expected.ljust(len(found), b"a"):
        raise Violation("a flattened clone does not hold what was written to it")


def a_write_over_what_is_being_copied() -> None:
    """The write stays, though the copy ends after it."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, clone = await _family(env)

        async def write() -> None:
            await clone.write(0, memoryview(b"b" * CHUNK))

        await _flatten(env, store, clone, write)
        await _expect(clone, b"b" * CHUNK)

    _process(SimFileSystem(random.Random(1)), main)


def a_chunk_of_its_own_where_a_pass_expects_an_inherited_one() -> None:
    """A write came between the plan and the copy; the next one goes in place, and no copy may replace what it wrote."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, clone = await _family(env)
        shared = await store.inherited(clone)
        assert shared is not None
        await clone.write(0, memoryview(b"b" * CHUNK))

        async def write() -> None:
            await clone.write(512, memoryview(b"c" * 512))

        await _copy(env, shared, write)
        await _expect(clone, (b"b" * 512 + b"c" * 512).ljust(CHUNK, b"b"))

    _process(SimFileSystem(random.Random(1)), main)


def a_write_in_place_to_what_is_being_copied() -> None:
    """The origin goes while it is copied; what the clone had of it is its own then, and the entry stays the same."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        empty = await store.snapshot(head, "empty")
        for index in range(CHUNKS):
            await head.write(index * CHUNK, memoryview(b"a" * CHUNK))
        origin = await store.snapshot(head, "origin")
        clone = await store.clone(origin, "clone")
        await store.rollback(head, empty)
        (branch,) = (snapshot for snapshot in store.snapshots() if snapshot not in (empty, origin))
        await store.delete_snapshot(branch)
        await store.settled()

        async def merge_and_write() -> None:
            if origin in store.snapshots():
                await store.delete_snapshot(origin)
                await store.settled()
                await clone.write(0, memoryview(b"b" * 512))

        await _flatten(env, store, clone, merge_and_write)
        await _expect(clone, b"b" * 512)

    _process(SimFileSystem(random.Random(1)), main)


def a_slow_write_under_a_copy_and_a_flip() -> None:
    """It was planned by the old entry and belongs to a snapshot; the volume has it all the same."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, clone = await _family(env)
        workers.meant = lambda call: True
        writer = asyncio.ensure_future(clone.write(0, memoryview(b"b" * 512)))
        await asyncio.sleep(0)
        snapshot = asyncio.ensure_future(store.snapshot(clone, "s"))
        await asyncio.sleep(0)
        await _flatten(env, store, clone)
        workers.let_go()
        try:
            await writer
        except (StoreFailed, LayoutError) as error:
            raise Violation(f"a write under a copy failed: {error}") from error
        await snapshot
        await _expect(clone, b"b" * 512)

    _process(SimFileSystem(random.Random(1)), main)


def a_clone_that_still_inherits_and_its_origin_goes() -> None:
    """It is not separated, so what it inherits is not freed."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, clone = await _family(env)
        await store.separate(clone)
        head = store.volumes()[0]
        await store.delete_snapshot(store.snapshots()[0])
        for value in (b"b", b"c"):
            for index in range(CHUNKS):
                await head.write(index * CHUNK, memoryview(value * CHUNK))
            await head.flush()
            await store.settled()
        await _expect(clone, b"")

    _process(SimFileSystem(random.Random(1)), main)


def a_separated_clone_after_power_loss() -> None:
    """It hangs on nothing when its owner was told so."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, clone = await _family(env)
        await _flatten(env, store, clone)
        if not await store.separate(clone):
            raise Violation("a clone that inherits nothing was not separated")

    async def look(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.open(env, PATH)
        (clone,) = (head for head in store.volumes() if head.name == "clone")
        if store.origin(clone) is not None:
            raise Violation("a clone hangs on its origin again")
        await _expect(clone, b"")
        await store.close()

    _process(files, main)
    files.lose_power("everything")
    _process(files, look)


def a_merge_before_the_separation_is_durable() -> None:
    """Power is lost while a separation is being flushed: what the clone inherits again is what it was."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, clone = await _family(env)
        head = store.volumes()[0]
        await store.delete_snapshot(store.snapshots()[0])  # it waits, since two stand on it
        await store.settled()
        for index in range(CHUNKS):
            await clone.write(index * CHUNK, memoryview(b"c" * CHUNK))
        workers.meant = lambda call: getattr(call, "__name__", "") == "_sync_data_before_commit"
        separating = asyncio.ensure_future(store.separate(clone))
        for _ in range(200):
            await asyncio.sleep(0)
        assert workers.held, "the separation does not flush"
        assert not separating.done()
        if head.try_write(0, memoryview(b"b" * CHUNK)):
            head.end_pass()

    async def look(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.open(env, PATH)
        (clone,) = (head for head in store.volumes() if head.name == "clone")
        found = bytearray(CHUNK)
        await clone.read(0, memoryview(found))
        await store.close()
        if found not in (b"a" * CHUNK, b"c" * CHUNK):
            raise Violation("a clone whose separation was not durable inherits what was written since")

    _process(files, main)
    files.lose_power("everything")
    _process(files, look)


async def _rewritten(store: TvolFile, head: NativeHead) -> None:
    """All chunks that are free, and a few, hold something else now."""
    await store.settled()
    for value in (b"x", b"y"):
        for index in range(CHUNKS):
            await head.write(index * CHUNK, memoryview(value * CHUNK))
        await head.flush()
        await store.settled()


def a_clone_that_leaves_with_its_snapshots() -> None:
    """Readers of them had their maps in memory; partial chunks lie over what was inherited; then the origin goes."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, clone = await _family(env)
        expected, points = bytearray(b"a" * CHUNKS * CHUNK), []
        for number in range(3):
            for at in (number * CHUNK, (8 + number) * CHUNK + 4096):
                length = CHUNK if at % CHUNK == 0 else 4096
                await clone.write(at, memoryview(b"%d" % number * length))
                expected[at : at + length] = b"%d" % number * length
            await clone.write((11 * CHUNK) + 4096 * number, memoryview(b"p" * 4096))
            expected[11 * CHUNK + 4096 * number : 11 * CHUNK + 4096 * (number + 1)] = b"p" * 4096
            points.append((await store.snapshot(clone, f"s{number}"), bytes(expected)))
            await _expect(points[-1][0], points[-1][1])
        await _flatten(env, store, clone)
        if not await store.separate(clone):
            raise Violation("a clone whose snapshots were copied was not separated")
        (origin,) = (snapshot for snapshot in store.snapshots() if snapshot.name == "origin")
        await store.delete_snapshot(origin)
        await _rewritten(store, store.volumes()[0])
        for snapshot, content in points:
            await _expect(snapshot, content)
        await _expect(clone, bytes(expected))
        for snapshot, _ in (points.pop(1), points.pop(0)):
            await store.delete_snapshot(snapshot)
            await _rewritten(store, store.volumes()[0])
            for other, content in points:
                await _expect(other, content)
            await _expect(clone, bytes(expected))
        await store.close()

    _process(files, main)
    _check(files)


def a_clone_that_was_flattened_in_part_and_its_snapshot_goes() -> None:
    """What the snapshot had killed, and what was copied for it, is freed once, and by nobody but its last user."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, clone = await _family(env)
        snapshot = await store.snapshot(clone, "s")
        for index in range(4):
            await clone.write(index * CHUNK, memoryview(b"b" * CHUNK))
        await _flatten(env, store, clone)
        await store.delete_snapshot(snapshot)
        await _rewritten(store, store.volumes()[0])
        await _expect(clone, b"b" * 4 * CHUNK)
        await store.close()

    _process(files, main)
    _check(files)


def a_zero_chunk_under_a_partial_one() -> None:
    """It is copied as zeroes that take space, since nothing else can be a base."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        store._core.allocator.stays_dirty = True  # what is free holds what it held
        head = store.volumes()[0]
        for index in range(CHUNKS):
            await head.write(index * CHUNK, memoryview(bytes(CHUNK)))
        clone = await store.clone(await store.snapshot(head, "origin"), "clone")
        await clone.write(4096, memoryview(b"b" * 4096))
        for index in range(CHUNKS):
            await head.write(index * CHUNK, memoryview(b"o" * CHUNK))
        await head.discard(0, CHUNKS * CHUNK)
        await head.flush()
        await store.snapshot(clone, "s")
        await _flatten(env, store, clone)
        if not await store.separate(clone):
            raise Violation("a clone with zeroes under a partial chunk was not separated")
        await store.delete_snapshot(store.snapshots()[0])
        await _rewritten(store, head)
        expected = bytearray(CHUNKS * CHUNK)
        expected[4096:8192] = b"b" * 4096
        await _expect(clone, bytes(expected))
        await store.close()

    _process(files, main)
    _check(files)


LARGE_CHUNK = 256 * KIB


def a_large_chunk_that_is_zero_in_its_first_half() -> None:
    """The copy of it reads zero there, whatever its new chunk held before."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, clone = await _half_written(env, slice(LARGE_CHUNK // 2, LARGE_CHUNK))
        await _flatten(env, store, clone)
        await _expect_half_written(clone, slice(LARGE_CHUNK // 2, LARGE_CHUNK))

    _process(SimFileSystem(random.Random(1)), main)


def a_large_chunk_that_is_zero_in_its_second_half() -> None:
    """A copy of it onto another volume has the first half."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store, clone = await _half_written(env, slice(0, LARGE_CHUNK // 2))
        (origin,) = store.snapshots()
        await clone.discard(0, LARGE_CHUNK)
        options = CopyOptions(blank_target=True)
        await copy_extents(origin, clone, options=options, mover=ThreadMover(env.workers))
        await _expect_half_written(clone, slice(0, LARGE_CHUNK // 2))

    _process(SimFileSystem(random.Random(1)), main)


def a_large_chunk_that_is_equal_in_one_half() -> None:
    """A copy that leaves what is equal writes all of a chunk that a snapshot of the target shares, or nothing of it."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        half = LARGE_CHUNK // 2
        store, clone = await _half_written(env, slice(0, LARGE_CHUNK))
        (origin,) = store.snapshots()
        await clone.write(half, memoryview(b"c" * half))
        await store.snapshot(clone, "s")
        options = CopyOptions(compare_first=True)
        await copy_extents(origin, clone, options=options, mover=ThreadMover(env.workers))
        await _expect_half_written(clone, slice(0, LARGE_CHUNK))

    _process(SimFileSystem(random.Random(1)), main)


async def _half_written(env: StoreEnv, written: slice) -> tuple[TvolFile, NativeHead]:
    """A volume of one chunk of 256 KiB that has "a" in a part of it, and a clone of it; what is free holds "x"."""
    store = await TvolFile.create(
        env, PATH, volume_name="vol", size_bytes=LARGE_CHUNK, chunk_bytes=LARGE_CHUNK, journal_bytes=LARGE_CHUNK
    )
    store._core.allocator.stays_dirty = True
    head = store.volumes()[0]
    await head.write(0, memoryview(b"x" * LARGE_CHUNK))
    older = await store.snapshot(head, "older")
    await head.discard(0, LARGE_CHUNK)
    await head.write(written.start, memoryview(b"a" * (written.stop - written.start)))
    clone = await store.clone(await store.snapshot(head, "origin"), "clone")
    await store.delete_snapshot(older)
    await head.flush()
    await store.settled()
    return store, clone


async def _expect_half_written(clone: NativeHead, written: slice) -> None:
    expected, found = bytearray(LARGE_CHUNK), bytearray(LARGE_CHUNK)
    expected[written] = b"a" * (written.stop - written.start)
    await clone.read(0, memoryview(found))
    if found != expected:
        raise Violation("a copy of a chunk is not what was copied")


def _check(files: SimFileSystem) -> None:
    files.restart_process()
    report = check_file(PATH, files=files)
    if report.damaged:
        raise Violation("check: " + "; ".join(map(str, report.findings[:5])))
