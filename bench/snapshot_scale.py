"""Does what a snapshot costs depend on the size of its volume, or on how many there are?

``python -m bench.snapshot_scale`` measures in one run, each against its peer:

* snapshot create and linked clone create, durable: volumes of 1 GiB and 1 TiB with one chunk in every map leaf (a leaf
  is 256 MiB, 4 and 4096 of them), without and with 2,000 older snapshots, one write to a new place of the file before
  each; taken in turn with them the fdatasync of 4 KiB on the same disk, over what was written before and at a new place
  of a sparse file, where the host's file system has to note the allocation as well. A snapshot needs one of each, one
  after the other, and the way to a thread and back;
* 4 KiB reads of the volume and of a snapshot, 2,000 snapshots against none, in short rounds taken in turn; the bytes
  are compared. Twice: as 4 KiB writes between snapshots leave the volume, most of what is read being pages of partial
  chunks, and when its chunks have been written whole, so that snapshots are all that differs;
* a fully mapped volume of 1 TiB (``bench.full_volume``): resident memory and opening, in a process of its own;
* deleting a snapshot that holds 1 million chunks: how fast they can be used again, how fast the host has their space
  back, and what 4 KiB reads that come in from outside the loop, five in a millisecond, see of it, against before.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.full_volume import map_everything
from bench.machine import RESULTS, facts
from engine.files import real_env
from engine.tvol.file import TvolFile
from engine.units import GIB, KIB, MIB, TIB

if TYPE_CHECKING:
    from engine.files import StoreEnv
    from engine.tvol.device import NativeDevice
    from engine.tvol.head import NativeHead

LEAF_BYTES = 256 * MIB
SIZES = {"1 GiB": GIB, "1 TiB": TIB}
SYNC_BYTES = 16 * MIB
READS, READ_ROUNDS = 2000, 31
"""Reads of a round, and rounds."""
AT_ONCE = 32
"""Snapshots under way at a time while the older ones are made."""
RECLAIM_BYTES, RECLAIM_ROUNDS = 64 * GIB, 5
"""Of the volume whose snapshot is deleted: 2^20 chunks; and how often."""

clock = time.perf_counter


def ms(seconds: list[float]) -> float:
    """The median in milliseconds."""
    return statistics.median(seconds) * 1e3


class Disk:
    """Files of its own, for the price of an fdatasync at this moment."""

    def __init__(self, folder: Path, name: str) -> None:
        self._written = os.open(folder / f"{name}.written", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.pwrite(self._written, os.urandom(SYNC_BYTES), 0)
        os.fsync(self._written)
        self._sparse = os.open(folder / f"{name}.sparse", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.ftruncate(self._sparse, TIB)
        os.fsync(self._sparse)
        self._number = 0

    def sync(self) -> tuple[float, float]:
        """Seconds of a 4 KiB write and its fdatasync: over what was written before, and at a new place."""
        self._number += 1
        times = []
        for fd, at in (
            (self._written, self._number * 4 * KIB % SYNC_BYTES),
            (self._sparse, self._number * LEAF_BYTES % TIB),
        ):
            data, begun = os.urandom(4 * KIB), clock()
            os.pwrite(fd, data, at)
            os.fdatasync(fd)
            times.append(clock() - begun)
        return times[0], times[1]

    def close(self) -> None:
        os.close(self._written)
        os.close(self._sparse)


def pattern(offset: int) -> bytes:
    """What a leaf's one chunk holds."""
    return random.Random(offset).randbytes(4 * KIB)


async def creates(file: TvolFile, disk: Disk, rounds: int, series: str) -> dict[str, float]:
    """Snapshots and clones, each after a write, in turn with fdatasyncs."""
    head = file.volumes()[0]
    snapshots, clones, syncs = [], [], []
    for number in range(rounds):
        syncs.append(disk.sync())
        offset = number * LEAF_BYTES % head.size_bytes
        await head.write(offset, memoryview(pattern(offset)))
        begun = clock()
        snapshot = await file.snapshot(head, f"{series}{number}")
        snapshots.append(clock() - begun)
        begun = clock()
        await file.clone(snapshot, f"{series}-clone{number}")
        clones.append(clock() - begun)
    return {
        "sync_ms": ms([written for written, _ in syncs]),
        "new_place_sync_ms": ms([new for _, new in syncs]),
        "snapshot_ms": ms(snapshots),
        "clone_ms": ms(clones),
    }


async def make_older(file: TvolFile, count: int) -> float:
    """Older snapshots, a write before each; seconds."""
    head, begun = file.volumes()[0], clock()
    for first in range(0, count, AT_ONCE):
        making = []
        for number in range(first, min(count, first + AT_ONCE)):
            offset = number * LEAF_BYTES % head.size_bytes
            await head.write(offset, memoryview(pattern(offset)))
            making.append(file.snapshot(head, f"old{number}"))
        await asyncio.gather(*making)
    return clock() - begun


