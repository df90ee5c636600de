"""The management process: HTTP API, metrics and CIM, talking to the data process over the pool's Unix socket only.

    GET /v1/status  /v1/volumes  /metrics        Authorization: Bearer <content of POOL/api.token>

It parses what strangers send, away from the data (DESIGN section 2). Started by the data process
(``twinvol.management_process``); ends when its stdin does. CIM-XML is ``twinvol.wbem``'s.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hmac
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("AIOHTTP_NO_EXTENSIONS", "1")  # the parser in C refuses M-POST, which DSP0200 7.2.2 asks for
from aiohttp import web

from engine.errors import EngineError
from twinvol import logs, token
from twinvol.api.client import open_api
from twinvol.api.frames import DaemonUnreachable
from twinvol.management_process import API, LISTENERS, WBEM, WBEM_HTTP
from twinvol.metrics import render

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.api import EngineApi

log = logging.getLogger(__name__)

SCHEMA = 1
MAX_REQUEST_BYTES = 64 * 1024


def application(api: EngineApi, secret: str) -> web.Application:
    """The HTTP API over ``api`` for bearers of ``secret``."""

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), secret.encode()):
            return _error(401, "Unauthorized", "send Authorization: Bearer and the content of POOL/api.token")
        try:
            return await handler(request)
        except DaemonUnreachable as error:
            return _error(503, "DaemonUnreachable", str(error))
        except EngineError as error:
            return _error(500, type(error).__name__, str(error))

    async def status(_: web.Request) -> web.Response:
        return _answer(dataclasses.asdict(await api.status()))

    async def volumes(_: web.Request) -> web.Response:
        return _answer({"volumes": [dataclasses.asdict(volume) for volume in await api.volume_list()]})

    async def metrics(_: web.Request) -> web.Response:
        body, content_type = await render(api)
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application(middlewares=[guard], client_max_size=MAX_REQUEST_BYTES)
    app.add_routes([web.get("/v1/status", status), web.get("/v1/volumes", volumes), web.get("/metrics", metrics)])
    return app


def _answer(fields: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response({"schema": SCHEMA, **fields}, status=status)


def _error(status: int, kind: str, message: str) -> web.Response:
    return _answer({"error": {"type": kind, "message": message}}, status)


async def _run(pool: Path, listeners: dict[str, socket.socket]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # A terminal's Ctrl-C reaches both processes; the data process decides when this one ends.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    parent = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
    async with contextlib.AsyncExitStack() as ending:
        api = await ending.enter_async_context(open_api(pool))
        if API in listeners:
            runner = web.AppRunner(application(api, token.read(pool)), access_log=None)
            ending.push_async_callback(runner.cleanup)
            await runner.setup()
            await web.SockSite(runner, listeners[API]).start()
            log.info("HTTP API is up")
        if WBEM in listeners or WBEM_HTTP in listeners:
            from twinvol import wbem  # pywbem takes 130 ms, which a daemon without CIM does without

            await wbem.start(ending, pool, api, listeners.get(WBEM), listeners.get(WBEM_HTTP))
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(parent.read())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    for name in LISTENERS:
        parser.add_argument(f"--{name}", type=int, help="descriptor of a listening socket")
    arguments = vars(parser.parse_args())
    numbers = {name: arguments[name.replace("-", "_")] for name in LISTENERS}
    listeners = {name: socket.socket(fileno=number) for name, number in numbers.items() if number is not None}
    logs.configure("management")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(arguments["pool"], listeners))


if __name__ == "__main__":
    main()
