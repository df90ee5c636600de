"""SANITIZE through ``kill -9``: the daemon is another process, the initiator is our own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from iscsi.initiator import commands
from iscsi.initiator.disk import IscsiDisk, connect
from iscsi.initiator.errors import CommandFailed
from iscsi.scsi.command import Status
from tests.support.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path


SECRET = b"the secret of the house!" * 21 + b"........"
OVERWRITE_NOW = bytes.fromhex("48 81 0000000000 0005 00") + bytes(6)
BLOCK_ERASE = bytes.fromhex("48 02 0000000000 0000 00") + bytes(6)
IN_PROGRESS = (0x02, 0x041B)
SEQUENCE_ERROR = (0x05, 0x2C00)


async def log_in(daemon: Daemon, target: str) -> IscsiDisk:
    host, _, number = daemon.portal.rpartition(":")
    return await connect((host, int(number)), target)


def sense_of(outcome) -> tuple[int, int]:
    assert outcome.status == Status.CHECK_CONDITION
    return outcome.sense[2] & 0x0F, int.from_bytes(outcome.sense[12:14], "big")


async def log_in_when_ready(daemon: Daemon, target: str) -> tuple[IscsiDisk, int]:
    """And how often it was not: our initiator asks for the capacity first."""
    refused = 0
    while True:
        try:
            return await log_in(daemon, target), refused
        except CommandFailed as error:
            if (error.sense_key, error.asc, error.ascq) != (0x02, 0x04, 0x1B):
                raise
            refused += 1
            await asyncio.sleep(0.2)


async def test_an_overwrite_goes_on_after_kill_9_and_leaves_nothing(tmp_path: Path):
    pool = tmp_path / "pool"
    with Daemon.start(pool) as daemon:
        target = daemon.volume("disk", "16M").split("/")[3]
        async with await log_in(daemon, target) as disk:
            for lba in range(0, 32768, 1024):
                assert (await disk.execute(commands.write16(lba, 1024), data_out=SECRET * 1024)).status == Status.GOOD
            daemon.run("snapshot", "create", "disk", "keeper")
            assert sense_of(await disk.execute(BLOCK_ERASE)) == SEQUENCE_ERROR
            daemon.run("snapshot", "delete", "disk", "keeper")
            outcome = await disk.execute(OVERWRITE_NOW, data_out=bytes.fromhex("01 00 0001 5a"))
            assert outcome.status == Status.GOOD
            assert sense_of(await disk.execute(commands.write16(0, 1), data_out=SECRET)) == IN_PROGRESS
            daemon.kill()
    with Daemon.start(pool) as daemon:
        disk, refused = await log_in_when_ready(daemon, target)
        assert refused
        async with disk:
            for lba in range(0, 32768, 1024):
                outcome = await disk.execute(commands.read16(lba, 1024), data_in_length=1 << 19)
                assert outcome.data == b"\x5a" * (1 << 19)
        assert SECRET not in (pool / "volumes" / "disk.tvol").read_bytes()