async def reads(devices: dict[str, NativeDevice]) -> dict[str, float]:
    """4 KiB reads a second of each, of random leaves' chunks; what they return is compared in a pass of its own."""
    rng = random.Random(1)
    leaves = min(device.size_bytes for device in devices.values()) // LEAF_BYTES
    offsets = [rng.randrange(leaves) * LEAF_BYTES for _ in range(READS)]
    view = memoryview(bytearray(4 * KIB))
    for device in devices.values():
        for offset in set(offsets):
            if not device.try_read(offset, view):
                await device.read(offset, view)
            assert bytes(view) == pattern(offset), f"{device.name} holds other bytes at {offset}"
    rates: dict[str, list[float]] = {name: [] for name in devices}
    for number in range(READ_ROUNDS):
        order = list(devices.items())
        for name, device in order if number % 2 else reversed(order):
            begun = clock()
            for offset in offsets:
                if not device.try_read(offset, view):
                    await device.read(offset, view)
            rates[name].append(READS / (clock() - begun))
    return {name: statistics.median(found) for name, found in rates.items()}


async def written(env: StoreEnv, path: Path, size: int) -> TvolFile:
    """A volume with one chunk in every leaf."""
    file = await TvolFile.create(env, path, volume_name="scale", size_bytes=size)
    head = file.volumes()[0]
    for offset in range(0, size, LEAF_BYTES):
        await head.write(offset, memoryview(pattern(offset)))
    await head.flush()
    await file._core.checkpointer.run()
    return file


