"""The data process's end of the socket API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, InvalidArgument
from engine.errors_json import error_to_json
from twinvol.api.frames import (
    MAX_ANSWER_BYTES,
    MAX_CONCURRENT,
    MAX_REQUEST_BYTES,
    SOCKET_NAME,
    decode,
    encode,
    socket_address,
)

if TYPE_CHECKING:
    from pathlib import Path

    from engine.api import EngineApi
    from twinvol.api.methods import Method

log = logging.getLogger(__name__)

BACKLOG = 64


def bind(pool: Path) -> socket.socket:
    """The listening socket of a pool whose lock this process holds; a left-over one is replaced.

    Clients may connect from now on; they are answered once an ``ApiServer`` has it.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        (pool / SOCKET_NAME).unlink(missing_ok=True)
        with socket_address(pool) as address:
            old = os.umask(0o177)
            try:
                listener.bind(address)
            finally:
                os.umask(old)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


class ApiServer:
    """Serves an ``EngineApi`` on a listening socket until ``close``."""

    def __init__(self, api: EngineApi) -> None:
        self._api = api
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._methods: asyncio.Task[dict[str, Method]] | None = None

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._accepted, sock=listener, limit=MAX_REQUEST_BYTES)

    def warm(self) -> asyncio.Task[dict[str, Method]]:
        """Load what requests need, in a thread: done right after start so that no client waits for it."""
        if self._methods is None:
            self._methods = asyncio.create_task(asyncio.to_thread(_load_methods))
        return self._methods

    async def close(self) -> None:
        """Stop accepting and end all connections; requests in work are cancelled."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        if self._methods is not None:
            await asyncio.wait([self._methods])

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            log.debug("an API connection ended")
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        slots = asyncio.Semaphore(MAX_CONCURRENT)
        async with asyncio.TaskGroup() as requests:
            while True:
                try:
                    line = await reader.readuntil()
                    message = decode(line)
                except (asyncio.IncompleteReadError, ConnectionError):
                    break  # the client is gone; what it began ends as it would have
                except (ValueError, RecursionError, asyncio.LimitOverrunError) as error:
                    # What follows cannot be told from garbage: answer and end.
                    text = f"a request is one line of JSON, at most {MAX_REQUEST_BYTES} bytes: {error}"
                    writer.write(encode({"id": None, "error": error_to_json(InvalidArgument(text))}))
                    break
                await slots.acquire()
                task = requests.create_task(self._answer(message, writer))
                task.add_done_callback(lambda _task: slots.release())
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    async def _answer(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        answer = await self._outcome(message)
        if len(answer) > MAX_ANSWER_BYTES:
            error = InvalidArgument(f"the answer has {len(answer)} bytes, too long for one message; ask for less")
            answer = encode({"id": message.get("id"), "error": error_to_json(error)})
        if not writer.is_closing():
            writer.write(answer)
            with contextlib.suppress(ConnectionError):
                await writer.drain()

    async def _outcome(self, message: dict[str, Any]) -> bytes:
        name = message.get("method")
        params = message.get("params", {})
        try:
            known = await asyncio.shield(self.warm())
            method = known.get(name) if isinstance(name, str) else None
            if method is None or not isinstance(params, dict):
                raise InvalidArgument(f"no operation is called {name!r}, or its params are no object")
            arguments = method.parse_parameters(params)
            result = await getattr(self._api, method.name)(**arguments)
            # In a thread: a list of thousands takes longer than the data path may be held up.
            return await asyncio.to_thread(
                lambda: encode({"id": message.get("id"), "result": method.dump_result(result)})
            )
        except EngineError as error:
            failure = error
        except Exception as error:
            log.exception("%s failed by a mistake in twinvol", name)
            failure = EngineError(f"internal error: {error!r}; the daemon's log has more")
        return encode({"id": message.get("id"), "error": error_to_json(failure)})


def _load_methods() -> dict[str, Method]:
    from twinvol.api.methods import methods  # slow: pydantic

    return methods()
