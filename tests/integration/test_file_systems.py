"""The volume file on file systems as they are: with holes and punching or without, with RWF_NOWAIT or without.

Each is made for the test where root may mount it, and skipped by its name where not. Nothing is assumed of how they
count free blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from engine.files import real_env
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.files import StoreEnv

CHUNK = 64 * KIB
SIZE = 12 * MIB
IMAGE = 320 * MIB
"""XFS is not made smaller than 300 MiB."""


@pytest.fixture(params=["ext4", "ext2", "xfs", "btrfs", "vfat", "tmpfs", "overlay"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on that file system."""
    kind, mount = request.param, tmp_path / "mount"
    mount.mkdir()
    with contextlib.ExitStack() as mounted:
        if kind == "tmpfs":
            _mount(mounted, mount, "-t", "tmpfs", "-o", "size=128m", "tmpfs")
        elif kind == "overlay":
            beneath = tmp_path / "beneath"
            beneath.mkdir()
            _mount(mounted, beneath, "-t", "tmpfs", "-o", "size=128m", "tmpfs")
            for name in ("lower", "upper", "work"):
                (beneath / name).mkdir()
            layers = ",".join(f"{name}dir={beneath / name}" for name in ("lower", "upper", "work"))
            _mount(mounted, mount, "-t", "overlay", "-o", layers, "overlay")
        else:
            image, maker = tmp_path / "image", shutil.which(f"mkfs.{kind}")
            if maker is None:
                pytest.skip(f"{kind}: there is no mkfs.{kind}")
            with image.open("wb") as file:
                file.truncate(IMAGE)
            subprocess.run([maker, str(image)], check=True, capture_output=True)
            _mount(mounted, mount, "-t", kind, "-o", "loop", str(image))
        yield mount


def _mount(mounted: contextlib.ExitStack, where: Path, *options: str) -> None:
    done = subprocess.run(["mount", *options, str(where)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{options[1]} cannot be mounted here: {done.stderr.strip()}")
    mounted.callback(subprocess.run, ["umount", "-l", str(where)], check=True)


async def _use(store: TvolFile, data: bytearray, rng: random.Random) -> dict[str, bytes]:
    """Writes, discards, snapshots and their deletion. Returns what the snapshots have to hold."""
    head, kept = store.volume("v"), {}
    for number in range(120):
        offset = rng.randrange(SIZE // 4096) * 4096
        length = min(rng.choice((4096, CHUNK, 5 * CHUNK)), SIZE - offset)
        way = rng.random()
        if way < 0.6:
            written = rng.randbytes(length)
            data[offset : offset + length] = written
            await head.write(offset, memoryview(written))
        elif way < 0.8:
            data[offset : offset + length] = bytes(length)
            await head.discard(offset, length)
        elif way < 0.9:
            await head.flush()
        elif len(kept) < 4:
            await store.snapshot(head, str(number))
            kept[str(number)] = bytes(data)
        else:
            oldest = min(kept, key=int)
            await store.delete_snapshot(next(each for each in store.snapshots() if each.name == oldest))
            del kept[oldest]
    return kept


async def _contents(store: TvolFile) -> dict[str, bytes]:
    found = {}
    for device in [*store.volumes(), *store.snapshots()]:
        buffer = bytearray(device.size_bytes)
        await device.read(0, memoryview(buffer))
        found[device.name] = bytes(buffer)
    return found


async def _scene(env: StoreEnv, path: Path) -> None:
    rng, data = random.Random(7), bytearray(SIZE)
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=SIZE, journal_bytes=4 * CHUNK)
    for _ in range(2):
        try:
            kept = await _use(store, data, rng)
            assert await _contents(store) == {"v": data, **kept}
        finally:
            await store.close()
        assert check_file(path, data=True).findings == []
        store = await TvolFile.open(env, path)
        assert await _contents(store) == {"v": data, **kept}
        for snapshot in store.snapshots():
            await store.delete_snapshot(snapshot)
    await store.settled()
    await store.close()
    assert check_file(path).findings == []


def test_a_volume_file_lives_on_it(folder: Path):
    env = real_env(2)
    try:
        asyncio.run(_scene(env, folder / "v.tvol"))
    finally:
        env.workers.close()
