"""4 KiB writes to a volume, alone and with a synchronous mirror: what the second copy costs.

Workload: 512 awaited writes at random places, one after the other, both volume files in the page cache. Expected order:
5 us for each write alone, three times that when mirrored, where both are written in the loop.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from engine.files import real_env
from engine.links.local import LocalLink
from engine.mirror import Mirror
from engine.mirror_record import MirrorRecord, point_prefix
from engine.tvol.file import TvolFile
from engine.units import KIB, MIB
from engine.volume import Volume

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

SIZE = 32 * MIB
WRITES = 512


@pytest.mark.parametrize("mirrored", [False, True], ids=["alone", "mirrored"])
def test_512_writes_of_4_kib(benchmark: BenchmarkFixture, tmp_path: Path, mirrored: bool) -> None:
    env = real_env()
    loop = asyncio.new_event_loop()
    rng = random.Random(4)

    def volume(name: str) -> Volume:
        made = TvolFile.create(env, tmp_path / f"{name}.tvol", volume_name=name, size_bytes=SIZE)
        return Volume(loop.run_until_complete(made).volumes()[0])

    async def save(record: MirrorRecord) -> None:
        return

    async def start() -> Mirror:
        link = LocalLink(target, point_prefix("m"))
        ledger = tmp_path / "m.ledger"
        mirror = Mirror(
            "m", source, link, env, ledger, record=MirrorRecord(), save=save, tell=lambda severity, text: None
        )
        await mirror.start()
        await mirror.wait_synchronized()
        return mirror

    source, target = volume("source"), volume("target")
    loop.run_until_complete(source.write(0, memoryview(rng.randbytes(SIZE))))
    mirror = loop.run_until_complete(start()) if mirrored else None
    data = memoryview(rng.randbytes(4 * KIB))

    async def writes() -> None:
        for _ in range(WRITES):
            await source.write(rng.randrange(SIZE // len(data)) * len(data), data)

    benchmark(lambda: loop.run_until_complete(writes()))
    if mirror is not None:
        loop.run_until_complete(mirror.close())
    for store in (source.head.store, target.head.store):
        loop.run_until_complete(store.close())
    loop.close()
