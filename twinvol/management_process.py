"""The data process's hold on the management process: starts it, starts it again when it dies, ends it.

The child gets the listening sockets by inheritance, so that connections queue while it starts again, and a pipe as
stdin, whose end tells it that the data process is gone, however that happened.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from pathlib import Path

log = logging.getLogger(__name__)

API, WBEM, WBEM_HTTP = LISTENERS = ("api", "wbem", "wbem-http")
"""What it may listen for; names of its options."""

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_S = 60.0
"""A child that lived this long starts the backoff anew."""

STOP_TIMEOUT_S = 5.0


class ManagementProcess:
    """See the module. ``listeners``: by what they are for, of ``LISTENERS``."""

    def __init__(self, pool: Path, listeners: dict[str, socket.socket]) -> None:
        self._pool = pool
        self._listeners = listeners
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End it and wait for its end."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = BACKOFF_FIRST_S
        while True:
            began = loop.time()
            try:
                how = f"ended with {await self._run_once()}"
            except OSError as error:  # no descriptor or no memory for it just now
                how = f"cannot be started: {error}"
            if loop.time() - began > STEADY_S:
                backoff_s = BACKOFF_FIRST_S
            log.error("the management process %s; trying again in %.1f s", how, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _run_once(self) -> int:
        command = [sys.executable, "-m", "twinvol.management", "--pool", str(self._pool)]
        numbers = [listener.fileno() for listener in self._listeners.values()]
        for name, number in zip(self._listeners, numbers, strict=True):
            command += [f"--{name}", str(number)]
        child = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, pass_fds=numbers)
        try:
            return await child.wait()
        except asyncio.CancelledError:
            assert child.stdin is not None
            child.stdin.close()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()
            raise
