"""What chance does not meet: pages of maps that rot, and writes that wait for them over a flip."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from engine.errors import MediumError
from engine.tvol.file import TvolFile
from tests.simulation.directed import CHUNK, PATH, _process
from tests.support.sim_files import SimFileSystem
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from engine.files import StoreEnv
    from engine.stores import Frozen, Head
    from tests.simulation.directed import HeldWorkers

LEAF_SPAN = 4096 * CHUNK


def a_rotten_leaf() -> None:
    """What it maps cannot be read or written, in the volume and in its snapshots; everything else goes on."""
    files = SimFileSystem(random.Random(1))

    async def make(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.create(
            env, PATH, volume_name="vol", size_bytes=2 * LEAF_SPAN, chunk_bytes=CHUNK, journal_bytes=CHUNK
        )
        head = store.volumes()[0]
        for offset in (0, LEAF_SPAN):
            await head.write(offset, memoryview(b"a" * CHUNK))
        await store.snapshot(head, "before")
        await store._core.checkpointer.run()
        rotten.append(head.node.map.leaves[0].page)
        await store.close()

    async def use(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.open(env, PATH)
        head, snapshot = store.volumes()[0], store.snapshots()[0]
        for device in (head, snapshot):
            if await _read(device, LEAF_SPAN) != b"a" * CHUNK:
                raise Violation("what the good leaf maps is not what was written")
            if await _read(device, 0) is not None:
                raise Violation("a leaf was used that is not what was written")
        await head.write(LEAF_SPAN, memoryview(b"b" * CHUNK))
        try:
            await head.write(0, memoryview(b"b" * 512))
        except MediumError:
            pass
        else:
            raise Violation("a chunk was redirected by a leaf that is not what was written")
        await store.snapshot(head, "after")
        await store.close()

    rotten: list[int] = []
    _process(files, make)
    files.restart_process()
    files.flip(PATH, rotten[0] * 16384 + 3)
    _process(files, use)
    files.restart_process()
    _process(files, use_again)


async def use_again(env: StoreEnv, workers: HeldWorkers) -> None:
    """The damage is where it was, and nowhere else."""
    store = await TvolFile.open(env, PATH)
    head = store.volumes()[0]
    if await _read(head, LEAF_SPAN) != b"b" * CHUNK or await _read(head, 0) is not None:
        raise Violation("a rotten leaf has changed something else")
    await store.close()


async def _read(device: Frozen | Head, offset: int) -> bytes | None:
    buffer = bytearray(CHUNK)
    try:
        if not device.try_read(offset, memoryview(buffer)):
            await device.read(offset, memoryview(buffer))
    except MediumError:
        return None
    return bytes(buffer)


def two_writes_and_a_flip_before_the_map_is_loaded() -> None:
    """Both belong to the snapshot, and the volume below has them too; its map and the snapshot's were loaded apart from
    each other, since neither was when the one was made from the other."""
    files = SimFileSystem(random.Random(1))
    border = LEAF_SPAN - CHUNK

    async def make(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.create(
            env, PATH, volume_name="vol", size_bytes=2 * LEAF_SPAN, chunk_bytes=CHUNK, journal_bytes=CHUNK
        )
        await store.volumes()[0].write(border, memoryview(b"a" * 2 * CHUNK))
        await store.snapshot(store.volumes()[0], "older")  # so that what is written goes elsewhere
        await store.close()

    async def use(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.open(env, PATH)
        head = store.volumes()[0]
        workers.meant = lambda call: True
        first = asyncio.ensure_future(head.write(border, memoryview(b"b" * 512)))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(head.write(border, memoryview(b"c" * 2 * CHUNK)))
        await asyncio.sleep(0)
        flip = asyncio.ensure_future(store.snapshot(head, "s"))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not head.node.map.loaded, "the map was loaded before the flip"
        workers.let_go()
        results = await asyncio.gather(first, second, flip, return_exceptions=True)
        for failed in results:
            if isinstance(failed, BaseException):
                raise Violation(f"a write or a snapshot has failed: {failed!r}")
        for device in (head, results[2]):
            for offset in (border, LEAF_SPAN):
                if await _read(device, offset) != b"c" * CHUNK:
                    raise Violation("a write that was admitted before the flip is missing")

    _process(files, make)
    files.restart_process()
    _process(files, use)
