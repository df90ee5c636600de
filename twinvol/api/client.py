"""The other processes' end of the socket API."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any, cast

from engine.errors_json import error_from_json
from twinvol.api.frames import (
    MAX_ANSWER_BYTES,
    DaemonUnreachable,
    decode,
    encode,
    socket_address,
)
from twinvol.api.methods import methods

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engine.api import EngineApi


@contextlib.asynccontextmanager
async def open_api(pool: Path) -> AsyncIterator[EngineApi]:
    """The API of the daemon that serves ``pool``.

    Raises DaemonUnreachable, here and from every call: no daemon, or the connection broke.
    """
    try:
        with socket_address(pool) as address:
            reader, writer = await asyncio.open_unix_connection(address, limit=MAX_ANSWER_BYTES)
    except OSError as error:
        why = error.strerror or str(error)
        raise DaemonUnreachable(
            f"no daemon answers for pool {pool} ({why}); start one with: twinvol serve --pool {pool}"
        ) from error
    client = _Client(reader, writer)
    receiver = asyncio.create_task(client.receive())
    try:
        # Every method of the protocol is served by ``_Client.__getattr__``.
        yield cast("EngineApi", client)
    finally:
        receiver.cancel()
        await asyncio.wait([receiver])
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class _Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._broken: DaemonUnreachable | None = None

    def __getattr__(self, name: str) -> Any:
        method = methods().get(name)
        if method is None:
            raise AttributeError(name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return method.parse_result(await self._request(name, method.bind(args, kwargs)))

        return call

    async def _request(self, name: str, params: dict[str, Any]) -> Any:
        if self._broken is not None:
            raise self._broken
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(encode({"id": number, "method": name, "params": params}))
            with contextlib.suppress(ConnectionError):  # the receiver says what happened
                await self._writer.drain()
            return await future
        finally:
            del self._waiting[number]

    async def receive(self) -> None:
        """Give answers to their callers until the connection ends."""
        reason = "the daemon closed the connection; it was stopped or died"
        try:
            while True:
                message = decode(await self._reader.readuntil())
                future = self._waiting.get(message["id"])
                if future is None or future.done():
                    continue
                if "error" in message:
                    future.set_exception(error_from_json(message["error"]))
                else:
                    future.set_result(message["result"])
        except (OSError, EOFError):
            pass
        except (ValueError, KeyError, asyncio.LimitOverrunError) as error:
            reason = f"the daemon's answer is not understood: {error}"
        finally:
            self._broken = DaemonUnreachable(reason)
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(self._broken)
