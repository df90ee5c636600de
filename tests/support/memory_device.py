"""A BlockDevice over a bytearray, with faults and slowness on request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.errors import OutOfRange, WriteProtected
from engine.stores import Extent, ExtentState
from engine.units import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.errors import EngineError
    from engine.sanitize import Sanitizer


class MemoryDevice:
    """Sector states are kept one by one, so that ``extents`` is exact.

    ``errors``: what the operation of that name ("read", "write", "flush", ...) raises. ``gate``: while set to an
    unset event, coroutines wait for it before they do anything. ``calls`` records coroutines as (name, offset, length);
    ``called`` is set with the first.
    """

    def __init__(self, size_bytes: int, *, read_only: bool = False, fast: bool = False) -> None:
        """``fast``: whether try_read and try_write do their work."""
        self.data = bytearray(size_bytes)
        self.states = [ExtentState.HOLE] * (size_bytes // SECTOR_SIZE)
        self.read_only = read_only
        self.fast = fast
        self.errors: dict[str, EngineError] = {}
        self.gate: asyncio.Event | None = None
        self.called = asyncio.Event()
        self.calls: list[tuple[str, int, int]] = []
        self.declined: set[int] = set()
        """Offsets that ``try_read`` and ``try_write`` decline."""
        self.fua_writes = 0
        self.atomic_write_bytes = 256 * 1024
        self.sanitizer: Sanitizer | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def resize(self, size_bytes: int) -> None:
        grown = size_bytes - len(self.data)
        if grown >= 0:
            self.data.extend(bytes(grown))
            self.states.extend([ExtentState.HOLE] * (grown // SECTOR_SIZE))
        else:
            del self.data[size_bytes:]
            del self.states[size_bytes // SECTOR_SIZE :]

    def try_read(self, offset: int, view: memoryview, /) -> bool:
        if not self.fast or offset in self.declined or "read" in self.errors:
            return False
        self._check(offset, len(view))
        view[:] = self.data[offset : offset + len(view)]
        return True

    def try_read_each(self, offsets: Sequence[int], view: memoryview, step: int, length: int, /) -> int:
        for done, offset in enumerate(offsets):
            if not self.try_read(offset, view[done * step :][:length]):
                return done
        return len(offsets)

    def try_write(self, offset: int, data: memoryview, /) -> bool:
        if not self.fast or self.read_only or offset in self.declined or "write" in self.errors:
            return False
        self._check(offset, len(data))
        self._store(offset, data, ExtentState.DATA)
        return True

    def try_write_each(self, offsets: Sequence[int], data: memoryview, step: int, length: int, /) -> int:
        for done, offset in enumerate(offsets):
            if not self.try_write(offset, data[done * step :][:length]):
                return done
        return len(offsets)

    def end_pass(self) -> None:
        return

    async def read(self, offset: int, view: memoryview, /) -> None:
        await self._begin("read", offset, len(view))
        view[:] = self.data[offset : offset + len(view)]

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        await self._begin("write", offset, len(data), writes=True)
        self.fua_writes += fua
        self._store(offset, data, ExtentState.DATA)

    async def write_atomic(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        assert len(data) <= self.atomic_write_bytes
        await self._begin("write_atomic", offset, len(data), writes=True)
        self.fua_writes += fua
        self._store(offset, data, ExtentState.DATA)

    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        await self._begin("write_zeroes", offset, length, writes=True)
        self.fua_writes += fua
        self._store(offset, bytes(length), ExtentState.ZERO)

    async def discard(self, offset: int, length: int, /) -> None:
        await self._begin("discard", offset, length, writes=True)
        self._store(offset, bytes(length), ExtentState.HOLE)

    async def flush(self) -> None:
        await self._begin("flush", 0, 0)

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        await self._begin("extents", offset, length)
        found: list[Extent] = []
        for at in range(offset, offset + length, SECTOR_SIZE):
            state = self.states[at // SECTOR_SIZE]
            if found and found[-1].state is state:
                found[-1] = Extent(found[-1].offset, at + SECTOR_SIZE - found[-1].offset, state)
            else:
                found.append(Extent(at, SECTOR_SIZE, state))
        return found

    async def _begin(self, name: str, offset: int, length: int, *, writes: bool = False) -> None:
        self.calls.append((name, offset, length))
        self.called.set()
        if self.gate is not None:
            await self.gate.wait()
        if name in self.errors:
            raise self.errors[name]
        self._check(offset, length)
        if writes and self.read_only:
            raise WriteProtected("the device is read-only")

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset % SECTOR_SIZE or length % SECTOR_SIZE or offset + length > len(self.data):
            raise OutOfRange(offset, length, len(self.data))

    def _store(self, offset: int, data: bytes | memoryview, state: ExtentState) -> None:
        self.data[offset : offset + len(data)] = data
        first = offset // SECTOR_SIZE
        count = len(data) // SECTOR_SIZE
        self.states[first : first + count] = [state] * count
