"""The host's disk as a life's adversary: full from time to time, short in its last write, at the end of its files.

Some lives have one. It takes room away while clients work and gives it back later:

* ``host``: the file system is full. A write that does not fit arrives in part before its error (a short write).
* ``file``: no file may grow beyond a size (EFBIG).
* ``pool``: the pool's own quota is reached; the file system has room.

Promised, besides all that holds in any life: discards of whole chunks and deletions of snapshots never lack space;
once there is room again, writes succeed; the pool's quota is kept, but for metadata and what is in flight.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from engine.errors import OutOfSpace
from engine.files import HostSpace
from engine.pool_space import PoolSpace, SpaceLimits
from tests.support.sim_files import PAGE
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from engine.files import Workers
    from tests.simulation.clients import Client
    from tests.support.sim_files import SimFileSystem

PLENTY = 1 << 40
KINDS = ("host", "file", "pool")
CHANCE = 0.2


class Disk:
    """Of one life; ``kind`` None: its room does not change. Without ``seed`` always so."""

    def __init__(self, seed: int | None, files: SimFileSystem) -> None:
        self.rng = random.Random(None if seed is None else seed ^ 0x5BACE)
        self.kind = self.rng.choice(KINDS) if seed is not None and self.rng.random() < CHANCE else None
        self.size_bytes: int | None = None
        self.files = files
        self.space: PoolSpace | None = None

    def room(self, workers: Workers) -> PoolSpace | None:
        """For the store of a new process, if the pool has limits."""
        self.widen()
        self.space = None
        if self.kind == "pool":
            self.space = PoolSpace(SpaceLimits(reserve_bytes=0), workers, self._measure, _nobody)
        return self.space

    def _measure(self) -> HostSpace:
        return HostSpace(PLENTY, PLENTY, self.files.used_bytes())

    def widen(self) -> None:
        """There is as much room as there ever is."""
        self.files.quota_bytes, self.files.file_bytes_max = self.size_bytes, None

    async def run(self, client: Client) -> None:
        """Take room away and give it back, while others work. ``client`` proves that it is back."""
        if self.kind is None:
            return
        for _ in range(self.rng.randint(1, 4)):
            await self._turns()
            await self._narrow(client)
            await self._turns()
            self.widen()
            if self.space is not None:
                await self.space.set_limits(SpaceLimits(reserve_bytes=0))
            client.family.tell("the disk has room")
            try:
                await client.write_somewhere()
            except OutOfSpace as error:
                raise Violation(f"no space for a write, though there is room again: {error}") from error

    async def _narrow(self, client: Client) -> None:
        few = self.rng.choice((0, 0, 1, 2, 5, 10)) * PAGE
        client.family.tell(f"the disk ({self.kind}) has room for {few // PAGE} chunks")
        if self.kind == "host":
            self.files.quota_bytes = self.files.used_bytes() + few
        elif self.kind == "file":
            self.files.file_bytes_max = client.store.info().chunks * client.store.chunk_bytes + few
        else:
            assert self.space is not None
            quota = max(1, self.files.used_bytes() + few)
            await self.space.set_limits(SpaceLimits(quota, 0))

    async def _turns(self) -> None:
        for _ in range(self.rng.randint(1, self.rng.choice((10, 100, 1000)))):
            if self.files.dead:
                return
            await asyncio.sleep(0)


async def _nobody(*_: object) -> None:
    """Nobody is told."""
