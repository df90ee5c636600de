"""The verified copy loop, 64 MiB from a snapshot to a volume file. Expected: 1 GiB/s and more in the page cache."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING

from engine.copy_job import CopyOptions, copy_extents
from engine.files import real_env
from engine.tvol.file import TvolFile
from engine.units import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

SIZE = 64 * MIB


def test_copy_64_mib_verified_into_a_new_file(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    env = real_env()
    loop = asyncio.new_event_loop()
    source = loop.run_until_complete(TvolFile.create(env, tmp_path / "a.tvol", volume_name="a", size_bytes=SIZE))
    head = source.volumes()[0]
    data = memoryview(random.Random(4).randbytes(MIB))
    for offset in range(0, SIZE, MIB):
        loop.run_until_complete(head.write(offset, data))
    frozen = loop.run_until_complete(source.snapshot(head, "still"))
    numbers = itertools.count()

    async def copy() -> bytes:
        path = tmp_path / f"b{next(numbers)}.tvol"
        target = await TvolFile.create(env, path, volume_name="b", size_bytes=SIZE)
        blank = CopyOptions(blank_target=True)
        result = await copy_extents(frozen, target.volumes()[0], options=blank, mover=env.mover)
        await target.close()
        path.unlink()
        return result.tree.root()

    expected = loop.run_until_complete(copy())
    assert benchmark(lambda: loop.run_until_complete(copy())) == expected
    loop.run_until_complete(source.close())
    loop.run_until_complete(env.close())
    loop.close()
