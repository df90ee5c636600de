"""One file's part in a group snapshot, played on purpose."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from engine.errors import StoreCorrupt
from engine.tvol.file import TvolFile
from tests.simulation.directed import CHUNK, PATH, HeldWorkers, _create, _process
from tests.support.sim_files import SimFileSystem
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from engine.files import StoreEnv
    from engine.tvol.head import NativeHead


def a_dropped_flip_over_a_slow_write() -> None:
    """The write was admitted before the flip and belongs to what is dropped: the volume has it all the same."""
    files = SimFileSystem(random.Random(1))

    async def expect(head: NativeHead) -> None:
        found = bytearray(CHUNK)
        await head.read(CHUNK, memoryview(found))
        if found != b"b" * CHUNK:
            raise Violation("an acknowledged write went with a snapshot that was dropped")

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        workers.meant = lambda call: True
        writer = asyncio.ensure_future(head.write(CHUNK, memoryview(b"b" * CHUNK)))
        await asyncio.sleep(0)
        flip = store.flip(head, "s")
        dropping = asyncio.ensure_future(store.drop([flip.snapshot]))
        for _ in range(300):
            await asyncio.sleep(0)
        workers.let_go()
        await writer
        await dropping
        await store.settled()
        if store.snapshots() or store.prepared():
            raise Violation("a dropped snapshot is there")
        await expect(head)

    async def look(env: StoreEnv, workers: HeldWorkers) -> None:
        try:
            store = await TvolFile.open(env, PATH)
        except StoreCorrupt as error:
            raise Violation(str(error)) from error
        await expect(store.volumes()[0])
        await store.close()

    _process(files, main)
    files.restart_process()
    _process(files, look)


def a_promise_over_a_slow_write() -> None:
    """A snapshot that was promised has all that was admitted before its instant, and does not change any more."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        workers.meant = lambda call: True
        writer = asyncio.ensure_future(head.write(0, memoryview(b"b" * 512)))
        await asyncio.sleep(0)
        flip = store.flip(head, "s")
        preparing = asyncio.ensure_future(store.prepare([flip]))
        for _ in range(300):
            await asyncio.sleep(0)
        too_soon = preparing.done()
        workers.let_go()
        await asyncio.gather(writer, preparing)
        if too_soon:
            raise Violation("a snapshot was promised while a write of its epoch was in flight")
        await store.accept([flip.snapshot])
        found = bytearray(512)
        await flip.snapshot.read(0, memoryview(found))
        if found != b"b" * 512:
            raise Violation("a write admitted before the instant is not in the snapshot")

    _process(SimFileSystem(random.Random(1)), main)
