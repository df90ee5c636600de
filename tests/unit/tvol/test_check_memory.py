"""``check`` keeps in memory what there is once for each chunk, not what there is for each snapshot."""

import random
import tracemalloc

from engine.tvol import check_maps
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.units import GIB
from tests.support.made_volumes import CHUNK, PATH, MadeVolume
from tests.support.sim_files import SimFileSystem

LEAVES = 16


def peak_of_check(snapshots: int, monkeypatch) -> int:
    """Bytes at most while a volume is checked whose snapshots each have two map leaves of their own."""
    made = MadeVolume(SimFileSystem(random.Random(1)))
    span = 4096 * CHUNK

    async def fill(env):
        store = await TvolFile.create(
            env, PATH, volume_name="v", size_bytes=LEAVES * span, chunk_bytes=CHUNK, journal_bytes=4 * CHUNK
        )
        head = store.volume("v")
        for number in range(snapshots):
            for place in (number, number + 7):
                await head.write(place % LEAVES * span + number * CHUNK, memoryview(b"x" * 512))
            await store.snapshot(head, str(number))
        await store.close()

    made.run(fill)
    monkeypatch.setattr(check_maps, "KEPT_PAGES", 16)
    tracemalloc.start()
    try:
        report = check_file(PATH, files=made.files)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.findings == []
    assert report.counts["leaves"] >= 2 * snapshots
    return peak


def test_memory_does_not_follow_the_number_of_snapshots(monkeypatch):
    """All leaves of 180 snapshots more have 5.9 MB."""
    assert LEAVES * 4096 * CHUNK == 4 * GIB
    few, many = (peak_of_check(snapshots, monkeypatch) for snapshots in (20, 200))
    assert many - few < 2_000_000
