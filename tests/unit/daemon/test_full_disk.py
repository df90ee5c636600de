"""A host without room: initiators get a SCSI error, acknowledged data stays, the file stays consistent.

The daemon's file size limit (RLIMIT_FSIZE) stands for the full disk: its EFBIG is a space error like ENOSPC.
"""

import asyncio
import resource
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
