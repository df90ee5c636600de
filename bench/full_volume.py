"""A fully mapped volume without its data: for what depends on maps and births only.

The mappings are published as writes publish them, a run of 4096 chunks at a time: births, leaves, journal records and
checkpoints are those of a real volume. The chunks are holes of a sparse file, so 1 TiB takes 128 MiB and a second.

``python -m bench.full_volume FILE`` opens such a file, reads 4 KiB behind every map leaf, and prints, as JSON, how long
the opening took and how much the process' resident memory (VmRSS) grew by then, and when every leaf had been read.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from pathlib import Path

from engine.files import real_env
from engine.tvol.file import TvolFile
from engine.tvol.layout import LEAF_ENTRIES
from engine.units import KIB

RUNS_PER_PASS = 64


async def map_everything(file: TvolFile, size_bytes: int) -> None:
    """Give every chunk of the file's volume a new place, durably."""
    core, node = file._core, file.volumes()[0].node
    chunks = size_bytes // file.chunk_bytes
    for number, first in enumerate(range(0, chunks, LEAF_ENTRIES)):
        count = min(LEAF_ENTRIES, chunks - first)
        while not core.maps.ready(node, first, first):
            await core.maps.fetch(node, first, first)
        if not number % RUNS_PER_PASS:
            core.end_pass()
        if not core.ready_for_change():
            core.end_pass()
            await core.make_room()
        core.publish_run(node, first, count, core.allocator.extend(count))
    await core.flush()


def resident_bytes() -> int:
    """VmRSS of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


async def look(path: Path) -> dict[str, float]:
    env = real_env()
    gc.collect()
    before = resident_bytes()
    begun = time.perf_counter()
    file = await TvolFile.open(env, path)
    opened_s = time.perf_counter() - begun
    gc.collect()
    opened = resident_bytes()
    head = file.volumes()[0]
    view = memoryview(bytearray(4 * KIB))
    begun = time.perf_counter()
    for offset in range(0, head.size_bytes, LEAF_ENTRIES * file.chunk_bytes):
        if not head.try_read(offset, view):
            await head.read(offset, view)
    read_s = time.perf_counter() - begun
    gc.collect()
    found = {
        "open_s": opened_s,
        "open_bytes": opened - before,
        "read_leaves_s": read_s,
        "all_leaves_bytes": resident_bytes() - before,
    }
    await file.close()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(look(Path(sys.argv[1])))))
