"""Does a snapshot's time depend on the size of its volume?  ``python -m bench.snapshot_scale``.

A map leaf covers 256 MiB (4096 chunks of 64 KiB). One chunk is written in every leaf, so that every leaf of the map is
dirty and none can be skipped: 4 leaves at 1 GiB, 4096 at 1 TiB. Timed are the snapshot right after that, later ones
each after one more write, and a linked clone; each call returns when its record is durable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.machine import RESULTS, facts
from engine.files import real_env
from engine.tvol.file import TvolFile
from engine.units import GIB, KIB, MIB, TIB

LEAF_BYTES = 256 * MIB


@dataclass(frozen=True, slots=True)
class Row:
    """Times of one size, in milliseconds; medians where there are several."""

    size_bytes: int
    leaves: int
    fill_ms: float
    first_snapshot_ms: float
    next_snapshot_ms: float
    clone_ms: float
    delete_snapshot_ms: float


async def measure(path: Path, size_bytes: int, rounds: int) -> Row:
    """One volume file of ``size_bytes``, made at ``path``."""
    clock = time.perf_counter
    file = await TvolFile.create(real_env(), path, volume_name="scale", size_bytes=size_bytes)
    head = file.volumes()[0]
    data = memoryview(b"\x5a" * (64 * KIB))
    started = clock()
    for offset in range(0, size_bytes, LEAF_BYTES):
        await head.write(offset, data)
    await head.flush()
    fill = clock() - started

    async def timed_snapshot(name: str) -> float:
        begun = clock()
        await file.snapshot(head, name)
        return clock() - begun

    first = await timed_snapshot("first")
    later = []
    for number in range(rounds):
        await head.write(number * LEAF_BYTES % size_bytes, data)
        later.append(await timed_snapshot(f"s{number}"))
    clones, deletions = [], []
    snapshots = list(file.snapshots())
    for number in range(min(5, rounds)):
        begun = clock()
        await file.clone(snapshots[0], f"clone{number}")
        clones.append(clock() - begun)
    for snapshot in snapshots[-5:]:
        begun = clock()
        await file.delete_snapshot(snapshot)
        deletions.append(clock() - begun)
    await file.close()
    median = statistics.median
    return Row(
        size_bytes=size_bytes,
        leaves=size_bytes // LEAF_BYTES,
        fill_ms=fill * 1e3,
        first_snapshot_ms=first * 1e3,
        next_snapshot_ms=median(later) * 1e3,
        clone_ms=median(clones) * 1e3,
        delete_snapshot_ms=median(deletions) * 1e3,
    )


def main() -> int:
    """Print the table, write the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.snapshot_scale", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=21, help="snapshots of each size (21)")
    parser.add_argument("--work", type=Path, default=None, help="folder for the volume files (a temporary one)")
    parser.add_argument("--out", type=Path, default=None, help="result file (bench/results/...)")
    options = parser.parse_args()
    print(f"{'size':>9} {'leaves':>7} {'first ms':>9} {'next ms':>9} {'clone ms':>9} {'delete ms':>9}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="twinvol-bench-", dir=options.work) as work:
        machine = facts(Path(work))
        for size_bytes in (GIB, TIB):
            row = asyncio.run(measure(Path(work) / f"{size_bytes}.tvol", size_bytes, options.rounds))
            rows.append(row)
            print(
                f"{size_bytes // GIB:>5} GiB {row.leaves:>7} {row.first_snapshot_ms:9.3f} {row.next_snapshot_ms:9.3f} "
                f"{row.clone_ms:9.3f} {row.delete_snapshot_ms:9.3f}",
                flush=True,
            )
    print(f"1 TiB / 1 GiB: {rows[1].next_snapshot_ms / rows[0].next_snapshot_ms:.2f}x for 1024x the size")
    out = options.out or RESULTS / f"snapshot_scale-{str(machine['commit']).rstrip('+')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    document = {"bench": "snapshot_scale", "machine": machine, "rows": [asdict(row) for row in rows]}
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
