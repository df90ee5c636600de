"""A disk of elsewhere, simulated: it answers when it likes, in any order, and has a cache that power loss empties.

What a connection had under way when it ended is carried out later, in part, or never; but not after the next opening
for writing, as a login with the same ISID has it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.errors import MediumError, PeerUnreachable
from engine.stores import Extent
from engine.units import SECTOR_SIZE

if TYPE_CHECKING:
    import random

DELAY_S = 0.001


class SimDisk:
    """Fulfils ``engine.links.disk.Disks`` for any number of processes, one after the other."""

    name = "iscsi://disk/1"

    def __init__(self, size_bytes: int, rng: random.Random) -> None:
        self.cache = bytearray(rng.randbytes(size_bytes))
        self.durable = bytearray(self.cache)
        self.identity = "a disk"
        self.sector_bytes = SECTOR_SIZE
        self.trouble = 0.0
        self.up = True
        self.slow_s = 0.0
        self.rng = rng
        self.resets = 0
        self.left: list[tuple[int, bytes]] = []
        """Writes of connections that have ended, and that may still be carried out."""
        self.commands = 0

    @property
    def size_bytes(self) -> int:
        return len(self.cache)

    async def open(self, *, writing: bool) -> Connection:
        await asyncio.sleep(self.rng.random() * DELAY_S)
        if not self.up:
            raise PeerUnreachable("the disk does not answer")
        if writing:
            self.settle()
        return Connection(self)

    def settle(self) -> None:
        """Carry out, in part, what is left, or drop it."""
        for offset, data in self.left:
            if self.rng.random() < 0.5:
                self.put(offset, data, whole=False)
        self.left.clear()

    def put(self, offset: int, data: bytes, *, whole: bool) -> None:
        for at in range(0, len(data), SECTOR_SIZE):
            if whole or self.rng.random() < 0.7:
                self.cache[offset + at : offset + at + SECTOR_SIZE] = data[at : at + SECTOR_SIZE]

    def sync(self) -> None:
        self.durable[:] = self.cache

    def lose_power(self) -> None:
        """What was not flushed is there or not, sector by sector; nothing of before is carried out any more."""
        self.settle()
        for at in range(0, len(self.cache), SECTOR_SIZE):
            sector = slice(at, at + SECTOR_SIZE)
            if self.rng.random() < 0.5:
                self.durable[sector] = self.cache[sector]
        self.cache[:] = self.durable
        self.resets += 1


class Connection:
    """``engine.links.disk.Disk``."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.open = True
        self.resets = disk.resets
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.size_bytes = disk.size_bytes
        self.sector_bytes = disk.sector_bytes
        self.identity = disk.identity

    async def read(self, offset: int, view: memoryview, /) -> None:
        await self._begin()
        view[:] = self.disk.cache[offset : offset + len(view)]
        await self._answer()

    async def write(self, offset: int, data: memoryview, /) -> None:
        copy = bytes(data)
        try:
            await self._begin()
        except BaseException:
            self.disk.left.append((offset, copy))  # sent, and perhaps carried out
            raise
        self.disk.put(offset, copy, whole=True)
        await self._answer()

    async def write_zeroes(self, offset: int, length: int, /) -> None:
        await self.write(offset, memoryview(bytes(length)))

    async def flush(self) -> None:
        await self._begin()
        self.disk.sync()
        await self._answer()

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        await self._answer()
        return [Extent(offset, length)]

    async def close(self) -> None:
        self.open = False
        if not self.ended.done():
            self.ended.set_result(None)

    async def _begin(self) -> None:
        """The way there, and the disk's queue."""
        self._check()
        self.disk.commands += 1
        rng = self.disk.rng
        await self._sleep(rng.random() * DELAY_S + (self.disk.slow_s if rng.random() < 0.2 else 0.0))
        self._check()
        if rng.random() < self.disk.trouble:
            raise MediumError("the disk fails")

    async def _answer(self) -> None:
        if self.disk.rng.random() < 0.5:
            await self._sleep(self.disk.rng.random() * DELAY_S)
        self._check()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self.ended)
        except TimeoutError:
            return

    def _check(self) -> None:
        if not self.open or not self.disk.up or self.resets != self.disk.resets:
            raise PeerUnreachable("the connection to the disk has ended")
