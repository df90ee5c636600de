"""A link between two peers that misbehaves on request: it is cut, refuses, stalls, spoils, or counts what passes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PIECE_BYTES = 1 << 16


class LinkProxy:
    """Passes connections on to ``target`` (host, port). Made by ``running``."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.connections = 0
        self.forward_bytes = 0
        """Towards the target."""
        self.refuse = False
        self.cut_after_bytes: int | None = None
        """Every connection is cut, together, when so many more bytes have gone towards the target;"""
        self.cut_again_bytes: int | None = None
        """and then again and again after so many."""
        self.cuts = 0
        self.stall_after_bytes: int | None = None
        """It stalls when so many bytes in all have gone towards the target; then ``stalled`` is set."""
        self.stalled = asyncio.Event()
        self.address = ""
        self.spoil_next = False
        """One bit of the next piece towards the target is flipped."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, target: tuple[str, int]) -> AsyncIterator[LinkProxy]:
        proxy = cls(target)
        server = await asyncio.start_server(proxy._accepted, "127.0.0.1", 0)
        proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield proxy
        finally:
            server.close()
            proxy.resume()
            proxy.cut()
            while proxy._tasks:
                await asyncio.wait(set(proxy._tasks))

    def cut(self) -> None:
        """Reset every connection that is open."""
        for writer in list(self._open):
            writer.transport.abort()

    def stall(self) -> None:
        """Nothing gets through, and nothing breaks."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            if self.refuse:
                return
            self.connections += 1
            there, there_writer = await asyncio.open_connection(*self.target)
            self._open.add(there_writer)
            try:
                ways = [
                    asyncio.ensure_future(self._pass(reader, there_writer, forward=True)),
                    asyncio.ensure_future(self._pass(there, writer, forward=False)),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
            finally:
                self._open.discard(there_writer)
                there_writer.close()
        except OSError:
            return
        except asyncio.CancelledError:
            return  # the test's loop ends
        finally:
            self._open.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, forward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                await self._flowing.wait()
                if forward:
                    self.forward_bytes += len(data)
                    if self.stall_after_bytes is not None and self.forward_bytes >= self.stall_after_bytes:
                        self.stall_after_bytes = None
                        self.stall()
                        self.stalled.set()
                    if self.spoil_next:
                        self.spoil_next = False
                        data = data[:-1] + bytes([data[-1] ^ 1])
                    if self.cut_after_bytes is not None:
                        self.cut_after_bytes -= len(data)
                        if self.cut_after_bytes <= 0:
                            self.cut_after_bytes = self.cut_again_bytes
                            self.cuts += 1
                            self.cut()
                            return
                writer.write(data)
                await writer.drain()
