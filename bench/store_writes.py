"""Writes through the volume file against plain files:  ``python -m bench.store_writes``.

No iSCSI: a loop calls ``try_write`` and ``end_pass`` as the target's receive path does, or ``pwrite``. Rows:

* *frozen*: one 4 KiB write to each of N chunks that a snapshot shares, none twice, in random order, then a flush;
  against the same on chunks that nothing shares. Once each write is a pass of its own, as at queue depth 1, and once
  32 are, as a target has them from an initiator at that depth.
* *sequential*: 256 KiB writes in order over a written volume, against ``pwrite`` to a written file; and the same after
  a snapshot, which needs new space, against ``pwrite`` to a new file. Without a sync (each contender's dirty pages are
  written back between rounds) and with one at the end.
* *random*: 4 KiB writes at random places of a written volume and a flush after every 32, against ``pwrite`` and
  ``fdatasync``.

Rounds alternate; figures are medians of a round's rate, ratios medians of pairs. All of it is read back in the end and
compared with what was written. The expected order: a 4 KiB write 2 to 3 us in place and twice that into a new chunk;
a flush what the disk's fdatasync takes, twice where the map has changed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machine import RESULTS, facts
from bench.rounds import paired
from engine.files import real_env
from engine.tvol.file import TvolFile
from engine.units import CHUNK_SIZES, KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.files import StoreEnv

SMALL = 4 * KIB
LARGE = 256 * KIB
FLUSH_EVERY = 32
PASSES = (1, 32)
"""Writes of a pass."""


class WrongBytes(Exception):
    """What was read is not what was written."""


class Contender(ABC):
    """Something to write to, which remembers what it should hold."""

    def __init__(self, size_bytes: int) -> None:
        self.expected = bytearray(size_bytes)

    @abstractmethod
    async def write(self, offset: int, data: memoryview) -> None: ...

    @abstractmethod
    async def flush(self) -> None: ...

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes: ...

    @abstractmethod
    async def close(self) -> None: ...

    async def freeze(self) -> None:
        """Share everything that was written with a snapshot, if it can."""

    async def fill(self) -> None:
        """Write all of it, durably."""
        for offset in range(0, len(self.expected), MIB):
            data = os.urandom(min(MIB, len(self.expected) - offset))
            await self.write(offset, memoryview(data))
            self.expected[offset : offset + len(data)] = data
        await self.flush()

    async def verify(self) -> None:
        """Raises WrongBytes."""
        for offset in range(0, len(self.expected), MIB):
            wanted = self.expected[offset : offset + MIB]
            if await self.read(offset, len(wanted)) != wanted:
                raise WrongBytes(f"{type(self).__name__}: wrong bytes from {offset} on")


class PlainFile(Contender):
    """``pwrite`` and ``fdatasync``."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    async def write(self, offset: int, data: memoryview) -> None:
        if os.pwrite(self._fd, data, offset) != len(data):
            raise OSError(f"short write at {offset}")

    async def flush(self) -> None:
        os.fdatasync(self._fd)

    async def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    async def close(self) -> None:
        os.close(self._fd)


