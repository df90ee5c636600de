"""What chance seldom meets with partial chunks, played on purpose (as ``directed.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

from engine.errors import StoreCorrupt
from engine.tvol import housekeeping, tree
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from tests.simulation.directed import CHUNK, PATH, HeldWorkers, _create, _process
from tests.support.sim_files import SimFileSystem
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.files import StoreEnv

PAGE = 4096


def a_mask_that_grows_between_two_checkpoints() -> None:
    """The second has the page that was written after the first, though nothing else of the table has changed."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        await store.snapshot(head, "s")
        await head.write(0, memoryview(b"b" * PAGE))
        await store._core.checkpointer.run()
        await head.write(PAGE, memoryview(b"b" * PAGE))
        await store.close()
        store = await TvolFile.open(env, PATH)
        buffer = bytearray(2 * PAGE)
        await store.volumes()[0].read(0, memoryview(buffer))
        await store.close()
        if bytes(buffer) != b"b" * 2 * PAGE:
            raise Violation("a page that was written is not in the mask after reopening")

    _process(SimFileSystem(random.Random(1)), main)


def a_base_that_is_freed_before_its_partial_chunk() -> None:
    """They are two claims in the reclaim queue, the base first: a checkpoint of the moment in between opens."""
    chunks, files = 24, SimFileSystem(random.Random(1))

    async def reclaim_halfway(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.create(env, PATH, volume_name="v", size_bytes=chunks * CHUNK, journal_bytes=4 * CHUNK)
        head, family = store.volume("v"), store._core.family
        for text in (b"old", b"new"):
            for index in range(chunks):
                await head.write(index * CHUNK, memoryview(text.ljust(PAGE)))
            await store.snapshot(head, text.decode())
        await head.discard(0, chunks * CHUNK)
        for snapshot in store.snapshots():
            await store.delete_snapshot(snapshot)
        while len(family.reclaim) != chunks:  # noqa: ASYNC110 - the store tells nobody; of twice as many
            await asyncio.sleep(0)
        await store._core.checkpointer.run()

    async def open_again(env: StoreEnv, workers: HeldWorkers) -> None:
        try:
            store = await TvolFile.open(env, PATH)
        except StoreCorrupt as error:
            raise Violation(f"refused while a partial chunk waits whose base is free: {error}") from error
        await store.settled()
        await store.close()

    with _single_steps():
        _process(files, reclaim_halfway)
        files.restart_process()
        counts = check_file(PATH, files=files).counts
        assert 0 < counts["reclaim_queue"] == counts["partial_chunks"] <= chunks, counts
        _process(files, open_again)
    files.restart_process()
    report = check_file(PATH, files=files)
    if report.findings or report.counts["chunks"]:
        raise Violation(f"after reclaiming: {report.findings}, {report.counts}")


@contextlib.contextmanager
def _single_steps() -> Iterator[None]:
    """Each step of reclaiming frees one claim."""
    before = [(module, module.RECLAIM_STEP_CHUNKS) for module in (tree, housekeeping)]
    for module, _ in before:
        module.RECLAIM_STEP_CHUNKS = 1
    try:
        yield
    finally:
        for module, count in before:
            module.RECLAIM_STEP_CHUNKS = count