async def measure(folder: Path, label: str, older: int, rounds: int) -> list[dict[str, Any]]:
    """A volume of one size, first without older snapshots, then with them."""
    env, disk, size = real_env(), Disk(folder, f"sync-{SIZES[label]}"), SIZES[label]
    file = await written(env, folder / f"{size}.tvol", size)
    plain = await written(env, folder / f"{size}-plain.tvol", size)
    head = file.volumes()[0]
    none = {"size": label, "older": 0, **await creates(file, disk, rounds, "first")}
    made_s = await make_older(file, older)
    pages = await reads({"none": plain.volumes()[0], "head": head, "snapshot": file.snapshots()[older // 2]})
    many = {"size": label, "older": older, **await creates(file, disk, rounds, "last"), "older_made_s": made_s}
    many["metadata_bytes"] = file.info().metadata_bytes
    for offset in range(0, size, LEAF_BYTES):
        await head.write(offset, memoryview(pattern(offset).ljust(file.chunk_bytes, b"\0")))
    chunks = await reads({"none": plain.volumes()[0], "head": head})
    none["reads_s"], many["reads_s"], many["page_reads_s"] = chunks["none"], chunks["head"], pages["head"]
    many["snapshot_reads_s"] = pages["snapshot"]
    many["reads_x"], many["page_reads_x"] = chunks["head"] / chunks["none"], pages["head"] / pages["none"]
    await plain.close()
    begun = clock()
    await file.close()
    many["close_s"] = clock() - begun
    begun = clock()
    file = await TvolFile.open(env, folder / f"{size}.tvol")
    many["open_s"] = clock() - begun
    await file.close()
    disk.close()
    return [none, many]


async def full(folder: Path) -> dict[str, float]:
    """Make a fully mapped volume of 1 TiB, and have another process open it."""
    path = folder / "full.tvol"
    env = real_env()
    file = await TvolFile.create(env, path, volume_name="full", size_bytes=TIB)
    await map_everything(file, TIB)
    await file.close()
    looker = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.full_volume", path, stdout=PIPE)
    told, _ = await looker.communicate()
    assert looker.returncode == 0
    path.unlink()
    found: dict[str, float] = json.loads(told)
    return found


class Outside:
    """Reads that a thread asks for five times in a millisecond; seconds from then to the answer, in the loop."""

    def __init__(self, head: NativeHead) -> None:
        self.latencies: list[float] = []
        self._head = head
        self._view = memoryview(bytearray(4 * KIB))
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._stop.wait(0.0002):
            self._loop.call_soon_threadsafe(self._answer, clock())

    def _answer(self, asked: float) -> None:
        if self._head.try_read(0, self._view):  # the host may take its page from the cache at any time
            self.latencies.append(clock() - asked)

    def take(self) -> list[float]:
        """The latencies since the last call."""
        found, self.latencies = self.latencies, []
        return found

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def p99_ms(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) * 99 // 100] * 1e3


async def reclaim(folder: Path) -> dict[str, float]:
    """Map everything, snapshot, map everything anew, delete the snapshot; several times."""
    env = real_env()
    file = await TvolFile.create(env, folder / "reclaim.tvol", volume_name="vol", size_bytes=RECLAIM_BYTES)
    await map_everything(file, RECLAIM_BYTES)
    head, chunks, allocator = file.volumes()[0], RECLAIM_BYTES // file.chunk_bytes, file._core.allocator
    usable_s, punched_s = [], []
    quiet: list[float] = []
    reclaiming: list[float] = []
    punching: list[float] = []
    gc.freeze()  # as the daemon does
    for number in range(RECLAIM_ROUNDS):
        snapshot = await file.snapshot(head, f"doomed{number}")
        await map_everything(file, RECLAIM_BYTES)
        await head.write(0, memoryview(pattern(0)))
        await file._core.checkpointer.run()
        free = allocator.free_count + allocator.cleaning
        outside = Outside(head)
        await asyncio.sleep(1)
        quiet += outside.take()
        begun = clock()
        await file.delete_snapshot(snapshot)
        while allocator.free_count + allocator.cleaning < free + chunks:  # noqa: ASYNC110 - the store has no event
            await asyncio.sleep(0.001)
        usable_s.append(clock() - begun)
        reclaiming += outside.take()
        await file.settled()
        punched_s.append(clock() - begun)
        punching += outside.take()
        outside.stop()
    await file.close()
    return {
        "chunks": chunks,
        "usable_chunks_s": chunks / statistics.median(usable_s),
        "punched_chunks_s": chunks / statistics.median(punched_s),
        "quiet_p99_ms": p99_ms(quiet),
        "reclaiming_p99_ms": p99_ms(reclaiming),
        "punching_p99_ms": p99_ms(punching),
    }


def report(rows: list[dict[str, Any]], volume: dict[str, float], deleted: dict[str, float]) -> None:
    print(
        f"{'size':>6} {'older':>6} {'fdatasync':>10} {'new place':>10} {'snapshot ms':>12} {'clone ms':>9} "
        f"{'syncs':>6} {'new':>6} {'reads/s':>9}"
    )
    for row in rows:
        print(
            f"{row['size']:>6} {row['older']:>6} {row['sync_ms']:10.3f} {row['new_place_sync_ms']:10.3f} "
            f"{row['snapshot_ms']:12.3f} {row['clone_ms']:9.3f} {row['snapshot_ms'] / row['sync_ms']:6.2f} "
            f"{row['snapshot_ms'] / row['new_place_sync_ms']:6.2f} {row['reads_s']:9.0f}"
        )
    for what in ("snapshot", "clone"):
        times = [row[f"{what}_ms"] for row in rows]
        over, new = (max(row[f"{what}_ms"] / row[sync] for row in rows) for sync in ("sync_ms", "new_place_sync_ms"))
        spread = max(times) / min(times)
        print(
            f"{what} create: slowest / fastest {spread:.2f}x, at most {over:.2f} fdatasyncs over what was written, "
            f"{new:.2f} of a new place"
        )
    for many in rows[1::2]:
        print(
            f"{many['size']} with {many['older']} snapshots: reads {many['reads_x']:.2f}x of those without, where "
            f"4 KiB writes left partial chunks {many['page_reads_x']:.2f}x; of a snapshot "
            f"{many['snapshot_reads_s']:.0f}/s; opened in {many['open_s']:.2f} s, "
            f"{many['metadata_bytes'] / MIB:.0f} MiB of metadata"
        )
    print(
        f"1 TiB fully mapped: opened in {volume['open_s']:.2f} s with {volume['open_bytes'] / MIB:.0f} MiB, all leaves "
        f"read in {volume['read_leaves_s']:.2f} s, then {volume['all_leaves_bytes'] / MIB:.0f} MiB (VmRSS)"
    )
    print(
        f"{deleted['chunks']} chunks reclaimed: {deleted['usable_chunks_s'] / 1e6:.2f} M/s usable again, "
        f"{deleted['punched_chunks_s'] / 1e6:.2f} M/s given back to the host; p99 of 4 KiB reads "
        f"{deleted['quiet_p99_ms']:.2f} ms before, {deleted['reclaiming_p99_ms']:.2f} ms meanwhile, "
        f"{deleted['punching_p99_ms']:.2f} ms while it is given back"
    )


def main() -> int:
    """Print the table, write the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.snapshot_scale", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=41, help="snapshots and clones of each row (41)")
    parser.add_argument("--older", type=int, default=2000, help="older snapshots (2000)")
    parser.add_argument("--work", type=Path, default=None, help="folder for the volume files (a temporary one)")
    parser.add_argument("--out", type=Path, default=None, help="result file (bench/results/...)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="twinvol-bench-", dir=options.work) as name:
        work = Path(name)
        machine = facts(work)
        for label in SIZES:
            rows += asyncio.run(measure(work, label, options.older, options.rounds))
        volume, deleted = asyncio.run(full(work)), asyncio.run(reclaim(work))
    report(rows, volume, deleted)
    out = options.out or RESULTS / f"snapshot_scale-{str(machine['commit']).rstrip('+')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    document = {"bench": "snapshot_scale", "machine": machine, "rows": rows, "full": volume, "reclaim": deleted}
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