class Store(Contender):
    """A volume file, written as the receive path writes."""

    def __init__(self, env: StoreEnv, file: TvolFile, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self._env = env
        self._file = file
        self._head = file.volumes()[0]
        self._snapshots = 0
        self.pass_writes = 1
        """After so many writes ``end_pass`` is called."""
        self._in_pass = 0

    @classmethod
    async def create(cls, path: Path, size_bytes: int, chunk_bytes: int) -> Store:
        env = real_env()
        file = await TvolFile.create(env, path, volume_name="v", size_bytes=size_bytes, chunk_bytes=chunk_bytes)
        return cls(env, file, size_bytes)

    async def write(self, offset: int, data: memoryview) -> None:
        head = self._head
        if not head.try_write(offset, data):
            await head.write(offset, data)
        self._in_pass += 1
        if self._in_pass >= self.pass_writes:
            self._in_pass = 0
            head.end_pass()

    async def flush(self) -> None:
        await self._head.flush()

    async def freeze(self) -> None:
        self._snapshots += 1
        await self._file.snapshot(self._head, f"s{self._snapshots}")

    async def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        await self._head.read(offset, memoryview(buffer))
        return bytes(buffer)

    async def close(self) -> None:
        await self._file.close()
        await self._env.close()


async def timed(
    contender: Contender, offsets: Sequence[int], data: bytes, *, flush_every: int = 0, flush: bool = True
) -> float:
    """Writes a second of this round: ``data`` to each offset, and flushes; afterwards all of it is written back."""
    view = memoryview(data)
    write = contender.write
    started = time.perf_counter()
    for number, offset in enumerate(offsets, 1):
        await write(offset, view)
        if flush_every and not number % flush_every:
            await contender.flush()
    if flush:
        await contender.flush()
    seconds = time.perf_counter() - started
    for offset in offsets:
        contender.expected[offset : offset + len(data)] = data
    await contender.flush()
    return len(offsets) / seconds


@dataclass(frozen=True, slots=True)
class Row:
    """Rates by contender, one for each round, and which two the row compares."""

    name: str
    unit: str
    rates: dict[str, list[float]]
    ours: str
    peer: str
    at_least: float

    @property
    def ratio(self) -> float:
        return paired(self.rates[self.ours], self.rates[self.peer])[0]

    def __str__(self) -> str:
        medians = ", ".join(f"{name} {statistics.median(rates):.0f}" for name, rates in self.rates.items())
        return f"{self.name:28} {self.ratio:5.2f}x (at least {self.at_least}x)  {medians} {self.unit}"


class Bench:
    """All rows, in one folder."""

    def __init__(self, work: Path, *, rounds: int, writes: int, chunk_bytes: int, seed: int) -> None:
        self._work = work
        self._rounds = rounds
        self._writes = writes
        self._chunk = chunk_bytes
        self._rng = random.Random(seed)
        self._made = 0

    def _plain(self, size_bytes: int) -> PlainFile:
        self._made += 1
        return PlainFile(self._work / f"{self._made}.raw", size_bytes)

    async def _store(self, size_bytes: int) -> Store:
        self._made += 1
        return await Store.create(self._work / f"{self._made}.tvol", size_bytes, self._chunk)

    async def _alternate(self, contenders: dict[str, Callable[[int], Awaitable[float]]]) -> dict[str, list[float]]:
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(self._rounds):
            order = list(contenders.items())
            for name, run in order if number % 2 == 0 else reversed(order):
                rates[name].append(await run(number))
        return rates

    async def _end(self, *contenders: Contender) -> None:
        for contender in contenders:
            await contender.verify()
            await contender.close()
        for path in self._work.iterdir():
            path.unlink()

    async def rows(self) -> list[Row]:
        frozen = [await self.frozen(pass_writes) for pass_writes in PASSES]
        return [*frozen, *await self.sequential(), await self.random()]

    async def frozen(self, pass_writes: int) -> Row:
        """Each round has chunks of its own, so that none is written twice after its snapshot."""
        count, size = self._writes, self._rounds * self._writes * self._chunk
        shared, alone, plain = await self._store(size), await self._store(size), self._plain(size)
        for contender in (shared, alone, plain):
            await contender.fill()
        await shared.freeze()
        shared.pass_writes = alone.pass_writes = pass_writes
        pages = [self._rng.randrange(self._chunk // SMALL) * SMALL for _ in range(count)]

        def run(contender: Contender) -> Callable[[int], Awaitable[float]]:
            async def one(number: int) -> float:
                offsets = [(number * count + index) * self._chunk + page for index, page in enumerate(pages)]
                random.Random(number).shuffle(offsets)
                return await timed(contender, offsets, os.urandom(SMALL))

            return one

        rates = await self._alternate({"frozen": run(shared), "unshared": run(alone), "pwrite": run(plain)})
        await self._end(shared, alone, plain)
        name = "4 KiB into frozen" if pass_writes == 1 else f"4 KiB into frozen, {pass_writes} a pass"
        return Row(name, "writes/s", rates, "frozen", "unshared", 0.7)

    async def sequential(self) -> list[Row]:
        size = max(64 * MIB, self._writes * self._chunk // 2)
        frozen, alone, plain = await self._store(size), await self._store(size), self._plain(size)
        for contender in (frozen, alone, plain):
            await contender.fill()
        offsets = range(0, size, LARGE)

        def run(contender: Contender, *, flush: bool) -> Callable[[int], Awaitable[float]]:
            async def one(number: int) -> float:
                if contender is frozen:
                    await contender.freeze()
                rate = await timed(contender, offsets, os.urandom(LARGE), flush=flush)
                return rate * LARGE / MIB

            return one

        def run_new(*, flush: bool) -> Callable[[int], Awaitable[float]]:
            async def one(number: int) -> float:
                new = self._plain(size)
                rate = await timed(new, offsets, os.urandom(LARGE), flush=flush)
                await new.verify()
                await new.close()
                return rate * LARGE / MIB

            return one

        rows = []
        for flush in (False, True):
            rates = await self._alternate(
                {
                    "in place": run(alone, flush=flush),
                    "after a snapshot": run(frozen, flush=flush),
                    "pwrite": run(plain, flush=flush),
                    "pwrite, new file": run_new(flush=flush),
                }
            )
            what = "256 KiB, one flush" if flush else "256 KiB"
            rows.append(Row(what, "MiB/s", rates, "in place", "pwrite", 0.8))
            rows.append(Row(what + ", frozen", "MiB/s", rates, "after a snapshot", "pwrite, new file", 0.8))
        await self._end(frozen, alone, plain)
        return rows

    async def random(self) -> Row:
        size = max(64 * MIB, self._writes * self._chunk // 2)
        store, plain = await self._store(size), self._plain(size)
        for contender in (store, plain):
            await contender.fill()

        def run(contender: Contender) -> Callable[[int], Awaitable[float]]:
            async def one(number: int) -> float:
                places = random.Random(number)
                offsets = [places.randrange(size // SMALL) * SMALL for _ in range(self._writes)]
                return await timed(contender, offsets, os.urandom(SMALL), flush_every=FLUSH_EVERY)

            return one

        rates = await self._alternate({"store": run(store), "pwrite": run(plain)})
        await self._end(store, plain)
        return Row("4 KiB, flush every 32", "writes/s", rates, "store", "pwrite", 0.5)


def main() -> int:
    """Print the rows, write the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.store_writes", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of 256 writes: a look, not a result")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (9)")
    parser.add_argument("--writes", type=int, default=1024, help="4 KiB writes of a round (1024)")
    parser.add_argument("--chunk", type=int, default=CHUNK_SIZES[0], choices=CHUNK_SIZES, help="bytes of a chunk")
    parser.add_argument("--seed", type=int, default=1, help="of the places written")
    parser.add_argument("--work", type=Path, default=None, help="folder for the files (a temporary one)")
    parser.add_argument("--out", type=Path, default=None, help="result file (bench/results/...)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.writes = 3, 256
    with tempfile.TemporaryDirectory(prefix="twinvol-bench-", dir=options.work) as folder:
        work = Path(folder)
        machine = facts(work)
        bench = Bench(work, rounds=options.rounds, writes=options.writes, chunk_bytes=options.chunk, seed=options.seed)
        rows = asyncio.run(bench.rows())
    for row in rows:
        print(row)
    out = options.out or RESULTS / f"store_writes-{str(machine['commit']).rstrip('+')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "bench": "store_writes",
        "machine": machine,
        "chunk_bytes": options.chunk,
        "writes": options.writes,
        "rows": [
            {
                "name": row.name, "unit": row.unit, "rates": row.rates, "ours": row.ours, "peer": row.peer,
                "ratio": row.ratio, "at_least": row.at_least,
            }
            for row in rows
        ],
    }  # fmt: skip
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"result in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
