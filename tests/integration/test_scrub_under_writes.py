"""Flipped bits in frozen chunks are all found, and nothing else, while somebody writes, on real files.

``python -m tests.integration.test_scrub_under_writes`` flips 1,000; the suite 100.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import sys
import tempfile
from pathlib import Path

from engine.errors import MediumError
from engine.files import ThreadWorkers, real_env
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.scrub import Found
from engine.units import KIB, MIB

CHUNK = 64 * KIB


class Writer:
    """Writes at random, flushes, snapshots and deletes snapshots until it is told to stop."""

    def __init__(self, store: TvolFile, rng: random.Random) -> None:
        self.store = store
        self.rng = rng
        self.stopped = False
        self.writes = 0

    async def run(self) -> None:
        head = self.store.volume("v")
        chunks = head.size_bytes // CHUNK
        taken = []
        while not self.stopped:
            for _ in range(64):
                offset = self.rng.randrange(chunks) * CHUNK + 4096 * self.rng.randrange(16)
                data = memoryview(self.rng.randbytes(4096))
                with contextlib.suppress(MediumError):  # the rest of a bad chunk is not to be had
                    if not head.try_write(offset, data):
                        await head.write(offset, data)
                self.writes += 1
            head.end_pass()
            await head.flush()
            if self.rng.random() < 0.2:
                taken.append(await self.store.snapshot(head, f"w{self.writes}"))
            if len(taken) > 3:
                await self.store.delete_snapshot(taken.pop(0))
            await asyncio.sleep(0)


async def scrub(store: TvolFile) -> tuple[list, object]:
    """What a scrub of everything finds, and its counts."""
    found = []

    async def pace(length: int) -> None:
        await asyncio.sleep(0)

    head = store.volume("v")
    scrubber = store.scrubber(head, pace=pace, report=found.append)
    await scrubber.run(0, head.size_bytes // CHUNK)
    return found, scrubber.counts


def flip_bits(path: Path, chunks: list[int], rng: random.Random) -> None:
    """One bit in each of these chunks of the file, and on the medium."""
    fd = os.open(path, os.O_RDWR)
    try:
        for chunk in chunks:
            at = chunk * CHUNK + rng.randrange(CHUNK)
            os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1 << rng.randrange(8)]), at)
        os.fsync(fd)
    finally:
        os.close(fd)


async def flipped_bits_are_found(folder: Path, flips: int, seed: int) -> str:
    """Raises AssertionError unless exactly the flipped chunks are found. A line that says what was done."""
    rng, path = random.Random(seed), folder / "v.tvol"
    env = dataclasses.replace(real_env(4), copier=None)  # threads: a copying process leaves a busy machine to others
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=4 * flips * CHUNK)
    try:
        head = store.volume("v")
        for offset in range(0, head.size_bytes, MIB):
            await head.write(offset, memoryview(rng.randbytes(MIB)))
        await store.snapshot(head, "kept")
        # Of the head: a snapshot's map may leave memory, and nobody has written since.
        frozen = sorted(set(head.node.map.leaves[0].array[: head.size_bytes // CHUNK].tolist()))
        writer = Writer(store, rng)
        writing = asyncio.create_task(writer.run())
        clean, made = await scrub(store)
        again, verified = await scrub(store)
        assert clean == again == [], "a false alarm"
        chosen = rng.sample(frozen, flips)
        await asyncio.to_thread(flip_bits, path, chosen, rng)
        found, counts = await scrub(store)
        after, _ = await scrub(store)
        writer.stopped = True
        await writing
        assert {each.found for each in found} == {Found.BAD}
        assert sorted(each.chunk for each in found) == sorted(chosen), "not exactly the flipped ones"
        assert after == [], "found twice"
        said = (
            f"{len(found)} of {flips} flipped bits found, 0 false alarms; {made.made + counts.made} digests made,"
            f" {verified.verified + counts.verified} chunks verified, beside {writer.writes} writes of 4 KiB"
        )
    finally:
        await store.close()
        assert isinstance(env.workers, ThreadWorkers)
        env.workers.close()
    report = await asyncio.to_thread(check_file, path)
    assert not report.damaged
    assert report.counts["bad_chunks"] == flips
    return said


async def test_flipped_bits_are_all_found_and_nothing_else(tmp_path):
    await flipped_bits_are_found(tmp_path, 100, seed=1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(asyncio.run(flipped_bits_are_found(Path(folder), int((sys.argv[1:] or ["1000"])[0]), seed=2)))
