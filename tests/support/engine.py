"""A pool with its API in process, as the daemon has it, without iSCSI."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from engine.exposure import Exposure
from engine.files import ThreadWorkers, real_env
from engine.local_api import LocalApi
from engine.pool import Pool
from engine.replicas import Replicas
from tests.support.exports import MemoryExports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PREFIX = "iqn.2026-11.org.twinvol"


class Engine:
    """``api`` over ``pool``, shown to ``exports``."""

    def __init__(self, pool: Pool, api: LocalApi, exports: MemoryExports) -> None:
        self.pool = pool
        self.exports = exports
        self.api = api


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Engine]:
    """Open the pool in ``path``; closed at the end."""
    env = real_env(2)
    try:
        pool = await Pool.open(path, env)
        try:
            exports = MemoryExports()
            exposure = Exposure(pool, exports, PREFIX)
            replicas = Replicas(pool, software="twinvol test")
            await replicas.restore()
            await exposure.restore()
            try:
                yield Engine(pool, LocalApi(pool, exposure, replicas, version="test"), exports)
            finally:
                await pool.jobs.close()
                await replicas.close()
        finally:
            await pool.close()
    finally:
        assert isinstance(env.workers, ThreadWorkers)
        env.workers.close()
