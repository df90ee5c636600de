"""A pool with its API in process, as the daemon has it, without iSCSI."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.copy_job import LANES
from engine.exposure import Exposure
from engine.files import ThreadWorkers, real_env
from engine.local_api import LocalApi
from engine.peers.registry import Peers
from engine.pool import Pool
from engine.replicas import Replicas
from tests.support.exports import MemoryExports
from twinvol.remote_disks import IscsiDisks
from twinvol.sockets import bound_address, listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from engine.files import Clock
    from engine.movers import Mover
    from engine.stores import Extent, ReadLease, WriteLease
    from engine.strips import Moved

PREFIX = "iqn.2026-11.org.twinvol"


class HeldMover:
    """``Mover`` that lets ``strips`` of the copy loop through and holds the others back until ``let_go``.

    They are held in the loop, before they begin: whoever cancels their callers need not wait for them.
    """

    def __init__(self, mover: Mover, strips: int) -> None:
        self._mover = mover
        self.digest = mover.digest
        self.close = mover.close
        self._left = strips
        self._held = 0
        self._open = asyncio.Event()
        self.holding = asyncio.Event()
        """Set once every lane of the copy is held: what was let through is verified then."""

    async def move(self, strip: Extent, source: ReadLease, present: ReadLease | None, to: WriteLease, /) -> Moved:
        if not self._open.is_set():
            if self._left:
                self._left -= 1
            else:
                self._held += 1
                if self._held == LANES:
                    self.holding.set()
                await self._open.wait()
        return await self._mover.move(strip, source, present, to)

    def let_go(self) -> None:
        """Hold nothing any more."""
        self._open.set()


class Engine:
    """``api`` over ``pool``, shown to ``exports``."""

    def __init__(
        self,
        pool: Pool,
        api: LocalApi,
        exposure: Exposure,
        exports: MemoryExports,
        replicas: Replicas,
        peers: Peers | None,
        peer_address: str,
    ) -> None:
        self.pool = pool
        self.replicas = replicas
        self._peers = peers
        self.peer_address = peer_address
        self.exposure = exposure
        self.exports = exports
        self.api = api

    @property
    def peers(self) -> Peers:
        assert self._peers is not None
        return self._peers


@asynccontextmanager
async def _peers(pool: Pool, replicas: Replicas, where: str | None) -> AsyncIterator[tuple[Peers | None, str]]:
    if where is None:
        yield None, ""
        return
    peers = Peers(pool, replicas.incoming, software="twinvol test")
    await peers.restore()
    listener = listen(where)
    address = bound_address(listener)
    await peers.start(listener, address)
    try:
        yield peers, address
    finally:
        await replicas.end_remote()
        await peers.close()


@asynccontextmanager
async def opened(
    path: Path,
    hold: Callable[[Mover], Mover] | None = None,
    clock: Clock | None = None,
    peer: str | None = None,
) -> AsyncIterator[Engine]:
    """Open the pool in ``path``; closed at the end. ``hold`` puts something before what moves the bytes of copies.

    ``peer``: where other pools connect, HOST:PORT; None: there are no peers.
    """
    env = real_env(2)
    env = env if clock is None else replace(env, clock=clock)
    try:
        pool = await Pool.open(path, env if hold is None else replace(env, copier=hold(env.mover)))
        try:
            exports = MemoryExports()
            exposure = Exposure(pool, exports, PREFIX)
            replicas = Replicas(pool, software="twinvol test")
            await replicas.restore()
            await exposure.restore()
            await pool.integrity.start()
            try:
                async with _peers(pool, replicas, peer) as (peers, address):
                    api = LocalApi(pool, exposure, replicas, version="test", remotes=IscsiDisks(), peers=peers)
                    await replicas.begin_disks(IscsiDisks())
                    if peers is not None:
                        await replicas.begin_remote(peers)
                    await api.restore_relations()
                    await api.restore_changes()
                    try:
                        yield Engine(pool, api, exposure, exports, replicas, peers, address)
                    finally:
                        await api.close_changes()
            finally:
                await pool.jobs.close()
                await replicas.close()
        finally:
            await pool.close()
    finally:
        await env.close()
        assert isinstance(env.workers, ThreadWorkers)
        env.workers.close()
