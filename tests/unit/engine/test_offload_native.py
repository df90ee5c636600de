"""Offloaded copies on the native store: what is shared and what is moved reads the same, and the file stays sound."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine import offload
from engine.files import StoreEnv
from engine.offload import Offload
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.volume import Volume
from tests.support.sim_files import SimFileSystem
from tests.support.sim_loop import SimClock, SimLoop, SimWorkers

PATH = Path("/pool/v.tvol")
CHUNK = 65536
SIZE = 24 * CHUNK + 8 * 512


@asynccontextmanager
async def free(_offset, _length):
    yield


def run(main):
    files, loop = SimFileSystem(random.Random(1)), SimLoop(turns_max=10_000_000)
    try:
        loop.run_until_complete(main(StoreEnv(files, SimWorkers(loop, random.Random(2)), SimClock(loop))))
        assert not loop.errors
        assert check_file(PATH, files=files).findings == []
    finally:
        files.kill()
        loop.close()


async def content(device) -> bytearray:
    data = bytearray(device.size_bytes)
    await device.read(0, memoryview(data))
    return data


@pytest.mark.parametrize("seed", range(6))
def test_copies_among_a_family_read_as_copies_of_bytes(seed, monkeypatch):
    monkeypatch.setattr(offload, "SHARE_LIVE_BYTES", 4 * CHUNK)
    rng = random.Random(seed)

    async def main(env: StoreEnv) -> None:
        store = await TvolFile.create(env, PATH, volume_name="vol", size_bytes=SIZE, chunk_bytes=CHUNK)
        volumes = [Volume(store.volumes()[0])]
        await volumes[0].write(0, memoryview(rng.randbytes(SIZE)))
        base = await store.snapshot(volumes[0].head, "base")
        volumes.append(Volume(await store.clone(base, "clone")))
        held = {device: await content(device) for device in (*volumes, base)}
        for _ in range(60):
            source, target = rng.choice((*volumes, base)), rng.choice(volumes)
            unit = rng.choice((512, CHUNK, CHUNK))
            start, at = (rng.randrange(SIZE // unit) * unit for _ in range(2))
            if rng.random() < 0.4:
                at = start % CHUNK + at // CHUNK * CHUNK  # in step, with edges
            length = min(rng.randrange(1, 12 * CHUNK // 512) * 512, SIZE - start, SIZE - at)
            if length <= 0:
                continue
            await Offload().copy(source, start, target, at, length, hold=free, progress=lambda done: None)
            held[target][at : at + length] = held[source][start : start + length]
            if rng.random() < 0.5:
                data = rng.randbytes(rng.choice((512, 4096, CHUNK)))
                offset = rng.randrange((SIZE - len(data)) // 512) * 512
                await target.write(offset, memoryview(data))
                held[target][offset : offset + len(data)] = data
        for device, data in held.items():
            assert await content(device) == data
        assert store._core.family.claims.count
        assert [snapshot.name for snapshot in store.snapshots()] == ["base"]
        await store.close()

    run(main)


def test_a_whole_volume_copied_within_its_family_takes_no_space():
    async def main(env: StoreEnv) -> None:
        size = 128 * CHUNK
        store = await TvolFile.create(env, PATH, volume_name="vol", size_bytes=2 * size, chunk_bytes=CHUNK)
        volume = Volume(store.volumes()[0])
        await volume.write(0, memoryview(random.Random(1).randbytes(size)))
        written = store.info().chunks
        await Offload().copy(volume, 0, volume, size, size, hold=free, progress=lambda done: None)
        assert store.info().chunks - written < 32  # metadata
        data = await content(volume)
        assert data[:size] == data[size:]
        await store.close()

    run(main)
