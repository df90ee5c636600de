"""A partial chunk and its base are two claims, and wait to be freed one apart from the other."""

import asyncio
import random

from engine.files import StoreEnv
from engine.tvol import housekeeping, tree
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from tests.support.made_volumes import CHUNK, PATH
from tests.support.sim_files import SimFileSystem
from tests.support.sim_loop import SimClock, SimLoop, SimWorkers

CHUNKS = 24


async def _stop_in_the_middle_of_reclaiming(env: StoreEnv) -> None:
    """A checkpoint of the moment when all bases are free, and no partial chunk is."""
    store = await TvolFile.create(env, PATH, volume_name="v", size_bytes=CHUNKS * CHUNK, journal_bytes=4 * CHUNK)
    head, family = store.volume("v"), store._core.family
    for text in (b"old", b"new"):
        for index in range(CHUNKS):
            await head.write(index * CHUNK, memoryview(text.ljust(4096)))
        await store.snapshot(head, text.decode())
    assert family.claims.partials.count == CHUNKS
    await head.discard(0, CHUNKS * CHUNK)
    for snapshot in store.snapshots():
        await store.delete_snapshot(snapshot)
    while len(family.reclaim) != CHUNKS:  # noqa: ASYNC110 - the store tells nobody; of twice as many, older ones first
        await asyncio.sleep(0)
    await store._core.checkpointer.run()


def test_a_file_opens_after_a_crash_while_the_partial_chunks_of_freed_bases_still_wait(monkeypatch):
    monkeypatch.setattr(housekeeping, "RECLAIM_STEPS", 1)
    for module in (tree, housekeeping):
        monkeypatch.setattr(module, "RECLAIM_STEP_CHUNKS", 1)
    files = SimFileSystem(random.Random(1))

    def run(main):
        loop = SimLoop()
        env = StoreEnv(files, SimWorkers(loop, random.Random(1)), SimClock(loop))
        try:
            return loop.run_until_complete(main(env))
        finally:
            files.kill()
            loop.close()
            files.restart_process()

    run(_stop_in_the_middle_of_reclaiming)
    report = check_file(PATH, files=files)
    assert report.findings == []
    assert 0 < report.counts["reclaim_queue"] == report.counts["partial_chunks"] <= CHUNKS

    async def open_again(env: StoreEnv) -> None:
        store = await TvolFile.open(env, PATH)
        assert await store.volume("v").read(0, memoryview(bytearray(CHUNK))) is None
        await store.close()

    run(open_again)
    assert check_file(PATH, files=files).counts["chunks"] == 0
