"""A host without room: initiators get a SCSI error, acknowledged data stays, the file stays consistent.

The daemon's file size limit (RLIMIT_FSIZE) stands for the full disk: its EFBIG is a space error like ENOSPC. Where root
may mount, small file systems of their own are filled to the last block.
"""

import asyncio
import contextlib
import resource
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from iscsi.initiator.disk import IscsiDisk, connect
from iscsi.initiator.errors import CommandFailed
from iscsi.scsi.sense import SenseKey
from tests.support.daemon import CommandFailed as TwinvolFailed
from tests.support.daemon import Daemon, twinvol

MIB = 1 << 20
UNLIMITED = resource.RLIM_INFINITY


def limit(daemon: Daemon, size_bytes: int) -> None:
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (size_bytes, UNLIMITED))


async def write_until_refused(disk: IscsiDisk) -> tuple[list[int], int]:
    """The offsets that were acknowledged, and the sense key of the refusal."""
    written: list[int] = []
    for offset in range(0, 64 * MIB, MIB):
        try:
            await disk.write(offset, offset.to_bytes(8, "big") * (MIB // 8))
        except CommandFailed as error:
            return written, error.sense_key
        written.append(offset)
    raise AssertionError("the disk did not become full")


def test_writes_that_find_no_room_fail_and_nothing_acknowledged_is_lost(tmp_path: Path):
    with Daemon.start(tmp_path / "pool") as daemon:
        info = daemon.run("volume", "create", "v", "--size", "64M", "--expose")
        host, port = daemon.portal.rsplit(":", 1)

        room = Path(info["file"]).stat().st_size + 4 * MIB

        async def fill() -> list[int]:
            async with await connect((host, int(port)), info["target"]) as disk:
                limit(daemon, room)
                written, sense_key = await write_until_refused(disk)
                assert sense_key in (SenseKey.DATA_PROTECT, SenseKey.HARDWARE_ERROR)
                await disk.flush()
                for offset in written:
                    assert await disk.read(offset, MIB) == offset.to_bytes(8, "big") * (MIB // 8)
                limit(daemon, UNLIMITED)
                await disk.write(32 * MIB, b"x" * MIB)
            return written

        written = asyncio.run(fill())
        assert 1 <= len(written) < 64
        daemon.kill()
    assert twinvol("check", info["file"]).returncode == 0
    with Daemon.start(tmp_path / "pool") as daemon:
        host, port = daemon.portal.rsplit(":", 1)

        async def verify() -> None:
            async with await connect((host, int(port)), info["target"]) as disk:
                for offset in written:
                    assert await disk.read(offset, MIB) == offset.to_bytes(8, "big") * (MIB // 8)
                assert await disk.read(32 * MIB, MIB) == b"x" * MIB

        asyncio.run(verify())


def test_a_volume_that_finds_no_room_is_not_made(tmp_path: Path):
    with Daemon.start(tmp_path / "pool") as daemon:
        daemon.run("status")
        limit(daemon, MIB)
        with pytest.raises(TwinvolFailed) as refused:
            daemon.run("volume", "create", "v", "--size", "64M", "--expose")
        assert refused.value.code == 1
        assert daemon.run("volume", "list")["volumes"] == []
        assert daemon.run("target", "list")["targets"] == []
        limit(daemon, UNLIMITED)
        daemon.run("volume", "create", "v", "--size", "64M", "--expose")


# --- the pool's quota, and file systems filled to the last block ------------------------------------------------------

SPACE_ALLOCATION_FAILED = (SenseKey.DATA_PROTECT, 0x2707)


@contextlib.asynccontextmanager
async def connected(daemon: Daemon, target: str) -> AsyncIterator[IscsiDisk]:
    host, port = daemon.portal.rsplit(":", 1)
    async with await connect((host, int(port)), target) as disk:
        yield disk


async def told(disk: IscsiDisk, offset: int) -> tuple[int, int] | None:
    """The sense of a write of 1 MiB there, None when it was done."""
    try:
        await disk.write(offset, offset.to_bytes(8, "big") * (MIB // 8))
    except CommandFailed as error:
        return error.sense_key, error.asc << 8 | error.ascq
    return None


async def fill(disk: IscsiDisk) -> list[int]:
    """Write until refused also after a flush; what was acknowledged.

    A file system may refuse for blocks that it only set apart for dirty pages, and give them back when these are
    written (ext4's delayed allocation).
    """
    written: list[int] = []
    flushed = False
    while (offset := len(written) * MIB) < 128 * MIB:
        refusal = await told(disk, offset)
        if refusal is None:
            written.append(offset)
            flushed = False
            continue
        assert refusal == SPACE_ALLOCATION_FAILED
        if flushed:
            return written
        await disk.flush()
        flushed = True
    raise AssertionError("the disk did not become full")


async def overwrite_until_refused(disk: IscsiDisk, written: list[int]) -> int:
    """Write what is there once more, until refused; how many were done."""
    for count, offset in enumerate(written):
        refusal = await told(disk, offset)
        if refusal is not None:
            assert refusal == SPACE_ALLOCATION_FAILED
            return count
    raise AssertionError("all of it was written twice")


async def verify(disk: IscsiDisk, written: list[int]) -> None:
    for offset in written:
        assert await disk.read(offset, MIB) == offset.to_bytes(8, "big") * (MIB // 8)


async def go_on_without_space(daemon: Daemon, disk: IscsiDisk, written: list[int]) -> list[int]:
    """What needs no space goes on, and what gives some back is used. Returns what is there afterwards."""
    assert await told(disk, written[0]) is None, "in place"
    await disk.flush()
    daemon.run("snapshot", "create", "v", "s")
    assert await overwrite_until_refused(disk, written) < 8, "the snapshot has what is there"
    daemon.run("snapshot", "delete", "v", "s")
    await asyncio.to_thread(daemon.run, "volume", "space", "v")
    half = len(written) // 2
    await disk.discard(0, half * MIB)
    await disk.flush()
    assert await told(disk, 100 * MIB) is None
    left = [*written[half:], 100 * MIB]
    await verify(disk, left)
    return left


def test_a_quota_stops_writers_early_and_nothing_else(tmp_path: Path):
    with Daemon.start(tmp_path / "pool") as daemon:
        info = daemon.run("volume", "create", "v", "--size", "128M", "--expose")
        used = daemon.run("pool", "show")["used_bytes"]
        daemon.run("pool", "set", "--quota", str(used + 24 * MIB), "--reserve", "0")

        async def scene() -> None:
            async with connected(daemon, info["target"]) as disk:
                written = await fill(disk)
                assert 22 <= len(written) <= 24
                status = twinvol("status", "--json", "--pool", str(daemon.pool))
                assert status.returncode == 10, "degraded: the pool is full"
                await go_on_without_space(daemon, disk, written)
                await asyncio.to_thread(daemon.run, "pool", "set", "--no-quota")
                assert await told(disk, 60 * MIB) is None

        asyncio.run(scene())
    assert twinvol("check", info["file"]).returncode == 0


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(64 * MIB)
        command = ["mount", "-o", "loop", str(image), str(mount)]
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=False)
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"needs a small file system of its own: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize("reserve", ["0", "8M"])
def test_a_file_system_filled_to_its_end_or_to_the_reserve(small: Path, reserve: str):
    with Daemon.start(small / "pool") as daemon:
        daemon.run("pool", "set", "--reserve", reserve)
        info = daemon.run("volume", "create", "v", "--size", "128M", "--expose")

        async def scene() -> list[int]:
            async with connected(daemon, info["target"]) as disk:
                written = await fill(disk)
                left = daemon.run("pool", "show")["host_free_bytes"]
                assert left < MIB or reserve == "8M"
                assert left > 6 * MIB or reserve == "0"
                return await go_on_without_space(daemon, disk, written)

        there = asyncio.run(scene())
        daemon.kill()
    assert twinvol("check", info["file"]).returncode == 0
    with Daemon.start(small / "pool") as daemon:

        async def again() -> None:
            async with connected(daemon, info["target"]) as disk:
                await verify(disk, there)

        asyncio.run(again())
