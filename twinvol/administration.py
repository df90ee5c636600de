"""What a served pool is administered by: the API on its socket, duties by the clock, the management process.

No login needs any of it, and it takes a third of a daemon's start to load. So ``twinvol.daemon`` imports this module
after the ready line; who has connected to the pool's socket before is answered once it is there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.local_api import LocalApi
from twinvol import __version__
from twinvol.api.server import ApiServer
from twinvol.management_process import ManagementProcess
from twinvol.remote_disks import IscsiDisks

if TYPE_CHECKING:
    import socket
    from contextlib import AsyncExitStack

    from engine.exposure import Exposure
    from engine.pool import Pool
    from engine.replicas import Replicas


async def begin(
    ending: AsyncExitStack,
    pool: Pool,
    exposure: Exposure,
    replicas: Replicas,
    listener: socket.socket,
    http_listener: socket.socket | None,
) -> None:
    """Begin all of it; ``ending`` ends it. ``listener``: of the pool's socket; ``http_listener``: of the HTTP API."""
    local_api = LocalApi(pool, exposure, replicas, version=__version__, remotes=IscsiDisks())
    api = ApiServer(local_api)
    ending.push_async_callback(api.close)
    await api.start(listener)
    upkeep = asyncio.create_task(local_api.upkeep.run(), name="upkeep")
    ending.push_async_callback(_end, upkeep)
    await api.warm()
    if http_listener is not None:
        management = ManagementProcess(pool.path, http_listener)
        ending.push_async_callback(management.close)
        management.start()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
