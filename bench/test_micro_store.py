"""The native store. Expected: a mapped 4 KiB read in under 2 us, preadv included; a durable snapshot in under 1 ms."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from engine.files import real_env
from engine.tvol.file import TvolFile
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

    from engine.stores import Head

SIZE = 64 * MIB


class Store:
    """A volume file of 64 MiB, all of it written, on a loop of its own."""

    def __init__(self, path: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.file = self.loop.run_until_complete(
            TvolFile.create(real_env(), path, volume_name="bench", size_bytes=SIZE)
        )
        self.head: Head = self.file.volumes()[0]
        data = memoryview(random.Random(3).randbytes(MIB))
        for offset in range(0, SIZE, MIB):
            self.loop.run_until_complete(self.head.write(offset, data))
        self.loop.run_until_complete(self.head.flush())

    def close(self) -> None:
        self.loop.run_until_complete(self.file.close())
        self.loop.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "bench.tvol")
    yield made
    made.close()


def test_read_4_kib_now(benchmark: BenchmarkFixture, store: Store) -> None:
    view = memoryview(bytearray(4 * KIB))
    assert benchmark(store.head.try_read, 5 * MIB + 4 * KIB, view)


def test_overwrite_4_kib_now(benchmark: BenchmarkFixture, store: Store) -> None:
    data = memoryview(bytes(range(256)) * 16)
    head = store.head

    def write() -> bool:
        done = head.try_write(7 * MIB, data)
        head.end_pass()
        return done

    assert benchmark(write)


def test_extents_of_64_mib(benchmark: BenchmarkFixture, store: Store) -> None:
    extents = benchmark(lambda: store.loop.run_until_complete(store.head.extents(0, SIZE)))
    assert sum(extent.length for extent in extents) == SIZE


def test_snapshot_and_its_deletion(benchmark: BenchmarkFixture, store: Store) -> None:
    async def there_and_back() -> None:
        snapshot = await store.file.snapshot(store.head, "moment")
        await store.file.delete_snapshot(snapshot)

    benchmark(lambda: store.loop.run_until_complete(there_and_back()))
    assert list(store.file.snapshots()) == []
