"""A full clone moved by a copy token, as a SCSI host would move it (POPULATE TOKEN, WRITE USING TOKEN): the token
stands for the whole volume at one instant, and what it stands for is written to a new one.

As a host's offloaded copy it is not read back (``engine.offload``), and after an interruption it begins anew.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.copy_job import CopyControl
from engine.offload import Offload
from engine.stores import Extent
from engine.tokens import LIFETIME_S, Tokens
from engine.units import MIB, SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.jobs import Job
    from engine.pool import Pool
    from engine.volume import Volume

STEP_BYTES = 16 * MIB
"""Between two steps it can rest."""


@contextlib.asynccontextmanager
async def _hold(_offset: int, _length: int) -> AsyncIterator[None]:
    """Nobody else writes the target: it is not there yet."""
    yield


async def start_token_clone(pool: Pool, source: Volume, name: str) -> Job:
    """Begin a clone ``name`` of ``source`` as it is now; returns its job. Raises AlreadyExists, OutOfSpace, and what
    ``Tokens.issue`` raises."""
    size = source.size_bytes - source.size_bytes % SECTOR_SIZE
    tokens = Tokens(pool.env.clock)
    token = await tokens.issue(
        source, [Extent(0, size)], owner=name, inactivity_s=LIFETIME_S, represent=lambda made: made.secret
    )
    unfinished = None
    try:
        unfinished = await pool.begin(name, size, pool.chunk_bytes(source), key_source=pool.key_source(source))

        async def work(job: Job) -> dict[str, Any]:
            control = job.control = CopyControl()
            job.progress(0, size)
            offload = Offload()
            try:
                with tokens.using(token):
                    for at in range(0, size, STEP_BYTES):
                        await control.passage()
                        length = min(STEP_BYTES, size - at)
                        await offload.copy(
                            token.point, at, unfinished.head, at, length, hold=_hold, progress=lambda _: None
                        )
                        job.progress(at + length)
                await unfinished.head.flush()
                await pool.finish(unfinished, replace(pool.row(source), read_only=False, origin=""))
            except BaseException:
                await pool.abandon(unfinished)
                raise
            finally:
                await tokens.close()
            return {"volume": name}

        return await pool.jobs.start("token clone", f"{source.name} {name}", work, reads=source.name)
    except BaseException:
        await tokens.close()
        if unfinished is not None:
            await pool.abandon(unfinished)
        raise
