"""What may differ at a mirror's target that has no snapshots: a durable note of the regions written since a point.

Such a target is one disk, written in place. It *is* a recovery point of the source at the moments when a round or a
marker has ended, and from then on it is that point but for what was written since. This file says which point, and
where: a region of 4 MiB is *marked*, durably, before a write to it is submitted. So whatever crashed, on either side,
everything in which target and point may differ lies in marked regions; that is what the next round looks at.

    slot 0, slot 1 (4 KiB each)   which disk, its points, whether a round is half done; the newer valid one counts
    blocks of 4 KiB               one bit for each region, with a checksum

Invariants:

* A mark is durable before the write that needs it is submitted. What an opening finds is written once more: that it
  can be read does not say that it is durable.
* A point is added only when the disk is that point, durably; marks then still speak of the older points, too. Marks are
  cleaned only after a slot is durable that names no older point any more.
* A region whose writes come again and again stays marked through ``HYSTERESIS`` points: no sync for each of them.
* What lies beyond the end of a point is not in any mark, and may be anything.
* What cannot be read counts as marked; without a valid slot there is no point. Both cost comparing, never data.

In RAM there is one byte for each region, its *heat*, and its bit as the file has it.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Self

import google_crc32c
import numpy as np

from engine.errors import InvalidState, NotFound
from engine.stores import Extent
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine
    from pathlib import Path

    from engine.control_files import ControlFile, ControlFiles

REGION_BYTES = 4 * MIB
"""One mark: small enough to be compared in a blink, large enough that few writes need a new one."""

HYSTERESIS = 2
"""So many further points a region stays marked after its last write by a host."""

MAX_POINTS = 16
"""More are only there when as many markers in a row were cut off before they counted; the oldest but one goes."""

BLOCK_BYTES = 4 * KIB
MAX_IDENTITY_BYTES = 2048

_SLOT = struct.Struct("<4sHHQQQHHI")
"""Magic, version, flags, sequence, sizes of the disk and of the round, bytes of the disk's identity, points, CRC of all
with this one 0. Then the identity, and the points."""
_SLOT_MAGIC, _VERSION = b"TVAL", 1
_STAGING, _FROZEN = 1, 2
"""Flags: a round is half done; the last GUID is ``frozen``."""
_POINT = struct.Struct("<36sQ")
"""GUID and size."""
_BLOCK = struct.Struct("<4sII")
"""Magic, number, CRC of number and bits. Then the bits."""
_BLOCK_MAGIC = b"TVAB"
_BLOCKS_AT = 2 * BLOCK_BYTES
REGIONS_PER_BLOCK = (BLOCK_BYTES - _BLOCK.size) * 8

_CLEAN, _COPIED, _WRITTEN = 0, 254, 255
"""Heat: 1 to 1 + HYSTERESIS counts points down; the last two were touched after the newest point: by a round (or nobody
knows by whom), or by a host."""


class ActivityLog:
    """See the module. Made by ``open`` and ``begin``.

    Attributes:
        disk: the identity of the disk that it speaks of.
        size_bytes: of that disk.
        points: GUIDs of what the disk was, oldest first, each with its size; beyond that the disk may be anything.
        frozen: a further GUID, of the disk as it is, whatever that is; no point of the source.
        staging_bytes: a round is half done that makes it a point of this size; None: there is none.
    """

    def __init__(self, files: ControlFiles, path: Path, disk: str, size_bytes: int) -> None:
        self.path = path
        self.disk = disk
        self.size_bytes = size_bytes
        self.points: dict[str, int] = {}
        self.frozen: str | None = None
        self.staging_bytes: int | None = None
        regions = -(-size_bytes // REGION_BYTES)
        self._heat = np.full(regions, _COPIED, np.uint8)
        self._on_disk = np.ones(regions, bool)
        self._files = files
        self._file: ControlFile | None = None
        self._sequence = 0
        self._lock = asyncio.Lock()
        self._work: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, files: ControlFiles, path: Path) -> Self | None:
        """What is at ``path``; None: nothing, or no whole slot of it."""
        try:
            file = await files.open(path, writable=True)
        except NotFound:
            return None
        log = None
        try:
            slots = [cls._parse_slot(files, path, await file.read(at, BLOCK_BYTES)) for at in (0, BLOCK_BYTES)]
            log = max((slot for slot in slots if slot is not None), key=lambda slot: slot._sequence, default=None)
            if log is not None:
                log._file = file
                await log._read_marks(file)
                await log._uncancelled(log._write_all)
        except BaseException:
            await (file if log is None else log).close()
            raise
        if log is None:
            await file.close()
        return log

    @classmethod
    async def begin(cls, files: ControlFiles, path: Path, disk: str, size_bytes: int) -> Self:
        """A new one, durable, of a disk about which nothing is known; whatever is at ``path`` goes."""
        assert len(disk.encode()) <= MAX_IDENTITY_BYTES
        await cls.discard(files, path)
        log = cls(files, path, disk, size_bytes)
        log._file = await files.create(path)
        await log._uncancelled(log._write_slot)
        await files.sync_directory(path.parent)
        return log

    @classmethod
    async def discard(cls, files: ControlFiles, path: Path) -> None:
        """Remove what is at ``path``, durably. Also right when there is nothing."""
        try:
            await files.remove(path)
        except NotFound:
            return
        await files.sync_directory(path.parent)

    async def close(self) -> None:
        """What was begun has ended when it returns; nothing can be marked any more."""
        while self._work:
            await asyncio.wait(set(self._work))
        file, self._file = self._file, None
        if file is not None:
            await file.close()

    # --- marks ------------------------------------------------------------------------------------------------------

    def mark_now(self, offset: int, length: int, *, host: bool) -> bool:
        """Whether an extent is marked durably already; from this step on it stays so. ``host``: a write of a host,
        whose like may follow. False: nothing may be submitted before ``mark`` has returned."""
        cells = slice(offset // REGION_BYTES, -(-(offset + length) // REGION_BYTES))
        heat = self._heat[cells]
        np.maximum(heat, _WRITTEN if host else _COPIED, out=heat)
        return bool(self._on_disk[cells].all())

    async def mark(self, offset: int, length: int, *, host: bool) -> None:
        """Return when an extent is marked durably. Raises OutOfSpace, MediumError, InvalidState (closed)."""
        while not self.mark_now(offset, length, host=host):
            await self._uncancelled(self._write_marks)

    @property
    def newest(self) -> str | None:
        """The last point that was added."""
        return next(reversed(self.points), None)

    def marked(self) -> list[Extent]:
        """Where the disk may differ from each of its points, as far as the smallest of them reaches."""
        edges = np.flatnonzero(np.diff(np.concatenate(([0], self._heat != _CLEAN, [0]))))
        return [
            Extent(first * REGION_BYTES, min(end * REGION_BYTES, self.size_bytes) - first * REGION_BYTES)
            for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        ]

    # --- points: whoever calls these sees to it that nothing writes to the disk meanwhile ----------------------------

    async def begin_staging(self, size_bytes: int) -> None:
        """A round writes to the disk from now on; it is to be of that size."""
        await self._uncancelled(lambda: self._change(self.points, self.frozen, size_bytes))

    async def abort_staging(self) -> None:
        """What a round has written so far is of no use to a later one."""
        if self.staging_bytes is not None:
            await self._uncancelled(lambda: self._change(self.points, None, None))

    async def freeze(self, guid: str) -> None:
        """``guid`` names the disk as it is."""
        await self._uncancelled(lambda: self._change(self.points, guid, None))

    async def add_point(self, guid: str, size_bytes: int) -> None:
        """The disk is ``guid``, and the caller has made that durable there; no round is half done any more."""
        await self._uncancelled(lambda: self._add_point(guid, size_bytes))

    async def keep_points(self, guids: Collection[str]) -> None:
        """Forget every other point, and clean what only those needed."""
        await self._uncancelled(lambda: self._keep(guids))

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _uncancelled(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """One change of the file at a time, each to its end: a write that is given up could land after a later one."""

        async def run() -> None:
            async with self._lock:
                await work()

        task = asyncio.get_running_loop().create_task(run())
        self._work.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked for it may have gone

    async def _write_marks(self) -> None:
        """Of all who wait by now, with one sync."""
        file = self._open_file()
        wanted = (self._heat != _CLEAN) & ~self._on_disk
        blocks = np.unique(np.flatnonzero(wanted) // REGIONS_PER_BLOCK).tolist()
        for block in blocks:
            cells = _cells(block)
            await self._write_block(file, block, self._on_disk[cells] | wanted[cells])
        if blocks:
            await file.sync()
        self._on_disk |= wanted

    async def _write_all(self) -> None:
        """What was read, durably: a process that was killed, or whose sync failed, may have written it and no more."""
        self._on_disk[:] = False
        await self._write_marks()
        await self._write_slot()

    async def _add_point(self, guid: str, size_bytes: int) -> None:
        points = {point: size for point, size in self.points.items() if point != guid} | {guid: size_bytes}
        if len(points) > MAX_POINTS:
            del points[list(points)[1]]
        await self._change(points, None, None)
        self._heat[self._heat == _COPIED] = 1
        self._heat[self._heat == _WRITTEN] = 1 + HYSTERESIS

    async def _keep(self, guids: Collection[str]) -> None:
        kept, newest = {point: size for point, size in self.points.items() if point in guids}, self.newest
        if kept != self.points or self.frozen is not None:
            await self._change(kept, None, self.staging_bytes)
        if newest is not None and list(kept) == [newest]:
            self._heat[(self._heat > _CLEAN) & (self._heat < _COPIED)] -= 1
            await self._clean()

    async def _clean(self) -> None:
        """Not durable, and need not be: a mark too many costs comparing."""
        file = self._open_file()
        for block in np.unique(np.flatnonzero(self._on_disk & (self._heat == _CLEAN)) // REGIONS_PER_BLOCK).tolist():
            cells = _cells(block)
            bits = self._on_disk[cells] & (self._heat[cells] != _CLEAN)
            self._on_disk[cells] = bits  # in the step that decides: whoever marks from now on waits for a new write
            await self._write_block(file, block, bits)

    async def _change(self, points: dict[str, int], frozen: str | None, staging_bytes: int | None) -> None:
        """Durably. One that fails is as if it had not been asked for; the file may have it all the same."""
        before = self.points, self.frozen, self.staging_bytes
        self.points, self.frozen, self.staging_bytes = points, frozen, staging_bytes
        try:
            await self._write_slot()
        except BaseException:
            self.points, self.frozen, self.staging_bytes = before
            raise

    async def _write_slot(self) -> None:
        """Over the older one; the newer stays until this one is durable."""
        file, sequence = self._open_file(), self._sequence + 1
        await file.write(sequence % 2 * BLOCK_BYTES, self._serialize_slot(sequence))
        await file.sync()
        self._sequence = sequence

    def _serialize_slot(self, sequence: int) -> bytes:
        points = [*self.points.items(), *([(self.frozen, 0)] if self.frozen is not None else [])]
        flags = (0 if self.staging_bytes is None else _STAGING) | (0 if self.frozen is None else _FROZEN)
        identity = self.disk.encode()
        tail = identity + b"".join(_POINT.pack(guid.encode(), size) for guid, size in points)
        sizes = self.size_bytes, self.staging_bytes or 0
        fields = (_SLOT_MAGIC, _VERSION, flags, sequence, *sizes, len(identity), len(points))
        checksum = google_crc32c.value(_SLOT.pack(*fields, 0) + tail)
        return (_SLOT.pack(*fields, checksum) + tail).ljust(BLOCK_BYTES, b"\0")

    @classmethod
    def _parse_slot(cls, files: ControlFiles, path: Path, data: bytes) -> Self | None:
        *fields, checksum = _SLOT.unpack_from(data)
        magic, version, flags, sequence, size_bytes, staging_bytes, identity_bytes, count = fields
        end = _SLOT.size + identity_bytes + count * _POINT.size
        if (magic, version) != (_SLOT_MAGIC, _VERSION) or count > MAX_POINTS + 1 or end > BLOCK_BYTES:
            return None
        tail = data[_SLOT.size : end]
        if google_crc32c.value(_SLOT.pack(*fields, 0) + tail) != checksum:
            return None
        log = cls(files, path, tail[:identity_bytes].decode(), size_bytes)
        points = [(guid.rstrip(b"\0").decode(), size) for guid, size in _POINT.iter_unpack(tail[identity_bytes:])]
        log.frozen = points.pop()[0] if flags & _FROZEN else None
        log.points, log._sequence = dict(points), sequence
        log.staging_bytes = staging_bytes if flags & _STAGING else None
        return log

    async def _read_marks(self, file: ControlFile) -> None:
        for block in range(-(-len(self._heat) // REGIONS_PER_BLOCK)):
            data = await file.read(_BLOCKS_AT + block * BLOCK_BYTES, BLOCK_BYTES)
            magic, number, checksum = _BLOCK.unpack_from(data)
            if magic == _BLOCK_MAGIC and checksum == _checksum(number, data[_BLOCK.size :]) and number == block:
                cells = _cells(block)
                marks = np.unpackbits(np.frombuffer(data, np.uint8, offset=_BLOCK.size)).astype(bool)
                self._on_disk[cells] = marks[: len(self._on_disk[cells])]
        self._heat[~self._on_disk] = _CLEAN

    async def _write_block(self, file: ControlFile, block: int, bits: np.ndarray) -> None:
        data = np.packbits(bits).tobytes().ljust(BLOCK_BYTES - _BLOCK.size, b"\0")
        header = _BLOCK.pack(_BLOCK_MAGIC, block, _checksum(block, data))
        await file.write(_BLOCKS_AT + block * BLOCK_BYTES, header + data)

    def _open_file(self) -> ControlFile:
        if self._file is None:
            raise InvalidState("an activity log", "closed", "open")
        return self._file


def _cells(block: int) -> slice:
    return slice(block * REGIONS_PER_BLOCK, (block + 1) * REGIONS_PER_BLOCK)


def _checksum(number: int, bits: bytes) -> int:
    return int(google_crc32c.value(struct.pack("<I", number) + bits))
