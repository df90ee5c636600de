"""A backup program of its own takes a full backup and a chain of incremental ones while writes go on; each restores."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import TYPE_CHECKING

import pytest

from iscsi.initiator.disk import connect
from tests.support.backup_tool import restore
from tests.support.daemon import ROOT, CommandFailed, Daemon

if TYPE_CHECKING:
    from pathlib import Path

    from iscsi.initiator.disk import IscsiDisk

SIZE = 16 << 20
BACKUPS = 3
SEED = int(os.environ.get("TWINVOL_BACKUP_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

pytestmark = pytest.mark.timeout(600)


class Writer:
    """Writes, zeroes and discards at random, one after the other; ``image`` is what the disk must hold."""

    def __init__(self, disk: IscsiDisk, rng: random.Random) -> None:
        self._disk = disk
        self._rng = rng
        self.image = bytearray(SIZE)

    async def some(self, count: int) -> None:
        for _ in range(count):
            await self.one()

    async def one(self) -> None:
        rng = self._rng
        unit = rng.choice((512, 4096, 65536))
        offset = rng.randrange(SIZE // unit) * unit
        length = min(SIZE - offset, unit * rng.randrange(1, 24))
        kind = rng.random()
        if kind < 0.6:
            data = rng.randbytes(length)
            await self._disk.write(offset, data)
        else:
            data = bytes(length)
            await (self._disk.discard if kind < 0.85 else self._disk.write_zeroes)(offset, length)
        self.image[offset : offset + length] = data


async def in_another_process(daemon: Daemon, snapshot: str, previous: str, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.support.backup_tool"]
    arguments = [str(daemon.pool), daemon.portal, "v", snapshot, previous, str(folder)]
    tool = await asyncio.create_subprocess_exec(*command, *arguments, cwd=ROOT)
    assert await tool.wait() == 0


async def test_a_chain_of_backups_restores_byte_for_byte(daemon: Daemon, tmp_path: Path):
    print(f"replay: TWINVOL_BACKUP_SEED={SEED}")
    volume = await asyncio.to_thread(daemon.run, "volume", "create", "v", "--size", str(SIZE), "--expose")
    host, _, port = daemon.portal.rpartition(":")
    expected = {}
    async with await connect((host, int(port)), volume["target"]) as disk:
        writer = Writer(disk, random.Random(SEED))
        previous = "-"
        for number in range(BACKUPS):
            await writer.some(40)
            name = f"b{number}"
            await asyncio.to_thread(daemon.run, "snapshot", "create", "v", name)
            expected[name] = bytes(writer.image)
            backup = asyncio.create_task(in_another_process(daemon, name, previous, tmp_path))
            while not backup.done():
                await writer.some(4)
            await backup
            if previous != "-":  # what the next one does not need any more
                await asyncio.to_thread(daemon.run, "snapshot", "delete", "v", previous)
            previous = name
    for name, image in expected.items():
        assert restore(tmp_path, name) == image, name
    with pytest.raises(CommandFailed):
        daemon.run("snapshot", "show", "v", "b0")
    assert daemon.run("snapshot", "show", "v", previous)["holds"] == []
