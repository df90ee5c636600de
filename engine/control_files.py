"""Control files: small files of the engine's own, such as ledgers, that are appended to and read through once.

A seam like ``engine.files``, whose real side is aiofiles (``engine.streams``); the simulation has its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from engine.streams import StreamFile


class ControlFile(Protocol):
    """One open control file."""

    async def size(self) -> int: ...
    async def read(self, offset: int, length: int) -> bytes:
        """What lies beyond the end is zero. The caller has bounded ``length``."""
        ...

    async def write(self, offset: int, data: bytes) -> None:
        """Raises OutOfSpace, MediumError."""
        ...

    async def sync(self) -> None:
        """Everything written is durable when it returns."""
        ...

    async def close(self) -> None: ...


class ControlFiles(Protocol):
    """Opens, makes and removes them."""

    async def open(self, path: Path, /, *, writable: bool) -> ControlFile:
        """Raises NotFound."""
        ...

    async def create(self, path: Path, /) -> ControlFile:
        """A new empty one; its name is durable after ``sync_directory``."""
        ...

    async def remove(self, path: Path, /) -> None:
        """Raises NotFound."""
        ...

    async def sync_directory(self, path: Path, /) -> None: ...


class AioControlFiles:
    """The host's, through aiofiles: imported with the first of them, since most daemons begin without any."""

    async def open(self, path: Path, /, *, writable: bool) -> ControlFile:
        from engine.streams import StreamFile

        return await _opened(StreamFile.open(path, writable=writable))

    async def create(self, path: Path, /) -> ControlFile:
        from engine.streams import StreamFile

        return await _opened(StreamFile.create(path, 0, private=True))

    async def remove(self, path: Path, /) -> None:
        from engine.streams import remove

        await remove(path)

    async def sync_directory(self, path: Path, /) -> None:
        from engine.streams import sync_directory

        await sync_directory(path)


async def _opened(opening: Coroutine[object, object, StreamFile]) -> ControlFile:
    """The file, which is not left open where somebody is cancelled meanwhile: it opens in a thread all the same."""
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            await task.result().close()
        raise
