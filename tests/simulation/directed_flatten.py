"""Clones flattened under their users, played on purpose."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from engine.copy_job import CopyOptions, copy_extents
from engine.movers import ThreadMover
from engine.tvol.file import TvolFile
from tests.simulation.directed import CHUNK, CHUNKS, PATH, HeldWorkers, _create, _process
from tests.support.sim_files import SimFileSystem
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.files import StoreEnv
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
    mover = _Interrupted(env.workers, between)
    await copy_extents(shared, shared, options=CopyOptions(blank_target=True), mover=mover)


async def _expect(head: NativeHead, expected: bytes) -> None:
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

        mover = _Interrupted(env.workers, write)
        await copy_extents(shared, shared, options=CopyOptions(blank_target=True), mover=mover)
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
        await writer
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
