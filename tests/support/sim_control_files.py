"""Control files on the simulated machine: each call is one call of a simulated worker, where a crash may end it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.sim_files import SimBlockFile, SimFileSystem
    from tests.support.sim_loop import SimWorkers


class SimControlFile:
    """``engine.control_files.ControlFile``."""

    def __init__(self, file: SimBlockFile, workers: SimWorkers) -> None:
        self._file = file
        self._workers = workers

    async def size(self) -> int:
        return await self._workers.run(self._file.size)

    async def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        await self._workers.run(lambda: self._file.read_into([memoryview(data)], offset))
        return bytes(data)

    async def write(self, offset: int, data: bytes) -> None:
        await self._workers.run(lambda: self._file.write([memoryview(data)], offset))

    async def sync(self) -> None:
        await self._workers.run(self._file.sync_data)

    async def close(self) -> None:
        await self._workers.run(self._file.close)


class SimControlFiles:
    """``engine.control_files.ControlFiles``."""

    def __init__(self, files: SimFileSystem, workers: SimWorkers) -> None:
        self._files = files
        self._workers = workers

    async def open(self, path: Path, /, *, writable: bool) -> SimControlFile:
        return SimControlFile(await self._workers.run(lambda: self._files.open(path, writable=writable)), self._workers)

    async def create(self, path: Path, /) -> SimControlFile:
        return SimControlFile(await self._workers.run(lambda: self._files.create(path)), self._workers)

    async def remove(self, path: Path, /) -> None:
        await self._workers.run(lambda: self._files.remove(path))

    async def sync_directory(self, path: Path, /) -> None:
        await self._workers.run(lambda: self._files.sync_directory(path))
